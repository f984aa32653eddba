"""Verdicts on the modes of student and teacher, to the number, on traces made by hand."""

from dataclasses import replace

import pytest
from specimens import BACKWARD, MANY, OTHER, STEP, Cases, change, fails, judge, named, passes, sight, trace, undecided

from kdbench.audits.trace import Change

CASES: Cases = {}

CASES["KD301"] = {
    "peers": (
        trace(sights=[sight(teacher_training=["bn1"])], peers=True),
        undecided("out-of-scope", "peers teach each other"),
    ),
    "an average of the student": (
        trace(sights=[sight(teacher_training=["bn1"])], change=change(1, rate=0.5)),
        undecided("out-of-scope", "a moving average of the student, in whichever mode"),
    ),
    "in training, and changed by no average": (
        trace(sights=[sight(teacher_training=["bn1"])], change=change(0, 1)),
        fails("1 layers of the teacher", BACKWARD, layers=["bn1"], teacher="Net (teacher)"),
    ),
    "in evaluation": (
        trace(sights=[sight(), sight(teacher="other")]),
        passes("the teacher (Net (teacher)) answered in evaluation mode"),
    ),
    "in training, from the second backward on": (
        trace(sights=[sight(), sight(teacher_training=MANY, where=OTHER, teacher_leaves=["fc.bias"])]),
        fails(
            "25 layers of the teacher answered in training mode: layer0, layer1, layer2, layer3, and 21 more",
            OTHER,
            layers=MANY[:20],
            teacher="Net (teacher)",
        ),
    ),
    "given a gradient": (
        trace(sights=[sight(), sight(teacher_leaves=MANY, where=OTHER)], teacher_moved=[]),
        fails(
            "gives a gradient to 25 parameters of the teacher: layer0, layer1, layer2, and 22 more; nothing steps them",
            OTHER,
            "warn",
            parameters=MANY[:20],
            teacher="Net (teacher)",
        ),
    ),
    "an answer with a gradient that nothing gets": (
        trace(sights=[sight(), sight(teacher_grad=True, where=OTHER)]),
        fails("carries a gradient that no parameter of it gets", OTHER, "warn", teacher="Net (teacher)"),
    ),
    "given a gradient, and moved": (
        trace(sights=[sight(teacher_leaves=["fc.bias"])], teacher_moved=["fc.bias"]),
        fails("to 1 parameters of the teacher: fc.bias", BACKWARD, parameters=["fc.bias"], teacher="Net (teacher)"),
    ),
    "in training, where nothing depends on it": (
        trace(sights=[sight(), sight(teacher_in_training=True)]),
        undecided("mode-independent", "in which it cannot differ"),
    ),
    "stored answers": (
        trace(sights=[sight(cached=True, teacher_leaves=["fc.bias"])]),
        undecided("no-teacher-seen", "no live teacher reached the loss"),
    ),
    "stored answers, of a teacher that trains": (
        trace(sights=[sight(cached=True, teacher_training=["bn1"])]),
        fails(
            "1 layers of the teacher answered in training mode: bn1", BACKWARD, layers=["bn1"], teacher="Net (teacher)"
        ),
    ),
    "no teacher": (
        trace(sights=[sight(teacher="", teacher_training=["bn1"])]),
        undecided("no-teacher-seen", "no live teacher reached the loss"),
    ),
}


def averaged(*rates: float) -> Change:
    return replace(change(1, rate=0.5), rates=list(rates), updates=len(rates))


