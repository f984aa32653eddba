"""Whether gradients are clipped when all processes have added theirs."""

from kdbench.audits.checks.among_ranks import several
from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, undecided
from kdbench.audits.trace import Trace

_FEWEST = 2
"Steps that show the order."


@audit(
    "KD365",
    severity="error",
    phase="end",
    mend="average first: for p in student.parameters(): dist.all_reduce(p.grad); p.grad /= world; then clip_grad_norm_",
)
def rank_clip(trace: Trace) -> Verdict:
    """Gradients are averaged over the processes of a training before they are clipped.

    Fails where a script that averages gradients by hand clips each rank's own and averages afterwards: the bound then
    acts on another gradient than the one that is stepped, and more often, since one rank's is noisier than the mean.
    DistributedDataParallel averages within the backward, so every clip comes after it.
    """
    ranks = several(trace)
    if isinstance(ranks, Verdict):
        return ranks
    early = next((seen for seen in ranks if seen.clipped_early >= _FEWEST), None)
    if early is not None and early.clipped_early == early.clipped:
        return failed(
            f"gradients are clipped before they are averaged over the ranks, in all of {early.clipped} steps",
            {"steps": early.clipped},
            early.clip_where,
        )
    if ranks[0].wrapped and any(c.grown for s in trace.updates.steps for c in s.clips):
        return undecided(
            "out-of-scope",
            "a clip lies between two backwards of a step; within no_sync() it acts on one rank's own gradients",
        )
    if ranks[0].wrapped:
        return passed(f"{ranks[0].wrapped} averages the gradients within the backward, before any clip")
    if all(seen.clipped >= _FEWEST and not seen.clipped_early for seen in ranks):
        return passed(f"the ranks averaged their gradients before the clip in {ranks[0].clipped} steps")
    return undecided("no-clip-call", "no clip beside an exchange of gradients between ranks was seen")
