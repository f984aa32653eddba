"""Verdicts on clips of scaled gradients and on the bound that clips leave, to the number, on traces made by hand."""

from dataclasses import replace

import pytest
from specimens import (
    BOTH,
    CLIP,
    EACH,
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
    judge,
    named,
    number,
    passes,
    step,
    steps,
    trace,
    undecided,
)

from kdbench.audits.trace import Clip, Trace

CASES: Cases = {}

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
    "undeclared, surely no clip in a script": (
        trace(steps=[step(i + 1, written=frozenset(), touched=False, distils=True) for i in range(3)], script=True),
        undecided("no-clip-call", "step 1 made no clip call"),
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
        fails("was never active (0 of 10 calls)", CLIP, clips=10, share=0.0, largest_norm=1.0),
    ),
    "once": (clipped(*[0.5] * 9, 1.1), passes("was active in 1 of 10 calls", clips=10, share=0.1, largest_norm=1.1)),
    "by another norm": (
        trace(steps=steps(10, replace(BOTH, norms=(number(0.5), number(2.0))))),
        fails("was never active (0 of 10 calls)", CLIP, clips=10, share=0.0, largest_norm=0.5),
    ),
    "19 of 20": (
        clipped(*[2.0] * 19, 1.0),
        passes("in 19 of 20 calls", clips=20, share=0.95, largest_norm=2.0),
    ),
    "24 of 25": (
        clipped(*[2.0] * 24, 1.0),
        fails("was nearly always active (24 of 25 calls)", CLIP, clips=25, share=0.96, largest_norm=2.0),
    ),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])
