"""Are probabilities made of answers that are probabilities already?"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.outline import Outline
from kdbench.audits.observe.windows import FunctionCall, RawWindow

_EVEN, _FLAT = 1e-4, 1e-2
"""Of the largest row sum: differences up to which all rows sum to one number, and differences among all numbers down to
which they say nothing."""
_LOOKED_AT = 64
"Rows that tell whether they are probabilities."


def squashed_twice(raw: RawWindow, cast: Cast) -> tuple[str, str]:
    """Say whose answers are probabilities already where a softmax over the classes or a sigmoid is taken, and which."""
    sigmoids = [f.out for f in raw.functions if f.name == "sigmoid"]
    for f in _reached(raw, "binary_cross_entropy_with_logits"):
        x, of, _ = f.operands[0]
        if x is not None and any(x is out for out in sigmoids) and of.params & cast.student_mask:
            return "student's", "sigmoid"
    if told := _sigmoid_of_a_sigmoid(raw, cast):
        return told, "sigmoid"
    classes = _classes(raw, cast)
    for x, made in _softened(raw, cast):
        if x is None or x.ndim not in (2, 3) or x.shape[-1] not in classes or not _are_probabilities(x):
            continue
        if made & cast.student_mask:
            return "student's", "softmax"
        if made & cast.teacher_mask:
            return "teacher's", "softmax"
    return "", "softmax"


def _sigmoid_of_a_sigmoid(raw: RawWindow, cast: Cast) -> str:
    """Say whose sigmoid is taken of the very numbers that another one gave, whatever shape they have by now."""
    sigmoids = _reached(raw, "sigmoid")
    for f in sigmoids:
        x, made, _ = f.operands[0]
        before = [g.out for g in sigmoids if g is not f and made.calls >> g.index & 1]
        if x is None or not any(y is not None and _are_the_same_numbers(x, y) for y in before):
            continue
        if made.params & cast.student_mask:
            return "student's"
        if made.params & cast.teacher_mask:
            return "teacher's"
    return ""


def _are_the_same_numbers(x: Tensor, y: Tensor) -> bool:
    if x.numel() != y.numel() or x.numel() < 2:
        return False
    return torch.equal(x.detach().reshape(-1).sort().values, y.detach().reshape(-1).sort().values)


def _reached(raw: RawWindow, *names: str) -> list[FunctionCall]:
    return [f for f in raw.functions if f.name in names and f.operands and raw.root.calls >> f.index & 1]


def _classes(raw: RawWindow, cast: Cast) -> set[int]:
    """Return how many classes there are: those of the labels; where nothing is labelled, those of the divergences."""
    labelled = {label.classes for label in cast.labels if label.classes}
    return labelled or {shape[-1] for f in _reached(raw, "kl_div") for _, _, shape in f.operands[:1] if len(shape) > 1}


def _softened(raw: RawWindow, cast: Cast) -> Iterator[tuple[Any, int]]:
    """Yield what a softmax over the last dimension is taken of, and the parameters that it was made of."""
    for f in _reached(raw, "softmax", "log_softmax"):
        x, made, shape = f.operands[0]
        if f.arg(1, "dim") in (-1, len(shape) - 1, None):
            yield x, made.params
    for label in cast.labels:
        if label.call.name == "cross_entropy" and label.is_plain:
            yield label.logits, label.made


def _are_probabilities(x: Tensor | Outline) -> bool:
    """Say whether the rows (..., C) are of no negative number, and sum to one number: one, or less after a division."""
    count = x.numel() // x.shape[-1]
    if count < 2:
        return False
    at = torch.arange(0, count, max(1, count // _LOOKED_AT))  # of a large vocabulary never all
    rows = x.rows(at) if isinstance(x, Outline) else x.detach().reshape(count, -1)[at.to(x.device)]
    rows = rows.double()
    sums = rows.sum(1)
    even = bool((rows >= 0).all()) and float(sums.max() - sums.min()) <= _EVEN * float(sums.max())
    return even and float(rows.max() - rows.min()) > _FLAT * float(sums.max())
