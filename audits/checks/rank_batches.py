"""Whether the processes of a training share its data out."""

from itertools import combinations

from kdbench.audits.checks.among_ranks import averaging, several
from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, undecided
from kdbench.audits.infer.ranks import RankSeen
from kdbench.audits.trace import Trace

_FEWEST = 2
"Batches that both of two ranks were seen to learn from."


@audit(
    "KD361",
    severity="error",
    phase="end",
    mend="sampler = DistributedSampler(train_set); DataLoader(train_set, sampler=sampler); call "
    "sampler.set_epoch(epoch) before each epoch",
)
def rank_batches(trace: Trace) -> Verdict:
    """Each process of a training learns from samples of its own, and the share changes from epoch to epoch.

    Fails when two ranks that average their gradients are shown the same rows in every batch: then the second one
    computes the gradient of the first again, at twice the cost. Without a DistributedSampler, or with one that is told
    the same rank everywhere, a seeded loader does that. Warns where a shuffling DistributedSampler is gone through
    again under the same epoch: without set_epoch every epoch has the same order and the same share. Warns, too, where
    ranks that exchange nothing end with the same weights: each did the whole work. Training with one sample set on
    purpose (tensor parallelism) is no averaging over these ranks and is not judged.
    """
    ranks = several(trace)
    if isinstance(ranks, Verdict):
        return ranks
    common = {(a.rank, b.rank): _compared(a, b) for a, b in combinations(ranks, 2)}
    seen = {pair: counts for pair, counts in common.items() if counts[1] >= _FEWEST}
    same = [pair for pair, (equal, both) in seen.items() if equal == both]
    if same and averaging(ranks):
        (a, b), (count, _) = same[0], seen[same[0]]
        return failed(
            f"ranks {a} and {b} learn from the same samples: {count} of {count} batches are equal row by row",
            {"batches": count, "pairs": [list(pair) for pair in same]},
            ranks[a].batch_where,
        )
    stuck = next((r for r in ranks if len(r.epochs) > 1 and len(set(r.epochs)) == 1), None)
    if stuck is not None and averaging(ranks):
        return failed(
            f"the DistributedSampler was gone through {len(stuck.epochs)} times and its epoch is {stuck.epochs[0]} "
            "each time: every epoch has the same order, and each rank the same share",
            {"epochs": stuck.epochs},
            stuck.sampler_where,
            severity="warn",
        )
    if same and ranks[same[0][0]].student_last and ranks[same[0][0]].student_last == ranks[same[0][1]].student_last:
        (a, b), (count, _) = same[0], seen[same[0]]
        return failed(
            f"ranks {a} and {b} learn the same from the same samples, and no gradient passes between them: each does "
            "the whole work by itself",
            {"batches": count, "pairs": [list(pair) for pair in same]},
            ranks[a].batch_where,
            severity="warn",
        )
    if same:
        return undecided("out-of-scope", "ranks learn from the same samples, and are not seen to average gradients")
    if not seen:
        return undecided("not-in-these-steps", "too few batches of two ranks were seen", "steps")
    return passed(f"no two ranks learn from the same batches ({min(both for _, both in seen.values())} compared)")


def _compared(a: RankSeen, b: RankSeen) -> tuple[int, int]:
    """Return how many batches are equal, and how many both saw."""
    both = [number for number in a.batches if number in b.batches]
    return sum(a.batches[n] == b.batches[n] for n in both), len(both)