CASES["KD302"] = {
    "no module": (trace(sights=[sight()]), undecided("no-teacher-seen", "no teacher module to compare")),
    "an average, but for its statistics": (
        trace(change=replace(change(1, rate=0.5), silent=["bn.running_mean", "bn.running_var"]), sights=[sight()]),
        fails(
            "the teacher's parameters follow the student's, and 2 of its running statistics, with which it answers, "
            "stand still: bn.running_mean, bn.running_var",
            BACKWARD,
            buffers=["bn.running_mean", "bn.running_var"],
            rate=0.5,
        ),
    ),
    "an average that has no use for its statistics": (
        trace(change=replace(change(1, rate=0.5), silent=["bn.running_mean"]), sights=[sight(teacher_training=["bn"])]),
        undecided("out-of-scope", "the teacher is a moving average of the student"),
    ),
    "unchanged": (trace(change=change(rate=0.5, own=True)), passes("the teacher is bitwise what it was")),
    "an average that nobody takes": (
        trace(change=replace(change(0, 1), forgotten=True), sights=[sight()]),
        fails("a twin of the student", BACKWARD, updates=0, rate=None, moved_share=None),
    ),
    "an average that forgets": (
        trace(change=averaged(*[0.8] * 12, *[0.45] * 4), sights=[sight()]),
        fails(
            "takes 0.45 of the student at each update",
            BACKWARD,
            "warn",
            updates=16,
            rate=0.5,
            moved_share=None,
            rates=[0.8] * 12 + [0.45] * 4,
        ),
    ),
    "an average that is warmed up": (
        trace(change=averaged(*[0.8 - 0.03 * i for i in range(16)]), sights=[sight()]),
        undecided("out-of-scope", "the teacher is a moving average of the student"),
    ),
    "an average that keeps most": (
        trace(change=averaged(*[0.25] * 16), sights=[sight()]),
        undecided("out-of-scope", "the teacher is a moving average of the student"),
    ),
    "an average that is taken between the backwards of a step": (
        trace(change=replace(averaged(*[0.02] * 16), unstepped=8), sights=[sight()]),
        fails(
            "taken 16 times, and 8 times the student had not moved",
            BACKWARD,
            "warn",
            updates=16,
            rate=0.5,
            moved_share=None,
            unstepped=8,
        ),
    ),
    "an average that is now and then taken without a step, as a scaler leaves it": (
        trace(change=replace(averaged(*[0.02] * 16), unstepped=6), sights=[sight()]),
        undecided("out-of-scope", "the teacher is a moving average of the student"),
    ),
    "a layer of the student's in the way": (
        trace(change=change(), sights=[sight(), sight(teacher_through="norm", where=OTHER)]),
        fails("goes through norm on its way to the target", OTHER, "warn", module="norm"),
    ),
    "a layer of the student's in an average's way": (
        trace(change=change(rate=0.03), sights=[sight(teacher_through="norm")]),
        passes("the teacher is bitwise what it was"),
    ),
    "parameters": (
        trace(change=change(25, by=True), sights=[sight(), sight(where=OTHER)]),
        fails(
            "25 parameters of the teacher have changed: layer0, layer1, layer2, layer3, and 21 more",
            BACKWARD,
            parameters=MANY[:20],
            buffers=[],
            by_optimizer=True,
        ),
    ),
    "buffers": (
        trace(change=change(0, 25)),
        fails(
            "25 buffers of the teacher have changed: layer0.running_mean",
            None,
            parameters=[],
            buffers=[f"{name}.running_mean" for name in MANY[:20]],
            by_optimizer=False,
        ),
    ),
    "a label loss of its own": (
        trace(change=change(1, own=True, rate=0.001)),
        undecided("out-of-scope", "trained by a loss of its own"),
    ),
    "peers": (trace(change=change(1), peers=True), undecided("out-of-scope", "a loss of its own")),
    "an average of the student": (
        trace(change=change(1, rate=0.0012345)),
        undecided("out-of-scope", "a moving average of the student (rate 0.00123 a step)"),
    ),
}
CASES["KD321"] = {
    "no layer that minds": (
        trace(sights=[sight(student_is_moody=False, student_eval=True)], eval_steps=[3]),
        undecided("mode-independent", "no layer that answers otherwise"),
    ),
    "in training": (
        trace(sights=[sight(), sight(student_is_moody=False, student_eval=True)]),
        passes("the student learned in training mode"),
    ),
    "in evaluation": (
        trace(
            sights=[
                sight(),
                sight(student_eval=True, number=4, where=OTHER),
                *(sight(student_eval=True, number=i) for i in range(5, 16)),
            ],
            eval_steps=list(range(20, 35)),
            eval_where=STEP,
        ),
        fails("first at backward 5", OTHER, backwards=list(range(4, 14)), steps=list(range(20, 30))),
    ),
    "in evaluation after a validation": (
        trace(sights=[sight()], eval_steps=[21, 22], eval_where=STEP),
        fails("first at step 21", STEP, backwards=[], steps=[21, 22]),
    ),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])
