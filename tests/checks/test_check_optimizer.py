"""Verdicts on what is optimised, to the number, on traces made by hand."""

import pytest
from specimens import (
    BODY,
    CLIP,
    HINT,
    MANY,
    STEP,
    A,
    B,
    C,
    Cases,
    fails,
    finding,
    judge,
    named,
    passes,
    put,
    step,
    steps,
    trace,
    undecided,
)

from kdbench.audits.trace import Trace
from kdbench.audits.updates import Empty, Leaf

CASES: Cases = {}

CASES["KD101"] = {
    "no step": (trace(leaves=[BODY]), undecided("not-in-these-steps", "no optimizer step was seen")),
    "nothing gets a gradient": (
        trace(leaves=[], steps=[step()]),
        undecided("not-in-these-steps", "no parameter of the student or a projector got a gradient"),
    ),
    "all are optimised": (
        trace(leaves=[BODY, BODY], steps=[step()]),
        passes("all 2 parameters with a gradient", with_gradient=2, not_optimised=[]),
    ),
    "a projector is in no optimizer": (
        trace(leaves=[BODY, HINT, BODY], steps=[step(1), step(2, distils=True), step(3, distils=True)]),
        fails(
            "1 of 3 parameters that get a gradient are in no optimizer: hint.weight",
            {**STEP, "step": 2},
            with_gradient=3,
            not_optimised=["hint.weight"],
        ),
    ),
    "many are": (
        trace(leaves=[Leaf(C, name, False) for name in MANY[:7]], steps=[step(1), step(2)]),
        fails(
            "7 of 7 parameters that get a gradient are in no optimizer: "
            "layer0, layer1, layer2, layer3, layer4, layer5, and 1 more",
            {**STEP, "step": 1},
            with_gradient=7,
            not_optimised=MANY[:7],
        ),
    ),
}
CASES["KD102"] = {
    "moved": (
        trace(teacher_moved=["fc.weight", "fc.bias"], steps=[step()]),
        fails(
            "moves 2 parameters of the teacher: fc.weight, fc.bias", {**STEP, "step": 1}, moved=["fc.weight", "fc.bias"]
        ),
    ),
    "moved, by steps not kept": (
        trace(teacher_moved=["fc.bias"]),
        fails("moves 1 parameters of the teacher: fc.bias", None, moved=["fc.bias"]),
    ),
    "peers": (trace(teacher_moved=["fc.bias"], peers=True), undecided("out-of-scope", "peers teach each other")),
    "layers handed over": (
        trace(teacher_moved=[], shared=("Net (teacher)", ["a.weight", "a.bias"]), steps=[step()]),
        fails(
            "2 parameters of the teacher (Net (teacher)) are the student's own, and trained: a.weight, a.bias",
            {**STEP, "step": 1},
            shared=["a.weight", "a.bias"],
        ),
    ),
    "stored answers": (trace(teacher_moved=[]), undecided("no-teacher-seen", "stored answers: no teacher to move")),
    "still": (trace(teacher_moved=[], roles={"teacher": ["Net"]}), passes("no optimizer step moved the teacher")),
}
CASES["KD103"] = {
    "few steps": (trace(leaves=[]), undecided("not-in-these-steps", "fewer than three steps of the student's")),
    "replaced head": (
        trace(leaves=[BODY, HINT], stale=["old.weight", "old.bias"], steps=[step()]),
        fails(
            "the optimizer holds 2 parameters that no module has any more (old.weight, old.bias), and 1 that train are "
            "in none: hint.weight",
            {**STEP, "step": 1},
            stale=["old.weight", "old.bias"],
            not_optimised=["hint.weight"],
        ),
    ),
    "many replaced": (
        trace(leaves=[Leaf(C, name, False) for name in MANY[:4]], stale=MANY[5:9], steps=[step()]),
        fails(
            "holds 4 parameters that no module has any more (layer5, layer6, layer7, and 1 more), and 4 that train are "
            "in none: layer0, layer1, layer2, and 1 more",
            {**STEP, "step": 1},
            stale=MANY[5:9],
            not_optimised=MANY[:4],
        ),
    ),
    "ballast alone": (
        trace(leaves=[BODY], stale=["old.bias"], steps=[step()]),
        fails(
            "holds 1 parameters that no module has any more (old.bias)",
            {**STEP, "step": 1},
            "warn",
            stale=["old.bias"],
            not_optimised=[],
        ),
    ),
    "ballast, leaves not kept": (
        trace(stale=["old.bias"]),
        fails("holds 1 parameters", None, "warn", stale=["old.bias"], not_optimised=[]),
    ),
    "present": (trace(stale=[]), passes("gets a gradient or belongs to a living module")),
}
CASES["KD211"] = {
    "no step": (trace(), undecided("not-in-these-steps", "0 steps were seen; two are needed")),
    "one step": (
        trace(steps=[step(stale_grads=[A])]),
        undecided("not-in-these-steps", "1 steps were seen; two are needed"),
    ),
    "two fresh": (trace(steps=steps(2)), passes("fresh in all 2 steps watched", steps=2)),
    "not zeroed": (
        trace(steps=[step(1), step(2, stale_grads=[A]), step(3, stale_grads=[A, B])]),
        fails(
            "at step 2 the gradients of 1 of 2 parameters still hold those of the step before: body.weight",
            {**STEP, "step": 2},
            step=2,
            parameters=1,
            stepped=2,
        ),
    ),
    "not zeroed, many": (
        trace(steps=[step(1), step(2, stale_grads=[A, B, C, A], stepped=[A, B, C, A, A])]),
        fails(
            "of 4 of 5 parameters still hold those of the step before: body.weight, body.bias, hint.weight, and 1 more",
            {**STEP, "step": 2},
            step=2,
            parameters=4,
            stepped=5,
        ),
    ),
    "before the distillation": (
        trace(steps=[step(1, stale_grads=[A]), step(2, distils=True), step(3, distils=True)]),
        passes("fresh in all 2 steps watched", steps=2),
    ),
    "too few in the distillation": (
        trace(steps=[step(1), step(2), step(3, distils=True)]),
        undecided("not-in-these-steps", "1 steps were seen; two are needed"),
    ),
}
CASES["KD212"] = {
    "one step": (
        trace(steps=[step(repeated=True)]),
        undecided("not-in-these-steps", "1 steps were seen; two are needed"),
    ),
    "a backward each": (trace(steps=steps(2)), passes("each of the 2 steps watched followed a backward", steps=2)),
    "twice": (
        trace(steps=[step(1), step(2, repeated=True), *(step(i, repeated=True) for i in range(3, 15))]),
        fails(
            "13 of 14 steps used the gradients of the step before again",
            {**STEP, "step": 2},
            steps=list(range(2, 12)),
            watched=14,
        ),
    ),
    "before the distillation": (
        trace(steps=[step(1, repeated=True), step(2, distils=True), step(3, distils=True)]),
        passes("each of the 2 steps watched", steps=2),
    ),
}


