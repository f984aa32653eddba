"""Whether a token has one weight on all processes of a training."""

from kdbench.audits.checks.among_ranks import averaging, several
from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, undecided
from kdbench.audits.infer.ranks import RankSeen
from kdbench.audits.trace import Trace

_EQUAL = 3e-3
"Share by which two weights read off gradients may differ and be one."
_OTHER_COUNT = 0.05
"Share by which numbers of tokens must differ, so that a weight that goes with them tells itself from an equal one."


@audit(
    "KD366",
    severity="warn",
    phase="end",
    follows=("KD351", "KD352"),
    mend="add up the tokens of all ranks, dist.all_reduce(count), and divide the sum over tokens by count / world: "
    "DistributedDataParallel divides by world once more",
)
def rank_tokens(trace: Trace) -> Verdict:
    """In one optimizer step each token that is distilled has one weight, on whichever process it lies.

    Warns where each rank divides by its own tokens and the ranks' gradients are averaged: a token of a rank with few
    of them weighs more. Decided only where ranks had different numbers of tokens in one step; equal ones prove nothing.
    """
    ranks = several(trace)
    if isinstance(ranks, Verdict):
        return ranks
    if not averaging(ranks):
        return undecided("out-of-scope", "the ranks are not seen to average gradients")
    alike = False
    for number in ranks[0].tokens:
        found = [seen.tokens[number] for seen in ranks if number in seen.tokens]
        loose = max(_EQUAL, *(2 * residual for *_, residual in found))
        counts, weights = [n for n, *_ in found], [w for _, w, _ in found]
        if len(found) < len(ranks) or max(counts) < (1 + max(_OTHER_COUNT, 4 * loose)) * min(counts):
            continue
        if _are_one([w * n for w, n in zip(weights, counts, strict=True)], loose):
            return _local(ranks, counts, weights)
        alike = alike or _are_one(weights, loose)
    if alike:
        return passed("a token has the same weight on every rank")
    return undecided("not-in-these-steps", "no step was seen in which ranks distilled different numbers of tokens")


def _are_one(values: list[float], tolerance: float) -> bool:
    return min(values) > 0 and max(values) <= (1 + tolerance) * min(values)


def _local(ranks: list[RankSeen], counts: list[float], weights: list[float]) -> Verdict:
    few, many = counts.index(min(counts)), counts.index(max(counts))
    return failed(
        f"each rank divides by its own tokens: one of the {counts[few]:.0f} tokens of rank {few} weighs "
        f"{weights[few] / weights[many]:.3g} times one of the {counts[many]:.0f} of rank {many}",
        {"tokens": counts, "weights": weights},
        ranks[few].token_where,
    )
