"""Traces made by hand, for the verdicts on them: nothing is trained, and each takes milliseconds.

What a real training leaves in a trace is tested elsewhere; in tests/checks only what a check
makes of it, to the number.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.audits.checks.all import run
from kdbench.audits.finding import Finding
from kdbench.audits.infer.coverage import Coverage
from kdbench.audits.infer.explain import Explanation
from kdbench.audits.infer.tokens import Tokens
from kdbench.audits.trace import KD, Change, Declaration, Hits, Loaded, Sight, Spatial, Term, Trace
from kdbench.audits.updates import ClipCall, Leaf, Step
from kdbench.harness.declarations import spelled

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
    keys = ("same_as_student", "same_start", "began_as_one", "student_remade", "where", "made_from")
    own = {key: fields.pop(key) for key in keys if key in fields}
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
    "error": "KD101 KD102 KD103 KD104 KD105 KD201 KD202 KD203 KD204 KD211 KD212 KD213 KD215 KD301 KD302 KD303 KD305 "
    "KD311 KD312 KD313 KD321 KD332 KD335 KD341 KD344 KD352 KD361 KD362 KD363 KD365",
    "warn": "KD106 KD214 KD304 KD351 KD364 KD366",
    "info": "KD205 KD314",
}
OWN = {id: severity for severity, ids in SEVERITIES.items() for id in ids.split()}

BODY, HINT = Leaf(A, "body.weight", True), Leaf(C, "hint.weight", False)

BOTH = clip(A, B)
HALF = clip(A)


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

NO_CLIP = "clip=kdbench.Clip(max_norm), if clipped by hand"
OPTIONS = "--max-norm and --clip-scope"

EMPTY = clip()
EARLY = clip(handed=2)
UNDONE = clip(handed=2, grown=2)


def change(params: int = 0, buffers: int = 0, rate: float | None = None, own: bool = False, by: bool = False) -> Change:
    return Change(MANY[:params], [f"{name}.running_mean" for name in MANY[:buffers]], by, own, rate)


TURN = [1, 2, 0]

NOTHING = explained("nothing")

T2, T1, BY_C, BY_B, BY_BB = (
    "1/T^2 (T * T is missing)",
    "1/T (T instead of T * T)",
    "1/C (reduction 'mean' divides by the classes too)",
    "B (the sum was not divided by the batch)",
    "1/B (divided by the batch twice)",
)

SEVEN, THREE, DEEP, BEHIND = conv(7, 2, name="conv1"), conv(3, 2, name="conv1"), conv(size=16), pool(size=16)


def tokens(**fields: Any) -> Tokens:
    """What alpha = 0.9 leaves at the tokens of eight texts, 20 to 30 of each, where 40 have a place."""
    fields = {"coverage": coverage(), **fields}
    return replace(Tokens(1, "forward", (4.0, 4.0), 1e-7, 200, 320, 0.9 / 200, 0.1, [], 20, 30, 8), **fields)


def coverage(**fields: Any) -> Coverage:
    """Texts of which all that is labelled is distilled."""
    made = Coverage("attention mask", 112, 0, 200, 0, None, False, 0, 0, 7, 0, 1, 0, 200, 0, 40, 40, 0)
    return replace(made, **fields)


def finding(id: str, of_trace: Trace) -> Finding:
    return next(f for f in spelled(run(of_trace)).findings if f.id == id)


Cases = dict[str, dict[str, tuple[Trace, Wanted]]]


def named(cases: Cases) -> list[tuple[str, str]]:
    """Return the id and the name of each case."""
    return [(id, name) for id, of_id in cases.items() for name in of_id]


def judge(id: str, made: Trace, wanted: Wanted) -> None:
    """Hold a verdict against what is wanted: the message in part, the rest as it is."""
    found = finding(id, made)
    assert (found.status, found.reason) == (wanted.status, wanted.reason), found.message
    assert wanted.message in found.message
    if all(isinstance(value, int | float) for value in wanted.observed.values()):
        assert found.observed == pytest.approx(wanted.observed)
    else:
        assert found.observed == wanted.observed
    assert found.severity == (wanted.severity or OWN[id])
    assert (found.where, found.decide_with) == (wanted.where, wanted.decide_with)
