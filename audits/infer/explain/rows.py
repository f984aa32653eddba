"""Rows of a batch of answers: which dimension holds the classes, and which rows are looked at closely.

An answer may hold 10^8 numbers. What one row shows, sixty-four show for all: only these are copied and become double
precision. Over all rows nothing is made but a few numbers each.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST_ROWS = 64
"Rows that are explained: a wrong form or a wrong factor shows in each of them, and masks leave enough of as many."
MOST_NUMBERS = 2**22
"Numbers that the explained rows may hold, 32 MB in double precision: fewer rows of a very large vocabulary."
_LEAST_ROWS = 8
"Rows that are explained however many classes there are: fewer could agree by chance."
_PIECE = 2**24
"Numbers that become single precision at once, 64 MB: the gradient of a large answer in half precision is gone through."
_CACHED = 2**18
"Numbers that a processor goes through at once, 1 MB in single precision: a second look at them is in its cache."
_SUMS_TO_ZERO = 1e-3
"Sums of rows, relative to the numbers' size, from which sums along the other dimensions are worth a look."
_LARGEST_SUM = 2**24
"Numbers that sums along a dimension other than the classes' may have, 64 MB: a larger answer is not asked about it."


class Layout(NamedTuple):
    """The shape of an answer, and which of its dimensions holds the classes."""

    shape: tuple[int, ...]
    dim: int

    @classmethod
    def of(cls, value: Tensor, dim: int = -1) -> "Layout":
        """Return the layout of a tensor whose classes lie in this dimension."""
        return cls(tuple(value.shape), dim % value.ndim)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.shape[self.dim]

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape without the classes."""
        return (*self.shape[: self.dim], *self.shape[self.dim + 1 :])

    @property
    def rows(self) -> int:
        """The number of rows of classes."""
        return math.prod(self.lead)

    def take(self, value: Tensor, index: Tensor) -> Tensor:
        """Return the rows of these numbers as (n, C) in double precision, on their device where it has that."""
        moved = value.detach().movedim(self.dim, -1)
        at = torch.unravel_index(index.to(value.device), self.lead) if self.lead else (index,)
        picked = moved[at]
        return picked.to("cpu", torch.float64) if picked.device.type == "mps" else picked.double()

    def taught(self, gradient: Tensor) -> Tensor:
        """Return the numbers of the rows that get any of a gradient."""
        return peaks_of(self, gradient)[0].nonzero().flatten()


class Sizes(NamedTuple):
    """What a gradient comes to over all rows."""

    largest: Tensor
    "By row (N,), the largest number."
    norm: float
    sums: list[float]
    """By dimension, the sum along it relative to that of the absolute numbers: 0 where adding a constant along that
    dimension does not change the loss, and 1 where that was not looked at."""
    cut: float = 1.0
    "The same along rows that are cut from memory as if the classes were the last dimension."


def sizes(layout: Layout, g: Tensor) -> Sizes:
    """Go through a gradient once, without a second one of its size where it is large."""
    largest, norm = peaks_of(layout, g)
    lines, cut = [1.0] * g.ndim, 1.0
    if not norm or not math.isfinite(norm):
        return Sizes(largest, norm, lines)
    if g.numel() > _PIECE:  # what the rows that are explained show is what is explained
        some = layout.take(g, spread(largest.nonzero().flatten(), layout.classes))
        lines[layout.dim] = float(some.sum(1).abs().sum() / some.abs().sum())
        if lines[layout.dim] < _SUMS_TO_ZERO:
            return Sizes(largest, norm, lines)
    total = norms(g)[1]

    def along(sums: Tensor) -> float:
        return float(sums.abs().sum(dtype=torch.float64)) / total

    for d in range(g.ndim):
        if d == layout.dim or g.numel() // g.shape[d] <= _LARGEST_SUM:
            lines[d] = along(_sums(g, d))
    if 0 < layout.dim < g.ndim - 1:
        cut = along(g.reshape(-1, layout.classes).sum(1, dtype=torch.float32))
    return Sizes(largest, norm, lines, cut)


def peaks_of(layout: Layout, g: Tensor) -> tuple[Tensor, float]:
    """Return the largest number of each row (N,), and the 2-norm of all; piece by piece, in the processor's cache."""
    whole = g.detach()
    if layout.dim != whole.ndim - 1 or not whole.is_contiguous() or not whole.numel():
        peaks = torch.linalg.vector_norm(whole, math.inf, layout.dim).flatten()
        return peaks.cpu().double(), norms(whole)[0]
    at_once = _CACHED if whole.device.type == "cpu" else _PIECE
    largest, squares = [], []
    for piece in whole.reshape(-1, layout.classes).split(max(1, at_once // layout.classes)):
        single = piece.float()
        least, most = torch.aminmax(single, dim=1)
        largest.append(torch.maximum(most, -least))
        squares.append(torch.linalg.vector_norm(single))
    norm = torch.linalg.vector_norm(torch.stack(squares).cpu().double())
    return torch.cat(largest).cpu().double(), float(norm)


def _sums(g: Tensor, dim: int) -> Tensor:
    """Return the sums along a dimension in single precision; along the last one row by row, piece by piece."""
    if dim < g.ndim - 1 or not g.is_contiguous():
        return g.sum(dim, dtype=torch.float32)
    rows = g.reshape(-1, g.shape[-1]).split(max(1, _PIECE // max(1, g.shape[-1])))
    return torch.cat([piece.sum(1, dtype=torch.float32) for piece in rows])


def norms(g: Tensor) -> tuple[float, float]:
    """Return the 2-norm and the 1-norm in single precision; of a large tensor piece by piece, without a copy of all."""
    whole = g.detach()
    pieces = whole.reshape(-1).split(_PIECE) if whole.is_contiguous() else whole.unbind(0) if whole.ndim else (whole,)
    squares, total = 0.0, 0.0
    for piece in pieces:
        single = piece.float()
        squares += float(torch.linalg.vector_norm(single)) ** 2
        total += float(torch.linalg.vector_norm(single, 1))
    return math.sqrt(squares), total


def spread(among: Tensor, classes: int, most: int = MOST_ROWS) -> Tensor:
    """Return some of these row numbers, evenly spread, as many as are explained of that many classes."""
    count = min(most, max(_LEAST_ROWS, MOST_NUMBERS // max(1, classes)))
    if len(among) <= count:
        return among
    return among[torch.linspace(0, len(among) - 1, count, dtype=torch.float64).round().long()]


def places(shape: tuple[int, ...], layout: Layout, live: Tensor) -> list[Tensor]:
    """Return where the rows of an operand of this shape may stand among those of a layout (N,), -1 where nowhere.

    `live` are the numbers of the rows with a gradient: a loss is often handed these alone, in order.
    """
    lead = shape[:-1] if shape else ()
    count, n = math.prod(lead), layout.rows
    found: list[Tensor] = []
    if count == n:
        found.append(torch.arange(n))
    if count != n and count == len(live):
        place = torch.full((n,), -1, dtype=torch.long)
        place[live] = torch.arange(count)
        found.append(place)
    whole = layout.lead
    if len(lead) == 2 and len(whole) == 2 and lead[0] == whole[0] and lead[1] == whole[1] - 1:
        for cut in (slice(None, -1), slice(1, None)):  # the last position has no next token, or the first no one before
            place = torch.full(whole, -1, dtype=torch.long)
            place[:, cut] = torch.arange(count).reshape(lead)
            found.append(place.flatten())
    return found
