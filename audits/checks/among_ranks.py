"""What the audits over several processes have in common."""

from collections.abc import Callable, Mapping, Sequence

from kdbench.audits.checks.catalogue import Verdict, no_distillation, undecided
from kdbench.audits.infer.ranks import RankSeen
from kdbench.audits.trace import Trace

PREFIX = "rank-"
"How the names of these audits begin: rank 0 judges them for all."


def several(trace: Trace) -> list[RankSeen] | Verdict:
    """Return what each process held, or why nothing can be said: one process, or one that saw no distillation."""
    if len(trace.ranks) < 2:
        return undecided("out-of-scope", "the training has one process, or not every process reported")
    if not trace.losses.sights or not all(seen.began for seen in trace.ranks):
        return no_distillation(trace)
    return list(trace.ranks)


def averaging(ranks: Sequence[RankSeen]) -> bool:
    """Say whether all ranks average the gradients of one student."""
    return all(seen.peers == [r.rank for r in ranks] or (seen.exchanged and not seen.wrapped) for seen in ranks)


def differing(ranks: Sequence[RankSeen], of: Callable[[RankSeen], Mapping[str, str]]) -> tuple[list[str], int]:
    """Return the names under which ranks hold different numbers, and how many names there are."""
    held = [of(seen) for seen in ranks]
    names = [name for name in held[0] if all(name in other for other in held)]
    return [name for name in names if len({other[name] for other in held}) > 1], len(names)