def emptied(*names: str, count: int = 9, thrown: int = 0) -> Trace:
    return trace(steps=steps(3), empty={1: Empty("Adam", [A], count, thrown, STEP, CLIP if thrown else None, [*names])})


UNDONE = {"thrown": 3, "zeroed_at": CLIP}
CASES["KD215"] = {
    "one step": (trace(steps=[step()]), undecided("not-in-these-steps", "1 steps were seen; two are needed")),
    "every gradient": (
        trace(steps=steps(2)),
        passes("the gradients of every backward reached one of 2 steps", steps=2),
    ),
    "a gradient that is not handed on": (
        trace(steps=steps(2), cut_off=["body.weight", "body.bias"]),
        fails(
            "its gradient is not handed on: 2 parameters behind it, which the optimizer holds, get none: body.weight",
            {**STEP, "step": 1},
            parameters=["body.weight", "body.bias"],
        ),
    ),
    "layers in a checkpoint that hands on nothing": (
        trace(steps=steps(2), hidden=[("body.weight", "CheckpointFunction"), ("body.bias", "CheckpointFunction")]),
        fails(
            "2 parameters of the student are in the loss and in the optimizer, and never get a gradient: the "
            "checkpoint around them (use_reentrant=True) is given nothing that requires one, and so hands on none: "
            "body.weight",
            {**STEP, "step": 1},
            parameters=["body.weight", "body.bias"],
            function="CheckpointFunction",
        ),
    ),
    "layers in a function that leaves them out": (
        trace(steps=steps(2), hidden=[("body.weight", "Kept")]),
        fails(
            "1 parameters of the student are in the loss and in the optimizer, and never get a gradient: the function "
            "around them (Kept) hands them none: body.weight",
            {**STEP, "step": 1},
            parameters=["body.weight"],
            function="Kept",
        ),
    ),
    "accumulation undone": (
        trace(steps=[step(1), *(step(i, **UNDONE) for i in range(2, 15))]),
        fails(
            "in 13 of 14 steps the gradients of 3 of 4 backwards were zeroed before the step",
            CLIP,
            steps=list(range(2, 12)),
            thrown=3,
        ),
    ),
    "in half of the steps": (
        trace(steps=[step(1), step(2, **UNDONE)]),
        passes("the gradients of every backward reached one of 2 steps", steps=2),
    ),
    "before the distillation": (
        trace(steps=[step(1, **UNDONE), step(2, distils=True), step(3, distils=True)]),
        passes("reached one of 2 steps", steps=2),
    ),
    "zeroed between backward and step": (
        emptied(count=8, thrown=8),
        fails(
            "an optimizer (Adam) stepped 8 times without one gradient: zero_grad stands between backward and step",
            CLIP,
            steps=8,
            parameters=[],
        ),
    ),
    "the student's optimizer, without a gradient": (
        emptied("body.weight"),
        fails("9 times without one gradient: no loss reaches body.weight", STEP, steps=9, parameters=["body.weight"]),
    ),
    "without a gradient at first": (emptied("body.weight", count=7), passes("every backward", steps=3)),
    "without a gradient, of nobody's": (emptied(), passes("every backward", steps=3)),
}
CASES["KD213"] = {
    "few steps": (trace(leaves=[]), undecided("not-in-these-steps", "fewer than three steps of the student's")),
    "never changed": (
        trace(ineffective=["fc.weight", "fc.bias"], steps=[step()]),
        fails(
            "2 parameters were stepped and never changed: fc.weight, fc.bias",
            {**STEP, "step": 1},
            parameters=["fc.weight", "fc.bias"],
        ),
    ),
    "changed": (trace(ineffective=[]), passes("every stepped parameter changed")),
    "changed, but for what is frozen": (
        trace(ineffective=[], frozen=["a.weight", "a.bias"], steps=[step()]),
        fails(
            "the optimizer holds 2 parameters of the student that are set to get no gradient: a.weight, a.bias",
            {**STEP, "step": 1},
            "info",
            frozen=["a.weight", "a.bias"],
        ),
    ),
}


