"""In which order the rows of two answers meet in a distance, be they whole, or those that a mask leaves."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.custom import holds_custom
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.windows import DIFFERENCES, SMALL, FunctionCall, RawWindow

_FEWEST = 8
"Rows below which an order of rows may be chance."
_MOST = 64
"Rows that are looked for: a mask that is off is off everywhere."
_CENTRE = 1e-3
"Mean over the rows, relative to their size, below which what is compared over the batch is a correlation, and meant."


def order_of(raw: RawWindow, cast: Cast, f: FunctionCall) -> bool | None:
    """Say whether the student's and the teacher's rows meet in one order; None where either's place is not known."""
    mine = next((t for t, made, _ in f.operands[:2] if t is not None and made.params & cast.student_mask), None)
    its = next(
        (
            t
            for t, made, _ in f.operands[:2]
            if t is not None and made.params & cast.teacher_mask and not made.params & cast.student_mask
        ),
        None,
    )
    if mine is None or its is None or mine.ndim < 2 or its.ndim < 2 or len(mine) != len(its) or len(mine) < _FEWEST:
        return None
    of_student, of_teacher = list(places_of(raw, mine, cast.student_mask)), list(places_of(raw, its, cast.teacher_mask))
    # Rows of different wholes have no places to compare.
    pairs = [(a, b) for a in of_student for b in of_teacher if a.among == b.among]
    if not pairs:
        return None
    a, b = pairs[0]
    known = [(i, j) for i, j in zip(a.rows, b.rows, strict=True) if i >= 0 and j >= 0]
    return all(i == j for i, j in known) if len(known) >= _FEWEST else None


class _Places(NamedTuple):
    """Which row of an answer each row of a loss's operand is, -1 where several are alike; and how many it has."""

    rows: list[int]
    among: int


def places_of(raw: RawWindow, t: Tensor, mask: int, before: float = math.inf) -> Iterator[_Places]:
    """Yield where a loss's rows stand in the answer that they were taken from, and then in what that was fed."""
    rows = t.detach().reshape(-1, t.shape[-1]) if t.ndim in (2, 3) else t.detach().flatten(1)
    wanted = row_keys(rows[:_MOST])
    for call in reversed(raw.calls):
        out = call.outputs() if call.outputs is not None else None
        if call.index >= before or out is None or not call.out.params & mask or not _may_hold(out, t):
            continue
        # The whole answer, row by row of its last dimension or sample by sample.
        source = out.detach().reshape(-1, out.shape[-1]) if t.ndim in (2, 3) else out.detach().flatten(1)
        place: dict[bytes, int] = {}
        for i, key in enumerate(row_keys(source.to(rows.dtype))):
            place[key] = i if key not in place else -1
        found = [place.get(key) for key in wanted]
        if all(i is not None for i in found):
            yield _Places([i for i in found if i is not None], len(source))
            fed = call.given[0] if call.given else None
            same = len(source) == len(rows) and fed is not None and fed.shape[:-1] == t.shape[:-1]
            if same and fed is not None and call.fed.params & mask:
                yield from places_of(raw, fed, mask, call.index)  # a projector's rows are those that it was fed
            return


def _may_hold(out: Tensor, t: Tensor) -> bool:
    if out.is_inference() or out.ndim < 2 or not out.is_floating_point() or out.numel() > SMALL:
        return False
    if t.ndim in (2, 3):
        return out.ndim in (2, 3) and out.shape[-1] == t.shape[-1] and out.numel() >= t.numel()
    return out.shape == t.shape


def drives_apart(raw: RawWindow, f: FunctionCall) -> bool:
    """Say whether the loss falls where a distance grows, or a cosine shrinks."""
    out = f.out
    if not isinstance(out, Tensor) or not out.requires_grad or len(raw.roots) != 1:
        return False
    (w,) = gradients_of(raw.roots[0], out)
    if w is None or not bool((w != 0).any()):
        return False
    if f.name == "cosine_similarity":
        return bool((w >= 0).all())
    return f.name in _GROWS and bool((w <= 0).all())


def lowers_all_alike(raw: RawWindow, cast: Cast, f: FunctionCall) -> bool:
    """Say whether a difference of log-probabilities, one a word, has a gradient that lowers each of the student's by
    one number, whatever the teacher's is: so it says nothing of where they differ."""
    if f.name not in DIFFERENCES or not isinstance(f.out, Tensor) or not f.out.requires_grad or len(raw.roots) != 1:
        return False
    sides = [t for t, *_ in f.operands[:2]]
    mine = [t for t, made, _ in f.operands[:2] if made.params & cast.student_mask]
    if len(sides) < 2 or len(mine) != 1 or any(t is None or t.ndim > 2 or len(t) < _FEWEST for t in sides):
        return False
    if holds_custom(raw.roots[0].grad_fn) or not mine[0].requires_grad or any(bool((t > 0).any()) for t in sides):
        return False
    (w,) = gradients_of(raw.roots[0], f.out)
    if w is None or not bool((w != 0).any()):
        return False
    (own,) = gradients_of(f.out, mine[0], w)
    heard = None if own is None else own[own != 0]
    if own is None or heard is None or heard.numel() < own.numel() // 2 or heard.numel() < _FEWEST:
        return False
    return bool((heard > 0).all()) and float(heard.max() - heard.min()) <= _ALIKE * float(heard.max())


_ALIKE = 1e-3
"Share by which gradients that are one number may differ: ratios of probabilities are 1 but for rounding."
_GROWS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "pairwise_distance")
"Distances: what is least where both sides are one."


def cosine_over(raw: RawWindow, cast: Cast, f: FunctionCall) -> int | None:
    """Return the dimension that a cosine runs over where that is the batch, or a sequence; None where it is neither."""
    if f.name != "cosine_similarity" or len(f.operands) < 2:
        return None
    t, _, shape = f.operands[0]
    said = f.arg(2, "dim", 1)
    if t is None or len(shape) < 2 or not isinstance(said, int) or shape[0] < _FEWEST:
        return None
    dim = said % len(shape)
    if dim == 0:
        centre = t.detach().float().mean(0).norm() / t.detach().float().norm(dim=0).mean().clamp_min(1e-30)
        return None if float(centre) < _CENTRE else 0
    words = [g for c in (c for group in cast.students for c in group.calls) for g in c.given[:1]]
    of_words = any(g.ndim == 2 and not g.is_floating_point() and tuple(g.shape) == tuple(shape[:2]) for g in words)
    return 1 if dim == 1 and len(shape) == 3 and of_words else None
