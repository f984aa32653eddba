"""Verdicts on what is clipped, and when, to the number, on traces made by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
from specimens import (
    BOTH,
    CLIP,
    EACH,
    EARLY,
    EMPTY,
    HALF,
    NO_CLIP,
    OPTIONS,
    OTHER,
    STEP,
    UNDONE,
    A,
    B,
    C,
    Cases,
    clip,
    each,
    fails,
    finding,
    judge,
    named,
    number,
    numbers,
    passes,
    step,
    steps,
    trace,
    undecided,
)
from torch import nn

from kdbench.audits.trace import Clip, Trace
from kdbench.audits.updates import ClipCall, Step

CASES: Cases = {}


def by_hand(*bounds: tuple[float, float], ids: tuple[nn.Parameter, ...] = (A, B), **fields: Any) -> list[Step]:
    """Steps before which gradients were multiplied: the norm after it, and the factor."""
    reached = frozenset(map(id, ids))
    return [step(i + 1, hand_bound=(norm, reached, factor), **fields) for i, (norm, factor) in enumerate(bounds)]


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
    "surely no clip in a script": (
        trace(steps=[step(i + 1, written=frozenset(), touched=False, distils=True) for i in range(3)], script=True),
        undecided("no-clip-call", "nothing clips a gradient in the 3 steps"),
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
    "no clip, one declared, and nothing looked at a gradient": (
        trace(steps=steps(3, touched=False), clip=Clip(5.0)),
        fails(
            "a clip to norm 5 is declared, but no gradient is clipped in 3 steps",
            {**STEP, "step": 1},
            step=1,
            missed=["body.weight", "body.bias"],
            stepped=2,
            clip_calls=[],
            bound=5.0,
        ),
    ),
    "no clip, one declared, too few steps": (
        trace(steps=steps(2, touched=False), clip=Clip(5.0)),
        undecided("no-clip-call", "no clip was seen in the 2 steps"),
    ),
    "no clip, one declared, and a gradient was looked at": (
        trace(steps=[*steps(3, touched=False), step(4, touched=True)], clip=Clip(5.0)),
        undecided("no-clip-call", "no clip was seen in the 4 steps"),
    ),
    "no clip, none declared, and nothing looked at a gradient": (
        trace(steps=steps(3, touched=False)),
        undecided("no-clip-call", "no clip was seen in the 3 steps", NO_CLIP),
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
            "1 of 2 parameters that the optimizer steps are not clipped: body.bias",
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
            "1 of 3 parameters that the optimizer steps are not clipped: hint.weight",
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


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])


WHOLE = {
    ("KD202", "by hand after the step, twice"): "gradients are written to after the step that used them, in 2 of 2 "
    "steps: a clip by hand there bounds nothing",
}


@pytest.mark.parametrize(("id", "name"), WHOLE)
def test_what_is_not_so_is_not_said(id: str, name: str) -> None:
    assert finding(id, CASES[id][name][0]).message == WHOLE[id, name]
