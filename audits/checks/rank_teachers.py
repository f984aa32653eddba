"""Whether the processes of a training have one teacher."""

from kdbench.audits.checks.among_ranks import differing, several
from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, some, undecided
from kdbench.audits.trace import Trace


@audit(
    "KD362",
    severity="error",
    phase="end",
    follows=("KD104", "KD301", "KD302"),
    mend="load the teacher from one file on every rank, or send rank 0's: for t in teacher.state_dict().values(): "
    "dist.broadcast(t, 0). Make an averaged teacher of the student after DDP has wrapped it",
)
def rank_teachers(trace: Trace) -> Verdict:
    """All processes of a training ask the same teacher.

    Fails when parameters or buffers of the teacher differ between ranks at the first distillation step. A teacher that
    each rank draws or trains by itself differs, and so does one that is copied from the student before
    DistributedDataParallel gives all ranks the student of rank 0. Sharded teachers, of which each rank holds a part,
    are not judged.
    """
    ranks = several(trace)
    if isinstance(ranks, Verdict):
        return ranks
    if any(seen.teacher_parts for seen in ranks):
        return undecided("out-of-scope", "the teacher is shared out: each rank holds a part of it")
    names, count = differing(ranks, lambda seen: seen.teacher)
    if not count:
        return undecided("no-teacher-seen", "no network that teaches was seen on every rank")
    if names:
        return failed(
            f"the ranks hold different teachers: {len(names)} of {count} tensors differ at the first distillation "
            f"step: {some(names)}",
            {"tensors": names},
            ranks[0].teacher_where,
        )
    return passed(f"all {count} tensors of the teacher are the same on {len(ranks)} ranks")
