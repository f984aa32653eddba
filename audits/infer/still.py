"""Whether a distance between student and teacher depends on the student's answer at all."""

import math
from collections import deque
from typing import Any

from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.custom import holds_custom
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import DISTANCES, LABEL_LOSSES, SMALL, FunctionCall, RawWindow

_STILL = 1e-3
"Part of the gradient that comes in at a distance that it hands on: a division by a small deviation magnifies rounding."
_NO_SHARE = 1e-6
"Part of the whole gradient at the student's answer below which a term teaches nothing."
_ONE = 1e-3
"Difference, relative to their size, up to which two answers are one: then there is no gradient to hand on."
_ROUNDING = 1e-5
"Part of the whole gradient that may be left when the labels' part is taken away: a hundred roundings."
_ROUNDED = 1e-4
"Part of the least answer that they are made of up to which numbers are rounding: a small deviation magnifies it."
_NEAREST, _MOST_NODES = 3, 10_000
"Matrices of the student's nearest to the distance that are asked, and graph nodes within which they are looked for."


def is_still(raw: RawWindow, cast: Cast, taint: Taint, f: FunctionCall) -> bool:
    """Say whether a distance is heard by the loss, differs, and yet does not move with the student's answer.

    So it is where what is compared sums to zero, or is one number, by the way in which it was made.
    """
    out = f.out
    sides = [t for t, *_ in f.operands[:2]]
    if not isinstance(out, Tensor) or not out.requires_grad or len(raw.roots) != 1 or len(sides) < 2:
        return False
    if any(t is None or t.numel() > SMALL for t in sides) or are_one(sides[0], sides[1]):
        return False
    if holds_custom(raw.roots[0].grad_fn):
        return False  # a backward of the user's own runs once, in the training
    (w,) = gradients_of(raw.roots[0], out)
    if w is None or not bool((w != 0).any()):
        return False
    nearest = _nearest(f, taint, cast.student_mask)
    own = _norm(gradients_of(out, nearest, w)) if nearest else math.inf
    if own > _STILL * float(w.float().norm()):
        return False
    gradient = gradients_of(raw.roots[0], nearest)
    whole = _norm(gradient)
    if not math.isfinite(whole) or own >= _NO_SHARE * whole:  # half precision overflows while a scaler seeks its scale
        return False
    # A step on the way of a divergence may hand on nothing, and another step of it all there is.
    return _are_nothing(raw, f) or _norm(_without_labels(gradient, raw, cast, nearest)) <= _ROUNDING * whole


def _are_nothing(raw: RawWindow, f: FunctionCall) -> bool:
    """Say whether both sides are zero but for rounding, as what is standardised and then averaged over the same is."""
    for t, made, _ in f.operands[:2]:
        answers = [c.outputs() for c in raw.calls if made.calls >> c.index & 1 and c.outputs is not None]
        sizes = [float(a.detach().abs().max()) for a in answers if a is not None and not a.is_inference() and a.numel()]
        if t is None or not sizes or not 0 < float(t.detach().abs().max()) <= _ROUNDED * min(sizes):
            return False
    return True


def _without_labels(
    gradient: tuple[Tensor | None, ...], raw: RawWindow, cast: Cast, nearest: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return what is left of a gradient without the losses that no teacher takes part in."""
    left = gradient
    for f in raw.functions:
        of_labels = f.name in LABEL_LOSSES | DISTANCES and not f.made.params & cast.teacher_mask
        if not of_labels or not isinstance(f.out, Tensor) or not f.out.requires_grad:
            continue
        if not raw.root.calls >> f.index & 1:
            continue
        (w,) = gradients_of(raw.roots[0], f.out)
        if w is not None:
            own = gradients_of(f.out, nearest, w)
            left = tuple(a if a is None or b is None else a - b for a, b in zip(left, own, strict=True))
    return left


def _norm(parts: tuple[Tensor | None, ...]) -> float:
    return math.sqrt(sum(float(g.float().norm()) ** 2 for g in parts if g is not None))


def are_one(a: Tensor, b: Tensor) -> bool:
    """Say whether two answers are one, but for what a mixture holds that holds next to nothing of the other."""
    if a.shape != b.shape:
        return False
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).norm()) <= _ONE * float(a.norm())


def _nearest(f: FunctionCall, taint: Taint, student: int) -> list[Tensor]:
    """Return the student's matrices that a distance's gradient comes upon first.

    No vectors: a bias before a normalisation never gets any.
    """
    found: list[Tensor] = []
    seen: set[Any] = set()
    todo = deque([f.grad_fn])
    while todo and len(seen) < _MOST_NODES and len(found) < _NEAREST:
        node = todo.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, torch_internals.LEAF, None)
        if leaf is not None and leaf.ndim > 1 and taint.mask([leaf]) & student and not torch_internals.hooks_of(leaf):
            found.append(leaf)
        todo.extend(parent for parent, _ in node.next_functions)
    return found
