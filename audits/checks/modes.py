"""In which mode the networks answer, and whether the teacher stays what it was."""

from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, some, undecided
from kdbench.audits.trace import Change, Trace


@audit(
    "KD301",
    severity="error",
    phase="burn-in",
    follows=("KD102",),
    mend="teacher.eval() before the first batch and after every call of train() that reaches it; "
    "ask it under torch.no_grad()",
)
def teacher_mode(trace: Trace) -> Verdict:
    """The teacher answers in evaluation mode and is not trained along.

    Fails when a norm or dropout of the teacher, be it a layer or a function, answers as in training where its answer
    reaches the loss, or the teacher's parameters get a gradient by which an optimizer moves them. A gradient that moves
    nothing is a warning: it costs memory and time. What the student's own features go through, as a classifier of the
    teacher's, is no part of this.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    if trace.peers:
        return undecided("out-of-scope", "the teacher has a loss of its own, as where peers teach each other")
    follows = trace.teacher.change is not None and trace.teacher.change.follows
    live = [s for s in trace.losses.sights if s.teacher and not (s.cached and not s.teacher_training)]
    for sight in live:
        if sight.teacher_training and not follows:
            return failed(
                f"{len(sight.teacher_training)} layers of the teacher answered in training mode: "
                f"{some(sight.teacher_training, 4)}",
                {"layers": sight.teacher_training[:20], "teacher": sight.teacher},
                sight.teacher_where or sight.where,
            )
    cut = bool(live) and all(s.student_frozen for s in trace.losses.sights)
    if cut and any(s.teacher_leaves for s in live):
        return undecided("out-of-scope", "the student gets no gradient at all, and the teacher in its place")
    for sight in live:
        if sight.teacher_leaves:
            moved = bool({*sight.teacher_leaves} & {*(trace.teacher.stepped or [])})
            return failed(
                f"the loss gives a gradient to {len(sight.teacher_leaves)} parameters of the teacher: "
                f"{some(sight.teacher_leaves, 3)}"
                + ("" if moved else "; nothing steps them, so it is memory and time for nothing"),
                {"parameters": sight.teacher_leaves[:20], "teacher": sight.teacher},
                sight.teacher_where or sight.where,
                None if moved else "warn",
            )
    if follows:
        return undecided("out-of-scope", "the teacher is a moving average of the student, in whichever mode")
    for sight in live:
        if sight.teacher_grad:
            return failed(
                "the teacher's answer carries a gradient that no parameter of it gets: memory for nothing",
                {"teacher": sight.teacher},
                sight.teacher_where or sight.where,
                "warn",
            )
    if not live:
        return undecided(
            "no-teacher-seen", "no live teacher reached the loss: its answers are stored, or none is there"
        )
    if any(s.teacher_in_training for s in live):
        return undecided(
            "mode-independent",
            f"the teacher ({live[0].teacher}) answered in training mode, in which it cannot differ: nothing in it "
            "drops or takes norms over the batch",
        )
    return passed(f"the teacher ({live[0].teacher}) answered in evaluation mode, without a gradient")


_STILL = 0.2
"Part of a teacher's numbers that must move in the updates of an average in half precision."
_INVERTED, _COPIED, _EVEN, _SEVERAL = 0.5, 0.9999, 0.05, 4
"""Share of the student from which an average is none any more, that from which it is a copy on purpose, the spread up
to which the shares are one, unlike those of a decay that is warmed up, and the updates which that takes."""

_WARM, _WEAK = 16, 0.3
"""Updates after which a decay that is warmed up has left its beginning, and the share of the student from which an
average is hardly one: published decays keep nine tenths or more."""
_BETWEEN = 0.4
"Part of the updates that follow no step from which they are a rule: two backwards to a step make it a half."


def _average(trace: Trace, change: Change) -> Verdict | None:
    """Hold a teacher to which somebody writes step by step to the law of an average; None where it obeys."""
    place = trace.losses.sights[0].where if trace.losses.sights else None
    observed = {"updates": change.updates, "rate": change.average_rate, "moved_share": change.moved_share}
    if change.forgotten:
        return failed(
            "the teacher is a twin of the student, begun from the student's own start, and nothing was loaded into it, "
            "trained it or averages it: it stands still",
            observed,
            place,
            mend="call the update of the average after each optimizer.step()",
        )
    if change.copy_beside:
        return failed(
            f"{change.copy_beside} is a copy of the student as it began, stands still, and is asked about what another "
            "copy of it makes, which stands still as well: if it is to follow the student, nothing updates it",
            observed,
            place,
            "warn",
            mend="update every averaged copy after each optimizer.step(), this one too",
        )
    if change.updates < 2 or change.by_optimizer:
        return None
    if change.moved_share is not None and change.moved_share < _STILL and change.dtype in ("bfloat16", "float16"):
        return failed(
            f"the average does not follow the student: in {change.updates} updates {1 - change.moved_share:.0%} of its "
            f"numbers stood still, since one update is less than {change.dtype} resolves",
            observed,
            place,
            mend="keep the average in float32, and cast a copy of it where it answers",
        )
    if change.still and change.average_rate is not None:
        return failed(
            f"the teacher averages the student, but for {len(change.still)} of its parameters, which stand still: "
            f"{some(change.still, 3)}",
            {**observed, "still": change.still[:20]},
            place,
            mend="average every parameter: for t, s in zip(teacher.parameters(), student.parameters())",
        )
    q = change.average_rate
    even = len(change.rates) >= _SEVERAL and max(change.rates) - min(change.rates) < _EVEN
    if q is not None and even and _INVERTED < q < _COPIED:
        return failed(
            f"the average takes {q:.3g} of the student at each update and keeps {1 - q:.3g} of itself: the decay is "
            "inverted",
            observed,
            place,
            mend="teacher = decay * teacher + (1 - decay) * student",
        )
    late = change.rates[-_SEVERAL:]
    if (
        q is not None
        and len(change.rates) >= _WARM
        and max(late) - min(late) < _EVEN
        and _WEAK < min(late) <= _INVERTED
    ):
        return failed(
            f"the average takes {late[-1]:.3g} of the student at each update, and no less as it goes on: it forgets "
            "within a few updates, and is nearly the student",
            {**observed, "rates": change.rates[:20]},
            place,
            "warn",
            mend="a decay of .99 or more, as published averages have",
        )
    if change.updates >= _WARM and change.unstepped >= _BETWEEN * change.updates:
        return failed(
            f"the average was taken {change.updates} times, and {change.unstepped} times the student had not moved "
            "since the last",
            {**observed, "unstepped": change.unstepped},
            place,
            "warn",
            mend="update the average once after each optimizer.step(), not after each backward",
        )
    if q is None and change.astray >= change.updates - 1 and change.params:
        return failed(
            f"the teacher is written to at each step ({change.updates} seen), and does not move towards the student: "
            "the average is taken of another network, or of none",
            observed,
            place,
            mend="average the network that the optimizer steps",
        )
    return None


@audit(
    "KD302",
    severity="error",
    phase="end",
    follows=("KD301", "KD102"),
    mend="teacher.eval() and torch.no_grad(), and the teacher's parameters in no optimizer",
)
def teacher_frozen(trace: Trace) -> Verdict:
    """The teacher does not change after the distillation begins, bit by bit, or it is an average of the whole student.

    Fails when its parameters or buffers differ and neither such an average nor a loss of its own explains it.
    An average obeys teacher' = d teacher + (1 - d) student: fails when it stands still in half precision, leaves
    parameters or the running statistics that it answers with out, has d inverted, leads elsewhere, or is never taken.
    Warns where it is hardly an average, where it is taken between the backwards of one step, where it is a copy of the
    student's start that is asked about what another such copy makes, and where the target is made by a layer that the
    student's side trains.
    """
    change = trace.teacher.change
    if change is None:
        return (
            no_distillation(trace)
            if not trace.losses.sights
            else undecided(
                "no-teacher-seen", "no teacher module to compare: its answers are stored, or its module was not found"
            )
        )
    changed = change.params + change.buffers
    through = next((s for s in trace.losses.sights if s.teacher_through), None)
    if through is not None and not trace.peers and not change.follows:
        return failed(
            f"the teacher's answer goes through {through.teacher_through} on its way to the target, which the "
            "student's side trains: the target moves as the student learns",
            {"module": through.teacher_through},
            through.where,
            "warn",
            mend="hold the student's projected answer against the teacher's own, or give the teacher a frozen layer",
        )
    if not changed:
        verdict = _average(trace, change)
        if verdict is not None:
            return verdict
        return passed("the teacher is bitwise what it was")
    if change.has_own_label_loss or trace.peers:
        return undecided("out-of-scope", "the teacher is trained by a loss of its own")
    if (verdict := _average(trace, change)) is not None:
        return verdict
    if change.average_rate is not None:
        if change.silent and not any(s.teacher_training for s in trace.losses.sights):
            return failed(
                f"the teacher's parameters follow the student's, and {len(change.silent)} of its running statistics, "
                f"with which it answers, stand still: {some(change.silent, 3)}",
                {"buffers": change.silent[:20], "rate": change.average_rate},
                trace.losses.sights[0].where if trace.losses.sights else None,
                mend="average or copy the buffers too: for t, s in zip(teacher.buffers(), student.buffers())",
            )
        return undecided(
            "out-of-scope", f"the teacher is a moving average of the student (rate {change.average_rate:.3g} a step)"
        )
    counts = ((len(change.params), "parameters"), (len(change.buffers), "buffers"))
    what = " and ".join(f"{n} {kind if n > 1 else kind[:-1]}" for n, kind in counts if n)
    return failed(
        f"{what} of the teacher {'has' if len(changed) == 1 else 'have'} changed: {some(changed, 4)}",
        {"parameters": change.params[:20], "buffers": change.buffers[:20], "by_optimizer": change.by_optimizer},
        trace.losses.sights[0].where if trace.losses.sights else None,
    )


@audit(
    "KD321",
    severity="error",
    phase="burn-in",
    mend="student.train() at the start of every epoch, after each validation",
)
def student_mode(trace: Trace) -> Verdict:
    """The student learns in training mode, also after a validation.

    Fails when every answer of the student from which a backward learned was given in evaluation mode, and the student
    has norm or dropout layers that then answer otherwise.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    moody = [s for s in trace.losses.sights if s.student_is_moody]
    if not moody:
        return undecided("mode-independent", "the student has no layer that answers otherwise in training mode")
    wrong = [s for s in moody if s.student_eval]
    if wrong or trace.losses.eval_steps:
        where = wrong[0].student_where or wrong[0].where if wrong else trace.losses.eval_where
        first = f"backward {wrong[0].number + 1}" if wrong else f"step {trace.losses.eval_steps[0]}"
        return failed(
            f"the student learned in evaluation mode, first at {first}",
            {"backwards": [s.number for s in wrong[:10]], "steps": trace.losses.eval_steps[:10]},
            where,
        )
    return passed("the student learned in training mode")