def scaler(calls: int, skips: int, search: int = 0, held: int = 0) -> Trace:
    return trace(scaler_calls=calls, scaler_skips=skips, scaler_search=search, scaler_held=held)


def counted(calls: int, skips: int, search: int = 0) -> dict[str, int]:
    return {"calls": calls, "skipped": skips, "search": search}


CASES["KD214"] = {
    "no scaler": (trace(), undecided("out-of-scope", "no GradScaler stepped")),
    "8 of 8 skipped": (scaler(8, 8), fails("all 8 steps were skipped", None, "error", **counted(8, 8))),
    "7 of 7 skipped": (
        scaler(7, 7),
        undecided("not-in-these-steps", "0 of 7 steps were taken: too few to judge", "--steps"),
    ),
    "1 of 1 skipped, none after the search": (
        scaler(1, 1, 1),
        undecided("not-in-these-steps", "0 of 1 steps were taken", "--steps"),
    ),
    "7 of 8 skipped in search": (scaler(8, 7, 7), passes("1 of 8 steps were taken", **counted(8, 7, 7))),
    "1 of 18 skipped after the search": (scaler(19, 2, 1), passes("17 of 19 steps were taken", **counted(19, 2, 1))),
    "1 of 10 skipped after the search": (scaler(11, 2, 1), passes("9 of 11 steps were taken", **counted(11, 2, 1))),
    "1 of 9 skipped after the search": (
        scaler(10, 2, 1),
        undecided("not-in-these-steps", "8 of 10 steps were taken: too few to judge", "--steps"),
    ),
    "2 of 18 skipped after the search": (
        scaler(19, 3, 1),
        undecided("not-in-these-steps", "16 of 19 steps were taken: too few to judge", "--steps"),
    ),
    "2 of 18 skipped after the search, and the last five steps taken": (
        scaler(19, 3, 1, 5),
        passes("16 of 19 steps were taken", **counted(19, 3, 1)),
    ),
    "2 of 18 skipped after the search, and the last four steps taken": (
        scaler(19, 3, 1, 4),
        undecided("not-in-these-steps", "16 of 19 steps were taken: too few to judge", "--steps"),
    ),
    "4 of 18 skipped after the search": (
        scaler(19, 5, 1, 5),
        undecided("not-in-these-steps", "14 of 19 steps were taken: too few to judge", "--steps"),
    ),
    "7 of 19 skipped": (
        scaler(19, 7, 5, 5),
        undecided("not-in-these-steps", "12 of 19 steps were taken: too few to judge", "--steps"),
    ),
    "7 of 8 skipped": (
        scaler(8, 7),
        undecided("not-in-these-steps", "1 of 8 steps were taken: too few to judge", "--steps"),
    ),
    "1 of 19": (scaler(19, 1), passes("18 of 19 steps were taken", **counted(19, 1))),
    "none of 19": (scaler(19, 0), passes("19 of 19 steps were taken", **counted(19, 0))),
    "1 of 20": (scaler(20, 1), passes("19 of 20 steps were taken", **counted(20, 1))),
    "2 of 20": (scaler(20, 2), fails("2 of 20 steps after the search", None, **counted(20, 2))),
    "1 of 20 after the search": (scaler(25, 6, 5), passes("19 of 25 steps were taken", **counted(25, 6, 5))),
    "2 of 20 after the search": (scaler(25, 7, 5), fails("2 of 20 steps after the search", None, **counted(25, 7, 5))),
    "4 of 60": (scaler(60, 4), fails("4 of 60 steps after the search", None, **counted(60, 4))),
    "3 of 60": (scaler(60, 3), passes("57 of 60 steps were taken", **counted(60, 3))),
    "1 of 19 after the search": (scaler(24, 6, 5), passes("18 of 24 steps were taken", **counted(24, 6, 5))),
}


