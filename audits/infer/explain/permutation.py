"""Whether each row is taught by another row of the teacher's, and by which."""

import torch
from torch import Tensor

from kdbench.audits.infer.explain.forms import Softening

_MOST_ROWS = 1024
"Rows compared with each other: the time grows with their square."
_MOST_PAIRS = 6
"Temperatures tried: each compares all rows anew, and the likeliest come first."
_MOST_ROWS_OF_MANY, _MANY_CLASSES = 256, 32
"With more rows and more classes than these the differences of all pairs would take gigabytes."
_ALONG = 0.999
"Cosine from which a row's gradient points along a difference; in ten and more dimensions chance stays far below."
_MOST = 0.9
"Part of the rows that must be explained, and part of the answers that must be different: some rows may be alike."
_BY_FAR = 1e-3
"By how much another row must point better than the row's own: all that _ALONG leaves."
_LEAST_MOVED = 0.1
"Part of the rows that must be moved: a few whose neighbour fits by chance make no permutation."
_TINIEST = 1e-30
"Kept from dividing by zero, where two rows are equal."


def permutation_of(kd: Tensor, z: Tensor, softening: Softening) -> list[int] | None:
    """Return which row of the teacher's each row is taught by, if it is a permutation and not the identity.

    `kd` is the gradient (N, C) that the distillation term leaves at the logits `z`.
    """
    size = kd.norm(dim=1, keepdim=True)
    if len(kd) > _MOST_ROWS or not bool((size > 0).all()):
        return None
    if len(z) > _MOST_ROWS_OF_MANY and z.shape[1] > _MANY_CLASSES:
        return None
    unit = kd / size
    for kind, t in softening.answers:
        if t.shape != z.shape:
            continue
        tries: list[tuple[Tensor, Tensor]] = [(z, t)] if kind != "probabilities" else []
        for ts, tt in softening.pairs(kind)[:_MOST_PAIRS]:
            tries.append(((z / ts).softmax(1), t if kind == "probabilities" else (t / tt).softmax(1)))
        for a, b in tries:
            found = _matched(a, b, unit)
            if found is not None:
                return found
    return None


def _matched(a: Tensor, b: Tensor, unit: Tensor) -> list[int] | None:
    """Return for each row of `a` the row of `b` that its gradient's direction points away from, if rows are moved."""
    difference = a[:, None, :] - b[None, :, :]
    cosine = (difference * unit[:, None, :]).sum(2) / difference.norm(dim=2).clamp_min(_TINIEST)
    top, which = cosine.max(1)
    if not bool((top > _ALONG).double().mean() > _MOST):
        return None
    if len(set(which.tolist())) < _MOST * len(which):
        return None  # many rows with one answer: nobody's order can be read off
    moved = which != torch.arange(len(which))
    better = top > cosine.diagonal() + _BY_FAR
    return [int(i) for i in which] if bool((moved & better).double().mean() > _LEAST_MOVED) else None
