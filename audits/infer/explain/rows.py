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
_PIECE = 2**22
"Numbers worked on at once where a whole gradient is gone through, so that no second copy of it stands in memory."


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


class Sizes(NamedTuple):
    """What a gradient comes to over all rows, without the labels' part."""

    largest: Tensor
    "By row (N,), the largest number."
    kd: float
    "The norm of the whole."
    labels: float
    "The norm of the labels' part."
    whole: float
    "The norm before the labels' part was taken away."
    sums: list[float]
    """By dimension, the sum along it relative to that of the absolute numbers: 0 where adding a constant along that
    dimension does not change the loss."""
    cut: float = 1.0
    "The same along rows that are cut from memory as if the classes were the last dimension."


def sizes(layout: Layout, whole: Tensor, part: Tensor | None) -> Sizes:
    """Go through a gradient once, piece by piece."""
    dims = range(whole.ndim)
    device = whole.device
    step = max(1, _PIECE // max(1, math.prod(whole.shape[1:])))
    largest: list[Tensor] = []
    squares = torch.zeros(3, dtype=torch.float64, device="cpu")
    lines = [0.0 for _ in dims]
    cut, cuts = 0.0, bool(layout.dim) and layout.dim != whole.ndim - 1
    total, down = 0.0, torch.zeros(whole.shape[1:], device=device, dtype=torch.float32)
    for start in range(0, len(whole), step):
        w = whole[start : start + step].float()
        p = None if part is None else part[start : start + step].float()
        g = w if p is None else w - p
        largest.append(torch.linalg.vector_norm(g, math.inf, layout.dim).cpu().flatten().double())
        for i, x in enumerate((g, p, w)):
            squares[i] += 0.0 if x is None else float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
        total += float(torch.linalg.vector_norm(g, 1, dtype=torch.float64))
        down += g.sum(0)
        if cuts:
            cut += float(g.reshape(-1, layout.classes).sum(1).abs().sum(dtype=torch.float64))
        for d in list(dims)[1:]:
            lines[d] += float(g.sum(d).abs().sum(dtype=torch.float64))
    lines[0] = float(down.abs().sum(dtype=torch.float64))
    kd, labels, everything = squares.sqrt().tolist()
    rows = torch.cat(largest) if layout.dim else _largest_over_rows(whole, part)
    sums = [line / total if total else 0.0 for line in lines]
    return Sizes(rows, kd, labels, everything, sums, cut / total if cuts and total else 1.0)


def _largest_over_rows(whole: Tensor, part: Tensor | None) -> Tensor:
    """Return the largest number of each row where the classes lie in the first dimension."""
    g = whole if part is None else whole - part
    return torch.linalg.vector_norm(g.float(), math.inf, 0).cpu().flatten().double()


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