@pytest.mark.parametrize(
    ("steps", "search"),
    [
        ("..........", 0),
        ("ss........", 2),
        ("ss..s......", 2),  # a scale is not found yet
        ("ss..s..........", 3),
        ("s.s.s.s..........s..", 4),
        ("..s..........", 1),
        ("s....s....s....", 1),
        ("..........s.........", 0),
        ("s..........s..........", 1),
        ("s" * 17 + "..........", 17),
        ("." + "s" * 17 + "..........", 0),
    ],
)
def test_a_search_ends_where_ten_steps_in_a_row_were_taken(steps, search):
    updates = trace().updates
    for step_ in steps:
        updates.scaler_stepped(step_ == "s")
    assert (updates.scaler_calls, updates.scaler_skips) == (len(steps), steps.count("s"))
    assert updates.scaler_search == search


def rates(*rows: tuple[float, ...], groups: int = 2) -> Trace:
    return trace(lr_rows=list(rows), group_names=MANY[:groups], steps=[step(1), step(2, distils=True)])


CASES["KD344"] = {
    "no optimizer": (rates(groups=0), undecided("out-of-scope", "no step of the student's optimizer was seen")),
    "one group": (
        rates((0.1,), (0.2,), groups=1),
        undecided("out-of-scope", "the student's optimizer has one parameter group"),
    ),
    "one row": (rates((0.1, 0.1)), undecided("not-in-these-steps", "fewer than two steps were seen", "--steps")),
    "rows of fewer groups": (
        rates((0.1,), (0.1, 0.1)),
        undecided("not-in-these-steps", "fewer than two steps were seen", "--steps"),
    ),
    "nothing moves": (
        rates((0.1, 0.2), (0.1, 0.2)),
        undecided("not-in-these-steps", "no learning rate changed", "--steps 0"),
    ),
    "both move": (rates((0.1, 0.2), (0.05, 0.1)), passes("moves all 2 parameter groups")),
    "one stays": (
        rates((0.1, 0.25), (0.05, 0.25)),
        fails(
            "moves 1 of 2 parameter groups; group 1 (layer1, ...) stays at 0.25",
            {**STEP, "step": 2},
            "warn",
            first=[0.1, 0.25],
            last=[0.05, 0.25],
            still=[1],
        ),
    ),
    "four stay": (
        rates(
            (9.0,),
            (0.5, 0.25, 0.125, 0.0625, 0.1),
            (0.5, 0.25, 0.125, 0.0625, 0.2),
            (0.5, 0.25, 0.125, 0.0625, 0.1),
            groups=5,
        ),
        fails(
            "moves 1 of 5 parameter groups; group 0 (layer0, ...), group 1 (layer1, ...), group 2 (layer2, ...), "
            "and 1 more stays at 0.5",
            {**STEP, "step": 2},
            "warn",
            first=[0.5, 0.25, 0.125, 0.0625, 0.1],
            last=[0.5, 0.25, 0.125, 0.0625, 0.1],
            still=[0, 1, 2, 3],
        ),
    ),
    "one is held by a scheduler of all": (
        put(rates((0.1, 0.25), (0.05, 0.25)), scheduled_groups=2),
        undecided("intent-unknown", "a scheduler sets every group, and holds some where they are"),
    ),
    "one came after the scheduler": (
        put(rates((0.1, 0.25), (0.05, 0.25)), scheduled_groups=1),
        fails("moves 1 of 2", {**STEP, "step": 2}, first=[0.1, 0.25], last=[0.05, 0.25], still=[1]),
    ),
    "a scheduler of all moves all": (
        put(rates((0.1, 0.2), (0.05, 0.1)), scheduled_groups=2),
        passes("moves all 2 parameter groups"),
    ),
    "one is frozen by a rate of 0": (rates((0.1, 0.0), (0.05, 0.0)), passes("")),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])


WHOLE = {
    ("KD103", "ballast alone"): "the optimizer holds 1 parameters that no module has any more (old.bias)",
}


@pytest.mark.parametrize(("id", "name"), WHOLE)
def test_what_is_not_so_is_not_said(id: str, name: str) -> None:
    assert finding(id, CASES[id][name][0]).message == WHOLE[id, name]
