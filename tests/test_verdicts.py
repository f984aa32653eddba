"""Each verdict at and beside its thresholds, on traces made by hand: nothing is trained, and each takes milliseconds.

What a real training leaves in a trace is tested elsewhere; here only what a check makes of it, to the number.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

from audits.checks.all import CATALOGUE, run
from audits.checks.catalogue import Audit, Verdict, audit, passed, some
from audits.checks.teacher import at_least, at_most
from audits.finding import Finding
from audits.infer.explain import Explanation
from audits.trace import (
    KD,
    Change,
    Clip,
    ClipCall,
    Declaration,
    Hits,
    Inputs,
    Leaf,
    Loaded,
    Provenance,
    Sight,
    Spatial,
    Step,
    Term,
    Trace,
)
from harness.declarations import spelled

DECLARED, STEP, CLIP, BACKWARD, TERM, OTHER = ({"file": "loop.py", "line": n} for n in range(1, 7))
A, B, C = (nn.Parameter(torch.zeros(2)) for _ in range(3))
NAMES = {id(A): "body.weight", id(B): "body.bias", id(C): "hint.weight"}
STUDENT, TEACHER = nn.Linear(2, 2), nn.Linear(2, 2)
MANY = [f"layer{i}" for i in range(25)]


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def clip(*params: nn.Parameter, bound: float = 1.0, norm: float | None = None, **fields: Any) -> ClipCall:
    """A clip by the 2-norm, `norm` before it."""
    norms = None if norm is None else (number(norm), number(norm))
    call = ClipCall("norm", frozenset(map(id, params)), bound, CLIP, norms, handed=len(params))
    return replace(call, **fields)


def step(count: int = 1, *clips: ClipCall, norm: float = 0.5, **fields: Any) -> Step:
    """A step of A and B, whose gradients nothing but the clips wrote to."""
    made = Step(count, [A, B], list(clips), False, frozenset(), False, number(norm), 1e-7, {**STEP, "step": count})
    return replace(made, **fields)


def steps(count: int, *clips: ClipCall, **fields: Any) -> list[Step]:
    return [step(i + 1, *clips, **fields) for i in range(count)]


def put(made: Trace, **fields: Any) -> Trace:
    """Set fields of a trace, each in the part that holds it; `teacher` is the declared one."""
    for name, value in fields.items():
        if name in ("student", "teacher", "clip", "kd", "same_input"):
            made.declared = replace(made.declared, **{name: value})
        else:
            parts = (made, made.updates, made.losses, made.teacher, made.data)
            name = "stepped" if name == "teacher_moved" else name
            setattr(next(part for part in parts if hasattr(part, name)), name, value)
    return made


def trace(**fields: Any) -> Trace:
    return put(Trace(Declaration(STUDENT, at=DECLARED), NAMES), **fields)


def term(name: str = "kl_div", kind: Any = "soft", **fields: Any) -> Term:
    made = Term(kind, name, TERM, True, False, [], [(8, 10), (8, 10)])
    return replace(made, **fields)


def feature(name: str = "mse_loss", **fields: Any) -> Term:
    return term(name, "feature", **fields)


def explained(form: str = "forward", **fields: Any) -> Explanation:
    """What alpha = 0.9 at temperature 4 leaves at the logits."""
    made = Explanation(form, 1e-7, 1.0, 8, 10, 8, (4.0, 4.0), 0.9, 0.1)
    return replace(made, **fields)


def sight(*seen: Term | Explanation, **fields: Any) -> Sight:
    made = Sight(
        number=0,
        where=BACKWARD,
        student="Net (student)",
        teacher="Net (teacher)",
        teacher_training=[],
        teacher_leaves=[],
        teacher_grad=False,
        student_eval=False,
        student_is_moody=True,
        student_frozen=False,
        inputs=None,
        terms=[s for s in seen if isinstance(s, Term)],
        explanations=[s for s in seen if isinstance(s, Explanation)],
        cached=False,
    )
    return replace(made, **fields)


def seen(*parts: Term | Explanation, kd: KD | None = None, **fields: Any) -> Trace:
    """A script in which one backward of a distillation was seen."""
    return trace(script=True, sights=[sight(*parts, **fields)], kd=kd or KD())


def loaded(covered: int, total: int = 4, route: str = "loaded", **fields: Any) -> Trace:
    """A script whose teacher came by `route` to `covered` of its numbers."""
    lists: dict[str, list[str]] = {key: fields.pop(key, []) for key in ("missing", "aliases", "changed")}
    own = {key: fields.pop(key) for key in ("same_as_student", "where", "made_from") if key in fields}
    return trace(
        script=True,
        sights=[sight()],
        loaded=Loaded(covered, total, trained=False, route=route, **lists, **own),
        **fields,
    )


def hits(right: int, *by_class: int) -> Hits:
    return Hits(torch.tensor(right), torch.tensor(by_class))


def tenths(right: int) -> Hits:
    """Of 100 labels in ten classes of one size: the threshold is 0.1 + 0.09."""
    return hits(right, *[10] * 10)


def conv(kernel: int = 3, stride: int = 1, size: Any = 32, out: Any = None, name: str = "conv", kind: Any = "conv"):
    sides = (size, size) if isinstance(size, int) else size
    after = (out, out) if out else (sides[0] // stride, sides[1] // stride)
    return Spatial(name, kind, kernel, stride, sides, after)


def pool(kernel: int = 3, stride: int = 2, **fields: Any):
    return conv(kernel, stride, **fields, kind="pool", name="pool")


def net(*calls: Spatial, **fields: Any) -> Trace:
    return trace(spatial={"student": list(calls)}, **fields)


@dataclass(frozen=True)
class Wanted:
    """A finding; `message` is a part of it, everything else the whole."""

    status: str
    message: str
    observed: dict[str, Any] = field(default_factory=dict)
    severity: str | None = None
    where: dict[str, Any] | None = None
    reason: str | None = None
    decide_with: str | None = None


def passes(message: str, **observed: Any) -> Wanted:
    return Wanted("pass", message, observed)


def fails(message: str, at: dict[str, Any] | None, severity: str | None = None, **observed: Any) -> Wanted:
    return Wanted("fail", message, observed, severity, at)


def undecided(reason: str, message: str, decide_with: str | None = None, **observed: Any) -> Wanted:
    return Wanted("not_triggered", message, observed, None, None, reason, decide_with)


SEVERITIES = {
    "error": "KD101 KD102 KD103 KD104 KD105 KD201 KD202 KD203 KD204 KD211 KD212 KD213 KD301 KD302 KD303 KD305 KD311 "
    "KD312 KD313 KD321 KD332 KD341 KD344",
    "warn": "KD106 KD214 KD304",
    "info": "KD205 KD314",
}
OWN = {id: severity for severity, ids in SEVERITIES.items() for id in ids.split()}

CASES: dict[str, dict[str, tuple[Trace, Wanted]]] = {}

# --- what is optimised ---

BODY, HINT = Leaf(A, "body.weight", True), Leaf(C, "hint.weight", False)

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


def scaler(calls: int, skips: int, search: int = 0) -> Trace:
    return trace(scaler_calls=calls, scaler_skips=skips, scaler_search=search)


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
    "7 of 8 skipped": (
        scaler(8, 7),
        undecided("not-in-these-steps", "1 of 8 steps were taken: too few to judge", "--steps"),
    ),
    "1 of 19": (scaler(19, 1), undecided("not-in-these-steps", "18 of 19 steps were taken", "--steps")),
    "none of 19": (scaler(19, 0), passes("19 of 19 steps were taken", **counted(19, 0))),
    "1 of 20": (scaler(20, 1), passes("19 of 20 steps were taken", **counted(20, 1))),
    "2 of 20": (scaler(20, 2), fails("2 of 20 steps after the search", None, **counted(20, 2))),
    "1 of 20 after the search": (scaler(25, 6, 5), passes("19 of 25 steps were taken", **counted(25, 6, 5))),
    "2 of 20 after the search": (scaler(25, 7, 5), fails("2 of 20 steps after the search", None, **counted(25, 7, 5))),
    "4 of 60": (scaler(60, 4), fails("4 of 60 steps after the search", None, **counted(60, 4))),
    "3 of 60": (scaler(60, 3), passes("57 of 60 steps were taken", **counted(60, 3))),
    "1 of 19 after the search": (
        scaler(24, 6, 5),
        undecided("not-in-these-steps", "18 of 24 steps were taken", "--steps"),
    ),
}


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

# --- clipping ---

BOTH = clip(A, B)
HALF = clip(A)


def by_hand(*bounds: tuple[float, float], ids: tuple[nn.Parameter, ...] = (A, B), **fields: Any) -> list[Step]:
    """Steps before which gradients were multiplied: the norm after it, and the factor."""
    reached = frozenset(map(id, ids))
    return [step(i + 1, hand_bound=(norm, reached, factor), **fields) for i, (norm, factor) in enumerate(bounds)]


def numbers(*found: float) -> torch.Tensor:
    return torch.tensor(found, dtype=torch.float64)


def each(*found: dict[nn.Parameter, tuple[float, float]], **fields: Any) -> list[Step]:
    """Steps in which some gradients were multiplied by a factor less or more than 1: their norms, and the factors."""
    return [
        step(
            i + 1,
            stepped=list(seen),
            hand_norms=numbers(*(norm for norm, _ in seen.values())),
            hand_factors={id(p): factor for p, (_, factor) in seen.items() if factor != 1},
            written=frozenset(id(p) for p, (_, factor) in seen.items() if factor != 1),
            **fields,
        )
        for i, seen in enumerate(found)
    ]


EACH = ({A: (1.0, 0.5), B: (0.3, 1)}, {A: (1.0, 0.5), B: (1.0, 0.9)}, {A: (0.9, 1), B: (1.0, 0.7)})

NO_CLIP = "clip=audits.Clip(max_norm), if clipped by hand"
OPTIONS = "--max-norm and --clip-scope"
BINDS = ((1.0, 0.5), (1.0, 0.9), (0.75, 1.0))

CASES["KD201"] = {
    "no step": (trace(), undecided("not-in-these-steps", "no step of a watched optimizer")),
    "no clip": (trace(steps=steps(3)), undecided("no-clip-call", "no clip was seen in the 3 steps", NO_CLIP)),
    "no clip in a script": (
        trace(steps=[*steps(3, HALF), *steps(2, distils=True)], script=True),
        undecided("no-clip-call", "no clip was seen in the 2 steps", OPTIONS),
    ),
    "no clip in a script that distils nothing": (
        trace(steps=steps(3), script=True),
        undecided("no-clip-call", "no clip was seen in the 3 steps", OPTIONS),
    ),
    "before the distillation of a loop": (
        trace(steps=[*steps(1, HALF), *steps(2, BOTH, distils=True)]),
        fails(
            "1 of 2 parameters",
            CLIP,
            step=1,
            missed=["body.bias"],
            stepped=2,
            clip_calls=[{"bound": 1.0, "parameters": 1, "where": CLIP}],
        ),
    ),
    "no clip, one declared": (
        trace(steps=steps(3), clip=Clip(1.0)),
        undecided("no-clip-call", "no clip was seen in the 3 steps"),
    ),
    "no clip, one declared, and beyond its bound": (
        trace(steps=steps(3, norm=2.0), clip=Clip(1.0)),
        undecided("no-clip-call", "no clip was seen in the 3 steps"),
    ),
    "by hand to another bound than the declared": (
        trace(steps=by_hand(*BINDS), clip=Clip(5.0)),
        undecided("no-clip-call", "no clip was seen in the 3 steps"),
    ),
    "whole": (trace(steps=steps(2, BOTH)), passes("clipped in all 2 steps watched", steps=2)),
    "in two calls": (trace(steps=steps(1, HALF, clip(B))), passes("clipped in all 1 steps watched", steps=1)),
    "half": (
        trace(steps=[step(1), step(2, clip(A, bound=0.5)), step(3, HALF)]),
        fails(
            "1 of 2 parameters that the optimizer steps are left out of the clip: body.bias",
            CLIP,
            step=2,
            missed=["body.bias"],
            stepped=2,
            clip_calls=[{"bound": 0.5, "parameters": 1, "where": CLIP}],
        ),
    ),
    "two calls, and a third part": (
        trace(steps=[step(1, HALF, clip(B, where=OTHER), stepped=[A, B, C])]),
        fails(
            "1 of 3 parameters that the optimizer steps are left out of the clip: hint.weight",
            CLIP,
            step=1,
            missed=["hint.weight"],
            stepped=3,
            clip_calls=[{"bound": 1.0, "parameters": 1, "where": place} for place in (CLIP, OTHER)],
        ),
    ),
    "the other half written to": (
        trace(steps=steps(2, HALF, written=frozenset({id(B)}))),
        passes("clipped in all 2 steps watched", steps=2),
    ),
    "the other half written to by the scaler": (
        trace(steps=steps(2, HALF, written=frozenset({id(B)}), scaled=True)),
        fails(
            "1 of 2 parameters",
            CLIP,
            step=1,
            missed=["body.bias"],
            stepped=2,
            clip_calls=[{"bound": 1.0, "parameters": 1, "where": CLIP}],
        ),
    ),
    "backward not seen": (trace(steps=steps(2, BOTH, written=None)), passes("in all 2 steps", steps=2)),
    "declared, another optimizer's clip": (
        trace(steps=[step(clipped_elsewhere=True)], clip=Clip(1.0)),
        fails(
            "2 of 2 parameters",
            {**STEP, "step": 1},
            step=1,
            missed=["body.weight", "body.bias"],
            stepped=2,
            clip_calls=[],
        ),
    ),
    "declared, by hand under a scaler, beside another optimizer's clip": (
        trace(steps=[step(clipped_elsewhere=True, scaled=True, written=frozenset({id(A), id(B)}))], clip=Clip(1.0)),
        passes("in all 1 steps watched", steps=1),
    ),
    "another optimizer's clip": (
        trace(steps=[step(clipped_elsewhere=True)]),
        undecided("no-clip-call", "in the 1 steps", NO_CLIP),
    ),
    "declared, by hand": (
        trace(steps=steps(2, written=frozenset({id(A), id(B)}), norm=1.0), clip=Clip(1.0)),
        passes("in all 2 steps watched", steps=2),
    ),
    "declared, by hand, half": (
        trace(steps=steps(2, written=frozenset({id(A)}), norm=0.99), clip=Clip(1.0)),
        fails("1 of 2 parameters", {**STEP, "step": 1}, step=1, missed=["body.bias"], stepped=2, clip_calls=[]),
    ),
    "declared, by hand, half, far from the bound": (
        trace(steps=steps(2, written=frozenset({id(A)}), norm=0.98), clip=Clip(1.0)),
        undecided("no-clip-call", "in the 2 steps"),
    ),
    "declared by group, by hand, half": (
        trace(steps=steps(2, written=frozenset({id(A)}), norm=1.0), clip=Clip(1.0, "per_group")),
        undecided("no-clip-call", "in the 2 steps"),
    ),
    "declared, written to under a scaler": (
        trace(steps=steps(2, written=frozenset({id(A)}), norm=1.0, scaled=True), clip=Clip(1.0)),
        undecided("no-clip-call", "in the 2 steps"),
    ),
    "undeclared, by hand": (
        trace(steps=by_hand(*BINDS)),
        passes("a clip by hand to norm 1 reached every stepped gradient in 3 steps"),
    ),
    "undeclared, by hand, half": (
        trace(steps=[step(9), *by_hand(*BINDS, ids=(B,))]),
        fails(
            "a clip by hand to norm 1 leaves out 1 of 2 parameters that the optimizer steps: body.weight",
            {**STEP, "step": 1},
            step=1,
            missed=["body.weight"],
            stepped=2,
            bound=1.0,
        ),
    ),
    "undeclared, by hand, the other half otherwise": (
        trace(steps=by_hand(*BINDS, ids=(B,), written=frozenset({id(A)}))),
        passes("reached every stepped gradient in 3 steps"),
    ),
    "undeclared, by hand, backward not seen": (
        trace(steps=by_hand(*BINDS, ids=(B,), written=None)),
        fails("leaves out 1 of 2", {**STEP, "step": 1}, step=1, missed=["body.weight"], stepped=2, bound=1.0),
    ),
    "undeclared, by hand, twice": (trace(steps=by_hand(*BINDS[:2])), undecided("no-clip-call", "2 steps", NO_CLIP)),
    "undeclared, by hand, never binding": (
        trace(steps=by_hand((0.5, 1.0), (0.7, 1.0), (0.2, 1.0))),
        passes("a clip by hand (it multiplied by 1 in the steps seen) reached every stepped gradient in 3 steps"),
    ),
    "undeclared, by hand, never binding, half": (
        trace(steps=by_hand((0.5, 1.0), (0.7, 1.0), (0.2, 1.0), ids=(A,))),
        fails(
            "(it multiplied by 1 in the steps seen) leaves out 1 of 2",
            {**STEP, "step": 1},
            step=1,
            missed=["body.bias"],
            stepped=2,
            bound=None,
        ),
    ),
    "norms within one part in a thousand": (
        trace(steps=by_hand((1.0, 0.5), (0.9991, 0.9), (1.0009, 1.0))),
        passes("to norm 1 reached"),
    ),
    "norms that differ by more: no clip": (
        trace(steps=by_hand((1.0, 0.5), (0.9985, 0.9), (0.5, 1.0))),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "a larger norm left alone: no clip": (
        trace(steps=by_hand((1.0, 0.5), (1.0, 0.9), (1.0015, 1.0))),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "a larger norm among those left alone: no clip": (
        trace(steps=by_hand((1.0, 0.5), (1.0, 0.9), (0.5, 1.0), (1.5, 1.0))),
        undecided("no-clip-call", "4 steps", NO_CLIP),
    ),
    "a factor one part in a million from 1 binds not": (
        trace(steps=by_hand((1.0, 0.5), (1.0, 0.9), (0.5, 1 - 5e-7))),
        passes("to norm 1 reached"),
    ),
    "a factor two parts in a million from 1 binds": (
        trace(steps=by_hand((1.0, 0.5), (1.0, 0.9), (0.5, 1 - 2e-6))),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "a factor of just one part in a million less than 1 binds not": (
        trace(steps=by_hand((1.0, 0.5), (1.0, 0.9), (0.5, 1 - 1e-6))),
        passes("to norm 1 reached"),
    ),
    "and lets no larger norm pass": (
        trace(steps=by_hand((1.0, 0.5), (1.0, 0.9), (1.5, 1 - 1e-6))),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "a norm left alone just one part in a thousand larger": (
        trace(steps=by_hand((1.0, 0.5), (1.0, 0.9), (1 * (1 + 1e-3), 1.0))),
        passes("to norm 1 reached"),
    ),
    "a small bound that always binds": (
        trace(steps=by_hand((0.25, 0.5), (0.25, 0.9), (0.25, 0.8))),
        passes("to norm 0.25 reached"),
    ),
    "by hand before the distillation of a script": (
        trace(
            script=True, steps=[*by_hand(*BINDS, ids=(A,)), *by_hand((2.0, 0.5), (2.0, 0.5), (2.0, 0.5), distils=True)]
        ),
        passes("a clip by hand to norm 2 reached every stepped gradient in 3 steps"),
    ),
    "each by hand": (
        trace(steps=each(*EACH)),
        passes("a clip by hand bounds each gradient on its own to norm 1, and none was beyond it in 3 steps"),
    ),
    "each by hand, twice": (trace(steps=each(*EACH[:2])), undecided("no-clip-call", "2 steps", NO_CLIP)),
    "each by hand, within one part in a thousand": (
        trace(steps=each({A: (1.0, 0.5), B: (1.0009, 1)}, *EACH[1:])),
        passes("on its own to norm 1"),
    ),
    "each by hand, to norms that differ: no clip": (
        trace(steps=each({A: (0.998, 0.5), B: (0.3, 1)}, *EACH[1:])),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "each by hand, one grown: no clip": (
        trace(steps=each({A: (1.0, 1.5), B: (0.3, 1)}, *EACH[1:])),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "each by hand, one written to otherwise": (
        trace(steps=[*each(*EACH), step(4, hand_norms=numbers(1.0, 0.3), hand_factors=None)]),
        undecided("no-clip-call", "4 steps", NO_CLIP),
    ),
    "each by hand, and infinite": (
        trace(steps=[*each(*EACH), *each({A: (math.inf, 0.5), B: (1.0, 1)}, norm=math.inf)]),
        passes("on its own to norm 1, and none was beyond it in 3 steps"),
    ),
    "all of them always at one norm: normalised": (
        trace(steps=each(*[{A: (1.0, 0.5), B: (1.0, 0.8)}] * 3)),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "always the same one": (
        trace(steps=each(*[{A: (1.0, 0.5), B: (0.3, 1)}] * 3)),
        undecided("intent-unknown", "a clip by hand to norm 1 was seen in 3 steps; the gradients that it let be were"),
    ),
    "always the same one in a script": (
        trace(steps=each(*[{A: (1.0, 0.5), B: (0.3, 1)}] * 3), script=True),
        undecided("intent-unknown", "so whether it leaves them out is not to be seen", "--steps"),
    ),
    "always the same two": (
        trace(steps=each(*[{A: (1.0, 0.5), B: (1.0, 0.7), C: (0.3, 1)}] * 3)),
        undecided("intent-unknown", "a clip by hand to norm 1 was seen in 3 steps"),
    ),
    "each by hand, a third beyond it": (
        trace(steps=each(*[seen | {C: (norm, 1)} for seen, norm in zip(EACH, (0.2, 1.0011, 3.0), strict=True)])),
        fails(
            "a clip by hand of each gradient to norm 1 leaves out 1 of 3 parameters that the optimizer steps, beyond "
            "that norm: hint.weight",
            {**STEP, "step": 2},
            step=2,
            missed=["hint.weight"],
            stepped=3,
            bound=1.0,
        ),
    ),
    "each by hand, a third just not beyond it": (
        trace(steps=each(*[seen | {C: (1.0009, 1)} for seen in EACH])),
        passes("on its own to norm 1"),
    ),
    "always the same one, another beyond it": (
        trace(
            steps=[
                replace(made, hand_bound=(1.0, frozenset({id(A)}), 0.5))
                for made in each(*[{A: (1.0, 0.5), B: (3.0, 1)}] * 3)
            ]
        ),
        fails("leaves out 1 of 2", {**STEP, "step": 1}, step=1, missed=["body.bias"], stepped=2, bound=1.0),
    ),
    "each by hand, times 1 where there is no need, and a third never": (
        trace(
            steps=[
                replace(made, hand_factors={id(A): 1.0, id(B): 1.0} | made.hand_factors)
                for made in each(*[seen | {C: (0.2, 1)} for seen in EACH])
            ]
        ),
        undecided("no-clip-call", "3 steps", NO_CLIP),
    ),
    "each by hand, times 1 where there is no need": (
        trace(steps=[replace(made, hand_factors={id(A): 1.0, id(B): 1.0} | made.hand_factors) for made in each(*EACH)]),
        passes("on its own to norm 1"),
    ),
    "declared, each by hand": (
        trace(steps=each(*EACH, norm=1.4), clip=Clip(1.0)),
        passes("on its own to norm 1"),
    ),
    "declared, each by hand to another norm": (
        trace(steps=each(*EACH, norm=1.4), clip=Clip(0.9)),
        fails("1 of 2", {**STEP, "step": 1}, step=1, missed=["body.bias"], stepped=2, clip_calls=[]),
    ),
    "each by hand, and a torch clip elsewhere in the run": (
        trace(steps=[*each(*EACH), step(4, BOTH)]),
        passes("every stepped gradient was clipped in all 1 steps", steps=1),
    ),
    "by hand, and a torch clip elsewhere in the run": (
        trace(steps=[*by_hand(*BINDS, ids=(A,)), step(4, BOTH)]),
        passes("every stepped gradient was clipped in all 1 steps", steps=1),
    ),
}

EMPTY = clip()
EARLY = clip(handed=2)
UNDONE = clip(handed=2, grown=2)
LATE = clip(handed=2, grown=2, after_step=True)

CASES["KD202"] = {
    "no step": (trace(), undecided("not-in-these-steps", "no step of a watched optimizer")),
    "no clip": (trace(steps=steps(3)), undecided("no-clip-call", "no clip was seen in the 3 steps")),
    "in order": (trace(steps=steps(3, BOTH)), passes("between backward and step in 3 steps", steps=3)),
    "one of two void": (
        trace(steps=[step(1, EARLY), step(2, BOTH)]),
        passes("between backward and step in 1 steps", steps=2),
    ),
    "two of three void": (
        trace(steps=[step(1, EARLY), step(2, BOTH), step(3, EARLY), step(4)]),
        fails(
            "in 2 of 3 steps with a clip it reached no gradient that was stepped: the clip finds no gradient on the 2 "
            "parameters it is handed: it comes before the backward",
            CLIP,
            step=1,
            handed=2,
            bound=1.0,
        ),
    ),
    "one of one void, an empty list": (
        trace(steps=[step(1, EMPTY)]),
        fails("a generator that was used before is empty", CLIP, step=1, handed=0, bound=1.0),
    ),
    "another backward follows": (
        trace(steps=[step(1, EARLY), step(2, EARLY, replace(UNDONE, bound=0.5, where=OTHER))]),
        fails("a backward follows the clip before the step", OTHER, step=2, handed=2, bound=0.5),
    ),
    "after the step": (
        trace(steps=[step(1, EARLY), step(2, LATE), step(3, LATE)]),
        fails("the clip comes after the step, on gradients already used", CLIP, step=2, handed=2, bound=1.0),
    ),
    "after the step, on no gradient": (
        trace(steps=[step(1, clip(handed=2, after_step=True))]),
        fails("it comes before the backward", CLIP, step=1, handed=2, bound=1.0),
    ),
    "in the middle, and again at the end": (
        trace(steps=steps(2, UNDONE, BOTH)),
        passes("between backward and step in 2 steps", steps=2),
    ),
    "before the distillation of a script": (
        trace(script=True, steps=[step(1, EARLY), step(2, EARLY), step(3, BOTH, distils=True)]),
        passes("between backward and step in 1 steps", steps=1),
    ),
    "by hand after the step, once": (
        trace(steps=[step(1, hand_after_step=True), step(2)]),
        undecided("no-clip-call", "in the 2 steps"),
    ),
    "by hand after the step": (
        trace(steps=[step(1), *steps(12, hand_after_step=True)]),
        fails(
            "gradients are written to after the step that used them, in 12 of 13 steps",
            {**STEP, "step": 1},
            steps=list(range(1, 11)),
        ),
    ),
    "by hand after the step, twice": (
        trace(steps=steps(2, hand_after_step=True)),
        fails("in 2 of 2 steps", {**STEP, "step": 1}, steps=[1, 2]),
    ),
}
ASTRAY = clip(handed=1, handed_ids=frozenset({id(C)}))
OLD = clip(C, handed_ids=frozenset({id(C)}), norm=0.3)
TO_NONE = (
    "in 3 of 3 steps the clip is handed 1 parameters that no optimizer steps and that get no gradient: hint.weight"
)


def astray(*calls: ClipCall, script: bool = True, **fields: Any) -> Trace:
    """A script with a step to each clip of what is not stepped."""
    own = {key: fields.pop(key) for key in ("movable", "names", "clip") if key in fields}
    return trace(script=script, steps=[step(i + 1, strays=[c], **fields) for i, c in enumerate(calls)], **own)


CASES["KD202"] |= {
    "of what nothing steps": (
        astray(ASTRAY, ASTRAY, ASTRAY),
        fails(f"{TO_NONE}; nothing else is clipped", CLIP, step=1, handed=1, bound=1.0),
    ),
    "of what nothing steps and has no name": (
        astray(ASTRAY, ASTRAY, ASTRAY, names={}),
        fails("that get no gradient; nothing else is clipped", CLIP, step=1, handed=1, bound=1.0),
    ),
    "of what nothing steps, twice": (astray(ASTRAY, ASTRAY), undecided("no-clip-call", "in the 2 steps")),
    "of what nothing steps, in a loop": (
        astray(ASTRAY, ASTRAY, ASTRAY, script=False),
        fails(TO_NONE, CLIP, step=1, handed=1, bound=1.0),
    ),
    "of what a loop did not declare": (
        astray(ASTRAY, ASTRAY, ASTRAY, script=False, names={}),
        undecided("no-clip-call", "in the 3 steps"),
    ),
    "of what another optimizer may step": (
        astray(ASTRAY, ASTRAY, ASTRAY, movable=frozenset({id(C)})),
        undecided("no-clip-call", "in the 3 steps"),
    ),
    "of what nothing steps, in half of the steps": (
        trace(script=True, steps=[*astray(*[ASTRAY] * 3).updates.steps, *steps(3)]),
        undecided("no-clip-call", "in the 6 steps"),
    ),
    "of what nothing steps, beside a write": (
        astray(ASTRAY, ASTRAY, ASTRAY, written=frozenset({id(A)})),
        undecided("no-clip-call", "in the 3 steps"),
    ),
    "of what nothing steps, backward not seen": (
        astray(ASTRAY, ASTRAY, ASTRAY, written=None),
        undecided("no-clip-call", "in the 3 steps"),
    ),
    "of what nothing steps, beside a clip": (
        trace(script=True, steps=[step(1, BOTH), *astray(*[ASTRAY] * 3).updates.steps]),
        passes("between backward and step in 1 steps", steps=1),
    ),
    "of a gradient that is left over": (
        astray(replace(OLD, norms=(number(5.0), number(5.0))), OLD, OLD),
        fails(TO_NONE, CLIP, step=1, handed=1, bound=1.0),
    ),
    "of a gradient that is new each time": (
        astray(OLD, OLD, replace(OLD, norms=(number(0.301), number(0.301)))),
        undecided("no-clip-call", "in the 3 steps"),
    ),
    "of a gradient, by value": (
        astray(*[replace(OLD, norms=None)] * 3),
        undecided("no-clip-call", "in the 3 steps"),
    ),
    "before the distillation of a script, of what nothing steps": (
        trace(script=True, steps=[*astray(*[ASTRAY] * 3).updates.steps, *steps(3, distils=True)]),
        undecided("no-clip-call", "in the 3 steps"),
    ),
}
CASES["KD203"] = {
    "no scaler": (trace(steps=steps(2, BOTH)), undecided("out-of-scope", "no GradScaler took part")),
    "unscaled": (
        trace(steps=[step(1, BOTH), step(2, BOTH, scaled=True)]),
        passes("all 2 clips saw unscaled gradients", clips=2),
    ),
    "no clip": (trace(steps=steps(2, scaled=True)), undecided("no-clip-call", "under the GradScaler")),
    "no clip, one declared": (
        trace(steps=steps(2, scaled=True), clip=Clip(1.0)),
        undecided("no-clip-call", "under the GradScaler"),
    ),
    "still scaled": (
        trace(steps=[step(1, BOTH), step(2, clip(A, bound=0.5, scaled=True, where=OTHER)), step(3, BOTH, scaled=True)]),
        fails("1 of 3 clips saw gradients that were still scaled", OTHER, clips=3, early=1, bound=0.5),
    ),
    "still scaled, by the clip alone": (
        trace(steps=[step(1, clip(A, scaled=True))]),
        fails("1 of 1 clips", CLIP, clips=1, early=1, bound=1.0),
    ),
    "still scaled, two of three": (
        trace(steps=[step(1, replace(HALF, scaled=True), clip(B, bound=0.5, scaled=True, where=OTHER)), step(2, BOTH)]),
        fails("2 of 3 clips", CLIP, clips=3, early=2, bound=1.0),
    ),
    "by hand, still scaled": (
        trace(steps=[step(1, scaled=True), *steps(11, scaled=True, hand_scaled=True)], clip=Clip(1.0)),
        fails("written to before they were unscaled, in 11 steps", {**STEP, "step": 1}, steps=list(range(1, 11))),
    ),
    "written to, undeclared": (
        trace(steps=steps(2, scaled=True, hand_scaled=True)),
        undecided("no-clip-call", "under the GradScaler"),
    ),
    "written to, beside a clip": (
        trace(steps=steps(2, BOTH, scaled=True, hand_scaled=True), clip=Clip(1.0)),
        passes("all 2 clips saw unscaled gradients", clips=2),
    ),
}

BY_TWO = clip(A, B, norm=4.0)


def grew(norm: float, bound: float, at: int = 1) -> dict[str, float]:
    return {"step": at, "largest_norm": norm, "bound": bound}


CASES["KD204"] = {
    "no step": (trace(), undecided("not-in-these-steps", "no step of a watched optimizer")),
    "at the bound": (
        trace(steps=[step(1, norm=0.5), step(2, norm=1.0)], clip=Clip(1.0)),
        passes("the largest norm was 1, bound 1", **grew(1.0, 1.0, 2)),
    ),
    "over it by less than one in a thousand": (
        trace(steps=[step(norm=1.0009)], clip=Clip(1.0)),
        passes("the largest norm was 1.001, bound 1", **grew(1.0009, 1.0)),
    ),
    "over it by just one in a thousand": (
        trace(steps=[step(norm=1 * (1 + 1e-3))], clip=Clip(1.0)),
        passes("the largest norm was 1.001, bound 1", **grew(1.001, 1.0)),
    ),
    "over it by more": (
        trace(steps=[step(1, norm=1.0), step(2, norm=1.0011), step(3, norm=0.9)], clip=Clip(1.0)),
        fails("at step 2 the optimizer got gradients of norm 1.001", {**STEP, "step": 2}, **grew(1.0011, 1.0, 2)),
    ),
    "in bfloat16, over it by less than four of its steps": (
        trace(steps=[step(norm=1.03, resolution=2**-7)], clip=Clip(1.0)),
        passes("the largest norm was 1.03, bound 1", **grew(1.03, 1.0)),
    ),
    "in bfloat16, over it by more": (
        trace(steps=[step(norm=1.0325, resolution=2**-7)], clip=Clip(1.0)),
        fails("of norm 1.032", {**STEP, "step": 1}, **grew(1.0325, 1.0)),
    ),
    "another bound": (
        trace(steps=[step(1, clip(A, B), norm=6.0)], clip=Clip(5.0)),
        fails("of norm 6 over all its parameters, bound 5", CLIP, **grew(6.0, 5.0)),
    ),
    "infinite, skipped by the scaler": (
        trace(steps=[step(1, norm=float("inf")), step(2, norm=float("nan")), step(3, norm=0.5)], clip=Clip(1.0)),
        passes("the largest norm was 0.5", **grew(0.5, 1.0, 3)),
    ),
    "nothing finite": (
        trace(steps=[step(norm=float("nan"))], clip=Clip(1.0)),
        undecided("not-in-these-steps", "no step with finite gradients"),
    ),
    "four groups": (
        trace(steps=[step(1, *[HALF] * 4, norm=2.001)], clip=Clip(1.0, "per_group")),
        passes("the largest norm was 2.001, bound 2", **grew(2.001, 2.0)),
    ),
    "four groups, exceeded": (
        trace(steps=[step(1, HALF, *[replace(HALF, where=OTHER)] * 3, norm=2.01)], clip=Clip(1.0, "per_group")),
        fails("of norm 2.01 over all its parameters, bound 2", CLIP, **grew(2.01, 2.0)),
    ),
    "groups, one of them undone": (
        trace(steps=[step(1, HALF, UNDONE, norm=1.2)], clip=Clip(1.0, "per_group")),
        fails("bound 1", CLIP, **grew(1.2, 1.0)),
    ),
    "groups, all undone": (
        trace(steps=[step(1, *[UNDONE] * 4, norm=1.5)], clip=Clip(1.0, "per_group")),
        passes("bound 2", **grew(1.5, 2.0)),
    ),
    "groups by hand": (
        trace(steps=steps(2, norm=9.0), clip=Clip(1.0, "per_group")),
        undecided("no-clip-call", "groups clipped by hand cannot be counted"),
    ),
    "groups, one by hand": (
        trace(steps=steps(2, HALF, norm=9.0, written=frozenset({id(B)})), clip=Clip(1.0, "per_group")),
        undecided("no-clip-call", "groups clipped by hand cannot be counted"),
    ),
    "groups, one written to besides": (
        trace(steps=steps(2, HALF, norm=0.5, written=frozenset({id(A)})), clip=Clip(1.0, "per_group")),
        passes("the largest norm was 0.5, bound 1", **grew(0.5, 1.0)),
    ),
    "undeclared": (
        trace(steps=[step(1, BY_TWO, norm=1.0)]),
        passes("the largest norm was 1, bound 1", **grew(1.0, 1.0)),
    ),
    "undeclared, exceeded": (
        trace(steps=[step(1, BY_TWO, norm=1.5)]),
        fails("of norm 1.5 over all its parameters, bound 1", CLIP, "warn", **grew(1.5, 1.0)),
    ),
    "undeclared, backward not seen": (
        trace(steps=[step(1, BY_TWO, norm=1.0, written=None)]),
        passes("the largest norm was 1, bound 1", **grew(1.0, 1.0)),
    ),
    "undeclared, no clip": (
        trace(steps=steps(2)),
        undecided("no-clip-call", "no clip was declared, and step 1 made no clip call", NO_CLIP),
    ),
    "undeclared, no clip in one step": (
        trace(steps=[step(1), step(2, BY_TWO)]),
        passes("the largest norm was 0.5", **grew(0.5, 1.0, 2)),
    ),
    "undeclared, no clip in a script": (
        trace(steps=[step(1, BY_TWO, norm=9.0), step(2, distils=True)], script=True),
        undecided("no-clip-call", "step 2 made no clip call", OPTIONS),
    ),
    "undeclared, several calls": (
        trace(steps=[step(1, BY_TWO, BY_TWO, norm=9.0), step(2, norm=9.0)]),
        undecided("intent-unknown", "several clips a step", NO_CLIP),
    ),
    "undeclared, several calls, all but one undone": (
        trace(steps=[step(1, UNDONE, BY_TWO, norm=0.5)]),
        passes("bound 1", **grew(0.5, 1.0)),
    ),
    "undeclared, the other half by hand": (
        trace(steps=[step(1, clip(A, norm=4.0), norm=9.0, written=frozenset({id(B)}))]),
        undecided("intent-unknown", "several clips a step", NO_CLIP),
    ),
    "undeclared, by value": (
        trace(steps=[step(1, clip(A, B), norm=9.0)]),
        undecided("intent-unknown", "something other than the 2-norm", NO_CLIP),
    ),
    "undeclared, by another norm": (
        trace(steps=[step(1, replace(BY_TWO, norms=(number(4.005), number(4.0))), norm=9.0)]),
        undecided("intent-unknown", "something other than the 2-norm", NO_CLIP),
    ),
    "undeclared, by a norm that differs in the last bits": (
        trace(steps=[step(1, replace(BY_TWO, norms=(number(4.003), number(4.0))), norm=0.5)]),
        passes("bound 1", **grew(0.5, 1.0)),
    ),
    "undeclared, by a norm that differs by just one in a thousand": (
        trace(steps=[step(1, replace(BY_TWO, norms=(number(999.0), number(1000.0))), norm=0.5)]),
        passes("bound 1", **grew(0.5, 1.0)),
    ),
    "undeclared, by a norm that differs downwards": (
        trace(steps=[step(1, replace(BY_TWO, norms=(number(3.995), number(4.0))), norm=9.0)]),
        undecided("intent-unknown", "something other than the 2-norm", NO_CLIP),
    ),
}

EACH_OF_2 = ": a clip by hand bounds each of 2 gradients on its own"
CASES["KD204"] |= {
    "each by hand": (
        trace(steps=[*each(*EACH, norm=1.4), step(9, norm=5.0)]),
        fails(f"norm 1.4 over all its parameters, bound 1{EACH_OF_2}", {**STEP, "step": 1}, "warn", **grew(1.4, 1.0)),
    ),
    "each by hand, and all of them within it": (
        trace(steps=each(*EACH, norm=1.0)),
        passes("the largest norm was 1, bound 1", **grew(1.0, 1.0)),
    ),
    "each by hand, a third left out": (
        trace(steps=each(*[seen | {C: (3.0, 1)} for seen in EACH], norm=3.3)),
        undecided("no-clip-call", "step 1 made no clip call", NO_CLIP),
    ),
    "always the same one by hand": (
        trace(steps=each(*[{A: (1.0, 0.5), B: (0.3, 1)}] * 3, norm=1.04)),
        undecided("no-clip-call", "step 1 made no clip call", NO_CLIP),
    ),
    "declared, each by hand": (
        trace(steps=each(*EACH, norm=1.4), clip=Clip(1.0)),
        fails(f"bound 1{EACH_OF_2}", {**STEP, "step": 1}, **grew(1.4, 1.0)),
    ),
    "groups, each by hand": (
        trace(steps=each(*EACH, norm=1.4), clip=Clip(1.0, "per_group")),
        undecided("no-clip-call", "groups clipped by hand cannot be counted"),
    ),
}


def clipped(*norms: float) -> Trace:
    return trace(steps=[step(i + 1, clip(A, B, norm=n)) for i, n in enumerate(norms)])


CASES["KD205"] = {
    "no clip": (trace(steps=steps(2)), undecided("no-clip-call", "no clip by norm was seen")),
    "by value, or on nothing": (
        trace(steps=steps(20, BOTH, replace(EMPTY, norms=(number(2.0), number(2.0))))),
        undecided("no-clip-call", "no clip by norm was seen"),
    ),
    "nine": (
        clipped(*[2.0] * 9),
        undecided("not-in-these-steps", "9 clips are too few", "--steps", clips=9, share=1.0, largest_norm=2.0),
    ),
    "never": (
        clipped(*[1.0] * 10),
        fails("bound in 0% of 10 calls", CLIP, clips=10, share=0.0, largest_norm=1.0),
    ),
    "once": (clipped(*[0.5] * 9, 1.1), passes("bound in 10% of 10 calls", clips=10, share=0.1, largest_norm=1.1)),
    "by another norm": (
        trace(steps=steps(10, replace(BOTH, norms=(number(0.5), number(2.0))))),
        fails("bound in 0% of 10 calls", CLIP, clips=10, share=0.0, largest_norm=0.5),
    ),
    "19 of 20": (clipped(*[2.0] * 19, 1.0), passes("bound in 95% of 20 calls", clips=20, share=0.95, largest_norm=2.0)),
    "24 of 25": (
        clipped(*[2.0] * 24, 1.0),
        fails("bound in 96% of 25 calls", CLIP, clips=25, share=0.96, largest_norm=2.0),
    ),
}

# --- modes ---


def change(params: int = 0, buffers: int = 0, rate: float | None = None, own: bool = False, by: bool = False) -> Change:
    return Change(MANY[:params], [f"{name}.running_mean" for name in MANY[:buffers]], by, own, rate)


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
            "gives a gradient to 25 parameters of the teacher: layer0, layer1, layer2, and 22 more",
            OTHER,
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
    "parameters": (
        trace(change=change(25, by=True), sights=[sight(), sight(where=OTHER)]),
        fails(
            "25 parameters and 0 buffers of the teacher have changed: layer0, layer1, layer2, layer3, and 21 more",
            BACKWARD,
            parameters=MANY[:20],
            buffers=[],
            by_optimizer=True,
        ),
    ),
    "buffers": (
        trace(change=change(0, 25)),
        fails(
            "0 parameters and 25 buffers of the teacher have changed: layer0.running_mean",
            None,
            parameters=[],
            buffers=[f"{name}.running_mean" for name in MANY[:20]],
            by_optimizer=False,
        ),
    ),
    "a label loss of its own": (
        trace(change=change(1, own=True, rate=0.001)),
        undecided("out-of-scope", "trained by a label loss of its own"),
    ),
    "peers": (trace(change=change(1), peers=True), undecided("out-of-scope", "a label loss of its own")),
    "an average of the student": (
        trace(change=change(1, rate=0.0012345)),
        undecided("out-of-scope", "a moving average of the student (rate 0.00123 a step)"),
    ),
}
CASES["KD321"] = {
    "no layer that minds": (
        trace(sights=[sight(student_is_moody=False, student_eval=True)], eval_steps=[3]),
        undecided("out-of-scope", "no layer that answers otherwise"),
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

# --- inputs ---


def shaped(*shapes: tuple[int, ...], name: str = "mse_loss", kind: Any = "feature") -> Term:
    return term(name, kind, shapes=list(shapes))


CASES["KD106"] = {
    "overwritten": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), overwritten=("bn", "ReLU"))]),
        fails(
            "a hook on bn is handed what ReLU overwrites in place: the features compared are those after it",
            BACKWARD,
            hooked="bn",
            overwritten_by="ReLU",
        ),
    ),
    "no distance": (seen(feature("normalize")), undecided("out-of-scope", "no distance between features")),
    "equal": (
        seen(shaped((8, 4), (8, 4)), shaped((8, 2), (8, 2)), feature("cosine_similarity")),
        passes("one shape in 2 distances"),
    ),
    "unequal": (
        seen(shaped((8, 4), (8, 4)), shaped((8, 4), (8, 1))),
        fails("mse_loss compares features of shapes (8, 4) and (8, 1)", TERM, shapes=[[8, 4], [8, 1]]),
    ),
    "unequal logits": (
        seen(shaped((8, 10), (10,), kind="soft", name="sub")),
        fails("sub compares features of shapes (8, 10) and (10,)", TERM, shapes=[[8, 10], [10]]),
    ),
    "unequal, where it may be": (seen(shaped((8, 4), (8, 1), name="cosine_similarity")), undecided("out-of-scope", "")),
    "with a number": (seen(shaped((8, 4), ())), passes("one shape in 1 distances")),
    "one operand": (seen(shaped((8, 4))), passes("one shape in 1 distances")),
    "three operands": (seen(shaped((8, 4), (8, 1), (8, 1))), passes("one shape in 1 distances")),
    **{
        f"unequal in {name}": (
            seen(shaped((8, 4), (8, 1), name=name)),
            fails(f"{name} compares features", TERM, shapes=[[8, 4], [8, 1]]),
        )
        for name in ("l1_loss", "smooth_l1_loss", "huber_loss", "sub", "__sub__", "rsub")
    },
}


def shown(*relations: Any, detail: str = "by 2 pixels") -> Trace:
    return trace(sights=[sight(inputs=Inputs(r, detail) if r else None, number=i) for i, r in enumerate(relations)])


CASES["KD304"] = {
    "unfamiliar, though one batch for both": (
        trace(sights=[sight(inputs=Inputs("untrained", "x"))], same_input=True),
        fails("the teacher is shown unfamiliar inputs: x", BACKWARD, relation="untrained", detail="x"),
    ),
    "no live teacher": (shown(None), undecided("no-teacher-seen", "nothing to compare")),
    "stored answers": (
        trace(sights=[sight(inputs=Inputs("flipped")), sight(inputs=Inputs("flipped"), cached=True)]),
        undecided("no-teacher-seen", "nothing to compare"),
    ),
    "an answer that a second student takes over": (
        trace(sights=[sight(inputs=Inputs("flipped", "x")), sight(student="Other", cached=True)] * 2),
        fails("the teacher is shown mirrored inputs: x", BACKWARD, relation="flipped", detail="x"),
    ),
    "an answer stored over two backwards": (
        trace(
            sights=[
                sight(inputs=Inputs("flipped")),
                sight(student="Other", cached=True),
                sight(cached=True),
            ]
        ),
        undecided("no-teacher-seen", "nothing to compare"),
    ),
    "same": (shown(None, "same", "shapes"), passes("shown the same values")),
    "permuted": (shown("permuted"), passes("shown the same values")),
    "shapes": (
        trace(sights=[sight(inputs=Inputs("shapes", "(8, 1) and (8, 2)")), sight(inputs=Inputs("shapes", "odd"))]),
        undecided("out-of-scope", "the inputs have other shapes ((8, 1) and (8, 2))"),
    ),
    **{
        relation: (
            shown("same", relation),
            fails(
                f"the teacher is shown {word} inputs: by 2 pixels", BACKWARD, relation=relation, detail="by 2 pixels"
            ),
        )
        for relation, word in (
            ("flipped", "mirrored"),
            ("affine", "normalised otherwise"),
            ("differ", "different"),
            ("untrained", "unfamiliar"),
        )
    },
}

TURN = [1, 2, 0]
BACK = [2, 0, 1]


READ = ("forward", "one-sided", "reversed", "mse-logits", "mse-probabilities", "hard-labels")


def turned(order: list[int] | None = None, *parts: Term | Explanation, **fields: Any) -> Trace:
    """The teacher is shown the rows in another order."""
    return seen(*parts, inputs=Inputs("permuted" if order else "same", "", order), **fields)


CASES["KD305"] = {
    "in order": (seen(explained()), passes("each row is taught by the teacher's answer to it")),
    "taught by others": (
        seen(explained("permuted", permutation=[0, 2, 1, *range(3, 40)])),
        fails(
            "2 of 40 rows are taught by the teacher's answer to another sample: row 0 by that to row 0, row 1 by that "
            "to row 2",
            BACKWARD,
            permutation=[0, 2, 1, *range(3, 32)],
            rows=40,
        ),
    ),
    "shown others": (turned(TURN, explained()), fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3)),
    "shown others, but the term is not known": (
        turned(TURN, explained("unknown")),
        undecided("form-not-recognised", "not recognised, so its rows could not be told apart"),
    ),
    "turned and turned back": (turned(TURN, explained("permuted", permutation=BACK)), passes("each row is taught")),
    "turned twice": (
        turned(TURN, explained("permuted", permutation=TURN)),
        fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3),
    ),
    "turned, and one row turned back": (
        turned(TURN, explained("permuted", permutation=[2, 1, 0])),
        fails("2 of 3 rows are taught", BACKWARD, permutation=[2, 1, 0], rows=3),
    ),
    "an order that is none of the inputs'": (
        seen(explained(), inputs=Inputs("same", "", TURN)),
        passes("each row is taught"),
    ),
    "turned back, and another head that is not": (
        turned(TURN, explained("permuted", permutation=BACK), explained("permuted", permutation=TURN)),
        fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3),
    ),
    "features in another order": (
        seen(explained(), feature("cosine_similarity", permutation=True)),
        fails("features meet the student's in another order", TERM, term="cosine_similarity"),
    ),
    "features of inputs in another order": (
        turned(TURN, feature()),
        fails("features meet the student's in another order", TERM, term="mse_loss"),
    ),
    "features of inputs in another order, beside a label loss": (
        turned(TURN, feature(), explained("nothing")),
        fails("features meet the student's in another order", TERM, term="mse_loss"),
    ),
    "a soft term not explained, inputs in another order": (
        turned(TURN, term()),
        undecided("form-not-recognised", "not recognised"),
    ),
    "features of inputs turned and turned back": (
        turned(TURN, feature(), explained("permuted", permutation=BACK)),
        passes("each row is taught"),
    ),
    "inputs in another order, and nothing else seen": (
        turned([*range(1, 40), 0]),
        fails("is shown the batch's rows in another order", BACKWARD, permutation=list(range(1, 33))),
    ),
    "10 of 100 stored answers differ": (seen(cached=True, cached_rows=(100, 10)), passes("each row is taught")),
    "11 of 100 stored answers differ": (
        seen(cached=True, cached_rows=(100, 11)),
        fails(
            "11 of 100 stored answers are what the teacher said of other samples",
            BACKWARD,
            recognised=100,
            differing=11,
        ),
    ),
    "1 of 4 stored answers differs": (seen(cached=True, cached_rows=(4, 1)), passes("each row is taught")),
    "2 of 4 stored answers differ": (
        seen(cached=True, cached_rows=(4, 2)),
        fails(
            "2 of 4 stored answers",
            BACKWARD,
            recognised=4,
            differing=2,
        ),
    ),
    "stored, not seen to be given": (
        seen(explained(), cached=True),
        undecided("no-teacher-seen", "the answers are stored"),
    ),
    "stored, and the second backward live": (
        trace(sights=[sight(explained(), cached=True), sight(explained())]),
        passes("each row is taught"),
    ),
    "one known, one not": (seen(explained(), explained("unknown")), passes("each row is taught")),
    "one stored, one live, neither known": (
        trace(sights=[sight(explained("unknown"), cached=True), sight(explained("unknown"))]),
        undecided("form-not-recognised", "not recognised"),
    ),
    "features, in one backward of two, of the same inputs": (
        trace(sights=[sight(term("sub"), feature(), inputs=Inputs("same")), sight(term("sub"))]),
        passes("shown the same rows, and features meet in that order"),
    ),
    **{
        f"{form} of inputs in another order": (
            turned(TURN, explained(form)),
            fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3),
        )
        for form in READ
    },
    "features of the same inputs": (
        turned(None, feature()),
        passes("shown the same rows, and features meet in that order"),
    ),
    "features, inputs not compared": (seen(feature()), undecided("form-not-recognised", "not recognised")),
    "features, inputs of other shapes": (
        seen(feature(), inputs=Inputs("shapes")),
        undecided("form-not-recognised", "not recognised"),
    ),
    "a soft term not explained": (turned(None, term()), undecided("form-not-recognised", "not recognised")),
    "a form not known": (turned(None, explained("unknown")), undecided("form-not-recognised", "not recognised")),
    **{f"{form}, in order": (seen(explained(form)), passes("each row is taught")) for form in READ},
}
CASES["KD332"] = {
    "not seen": (trace(), undecided("out-of-scope", "no evaluation loader", "audits.check_split(train, evaluation)")),
    "disjoint": (
        trace(split_overlap=(100, 0, "by index", True)),
        passes(
            "none of 100 evaluation samples is trained on (by index)",
            evaluation=100,
            also_trained_on=0,
            seen="by index",
        ),
    ),
    "one shared, perhaps": (
        trace(split_overlap=(100, 1, "by content", False)),
        fails("1 of 100 samples", None, "warn", evaluation=100, also_trained_on=1, seen="by content"),
    ),
    "one shared": (
        trace(split_overlap=(100, 1, "by index", True)),
        fails("1 of 100 samples", None, evaluation=100, also_trained_on=1, seen="by index"),
    ),
}

# --- losses ---

CUT = {"reaches_student": False, "student_ran_detached": True}
STOPS = {"reaches_student": False}
NOTHING = explained("nothing")


def cut(name: str) -> dict[str, Any]:
    return {"term": name, "shapes": [[8, 10], [8, 10]]}


DIRECT = ["kl_div", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "cosine_similarity", "cosine_embedding_loss"]

CASES["KD311"] = {
    "the teacher against itself": (
        seen(term(), explained(), feature("cosine_similarity", of_teacher_alone=True, shapes=[(8, 4), (8, 4)])),
        fails(
            "a term (cosine_similarity) holds the teacher's answer against itself: the student is not in it",
            TERM,
            term="cosine_similarity",
            shapes=[[8, 4], [8, 4]],
        ),
    ),
    "4 backwards beside a second network": (
        trace(idle_windows=4, idle_name="Net (big)", idle_where=OTHER, windows_seen=9, script=True),
        undecided("no-teacher-seen", "in 9 backwards", "--student NAME --teacher NAME, or more --steps"),
    ),
    "5 backwards beside a second network": (
        trace(idle_windows=5, idle_name="Net (big)", idle_where=OTHER),
        fails(
            "a second network (Net (big)) answered the student's batch before 5 backwards, and its answer reached no",
            OTHER,
            windows=5,
            network="Net (big)",
        ),
    ),
    "reaches at first, and in none of the last 2": (
        trace(sights=[sight(term(), explained())], lost_windows=2, idle_name="Net (big)", idle_where=OTHER),
        fails("the answer of Net (big)", OTHER, windows=2, network="Net (big)"),
    ),
    "reaches but for the last": (
        trace(sights=[sight(term(), explained())], lost_windows=1),
        passes("gradient reaches the student"),
    ),
    "reaches but for 4 of a script's": (
        trace(sights=[sight(term(), explained())], lost_windows=4, script=True),
        passes("gradient reaches the student"),
    ),
    "reaches": (seen(term(), explained()), passes("the distillation's gradient reaches the student")),
    "reaches, seen in the gradient alone": (seen(explained("unknown")), passes("gradient reaches the student")),
    "frozen": (
        seen(term(), explained(), student_frozen=True),
        fails("no parameter of the student gets a gradient", BACKWARD, student="Net (student)"),
    ),
    "frozen in both backwards": (
        trace(sights=[sight(student_frozen=True), sight(student_frozen=True, where=OTHER, student="other")]),
        fails("no parameter of the student", BACKWARD, student="Net (student)"),
    ),
    "frozen in one backward of two": (
        trace(sights=[sight(explained(), student_frozen=True), sight(explained())]),
        passes("gradient reaches the student"),
    ),
    "against itself, the teacher idle": (
        seen(term(), explained(), self_taught=True, idle=True),
        fails(
            "held against its own answer; the teacher (Net (teacher)) answers, and reaches no loss",
            TERM,
            student="Net (student)",
        ),
    ),
    "against itself, asked twice": (
        seen(explained(), self_taught=True, asked_twice=True),
        fails("the student is held against its own answer", BACKWARD, student="Net (student)"),
    ),
    "against itself, in the second backward": (
        trace(sights=[sight(term()), sight(self_taught=True, asked_twice=True, explanations=[NOTHING], where=OTHER)]),
        fails("the student is held against its own answer", OTHER, student="Net (student)"),
    ),
    "against itself, without a gradient": (
        seen(term(where=None), NOTHING, self_taught=True),
        fails("the student is held against its own answer", BACKWARD, student="Net (student)"),
    ),
    "self-distillation": (seen(explained(), NOTHING, self_taught=True), passes("gradient reaches the student")),
    "idle, not against itself": (seen(explained(), idle=True), passes("gradient reaches the student")),
    "against itself, not explained": (
        seen(feature(), self_taught=True, idle=True),
        passes("gradient reaches the student"),
    ),
    "soft term cut": (
        seen(term(**CUT), where=OTHER),
        fails(
            "the distillation term (kl_div) never reaches the student: the student's side is cut", TERM, **cut("kl_div")
        ),
    ),
    "soft term stops": (
        seen(term(where=None, **STOPS), where=OTHER),
        fails("term (kl_div) never reaches the student: its gradient stops before", OTHER, **cut("kl_div")),
    ),
    "soft term cut, another seems to reach": (
        seen(term("mul"), term("mse_loss", **STOPS)),
        fails("the distillation term (mse_loss) never reaches", TERM, **cut("mse_loss")),
    ),
    "soft term cut, yet the gradient acts": (
        seen(term(), term("mse_loss", **STOPS), explained()),
        passes("gradient reaches the student"),
    ),
    "a weight by cosine similarity": (
        seen(feature("cosine_similarity", **STOPS), feature(), explained()),
        passes("gradient reaches the student"),
    ),
    "a weight by cosine similarity, where nothing else acts": (
        seen(feature("cosine_similarity", **STOPS), feature(), NOTHING),
        fails("the feature term (cosine_similarity) never reaches", TERM, **cut("cosine_similarity")),
    ),
    "feature term cut, another reaches": (
        seen(feature(**STOPS), feature("mul"), explained()),
        fails("the feature term (mse_loss) never reaches", TERM, **cut("mse_loss")),
    ),
    "hand-written soft term stops": (
        seen(term("sub", **STOPS)),
        fails("the distillation term (sub) never reaches", TERM, **cut("sub")),
    ),
    "hand-written soft term seems to stop, yet the gradient acts": (
        seen(term("sub", **STOPS), explained()),
        passes("gradient reaches the student"),
    ),
    "one of two hand-written soft terms stops": (
        seen(term("sub", **STOPS), term("mul")),
        undecided("not-in-these-steps", "its weight is 0", "--steps"),
    ),
    "feature term cut": (
        seen(feature(**CUT), explained()),
        fails("the feature term (mse_loss) never reaches the student: the student's side", TERM, **cut("mse_loss")),
    ),
    "hand-written feature term stops": (
        seen(feature("sub", **STOPS), explained()),
        fails("the feature term (sub) never reaches", TERM, **cut("sub")),
    ),
    "two feature terms stop, one of them known": (
        seen(feature("sub", **STOPS), feature("mse_loss", **STOPS)),
        fails("the feature term (mse_loss) never reaches", TERM, **cut("mse_loss")),
    ),
    "one of two hand-written feature terms stops": (
        seen(feature("sub", **STOPS), feature("mul")),
        passes("gradient reaches the student"),
    ),
    "a term against itself is none": (
        seen(term(against_itself=True, **STOPS), explained()),
        passes("gradient reaches the student"),
    ),
    "a soft term that reaches hides no feature term": (
        seen(term(), feature("sub", **STOPS)),
        fails("the feature term (sub) never reaches", TERM, **cut("sub")),
    ),
    "two soft terms cut": (
        seen(term(**CUT), term("mse_loss", where=OTHER, shapes=[(8, 2)], **STOPS)),
        fails("term (kl_div) never reaches the student: the student's side is cut", TERM, **cut("kl_div")),
    ),
    "a soft term against itself, and nothing else": (
        seen(term(against_itself=True, **STOPS), NOTHING),
        undecided("form-not-recognised", "no distance between student and teacher"),
    ),
    "a feature term against itself, and nothing else": (
        seen(feature(against_itself=True, **STOPS), NOTHING),
        undecided("form-not-recognised", "no distance between student and teacher"),
    ),
    "projector passed over": (
        seen(explained(), feature(projectors_missed=MANY[:4])),
        fails(
            "the term (mse_loss) goes through layer0, layer1, layer2, and 1 more, which gets no gradient from it",
            TERM,
            term="mse_loss",
            projectors=MANY[:4],
        ),
    ),
    "projector passed over, line not known": (
        seen(feature(projectors_missed=["hint"], where=None), where=OTHER),
        fails("(mse_loss) goes through hint", OTHER, term="mse_loss", projectors=["hint"]),
    ),
    "a weight of 0": (
        seen(term(), NOTHING),
        undecided("not-in-these-steps", "the distillation term is off in the steps seen: its weight is 0", "--steps"),
    ),
    "nothing recognised": (seen(NOTHING), undecided("form-not-recognised", "no distance between student and teacher")),
    **{
        f"{name} of logits cut beside another": (
            seen(term(name, **CUT), term("mul")),
            fails(f"the distillation term ({name}) never reaches", TERM, **cut(name)),
        )
        for name in DIRECT
    },
}


def formed(form: str = "forward", temperature: Any = (4.0, 4.0)) -> dict[str, Any]:
    return {"form": form, "temperature": temperature, "residual": 1e-7}


def given(**fields: Any) -> tuple[Trace, dict[str, Any]]:
    """A kl_div and what is observed of its operands."""
    seen_of = {"target_sum": None, "target_least": None, "input_sum": None} | fields
    return seen(term(**fields), explained()), seen_of


def operands(wanted: str | None, **fields: Any) -> tuple[Trace, Wanted]:
    made, observed = given(**fields)
    if wanted is None:
        return made, passes("the term is KL(teacher || student), temperature 4", form="forward", residual=1e-7)
    return made, fails(wanted, TERM, **observed)


NO_LOG, NO_SHARES = (
    "as input what are no log-probabilities: exp of a row sums to",
    "as target what are no probabilities:",
)

CASES["KD313"] = {
    "right": operands(None, target_sum=1.0, target_least=0.0, input_sum=1.0),
    "an input sums to 1.019": operands(None, input_sum=1.019),
    "an input sums to 1.021": operands(f"{NO_LOG} 1.02", input_sum=1.021),
    "an input sums to 0.981": operands(None, input_sum=0.981),
    "an input sums to 0.979": operands(f"{NO_LOG} 0.979", input_sum=0.979),
    "a target sums to 1.019": operands(None, target_sum=1.019),
    "a target sums to 1.021": operands(f"{NO_SHARES} a row sums to 1.02", target_sum=1.021),
    "a target sums to 0.979": operands(f"{NO_SHARES} a row sums to 0.979", target_sum=0.979),
    "a target is negative by rounding": operands(None, target_least=-1e-6),
    "a target is negative": operands(f"{NO_SHARES} some are negative", target_least=-2e-6, target_sum=3.0),
    "swapped": (
        seen(term(swapped=True), explained()),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "swapped, and the other way round besides": (
        seen(term(), term(swapped=True), explained()),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "the other way round, and odd besides": (
        seen(term(swapped=True), term(target_sum=3.0), explained()),
        fails(f"{NO_SHARES} a row sums to 3", TERM, target_sum=3.0, target_least=None, input_sum=None),
    ),
    "swapped, and another function besides": (
        seen(term("mse_loss"), term(swapped=True), explained()),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "swapped, and one that stops besides": (
        seen(term(**STOPS), term(swapped=True), explained()),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "a target with a gradient": (
        seen(term(target_grad=True), explained()),
        fails("the target carries a gradient", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "a peer's answer with a gradient": (
        trace(sights=[sight(term(target_grad=True), explained())], peers=True),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "odd operands of another function": (
        seen(term("mse_loss", target_sum=3.0, swapped=True), explained()),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "odd operands of a term against itself": (
        seen(term(target_sum=3.0, against_itself=True), explained()),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "odd operands in the second backward": (
        trace(sights=[sight(term(), explained()), sight(term(), term(target_sum=3.0, where=OTHER))]),
        fails(f"{NO_SHARES} a row sums to 3", OTHER, target_sum=3.0, target_least=None, input_sum=None),
    ),
    "swapped, of two log-probabilities": (
        seen(term(swapped=True, log_target=True), explained()),
        fails("arguments are swapped", TERM, "warn", target_sum=None, target_least=None, input_sum=None),
    ),
    "swapped, of two log-probabilities, and a temperature declared": (
        seen(term(swapped=True, log_target=True), explained(), kd=KD(temperature=4.0)),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    **{
        f"over dimension {over}": (
            seen(term(across=over, shapes=[(5, 7, 3)] * 2, input_sum=3.0)),
            fails(
                f"the softmax runs over the {word} (dimension {over} of (5, 7, 3)), not over the 3 classes",
                TERM,
                target_sum=None,
                target_least=None,
                input_sum=3.0,
                dimension=over,
                shape=[5, 7, 3],
            ),
        )
        for over, word in ((0, "batch"), (1, "sequence"))
    },
    "a softmax of probabilities": (
        seen(term(), explained(), probabilities="teacher's"),
        fails("probabilities already, and a softmax is taken of them again", TERM, whose="teacher's"),
    ),
    "a sigmoid of probabilities": (
        seen(term(), explained(), probabilities="student's", squashed_by="sigmoid"),
        fails("probabilities already, and a sigmoid is taken of them again", TERM, whose="student's"),
    ),
    "reversed, written by hand": (
        seen(term("sub"), explained("reversed")),
        fails("the wrong form: it is KL(student || teacher)", TERM, "warn", **formed("reversed")),
    ),
    "reversed, and a temperature declared": (
        seen(term("sub"), explained("reversed"), kd=KD(temperature=4.0)),
        fails("the wrong form: it is KL(student || teacher)", TERM, **formed("reversed")),
    ),
    **{
        form: (seen(term(), explained(form)), fails(words, TERM, **formed(form)))
        for form, words in {
            "probabilities": "student's probabilities stand where",
            "logits-as-target": "the teacher's logits stand where probabilities are due",
            "log-target": "log_target is not set",
            "negative": "its sign is wrong",
        }.items()
    },
    "reversed in the second backward": (
        trace(sights=[sight(explained()), sight(explained("reversed"), where=OTHER)]),
        fails("the wrong form", OTHER, "warn", **formed("reversed")),
    ),
    "the student alone is softened": (
        seen(explained("one-sided", temperature=(4.0, 1.0))),
        fails(
            "only the student's side is softened: temperature 4 for the student, 1 for the teacher",
            BACKWARD,
            **formed("one-sided", (4.0, 1.0)),
        ),
    ),
    "the student alone, in the second backward": (
        trace(sights=[sight(), sight(explained("one-sided", temperature=(2.0, 1.0)), where=OTHER)]),
        fails("only the student's side is softened", OTHER, **formed("one-sided", (2.0, 1.0))),
    ),
    "reversed, features besides": (
        seen(feature(where=OTHER), term(), explained("reversed")),
        fails("the wrong form", TERM, "warn", **formed("reversed")),
    ),
    "the teacher alone is softened": (
        seen(explained("one-sided", temperature=(1.0, 2.5))),
        fails(
            "only the teacher's side is softened: temperature 1 for the student, 2.5 for the teacher",
            BACKWARD,
            **formed("one-sided", (1.0, 2.5)),
        ),
    ),
    "one side is sharpened": (
        seen(explained("one-sided", temperature=(1.0, 0.5))),
        undecided("form-not-recognised", "was not recognised"),
    ),
    "two temperatures": (
        seen(explained("one-sided", temperature=(4.0, 2.0), residual=0.125)),
        undecided("form-not-recognised", "the form of the soft term was not recognised (residual 0.12)"),
    ),
    "two forms not known": (
        seen(explained("unknown", residual=0.25), explained("unknown", residual=0.5)),
        undecided("form-not-recognised", "was not recognised (residual 0.25)"),
    ),
    "one-sided, temperatures not read": (
        seen(explained("one-sided", temperature=None)),
        undecided("form-not-recognised", "was not recognised"),
    ),
    "another form, one temperature 1": (
        seen(explained("unknown", temperature=(4.0, 1.0))),
        undecided("form-not-recognised", "was not recognised"),
    ),
    "the declared temperature": (
        seen(explained(temperature=(4.03, 4.03)), kd=KD(temperature=4.0)),
        passes("KL(teacher || student), temperature 4.03", form="forward", residual=1e-7),
    ),
    "another temperature": (
        seen(explained(temperature=(4.05, 4.05)), kd=KD(temperature=4.0)),
        fails("the temperature in force is 4.05, declared 4", BACKWARD, **formed("forward", (4.05, 4.05))),
    ),
    "another temperature, in the second backward": (
        trace(sights=[sight(), sight(explained(), where=OTHER)], kd=KD(temperature=3.0)),
        fails("the temperature in force is 4, declared 3", OTHER, **formed()),
    ),
    "off by just one in a hundred": (
        seen(explained(temperature=(101.0, 101.0)), kd=KD(temperature=100.0)),
        passes("temperature 101", form="forward", residual=1e-7),
    ),
    "a lower temperature": (
        seen(explained(temperature=(2.0, 2.0)), kd=KD(temperature=4.0)),
        fails("the temperature in force is 2, declared 4", BACKWARD, **formed("forward", (2.0, 2.0))),
    ),
    "a temperature declared, none read": (
        seen(explained(temperature=None), kd=KD(temperature=4.0)),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "a temperature declared, another form": (
        seen(explained("mse-logits", temperature=(2.0, 2.0)), kd=KD(temperature=4.0)),
        passes("the term is the squared distance of logits", form="mse-logits", residual=1e-7),
    ),
    "squared distance of probabilities": (
        seen(explained("mse-probabilities")),
        passes("the term is the squared distance of probabilities", form="mse-probabilities", residual=1e-7),
    ),
    "labels of the teacher's": (
        seen(explained("hard-labels")),
        passes("the term is cross-entropy on the teacher's labels", form="hard-labels", residual=1e-7),
    ),
    "first unknown, then known": (
        trace(sights=[sight(explained("unknown")), sight(explained())]),
        passes("the term is KL(teacher || student), temperature 4", form="forward", residual=1e-7),
    ),
    "rows permuted": (seen(explained("permuted")), undecided("form-not-recognised", "the rows do not belong together")),
    "off": (seen(NOTHING), undecided("not-in-these-steps", "no gradient in the steps seen", "--steps")),
    "not known, and off": (seen(explained("unknown"), NOTHING), undecided("form-not-recognised", "not recognised")),
    "no logits": (seen(feature()), undecided("out-of-scope", "no term between logits")),
}

T2, T1, BY_C, BY_B, BY_BB = (
    "1/T^2 (T * T is missing)",
    "1/T (T instead of T * T)",
    "1/C (reduction 'mean' divides by the classes too)",
    "B (the sum was not divided by the batch)",
    "1/B (divided by the batch twice)",
)


def weighed(kd: float, labels: float | None = 0.1, **fields: Any) -> dict[str, Any]:
    return {
        "kd_weight": kd,
        "label_weight": labels,
        "temperature": 4.0,
        "classes": 10,
        "rows": 8,
        "residual": 1e-7,
    } | fields


def scaled(
    wanted: tuple[str, ...],
    kd: float,
    labels: float | None = 0.1,
    extra: dict[str, Any] | None = None,
    micro: int = 1,
    meant: KD | None = None,
    **fields: Any,
) -> tuple[Trace, Wanted]:
    """One soft term at temperature 4 over 8 rows of 10 classes with these weights, and the verdict on its scale."""
    made = seen(explained(weight=kd, label_weight=labels, **fields), term(), kd=meant, micro=micro)
    shown_of = {key: value for key, value in fields.items() if key in ("classes", "rows")}
    if "temperature" in fields:
        shown_of["temperature"] = fields["temperature"][0]
    observed = weighed(kd, labels, **shown_of) | (extra or {})
    status, message, *rest = wanted
    if status == "fail":
        return made, fails(message, TERM, *rest, **observed)
    if status == "pass":
        return made, passes(message, **observed)
    return made, undecided(status, message, *rest, **observed)


FREE = ("intent-unknown", "whether that is meant cannot be seen", "--alpha or --kd-weight")
ALPHA, WEIGHT = KD(alpha=0.9), KD(kd_weight=0.9)


def factor(name: str, value: float) -> dict[str, Any]:
    """The arguments of `scaled` for a factor on 0.9 beside 0.1."""
    return {
        "wanted": (
            "fail",
            f"acts with weight {0.9 * value:.4g} where 0.9 belongs beside the labels' 0.1: a factor {name}",
        ),
        "kd": 0.9 * value,
        "extra": {"factor": value},
    }


CASES["KD312"] = {
    "sum to one": scaled(("pass", "the weights sum to one: labels 0.1, distillation 0.9"), 0.9),
    "sum to 1.0019": scaled(("pass", "sum to one: labels 0.1, distillation 0.9019"), 0.9019),
    "sum to 1.0021": scaled(FREE, 0.9021),
    "sum to 0.9981": scaled(("pass", "sum to one: labels 0.1, distillation 0.8981"), 0.8981),
    "sum to 0.9979": scaled(FREE, 0.8979),
    "sum to one over four backwards": scaled(
        ("pass", "sum to one: labels 0.1, distillation 0.9"), 0.225, 0.025, micro=4
    ),
    "sum to one each of four backwards": scaled(("pass", "labels 0.1, distillation 0.9"), 0.9, micro=4),
    "T^2": scaled(**factor(T2, 1 / 16)),
    "T": scaled(**factor(T1, 1 / 4)),
    "C": scaled(**factor(BY_C, 1 / 10)),
    "C and T^2": scaled(**factor("1/(C T^2) (reduction 'mean', and T * T is missing)", 1 / 160)),
    "sum": scaled(**factor(BY_B, 8.0)),
    "twice": scaled(**factor(BY_BB, 1 / 8)),
    "tokens": scaled(
        **factor("rows/B (divided by the sequences, not by their tokens)", 4.0), rows=32, batch=8, classes=100
    ),
    "the factor itself a little off": scaled(
        ("fail", f"where 0.9018 belongs beside the labels' 0.1: a factor {T2}"), 0.9018 / 16, extra={"factor": 1 / 16}
    ),
    "a factor that is none": scaled(FREE, 0.903 / 16),
    "T^2 over four backwards": scaled(
        ("fail", f"acts with weight 0.05625 where 0.9 belongs beside the labels' 0.1: a factor {T2}"),
        0.225 / 16,
        0.025,
        extra={"factor": 1 / 16},
        micro=4,
    ),
    "at temperature 1, C": scaled(**factor(BY_C, 1 / 10), temperature=(1.0, 1.0)),
    "at temperature 1, no T": scaled(FREE, 0.9 / 16, temperature=(1.0, 1.0)),
    "two names of one number": scaled(**factor(f"{T2}, or {BY_C}", 1 / 16), classes=16),
    "two numbers that fit": scaled(FREE, 0.03 / 102, 0.97, classes=100, rows=104, batch=104),
    "a weight too small to tell": scaled(FREE, 0.019 / 16, 0.981),
    "a weight that just cannot tell": scaled(FREE, 0.02 / 16, 0.98),
    "two numbers that are almost one": scaled(
        ("fail", f"where 0.8983 belongs beside the labels' 0.1: a factor {BY_C}, or {BY_BB}"),
        0.8983 / 250,
        extra={"factor": 1 / 250},
        classes=250,
        rows=251,
        batch=251,
    ),
    "T^2 in each of four backwards": scaled(
        ("fail", f"acts with weight 0.05625 where 0.9 belongs beside the labels' 0.1: a factor {T2}"),
        0.9 / 16,
        extra={"factor": 1 / 16},
        micro=4,
    ),
    "a small weight": scaled(
        ("fail", "where 0.023 belongs beside the labels' 0.977"), 0.023 / 16, 0.977, extra={"factor": 1 / 16}
    ),
    "tokens of sequences decide nothing": scaled(FREE, 0.9 / 16, sequence=True),
    "labels at almost 1": scaled(FREE, 0.0015, 0.9985),
    "labels at not quite 1": scaled(("pass", "labels 0.9975, distillation 0.0025"), 0.0025, 0.9975),
    "labels at just 0.998": scaled(FREE, 0.002, 0.998),
    "labels at 1": scaled(FREE, 0.5, 1.0),
    "labels at 0": scaled(FREE, 1.0, 0.0),
    "labels at next to nothing": scaled((FREE[0], "labels act with weight 1e-05", FREE[2]), 0.5, 1e-5),
    "labels unknown": scaled((FREE[0], "labels act with weight unknown, distillation with 0.5", FREE[2]), 0.5, None),
    "free": scaled(
        (
            FREE[0],
            "labels act with weight 1, distillation with 0.5 at temperature 4 (it would read 8 with T * T missing)",
            FREE[2],
        ),
        0.5,
        1.0,
    ),
    "free, at temperature 1": scaled(
        (FREE[0], "distillation with 0.5 at temperature 1 (it would read 0.5)", FREE[2]),
        0.5,
        1.0,
        temperature=(1.0, 1.0),
    ),
    "as alpha says": scaled(("pass", "acts with weight 0.9, as declared"), 0.9, 1.0, meant=ALPHA),
    "as alpha says, within two in a thousand": scaled(("pass", "0.9017, as declared"), 0.9017, 1.0, meant=ALPHA),
    "beyond two in a thousand": scaled(
        ("fail", "acts with weight 0.902, declared 0.9: a factor 1.002"), 0.902, meant=ALPHA
    ),
    "without T^2, over two backwards": scaled(
        ("fail", f"weight 0.02813, declared 0.9: a factor {T2}"), 0.9 / 32, meant=ALPHA, micro=2
    ),
    "declared off, and on": scaled(("fail", "weight 0.9, declared 0: a factor without end"), 0.9, meant=KD(alpha=0.0)),
    "as alpha says, over four backwards": scaled(("pass", "weight 0.9, as declared"), 0.225, meant=ALPHA, micro=4),
    "as alpha says, in each of four backwards": scaled(("pass", "0.9, as declared"), 0.9, meant=ALPHA, micro=4),
    "in half precision, within twice the residual": scaled(
        ("pass", "as declared"), 0.9 * 1.009, meant=ALPHA, residual=5e-3, extra={"residual": 5e-3}
    ),
    "in half precision, beyond": scaled(
        ("fail", "declared 0.9: a factor 1.011"), 0.9 * 1.011, meant=ALPHA, residual=5e-3, extra={"residual": 5e-3}
    ),
    "in half precision, by just twice the residual": scaled(
        ("pass", "as declared"), 1 + 2**-8, meant=KD(kd_weight=1.0), residual=2**-9, extra={"residual": 2**-9}
    ),
    "in half precision, sum to just that": scaled(
        ("pass", "sum to one"), 0.5 + 2**-8, 0.5, residual=2**-9, extra={"residual": 2**-9}
    ),
    "in half precision, sum to one": scaled(("pass", "sum to one"), 0.909, residual=5e-3, extra={"residual": 5e-3}),
    "in half precision, sum to more": scaled(FREE, 0.911, residual=5e-3, extra={"residual": 5e-3}),
    "as the weight says": scaled(("pass", "weight 0.9, as declared"), 0.9, 1.0, meant=WEIGHT),
    "alpha before the weight": scaled(("pass", "0.9, as declared"), 0.9, meant=KD(alpha=0.9, kd_weight=0.5)),
    "not as alpha says, by T^2": scaled(("fail", f"0.05625, declared 0.9: a factor {T2}"), 0.9 / 16, meant=ALPHA),
    "not as the weight says, by C": scaled(("fail", f"0.09, declared 0.9: a factor {BY_C}"), 0.09, 1.0, meant=WEIGHT),
    "not as alpha says, by two that are one": scaled(
        ("fail", f"declared 0.9: a factor {T2}, or {BY_C}"), 0.9 / 16, meant=ALPHA, classes=16
    ),
    "a named factor within four in a thousand": scaled(("fail", f"a factor {T2}"), 0.9 / 16 * 1.0035, meant=ALPHA),
    "a factor beyond four in a thousand": scaled(("fail", "a factor 0.06283"), 0.9 / 16 * 1.0052, meant=ALPHA),
    "some rows alone, as declared": scaled(("pass", "as declared"), 0.9, meant=ALPHA, partial=True),
    "some rows alone": scaled(("form-not-recognised", "only some rows are distilled", "--alpha"), 0.9, partial=True),
    "squared distance": (seen(explained("mse-logits")), undecided("out-of-scope", "the term is no KL divergence")),
    "squared distance of probabilities": (
        seen(explained("mse-probabilities"), term(reduction="mean")),
        undecided("out-of-scope", "the term is no KL divergence"),
    ),
    "labels of the teacher's": (
        seen(explained("hard-labels")),
        undecided("out-of-scope", "the term is no KL divergence"),
    ),
    "squared distance, and a form not known": (
        seen(explained("mse-logits"), explained("unknown")),
        undecided("out-of-scope", "the term is no KL divergence"),
    ),
    "rows permuted, and a form not known": (
        seen(explained("permuted"), explained("unknown")),
        undecided("form-not-recognised", "the rows do not belong together"),
    ),
    "not as declared, in the second backward": (
        trace(sights=[sight(), sight(explained(weight=0.5), where=OTHER)], kd=ALPHA),
        fails("a factor 0.5556", OTHER, **weighed(0.5)),
    ),
    "of two that were read the first": (
        seen(explained(), explained(weight=0.5)),
        passes("distillation 0.9", **weighed(0.9)),
    ),
    "rows permuted": (seen(explained("permuted")), undecided("form-not-recognised", "the rows do not belong together")),
    "a form not known": (seen(explained("unknown")), undecided("form-not-recognised", "no soft term of a known form")),
    "no weight read": (seen(explained(weight=None)), undecided("form-not-recognised", "no soft term of a known form")),
    "no temperature read": (seen(explained(temperature=None)), undecided("form-not-recognised", "of a known form")),
    "the first that was read": (
        trace(
            sights=[sight(explained("unknown"), micro=3), sight(explained(weight=0.225, label_weight=0.025), micro=4)]
        ),
        passes("labels 0.1, distillation 0.9", **weighed(0.225, 0.025)),
    ),
}

MEAN = {"reduction": "mean", "shape": [8, 10]}
CASES["KD312"] |= {
    "reduction mean, a form not known": (
        seen(explained("unknown"), term(), term(reduction="mean", where=OTHER)),
        fails("reduction is 'mean', which divides by the 10 classes too", OTHER, "warn", **MEAN),
    ),
    "reduction mean, rows permuted": (
        seen(explained("permuted"), term(reduction="mean")),
        fails("divides by the 10 classes too", TERM, "warn", **MEAN),
    ),
    "reduction mean, weights free": (
        seen(explained(label_weight=1.0), term(reduction="mean")),
        fails("divides by the 10 classes too", TERM, "warn", **MEAN),
    ),
    "reduction mean, made up for": (
        seen(explained(), term(reduction="mean")),
        passes("the weights sum to one", **weighed(0.9)),
    ),
    "reduction mean of another function": (
        seen(explained("unknown"), term("mse_loss", reduction="mean")),
        undecided("form-not-recognised", "of a known form"),
    ),
    "reduction mean over one column": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(8, 1)])),
        undecided("form-not-recognised", "of a known form"),
    ),
    "reduction mean over two columns": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(8, 2)])),
        fails("divides by the 2 classes too", TERM, "warn", reduction="mean", shape=[8, 2]),
    ),
    "reduction mean of sequences": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(8, 1, 10), (8, 1, 1)])),
        fails("divides by the 10 classes too", TERM, "warn", reduction="mean", shape=[8, 1, 10]),
    ),
    "reduction mean of a number": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(), (8, 10)])),
        undecided("form-not-recognised", "of a known form"),
    ),
    "reduction mean of what was not seen": (
        seen(explained("unknown"), term(reduction="mean", shapes=[])),
        undecided("form-not-recognised", "of a known form"),
    ),
}


def written(slip: str | None, kd: float, *factors: float, known: bool = True, **fields: Any) -> tuple[Trace, Wanted]:
    """A soft term of free weight `kd` at temperature 4, multiplied by `factors` on its way to the sum."""
    t = fields.get("temperature", (4.0,))[0]
    wanted: tuple[str, ...] = FREE
    if slip is not None:
        wanted = ("fail", f"acts with weight {kd:.4g} at temperature {t:g}, as if by a factor {slip}", "warn")
    return scaled(wanted, kd, 1.0, factors=list(factors), factors_known=known, **fields)


ONE_C = "1/C (the mean divides by the classes too)"
AT_ONE = {"temperature": (1.0, 1.0)}
CASES["KD312"] |= {
    "written with T^2": written(None, 0.5, 0.5, 16.0),
    "written with T twice": written(None, 0.5, 0.5, 4.0, 4.0),
    "written with T^2 in one number": written(None, 0.5, 8.0),
    "written without T^2": written(T2, 0.5 / 16, 0.5),
    "written without T^2, within five in a thousand": written(T2, 0.5 / 16 * 1.004, 0.5),
    "written without T^2, beyond": written(None, 0.5 / 16 * 1.006, 0.5),
    "written without any factor": written(T2, 1 / 16),
    "written without T^2, of many digits": written(None, 0.5123 / 16, 0.5123),
    "written without T^2, of four digits": written(None, 1.625 / 16, 1.625),
    "written without T^2, almost of three digits": written(T2, 0.33305 / 16, 0.33305),
    "written without T^2, not quite of three digits": written(None, 0.3331 / 16, 0.3331),
    "written without T^2, of three digits": written(T2, 0.337 / 16, 0.337),
    **{
        f"alpha twice, {name}": scaled(
            (
                "fail",
                "acts with weight 0.09 where 0.3 belongs beside the labels' 0.7: it is multiplied by 0.3 twice",
                "warn",
            ),
            0.09,
            0.7,
            factors=factors,
            factors_known=True,
            extra={"factors": factors},
        )
        for name, factors in {"and T^2": [16.0, 0.3, 0.3], "with T^2 in one": [4.8, 0.3]}.items()
    },
    "written with T": written(T1, 2 / 16, 0.5, 4.0),
    "written with T in one number": written(T1, 2.8 / 16, 2.8),
    "written with T in one number that is as round": written(T2, 2.2 / 16, 2.2),
    "factors not known": written(None, 0.5 / 16, 0.5, known=False),
    "a negative product": written(None, 0.5 / 16, -0.5),
    "a product of 0": written(None, 0.5 / 16, 0.0),
    "divided by C": written(ONE_C, 0.05, 0.5, 16.0),
    "divided by C, within five in a thousand": written(ONE_C, 0.05 * 1.004, 0.5, 16.0),
    "divided by C, beyond": written(None, 0.05 * 1.006, 0.5, 16.0),
    "divided by C, and multiplied by it": written(None, 0.5, 0.5, 16.0, 10.0),
    "divided by C, and multiplied by almost it": written(None, 0.5 * 1.0015, 0.5, 16.0, 10.015),
    "divided by C, and multiplied by something else": written(ONE_C, 0.5 * 1.1, 0.5, 16.0, 11.0),
    "divided by C at temperature 1": written(ONE_C, 0.05, 0.5, **AT_ONE),
    "divided by C and by T^2": written(ONE_C, 0.05 / 16, 0.5),
    "summed": written(BY_B, 4.0, 0.5, 16.0),
    "summed, within five in a thousand": written(BY_B, 4.0 * 1.004, 0.5, 16.0),
    "summed, beyond": written(None, 4.0 * 1.006, 0.5, 16.0),
    "summed, and divided by the batch": written(None, 0.5, 0.5, 16.0, 1 / 8),
    "summed, and divided by almost the batch": written(None, 0.5 * 1.0015, 0.5, 16.0, 1.0015 / 8),
    "summed over the rows of sequences, and divided by the batch": written(
        None, 0.5 * 4, 0.5, 16.0, 1 / 8, rows=32, batch=8
    ),
    "summed over one row": written(None, 0.5, 0.5, 16.0, rows=1, batch=1),
    "summed without T^2": written(BY_B, 4.0 / 16, 0.5),
    "divided by the batch twice": written(BY_BB, 0.5 / 8, 0.5, 16.0, 1 / 8),
    "divided by the batch twice, within five in a thousand": written(BY_BB, 0.5 / 8 * 1.004, 0.5, 16.0, 1 / 8),
    "divided by the batch twice, beyond": written(None, 0.5 / 8 * 1.006, 0.5, 16.0, 1 / 8),
    "summed over two rows": written(BY_B, 1.4, 0.7, 16.0, rows=2, batch=2),
    "divided by two rows twice": written(BY_BB, 0.35, 0.7, 16.0, 0.5, rows=2, batch=2),
    "over seven rows, without T^2": written(T2, 0.5 / 16, 0.5, 1 / 7, rows=7, batch=7),
    "divided by the batch thrice": written(None, 0.5 / 64, 0.5, 16.0, 1 / 8, 1 / 8),
    "divided by one row": written(None, 0.5, 0.5, 16.0, 1.0, rows=1, batch=1),
    "at temperature 1": written(None, 0.5, 0.5, **AT_ONE),
    "at temperature 1, without any factor": written(None, 1.0, **AT_ONE),
    "written with almost T^2, which is less round": written(
        None, 0.5 * 10.9 / 10.89, 0.5, 10.9, temperature=(3.3, 3.3)
    ),
    "summed, divided, without T^2": written(T2, 0.5 / 16, 0.5, 1 / 8),
    "over the tokens, divided by the batch, without T^2": written(T2, 0.5 / 16 * 4, 0.5, 1 / 8, rows=32, batch=8),
    "divided by C, multiplied by it, without T^2": written(T2, 0.5 / 16, 0.5, 10.0),
    "no known reduction": written(None, 0.5 / 16 / 3, 0.5),
}


def balanced(*shares: float, limits: tuple[float, float] | None = None) -> Trace:
    return seen(*(explained(share=s) for s in shares), explained("nothing", share=9.0), kd=KD(share=limits))


CASES["KD314"] = {
    "nothing explained": (seen(NOTHING), undecided("form-not-recognised", "no gradient of a soft term")),
    "not declared": (
        balanced(1.0, 3.0),
        undecided("intent-unknown", "makes up about 62% of", share=0.625),
    ),
    "not declared in a loop": (
        put(balanced(1.0), script=False),
        undecided("intent-unknown", "makes up about 50% of", "kd=audits.KD(share=(low, high))", share=0.5),
    ),
    "within": (balanced(1.0, limits=(0.4, 0.6)), passes("makes up 50% of", share=0.5)),
    "at the lower end": (balanced(1.0, limits=(0.5, 0.6)), passes("makes up 50% of", share=0.5)),
    "at the upper end": (balanced(1.0, limits=(0.4, 0.5)), passes("makes up 50% of", share=0.5)),
    "no labels": (
        put(seen(explained(share=0.02, label_weight=0.0)), script=True),
        undecided("intent-unknown", "makes up about 100% of", share=1.0),
    ),
    "below": (balanced(1.0, limits=(0.51, 0.6)), fails("makes up 50% of", None, share=0.5)),
    "above": (balanced(3.0, limits=(0.4, 0.7)), fails("makes up 75% of", None, share=0.75)),
}


def ends(kd: float | None, labels: float | None, alpha: float | None, form: str = "forward") -> Trace:
    return seen(explained(form, weight=kd, label_weight=labels), term(), kd=KD(alpha=alpha))


def of(kd: float, labels: float, alpha: float | None = None) -> dict[str, float]:
    return {"label_weight": labels, "kd_weight": kd} | ({} if alpha is None else {"alpha": alpha})


CASES["KD341"] = {
    "nothing read": (seen(feature()), undecided("form-not-recognised", "the weights of the two terms were not read")),
    "another form": (ends(0.9, 0.1, 0.9, "reversed"), undecided("form-not-recognised", "were not read")),
    "no weight": (ends(None, 0.1, 0.9), undecided("form-not-recognised", "were not read")),
    "no label weight": (ends(0.9, None, 0.9), undecided("form-not-recognised", "were not read")),
    "not declared": (
        ends(0.25, 0.75, None),
        undecided("intent-unknown", "labels act with weight 0.75, distillation with 0.25", "--alpha", **of(0.25, 0.75)),
    ),
    "as declared": (ends(0.9, 0.1, 0.9), passes("1 - alpha = 0.1", **of(0.9, 0.1, 0.9))),
    "as declared, the other scaled": (ends(0.05, 0.1, 0.9), passes("1 - alpha = 0.1", **of(0.05, 0.1, 0.9))),
    "off by less than 0.002": (ends(0.9, 0.1019, 0.9), passes("1 - alpha = 0.1019", **of(0.9, 0.1019, 0.9))),
    "off by more": (
        ends(0.9, 0.1021, 0.9),
        undecided("intent-unknown", "the labels' weight is 0.1021, not 1 - alpha", **of(0.9, 0.1021, 0.9)),
    ),
    "exchanged": (
        ends(0.1, 0.9, 0.9),
        fails("exchanged: 0.1 on the distillation and 0.9 on the labels, alpha is 0.9", TERM, **of(0.1, 0.9, 0.9)),
    ),
    "exchanged, off by less than 0.002": (
        ends(0.1019, 0.9019, 0.9),
        fails("the weights are exchanged", TERM, **of(0.1019, 0.9019, 0.9)),
    ),
    "exchanged, off by just 0.002": (
        ends(1.0, 0.002, 0.0),
        fails("the weights are exchanged", TERM, **of(1.0, 0.002, 0.0)),
    ),
    "exchanged, the distillation off by just 0.002": (
        ends(0.002, 1.0, 1.0),
        fails("the weights are exchanged", TERM, **of(0.002, 1.0, 1.0)),
    ),
    "off by just 0.002": (ends(0.5, 0.002, 1.0), passes("1 - alpha = 0.002", **of(0.5, 0.002, 1.0))),
    "exchanged, in the second backward": (
        trace(sights=[sight(), sight(explained(weight=0.1, label_weight=0.9), where=OTHER)], kd=KD(alpha=0.9)),
        fails("the weights are exchanged", OTHER, **of(0.1, 0.9, 0.9)),
    ),
    "no label weight, then one": (
        seen(explained(label_weight=None), explained(), kd=KD(alpha=0.9)),
        undecided("form-not-recognised", "were not read"),
    ),
    "the labels off by more": (
        ends(0.1, 0.9021, 0.9),
        undecided("intent-unknown", "the weights are free", **of(0.1, 0.9021, 0.9)),
    ),
    "the distillation off by more": (
        ends(0.1021, 0.9, 0.9),
        undecided("intent-unknown", "the weights are free", **of(0.1021, 0.9, 0.9)),
    ),
    "half and half": (ends(0.5, 0.5, 0.5), passes("1 - alpha = 0.5", **of(0.5, 0.5, 0.5))),
    "nearly half and half": (ends(0.4991, 0.5009, 0.5009), passes("1 - alpha", **of(0.4991, 0.5009, 0.5009))),
    "not half and half": (
        ends(0.4985, 0.5015, 0.5015),
        fails("the weights are exchanged", TERM, **of(0.4985, 0.5015, 0.5015)),
    ),
    "labels alone, at weight 0": (ends(0.0, 1.0, 0.0), passes("1 - alpha = 1", **of(0.0, 1.0, 0.0))),
    "no labels": (ends(1.0, 0.0, 1.0), passes("1 - alpha = 0", **of(1.0, 0.0, 1.0))),
    "the first that was read": (
        seen(explained("unknown"), explained(), explained(label_weight=0.5), kd=KD(alpha=0.9)),
        passes("1 - alpha = 0.1", **of(0.9, 0.1, 0.9)),
    ),
}

# --- architecture ---


def stem(call: Spatial, after: Spatial, role: str = "student") -> dict[str, Any]:
    slip = {"input": [32, 32], "after_two_modules": list(after.output_size), "module": call.name}
    return {role: slip | {"kernel": call.kernel, "stride": call.stride}}


SEVEN, THREE, DEEP, BEHIND = conv(7, 2, name="conv1"), conv(3, 2, name="conv1"), conv(size=16), pool(size=16)
FINE = {"student": {"input": [32, 32], "first": "conv"}}
FIRST = {"student": {"input": [32, 32], "first": "conv1"}}
STRIDED = "a stride-2 convolution followed by a pool (conv1)"

CASES["KD105"] = {
    "no image": (trace(), undecided("out-of-scope", "no forward of a convolutional network")),
    "one call": (net(SEVEN), undecided("out-of-scope", "no forward of a convolutional network")),
    "65 pixels": (
        net(conv(7, 2, 65), conv()),
        undecided("out-of-scope", "the first convolution's input is larger than 64 pixels"),
    ),
    "64 by 65 pixels": (net(conv(7, 2, (64, 65)), conv()), undecided("out-of-scope", "larger than 64 pixels")),
    "64 by 48 pixels": (
        net(conv(7, 2, (64, 48), name="conv1"), conv(size=(32, 24))),
        fails(
            "an ImageNet stem on small images: the student reads 64x48 images through a 7x7 convolution with stride 2 "
            "(conv1)",
            DECLARED,
            student={"input": [64, 48], "after_two_modules": [32, 24], "module": "conv1", "kernel": 7, "stride": 2},
        ),
    ),
    "3x3": (net(conv(), conv(), conv()), passes("no ImageNet stem within the first two", **FINE)),
    "7x7, stride 2": (net(SEVEN, DEEP), fails("a 7x7 convolution with stride 2", DECLARED, **stem(SEVEN, DEEP))),
    "9x9, stride 2": (
        net(conv(9, 2), DEEP),
        fails("a 9x9 convolution with stride 2", DECLARED, **stem(conv(9, 2), DEEP)),
    ),
    "7x7, stride 2, second": (
        net(conv(), SEVEN, DEEP),
        fails("a 7x7 convolution with stride 2 (conv1)", DECLARED, **stem(SEVEN, SEVEN)),
    ),
    "7x7, stride 2, third": (net(conv(), conv(), SEVEN), passes("no ImageNet stem", **FINE)),
    "6x6, stride 2": (net(conv(6, 2), DEEP), passes("no ImageNet stem", **FINE)),
    "7x7, stride 1": (net(conv(7, 1), conv()), passes("no ImageNet stem", **FINE)),
    "patches of 8, stride 4": (net(conv(8, 4), conv(size=8)), passes("no ImageNet stem", **FINE)),
    "a pool of 7, stride 2": (net(conv(), pool(7), DEEP), passes("no ImageNet stem", **FINE)),
    "stride 2, and a pool": (net(THREE, BEHIND, conv(size=8)), fails(STRIDED, DECLARED, **stem(THREE, BEHIND))),
    "stride 4, and a pool of 3": (
        net(conv(3, 4, name="conv1"), pool(3, 3, size=8), conv(size=2)),
        fails(
            "a stride-4 convolution followed by a pool (conv1)",
            DECLARED,
            **stem(conv(3, 4, name="conv1"), pool(3, 3, size=8)),
        ),
    ),
    "stride 2, and a pool of stride 1": (net(THREE, pool(3, 1, size=16), DEEP), passes("no ImageNet stem", **FIRST)),
    "stride 1, and a pool": (net(conv(), pool(), DEEP), passes("no ImageNet stem", **FINE)),
    "stride 2, and a pool, and nothing": (net(THREE, BEHIND), passes("no ImageNet stem", **FIRST)),
    "stride 2, and two pools": (net(THREE, BEHIND, pool(size=8)), passes("no ImageNet stem", **FIRST)),
    "stride 2, and a pool beside it": (net(THREE, pool(), conv(size=16)), passes("no ImageNet stem", **FIRST)),
    "stride 2 twice": (net(THREE, conv(3, 2, 16), conv(size=8)), passes("no ImageNet stem", **FIRST)),
    "two pools": (
        net(pool(), BEHIND, conv(size=8)),
        passes("no ImageNet stem", student={"input": [32, 32], "first": "pool"}),
    ),
    "both networks": (
        trace(spatial={"student": [SEVEN, DEEP], "teacher": [THREE, BEHIND, conv(size=8)]}),
        fails(
            f"(conv1); the teacher reads 32x32 images through {STRIDED}",
            DECLARED,
            **stem(SEVEN, DEEP),
            **stem(THREE, BEHIND, "teacher"),
        ),
    ),
    "the teacher alone": (
        trace(spatial={"student": [conv(), conv()], "teacher": [SEVEN, DEEP]}),
        fails("the teacher reads", DECLARED, **stem(SEVEN, DEEP, "teacher")),
    ),
    "a teacher that is shown larger images": (
        trace(spatial={"student": [conv(), conv()], "teacher": [conv(7, 2, 224), conv()], "other": [SEVEN]}),
        passes("no ImageNet stem", **FINE),
    ),
}

# --- the teacher ---


def provenance(equal: int, total: int = 4, *, differing: Any = (), unexpected: Any = (), aliases: Any = ()) -> Trace:
    found = Provenance(equal, total, list(differing), list(unexpected), list(aliases))
    return trace(teacher=TEACHER, provenance=found)


def whence(share: float, differing: Any = (), aliases: Any = (), unexpected: Any = ()) -> dict[str, Any]:
    return {
        "loaded_fraction": share,
        "differing": list(differing)[:10],
        "differing_count": len(differing),
        "aliases": list(aliases)[:10],
        "unexpected": list(unexpected)[:10],
        "unexpected_count": len(unexpected),
    }


def came(covered: float, route: str = "loaded", missing: Any = (), aliases: Any = (), changed: Any = ()):
    return {
        "covered_fraction": covered,
        "missing": list(missing)[:10],
        "missing_count": len(missing),
        "aliases": list(aliases)[:10],
        "changed": list(changed)[:10],
        "route": route,
    }


WEIGHTS = "teacher_weights=torch.load(path)"
KNOWS, COIN = tenths(80), tenths(20)
OWN_TENSORS = "the weights declared are the teacher's own tensors"
ITSELF = "loaded from the teacher itself"
SELF_TAUGHT = trace(script=True, sights=[sight(), sight(self_taught=True)])

CASES["KD104"] = {
    "no teacher": (trace(), undecided("no-teacher-seen", "no teacher was declared", "teacher=")),
    "no weights": (trace(teacher=TEACHER), undecided("intent-unknown", "was not declared", WEIGHTS)),
    "its own": (provenance(0, aliases=["fc.bias"]), undecided("intent-unknown", OWN_TENSORS, WEIGHTS)),
    "whole": (provenance(4), passes("the declared checkpoint, bitwise", loaded_fraction=1.0)),
    "one tensor differs": (
        provenance(3, differing=["fc.bias"]),
        fails(
            "75.0% of the teacher's numbers are those of the declared checkpoint (1 tensors differ, first fc.bias)",
            DECLARED,
            **whence(0.75, ["fc.bias"]),
        ),
    ),
    "all differ": (
        provenance(0, differing=MANY),
        fails("only 0.0% of the teacher's numbers", DECLARED, **whence(0.0, MANY)),
    ),
    "tensors without a place": (
        provenance(4, unexpected=MANY),
        fails(
            "25 tensors of the checkpoint have no place in the teacher, first layer0",
            DECLARED,
            **whence(1.0, unexpected=MANY),
        ),
    ),
    "partly its own": (
        provenance(1, aliases=MANY),
        fails(f"25 tensors were {ITSELF}, first layer0", DECLARED, **whence(0.25, aliases=MANY)),
    ),
    "all of it": (
        provenance(2, differing=["a", "x"], aliases=["b", "y"], unexpected=["c", "z"]),
        fails("first a); 2 tensors were loaded", DECLARED, **whence(0.5, ["a", "x"], ["b", "y"], ["c", "z"])),
    ),
    "one number, and a tensor without a place": (
        provenance(1, 1, unexpected=["c"]),
        fails("have no place in the teacher", DECLARED, **whence(1.0, unexpected=["c"])),
    ),
    "no tensors at all": (provenance(0, 0, unexpected=["c"]), fails("", DECLARED, **whence(0.0, unexpected=["c"]))),
    "seen: peers": (loaded(0, peers=True), undecided("out-of-scope", "the teacher is trained along")),
    "seen: an average": (loaded(0, change=change(rate=0.1)), undecided("out-of-scope", "or follows the student")),
    "seen: no average": (loaded(4, change=change(1)), passes("all of the teacher was loaded", **came(1.0))),
    "seen: no module": (trace(script=True, sights=[sight()]), undecided("no-teacher-seen", "its module was not found")),
    "seen: no numbers": (loaded(0, 0), undecided("no-teacher-seen", "its module was not found")),
    "seen: taught by itself": (SELF_TAUGHT, undecided("no-teacher-seen", "no separate teacher")),
    "seen: whole": (
        loaded(4, route="trained in this process", same_as_student=False),
        passes("all of the teacher was trained in this process", **came(1.0, "trained in this process")),
    ),
    "seen: the student's": (
        loaded(4, same_as_student=True, hits=COIN),
        fails("a checkpoint of the student's own weights", BACKWARD, **came(1.0)),
    ),
    "seen: the student's, once trained as a teacher": (
        loaded(4, same_as_student=True, hits=KNOWS, where=OTHER),
        fails("a checkpoint of the student's own weights", OTHER, "warn", **came(1.0)),
    ),
    "seen: overwritten": (
        loaded(1, changed=MANY, aliases=["b"], missing=["c"], where=OTHER),
        fails(
            "25 tensors of the teacher were overwritten after they were loaded: layer0, layer1, layer2, and 22 more",
            OTHER,
            **came(0.25, missing=["c"], aliases=["b"], changed=MANY),
        ),
    ),
    "seen: its own": (
        loaded(1, aliases=MANY, missing=["c"]),
        fails(
            f"25 tensors of the teacher were {ITSELF}: its own values were put into the state dict first "
            "(layer0, layer1, layer2, and 22 more)",
            BACKWARD,
            **came(0.25, missing=["c"], aliases=MANY),
        ),
    ),
    "seen: nothing": (
        loaded(0, route="not seen", missing=MANY),
        fails("nothing was loaded into the teacher", BACKWARD, **came(0.0, "not seen", MANY)),
    ),
    "seen: nothing covered": (
        loaded(0, missing=["c"], hits=COIN),
        fails("nothing was loaded into the teacher", BACKWARD, **came(0.0, missing=["c"])),
    ),
    "seen: route not known": (
        loaded(3, route="not seen", missing=["c"]),
        fails("nothing was loaded into the teacher", BACKWARD, **came(0.75, "not seen", ["c"])),
    ),
    "seen: nothing, yet it knows two classes": (
        loaded(0, hits=hits(100, 50, 50)),
        undecided("route-not-seen", "it is right on 100.0% of 100 labels"),
    ),
    "seen: nothing, yet it knows": (
        loaded(0, route="not seen", missing=MANY, hits=KNOWS),
        undecided("route-not-seen", "a route that was not seen, yet it is right on 80.0% of 100 labels"),
    ),
    "seen: made by a library": (
        loaded(0, route="not seen", made_from="org/model"),
        undecided("route-not-seen", "the teacher was made by a library of its own from org/model"),
    ),
    "seen: made by a library, and it knows": (
        loaded(0, route="not seen", made_from="org/model", hits=KNOWS),
        undecided("route-not-seen", "was made by a library of its own from org/model"),
    ),
    "seen: made by a library, and partly loaded": (
        loaded(3, missing=["c"], made_from="org/model"),
        fails("only 75.0%", BACKWARD, **came(0.75, missing=["c"])),
    ),
    "seen: part, of a teacher that knows nothing": (
        loaded(3, missing=["c"], hits=COIN),
        fails("only 75.0%", BACKWARD, **came(0.75, missing=["c"])),
    ),
    "seen: overwritten, yet it knows": (
        loaded(1, changed=["a"], hits=KNOWS),
        fails("1 tensors of the teacher were overwritten", BACKWARD, "warn", **came(0.25, changed=["a"])),
    ),
    "seen: its own, yet it knows": (
        loaded(1, aliases=["b"], hits=KNOWS),
        fails("1 tensors of the teacher were loaded", BACKWARD, **came(0.25, aliases=["b"])),
    ),
    "seen: part, in the first backward of two": (
        put(loaded(3, missing=["c"]), sights=[sight(), sight(where=OTHER)]),
        fails("only 75.0%", BACKWARD, **came(0.75, missing=["c"])),
    ),
    "seen: part": (
        loaded(3, missing=MANY[:5], hits=KNOWS),
        fails(
            "only 75.0% of the teacher's numbers were loaded or trained; missing: layer0, layer1, layer2, layer3, "
            "and 1 more",
            BACKWARD,
            "warn",
            **came(0.75, missing=MANY[:5]),
        ),
    ),
}

# P(X >= 33) = 0.00057 and P(X >= 32) = 0.00114 where X counts 100 answers, each right with probability 0.19.
for name, knowledge, is_known in (
    ("32 of 100", tenths(32), False),
    ("33 of 100", tenths(33), True),
    ("33 of 50 where half are of one class", hits(33, 25, 25), False),
    ("labels nearly all of one class", hits(100, 99, 1), False),
    ("labels of one class", hits(100, 100, 0), False),
    ("no labels", hits(0, 0, 0), False),
):
    CASES["KD104"][f"seen: nothing, and right on {name}"] = (
        loaded(0, hits=knowledge),
        undecided("route-not-seen", "it is right on 33.0% of 100 labels")
        if is_known
        else fails("nothing was loaded", BACKWARD, **came(0.0)),
    )


def told(right: Hits | None, **fields: Any) -> Trace:
    return trace(**{"teacher": TEACHER, "labels_shown": True, "hits": right, "student_width": None} | fields)


def rate(right: int, labels: int = 100, chance: float = 0.1, threshold: float = 0.19) -> dict[str, Any]:
    return {"accuracy": right / labels, "labels": labels, "chance": chance, "threshold": threshold}


SHOW, MORE = "w.labels(y) in the loop", "burn_in= (more steps)"

CASES["KD303"] = {
    "no teacher": (trace(), undecided("no-teacher-seen", "no teacher was declared", "teacher=")),
    "no teacher named, in a script": (
        told(tenths(80), teacher=None, script=True, sights=[sight()]),
        passes("right on 80.0% of 100 labels, chance 10.0%", **rate(80)),
    ),
    "peers": (told(tenths(0), peers=True), undecided("out-of-scope", "the teacher is trained along")),
    "an average": (told(tenths(0), change=change(1, rate=0.1)), undecided("out-of-scope", "or follows the student")),
    "no average": (told(tenths(80), change=change(1)), passes("right on 80.0%", **rate(80))),
    "labels not shown": (told(tenths(0), labels_shown=False), undecided("intent-unknown", "were not shown", SHOW)),
    "labels not seen in a script": (
        told(tenths(0), labels_shown=False, script=True, sights=[sight()]),
        undecided("form-not-recognised", "no labels to go with the teacher's logits"),
    ),
    "no logits": (told(None), undecided("form-not-recognised", "no logits (B, C) of the student's width")),
    "logits of another width": (told(tenths(0), student_width=11), undecided("form-not-recognised", "no logits")),
    "logits of the student's width": (
        told(tenths(80), student_width=10),
        passes("right on 80.0% of 100 labels", **rate(80)),
    ),
    "labels to ignore": (
        told(hits(0, 0, 0)),
        undecided("too-few-labels", "all labels shown were ones to ignore", SHOW),
    ),
    "labels of one class": (
        told(hits(50, 50, 0)),
        undecided("out-of-scope", "all labels seen are the same", **rate(50, 50, 1.0, 1.0)),
    ),
    # P(X <= 7) = 0.00065 and P(X <= 8) = 0.0018, X as above.
    "7 of 100": (
        told(tenths(7)),
        fails("right on 7.0% of 100 labels, and the commonest label alone on 10.0%", DECLARED, **rate(7)),
    ),
    "8 of 100": (told(tenths(8)), undecided("too-few-labels", "about 123 labels would", MORE, **rate(8))),
    "8 of 100 in a script": (
        told(tenths(8), script=True, sights=[sight()]),
        undecided("too-few-labels", "about 123 labels would", "--steps", **rate(8)),
    ),
    "19 of 100": (
        told(tenths(19)),
        undecided("too-few-labels", "19 of 100 right decides nothing against 19.0%", MORE, **rate(19)),
    ),
    "32 of 100": (told(tenths(32)), undecided("too-few-labels", "about 124 labels would", MORE, **rate(32))),
    "33 of 100": (told(tenths(33)), passes("right on 33.0% of 100 labels, chance 10.0%", **rate(33))),
    "a threshold of twice a small chance": (
        told(hits(20, *[5] * 20)),
        undecided("too-few-labels", "against 10.0%", MORE, **rate(20, 100, 0.05, 0.1)),
    ),
    "at the threshold": (
        told(hits(55, 50, 50)),
        undecided("too-few-labels", "no number of labels would", MORE, **rate(55, 100, 0.5, 0.55)),
    ),
    "most of one class, in a loop": (
        told(hits(30, 60, 40)),
        fails("right on 30.0% of 100 labels", DECLARED, **rate(30, 100, 0.6, 0.64)),
    ),
    "half of one class, in a script": (
        told(hits(30, 50, 50), script=True, sights=[sight()]),
        fails("right on 30.0% of 100 labels", DECLARED, **rate(30, 100, 0.5, 0.55)),
    ),
    "most of one class, in a script": (
        told(hits(30, 60, 40), script=True, sights=[sight()]),
        undecided("out-of-scope", "most labels are of one class", **rate(30, 100, 0.6, 0.64)),
    ),
    "most of one class, and right, in a script": (
        told(hits(95, 60, 40), script=True, sights=[sight()]),
        passes("right on 95.0% of 100 labels", **rate(95, 100, 0.6, 0.64)),
    ),
    "most of one class, and too few, in a script": (
        told(hits(60, 60, 40), script=True, sights=[sight()]),
        undecided("too-few-labels", "60 of 100 right", "--steps", **rate(60, 100, 0.6, 0.64)),
    ),
    "unbalanced": (
        told(hits(85, 80, 20)),
        undecided("too-few-labels", "85 of 100 right", MORE, **rate(85, 100, 0.8, 0.8 + (1 - 0.8) / 10)),
    ),
}

# --- all of them ---


def finding(id: str, of_trace: Trace) -> Finding:
    return next(f for f in spelled(run(of_trace)).findings if f.id == id)


@pytest.mark.parametrize(("id", "name"), [(id, name) for id, cases in CASES.items() for name in cases])
def test_verdict(id: str, name: str) -> None:
    made, wanted = CASES[id][name]
    found = finding(id, made)
    assert (found.status, found.reason) == (wanted.status, wanted.reason), found.message
    assert wanted.message in found.message
    if all(isinstance(value, int | float) for value in wanted.observed.values()):
        assert found.observed == pytest.approx(wanted.observed)
    else:
        assert found.observed == wanted.observed
    assert found.severity == (wanted.severity or OWN[id])
    assert (found.where, found.decide_with) == (wanted.where, wanted.decide_with)


PUT_FIRST = "its own values were put into the state dict before it was loaded"
WHOLE = {
    ("KD103", "ballast alone"): "the optimizer holds 1 parameters that no module has any more (old.bias)",
    ("KD104", "partly its own"): f"25 tensors were loaded from the teacher itself, first layer0: {PUT_FIRST}",
    ("KD104", "all of it"): "only 50.0% of the teacher's numbers are those of the declared checkpoint (2 tensors "
    f"differ, first a); 2 tensors were loaded from the teacher itself, first b: {PUT_FIRST}; 2 tensors of the "
    "checkpoint have no place in the teacher, first c",
    ("KD202", "by hand after the step, twice"): "gradients are written to after the step that used them, in 2 of 2 "
    "steps: a clip by hand there bounds nothing",
    ("KD311", "against itself, asked twice"): "the student is held against its own answer",
    ("KD313", "squared distance of probabilities"): "the term is the squared distance of probabilities",
    ("KD313", "a temperature declared, none read"): "the term is KL(teacher || student)",
    ("KD313", "two forms not known"): "the form of the soft term was not recognised (residual 0.25): two temperatures, "
    "masks, standardised logits and relational terms are not in the list",
}


@pytest.mark.parametrize(("id", "name"), WHOLE)
def test_what_is_not_so_is_not_said(id: str, name: str) -> None:
    assert finding(id, CASES[id][name][0]).message == WHOLE[id, name]


def test_every_audit_of_a_training_has_specimens_good_and_bad() -> None:
    assert {a.id for a in CATALOGUE.values()} == set(CASES) == set(OWN)
    for id, cases in CASES.items():
        assert {"pass", "fail", "not_triggered"} <= {wanted.status for _, wanted in cases.values()}, id


WITHOUT = (
    "KD104",
    "KD105",
    "KD201",
    "KD202",
    "KD203",
    "KD204",
    "KD205",
    "KD211",
    "KD212",
    "KD214",
    "KD303",
    "KD332",
    "KD344",
)
"Audits that need no distillation, or say in words of their own that none was seen."


@pytest.mark.parametrize("id", [id for id in OWN if id not in WITHOUT])
@pytest.mark.parametrize("script", [True, False])
def test_without_a_distillation_each_says_so(id: str, script: bool) -> None:
    found = finding(id, trace(script=script, windows_seen=7, steps=steps(3)))
    assert (found.status, found.reason) == ("not_triggered", "no-teacher-seen")
    assert "no distillation was seen" in found.message and "in 7 backwards" in found.message
    options = "--student NAME --teacher NAME, or more --steps"
    assert found.decide_with == (options if script else "teacher=, and a backward within the watch")


@pytest.mark.parametrize("id", ["KD104", "KD303"])
def test_the_teacher_of_a_script_without_a_distillation(id: str) -> None:
    found = finding(id, trace(script=True, windows_seen=7, hits=tenths(80), labels_shown=True))
    assert (found.reason, "in 7 backwards" in found.message) == ("no-teacher-seen", True)


def test_what_decides_it_is_named_in_the_way_of_the_user() -> None:
    """A script has options, a loop has arguments."""
    for id, parts, option in (
        ("KD312", [explained(label_weight=1.0)], "kd=audits.KD(alpha=) or KD(kd_weight=)"),
        ("KD341", [explained()], "kd=audits.KD(alpha=), or audits.check_weighting(combine)"),
    ):
        assert finding(id, trace(sights=[sight(*parts)])).decide_with == option


def clean() -> Trace:
    """A script that every audit passes."""
    alternating = [clip(A, B, norm=0.5 + i % 2) for i in range(20)]
    return trace(
        script=True,
        clip=Clip(1.0),
        steps=[step(i + 1, c, scaled=True, distils=True) for i, c in enumerate(alternating)],
        spatial={"student": [conv(), conv(), conv()]},
        hits=hits(600, *[64] * 10),
        labels_shown=True,
        student_width=10,
        kd=KD(temperature=4.0, alpha=0.9, share=(0.2, 0.8)),
        sights=[sight(term(), feature(), explained(), inputs=Inputs("same"))],
        roles={"teacher": ["Net (teacher)"]},
        leaves=[BODY],
        stale=[],
        loaded=Loaded(4, 4, [], [], [], False, "loaded"),
        change=change(),
        teacher_moved=[],
        ineffective=[],
        scaler_calls=30,
        scaler_skips=1,
        scaler_search=1,
        lr_rows=[(0.1, 0.2), (0.05, 0.1)],
        group_names=["body", "hint"],
        split_overlap=(100, 0, "by index", True),
    )


def spoil(made: Trace, id: str) -> None:
    """Give a clean training the one fault that this audit is for."""
    s, first = made.losses.sights[0], made.updates.steps[0]
    spoilt: dict[str, Any] = {
        "KD101": (made, {"leaves": [BODY, HINT]}),
        "KD102": (made, {"teacher_moved": ["fc.weight"]}),
        "KD103": (made, {"stale": ["old.weight"]}),
        "KD104": (made, {"loaded": Loaded(3, 4, ["fc.bias"], [], [], False, "loaded")}),
        "KD105": (made, {"spatial": {"teacher": [SEVEN, DEEP]}}),
        "KD106": (s.terms[1], {"shapes": [(8, 4), (8, 1)]}),
        "KD201": (first, {"clips": [clip(A, norm=0.5)]}),
        "KD202": (made, {"steps": [replace(x, clips=[EARLY]) for x in made.updates.steps]}),
        "KD203": (first.clips[0], {"scaled": True}),
        "KD204": (first, {"norm": number(2.0)}),
        "KD205": (made, {"steps": [replace(x, clips=[clip(A, B, norm=0.5)]) for x in made.updates.steps]}),
        "KD211": (first, {"stale_grads": [A]}),
        "KD212": (first, {"repeated": True}),
        "KD213": (made, {"ineffective": ["fc.weight"]}),
        "KD214": (made, {"scaler_skips": 20}),
        "KD301": (s, {"teacher_training": ["bn1"]}),
        "KD302": (made, {"change": change(1)}),
        "KD303": (made, {"hits": hits(64, *[64] * 10)}),
        "KD304": (s, {"inputs": Inputs("flipped")}),
        "KD305": (s.explanations[0], {"permutation": TURN}),
        "KD311": (s, {"student_frozen": True}),
        "KD312": (s.explanations[0], {"weight": 0.9 / 16}),
        "KD313": (s.terms[0], {"swapped": True}),
        "KD314": (s.explanations[0], {"share": 9.0}),
        "KD321": (s, {"student_eval": True}),
        "KD332": (made, {"split_overlap": (100, 1, "by index", True)}),
        "KD341": (s.explanations[0], {"weight": 0.1, "label_weight": 0.9}),
        "KD344": (made, {"lr_rows": [(0.1, 0.2), (0.05, 0.2)]}),
    }
    target, fields = spoilt[id]
    for key, value in fields.items():
        if target is made:
            put(made, **{key: value})
        else:
            setattr(target, key, value)


def failures(made: Trace) -> dict[str, str | None]:
    """Return the cause of each failure, by id."""
    return {f.id: f.consequence_of for f in run(made).findings if f.status == "fail"}


def test_every_audit_passes_a_clean_training() -> None:
    assert {f.id: f.status for f in run(clean()).findings} == dict.fromkeys(OWN, "pass")


ALONG = {"KD202": {"KD201": "KD202"}, "KD341": {"KD312": "KD341"}}


@pytest.mark.parametrize("id", OWN)
def test_a_fault_fails_its_audit_and_only_what_follows(id: str) -> None:
    made = clean()
    spoil(made, id)
    assert failures(made) == {id: None} | ALONG.get(id, {})


FOLLOWS = {
    "KD101": ["KD103"],
    "KD213": ["KD101", "KD103", "KD214"],
    "KD301": ["KD102"],
    "KD302": ["KD301", "KD102"],
    "KD303": ["KD104", "KD301", "KD304", "KD305"],
    "KD304": ["KD104"],
    "KD201": ["KD202"],
    "KD204": ["KD201", "KD202", "KD203"],
    "KD311": ["KD103", "KD214"],
    "KD312": ["KD313", "KD305", "KD311"],  # and KD341, which cannot fail beside it for another reason
    "KD313": ["KD102", "KD301", "KD305", "KD311"],
}


@pytest.mark.parametrize(("effect", "cause"), [(effect, cause) for effect in FOLLOWS for cause in FOLLOWS[effect]])
def test_a_failure_follows_from_its_cause(effect: str, cause: str) -> None:
    made = clean()
    spoil(made, cause)
    spoil(made, effect)
    found = failures(made)
    # A clip out of order reaches nothing, and so leaves everything out: the nearest cause is named.
    assert found[effect] == ("KD201" if (effect, cause) == ("KD204", "KD202") else cause)
    assert found[cause] is None


def test_a_bound_that_fails_may_follow_from_order_alone() -> None:
    made = trace(clip=Clip(1.0), steps=steps(2, EARLY, norm=2.0, written=frozenset({id(A), id(B)})))
    assert failures(made) == {"KD202": None, "KD204": "KD202"}


@pytest.mark.parametrize("effect", FOLLOWS)
def test_of_several_causes_the_likeliest_is_named(effect: str) -> None:
    made = clean()
    for id in [effect, *reversed(FOLLOWS[effect])]:
        spoil(made, id)
    assert failures(made)[effect] == FOLLOWS[effect][0]


def test_what_passes_follows_from_nothing() -> None:
    made = clean()
    spoil(made, "KD103")
    assert {f.consequence_of for f in run(made).findings} == {None}


def test_a_finding_holds_what_audit_and_verdict_say() -> None:
    made = clean()
    spoil(made, "KD204")
    entry = CATALOGUE["norm-bound"]
    assert run(made).findings[0] == Finding(
        id="KD204",
        name="norm-bound",
        severity="error",
        status="fail",
        phase="burn-in",
        message="at step 1 the optimizer got gradients of norm 2 over all its parameters, bound 1",
        observed={"step": 1, "largest_norm": 2.0, "bound": 1.0},
        mend=entry.mend,
        where=CLIP,
    )
    assert entry.mend.startswith("one clip call over everything the optimizer moves")


def test_an_audit_that_breaks_is_an_error_and_stops_no_other() -> None:
    made = clean()
    made.teacher.hits = 5  # type: ignore[assignment]
    found = {f.id: f for f in run(made).findings}
    assert found["KD303"].status == "error" and found["KD303"].severity == "error"
    assert found["KD303"].message.startswith("the audit itself broke: AttributeError: 'int' object has no attribute ")
    assert {f.status for id, f in found.items() if id != "KD303"} == {"pass"}


def test_where_watching_broke_only_what_had_failed_counts() -> None:
    made = clean()
    spoil(made, "KD302")
    made.broken = "KeyError: 'x'"
    found = {f.id: f for f in run(made).findings}
    assert found["KD302"].status == "fail"
    rest = {(f.status, f.message, str(f.observed)) for id, f in found.items() if id != "KD302"}
    assert rest == {("error", "watching itself broke and stopped: KeyError: 'x'", "{}")}


def test_an_audit_enters_the_catalogue_under_the_name_of_its_property(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "always-so", CATALOGUE["norm-bound"])  # so that it is gone after the test
    del CATALOGUE["always-so"]

    def always_so(of_trace: Trace) -> Verdict:
        """It is so."""
        return passed("it is so", {"so": True})

    enter = audit("KD999", severity="info", phase="end", mend="nothing", follows=("KD101",))
    assert enter(always_so) is always_so
    entry = Audit("KD999", "always-so", "info", "end", "nothing", ("KD101",), always_so)
    assert CATALOGUE["always-so"] == entry and entry.story == "It is so."
    assert replace(entry, check=lambda of_trace: passed("")).story == ""
    found = finding("KD999", trace())
    assert (found.status, found.severity, found.phase, found.mend) == ("pass", "info", "end", "nothing")
    assert (found.message, found.observed) == ("it is so", {"so": True})
    with pytest.raises(ValueError, match="KD999 finding is in the catalogue already"):
        audit("KD999", severity="info", phase="end", mend="")(finding)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="KD998 always-so is in the catalogue already"):
        audit("KD998", severity="info", phase="end", mend="")(always_so)


def test_phases_are_those_in_which_a_property_shows() -> None:
    phases = {
        "static": "KD104",
        "first": "KD101 KD102 KD103 KD105 KD106 KD304 KD305 KD311 KD312 KD313 KD341",
        "burn-in": "KD201 KD202 KD203 KD204 KD205 KD211 KD212 KD213 KD301 KD303 KD314 KD321 KD344",
        "end": "KD214 KD302 KD332",
    }
    assert {a.id: a.phase for a in CATALOGUE.values()} == {id: p for p, ids in phases.items() for id in ids.split()}


@pytest.mark.parametrize(
    ("count", "most", "wanted"),
    [
        (0, 6, ""),
        (1, 6, "a"),
        (6, 6, "a, a, a, a, a, a"),
        (7, 6, "a, a, a, a, a, a, and 1 more"),
        (3, 1, "a, and 2 more"),
    ],
)
def test_of_many_names_some_are_told(count: int, most: int, wanted: str) -> None:
    assert some(["a"] * count, most) == wanted
    assert some(["a"] * 7) == "a, a, a, a, a, a, and 1 more"


@pytest.mark.parametrize(("right", "labels", "chance"), [(0, 10, 0.2), (3, 10, 0.2), (9, 10, 0.7), (10, 10, 0.7)])
def test_tails_are_those_of_the_binomial(right: int, labels: int, chance: float) -> None:
    exact = [math.comb(labels, k) * chance**k * (1 - chance) ** (labels - k) for k in range(labels + 1)]
    assert at_most(right, labels, chance) == pytest.approx(sum(exact[: right + 1]), rel=1e-9)
    assert at_least(right, labels, chance) == pytest.approx(sum(exact[right:]), rel=1e-9)


def test_tails_of_many_labels_neither_overflow_nor_pass_one() -> None:
    assert at_most(0, 50_000, 0.5) == 0.0
    assert at_most(49_999, 50_000, 0.5) == at_least(1, 50_000, 0.5) == 1.0
    assert at_most(25_000, 50_000, 0.5) == pytest.approx(0.5018, abs=1e-4)
