"""Whether the processes of a training train one student."""

from kdbench.audits.checks.among_ranks import averaging, differing, several
from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, some, undecided
from kdbench.audits.trace import Trace


@audit(
    "KD363",
    severity="error",
    phase="end",
    mend="wrap the student: student = DistributedDataParallel(student), and call the wrapper, not student.module; it "
    "gives all ranks rank 0's weights and averages the gradients",
)
def rank_students(trace: Trace) -> Verdict:
    """All processes of a training hold the same student, before the first step and after the last one seen.

    Fails when its parameters differ between ranks that average gradients at the first distillation step (nobody
    broadcast them), or are equal there and differ after the same number of steps (the gradients are not averaged:
    the wrapper is passed by, or there is none although the data is shared out by a DistributedSampler). Ranks that
    exchange nothing and share no data out may be runs of their own, and are not judged.
    """
    ranks = several(trace)
    if isinstance(ranks, Verdict):
        return ranks
    first, count = differing(ranks, lambda seen: seen.student)
    if not count:
        return undecided("out-of-scope", "the student is shared out: each rank holds a part of it")
    together = averaging(ranks) or all(seen.splits for seen in ranks)
    if first and averaging(ranks):
        return failed(
            f"the ranks begin with different students, and average their gradients: {len(first)} of {count} parameters "
            f"differ at the first step: {some(first)}",
            {"parameters": first},
            ranks[0].batch_where,
        )
    if len({seen.steps for seen in ranks}) > 1:
        return undecided("not-in-these-steps", "the ranks were not seen after the same number of steps")
    last, _ = differing(ranks, lambda seen: seen.student_last)
    if last and together and not (any(seen.exchanged for seen in ranks) and not ranks[0].wrapped):
        why = "the wrapper does not see the gradients" if ranks[0].wrapped else "nothing averages the gradients"
        return failed(
            f"the ranks train students of their own: after {ranks[0].steps} steps {len(last)} of {count} parameters "
            f"differ, and {why}: {some(last)}",
            {"parameters": last},
            ranks[0].batch_where,
        )
    if last:
        return undecided(
            "out-of-scope", "the students differ between ranks; whether they are meant to be one was not seen"
        )
    return passed(f"all {count} parameters of the student are the same on {len(ranks)} ranks, first and last")
