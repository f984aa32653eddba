"""Whether an averaged teacher has the same running statistics in all processes."""

from kdbench.audits.checks.among_ranks import differing, several
from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, some, undecided
from kdbench.audits.trace import Trace


@audit(
    "KD364",
    severity="warn",
    phase="end",
    follows=("KD362",),
    mend="use nn.SyncBatchNorm.convert_sync_batchnorm(student), or send rank 0's statistics before they are averaged: "
    "for b in student.buffers(): dist.broadcast(b, 0)",
)
def rank_buffers(trace: Trace) -> Verdict:
    """An averaged teacher has the same running statistics in all processes.

    Warns when floating buffers of a teacher that follows the student differ between ranks after the same number of
    steps. DistributedDataParallel sends rank 0's statistics when the student is called, and each rank's batch then
    moves them apart; copied into the teacher after that, they make it another function on every rank.
    """
    ranks = several(trace)
    if isinstance(ranks, Verdict):
        return ranks
    if not all(seen.follows for seen in ranks):
        return undecided("out-of-scope", "the teacher is no average of the student")
    if len({seen.steps for seen in ranks}) > 1:
        return undecided("not-in-these-steps", "the ranks were not seen after the same number of steps")
    names, count = differing(ranks, lambda seen: seen.teacher_buffers)
    if not count:
        return undecided("out-of-scope", "the averaged teacher has no running statistics")
    if names:
        return failed(
            f"the averaged teacher's running statistics differ between ranks after {ranks[0].steps} steps: "
            f"{len(names)} of {count} buffers: {some(names)}",
            {"buffers": names},
            ranks[0].teacher_where,
        )
    return passed(f"all {count} running statistics of the averaged teacher are the same on {len(ranks)} ranks")
