"""Whether what is kept of a training is the student that it trained."""

from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, undecided
from kdbench.audits.trace import Trace

_WHOLE, _NONE, _SOME = 0.99, 0.5, 0.1
"""Parts of a network's numbers from which a file holds it, and up to which it does not: a head that is left out is
less than half, and two networks share next to nothing by chance. Part of a file's tensors from which it may be the
student all the same, averaged or converted."""


@audit(
    "KD335",
    severity="error",
    phase="end",
    follows=("KD104",),
    mend="save and score the student: torch.save(student.state_dict(), ...); keep the best epoch as a copy, "
    "copy.deepcopy(student.state_dict()); load with strict=True, or look at the names that load_state_dict returns",
)
def result_kept(trace: Trace) -> Verdict:
    """What is saved of a distillation, scored and loaded back is the student that was trained.

    Fails when the files that a script writes after the distillation began hold the teacher's numbers and none holds the
    student's, when the student is given a state that it holds already (kept by reference, so no earlier epoch's),
    when a load that is not strict finds no name of its own, or when the teacher, or a copy of the student as it began,
    is asked after the last step and the student is not. An averaged teacher may be what is wanted.
    """
    kept = trace.data.kept
    if kept.own:
        return failed(
            "load_state_dict gives the student the very numbers that it holds: the state was kept by reference, and is "
            "the last one, not an earlier one",
            {"loads": len(kept.own)},
            kept.own[0],
        )
    if kept.nothing:
        module, name, where = kept.nothing[0]
        return failed(
            f"load_state_dict(strict=False) finds no name of {module} in what it is given (which begins with {name}): "
            "nothing is loaded",
            {"module": module, "name": name},
            where,
        )
    if not trace.losses.sights:
        return no_distillation(trace)
    average = trace.teacher.change is not None and trace.teacher.change.follows
    of_student = [s for s in kept.saves if s.student >= _NONE]
    of_teacher = [s for s in kept.saves if s.teacher >= _WHOLE]
    if of_teacher and not of_student and not average and kept.whole and all(s.others < _SOME for s in kept.saves):
        return failed(
            "what is saved after the distillation are the teacher's numbers, and the student's are in no file",
            {"saves": len(kept.saves)},
            of_teacher[0].where,
        )
    if kept.whole and not average and not trace.peers and (wrong := _scored(trace)) is not None:
        return wrong
    if of_student:
        return passed(f"the student is in {len(of_student)} of {len(kept.saves)} files")
    said = "nothing of the student was saved" + (
        "" if kept.whole else " up to here; the script was not seen to its end"
    )
    return undecided("not-in-these-steps", said, None if kept.whole else "steps")


def _scored(trace: Trace) -> Verdict | None:
    """Return a failure where what is asked after the student's last step is never the student; None else."""
    kept = trace.data.kept
    others = [kind for kind in kept.asked if kind in ("teacher", "start")]
    if not others or len(others) < len(kept.asked):
        return None
    if "start" in others:
        said = "a copy of the student as it was when the distillation began"
        return failed(f"what is scored after the last step is {said}", {"asked": others}, kept.asked["start"])
    if kept.tested:  # beside training; of the teacher there is a score to compare with
        return None
    said = "what is scored after the last step is the teacher, and the student is never asked without a gradient"
    return failed(said, {"asked": others}, kept.asked["teacher"])
