"""What the label losses leave to be explained of the gradient at one head, on some of its rows."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kdbench.audits.infer.explain.heads import Head
from kdbench.audits.infer.explain.parts import Gradients, LabelPart, label_gradient
from kdbench.audits.infer.explain.rows import Layout, Sizes, sizes, spread

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Residuals up to which a form is taken for the right one. In single precision right ones leave 1e-7, one in a hundred
2e-6, and wrong ones 1e-2 or more; in the others it is some five roundings (5e-4 and 4e-3)."""
_LEAST_SHARE = 1e-6
"A gradient of this norm counts as none where no label term is there to compare it with."
_NOISE = {torch.float16: 1e-2, torch.bfloat16: 4e-2}
"Part of the label term's gradient that its rounding can leave: twenty roundings of float16, ten of bfloat16."
_NOISE_ELSE = 1e-5
"The same in single precision: a hundred roundings, as softmax, mean and a scaler's factor add up to."
SILENT = 1e-12
"Part of the largest gradient below which a row gets none: rows that a mask leaves out get exactly 0, or underflow."
_EVEN, _UNEVEN = 1e-3, 0.02
"""Sums of a row's gradient, relative to its size, up to which a constant added to the row leaves the loss as it is, and
from which it does not: rounding leaves 1e-5 in single precision, and distances of logits seldom less than a tenth."""
_HALF = 20.0
"By how much both are looser in half precision."


@dataclass
class Rest:
    """What is left of the gradient, row by row (n, C) in double precision."""

    z: Tensor
    "The logits of the rows that are looked at."
    kd: Tensor
    "The gradient at them without the labels' part; with it where that is unknown."
    columns: list[Tensor]
    "Where the labels' part is unknown: what it may be made of, to be fitted along."
    layout: Layout
    index: Tensor
    "The numbers of these rows among all."
    live: Tensor
    "Those of all rows that get a gradient."
    sizes: Sizes
    "Of the whole gradient, not of these rows alone."
    dtype: torch.dtype
    label_norm: float = 0.0
    label_weight: float | None = 0.0
    known: bool = True
    "Whether the labels' part is known."
    together: bool = False
    "Whether the rows that are not distilled have no label either, so that the terms' weights compare."
    labels: LabelPart | None = None
    "What the labels leave there, where that is known."
    through: Tensor | None = None
    """Some columns of the student's head (C, k), where the gradient (n, k) is that of the numbers of the hidden states
    below it."""

    def project(self, basis: Tensor) -> Tensor:
        """Return a form's gradient at the logits (n, C) as it stands where the gradient was seen."""
        return basis if self.through is None else basis @ self.through

    @cached_property
    def label_size(self) -> float:
        """The norm of the labels' part, or of a mean cross-entropy in its place."""
        return self.label_norm if self.known else float(self.columns[0].norm())

    @cached_property
    def share(self) -> float:
        """The size of what is left, relative to the labels' part."""
        return self.sizes.norm / (self.label_size or 1.0)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing but rounding is left for a distillation term."""
        if not self.known:
            whole = self.kd.reshape(-1, 1)
            alone = torch.stack([c.reshape(-1) for c in self.columns], 1)
            fit = alone @ torch.linalg.lstsq(alone, whole).solution
            return float((whole - fit).norm()) <= TOLERANCE.get(self.dtype, TOLERANCE[torch.float32]) * float(
                whole.norm()
            )
        noise = _NOISE.get(self.dtype, _NOISE_ELSE)
        return self.share < max(_LEAST_SHARE, noise if self.label_size else 0)

    @cached_property
    def tolerance(self) -> float:
        """The residual up to which a form is the right one."""
        return TOLERANCE.get(self.dtype, TOLERANCE[torch.float32])

    @property
    def partial(self) -> bool:
        """Whether some rows get a gradient and others none."""
        return self.known and 0 < len(self.live) < self.layout.rows

    @property
    def rows(self) -> int:
        """The number of rows that the term is a mean over."""
        return len(self.live) if self.partial else self.layout.rows

    @property
    def is_invariant(self) -> bool | None:
        """Whether adding a constant to a row's logits leaves the loss as it is; None where that cannot be said."""
        if not self.known or self.through is not None:
            return None
        looser = _HALF if self.dtype in (torch.float16, torch.bfloat16) else 1.0
        of_rows = self.sizes.sums[self.layout.dim]
        return True if of_rows < _EVEN * looser else False if of_rows > _UNEVEN * looser else None

    def part(self, most: int) -> "Rest":
        """Return the same of fewer rows."""
        at = spread(torch.arange(len(self.z)), self.layout.classes, most)
        at = at if len(at) <= most else at[:most]
        if len(at) == len(self.z):
            return self
        columns = [c[at] for c in self.columns]
        return replace(self, z=self.z[at], kd=self.kd[at], columns=columns, index=self.index[at])


def rest_of(head: Head, gradients: Gradients) -> Rest | None:
    """Return what is to be explained at a head; None where nothing is, or the labels' part cannot be fitted along."""
    layout = head.layout
    gradient, scale = gradients.kd(), gradients.scale
    if gradient is None:
        return None
    size = sizes(layout, gradient)
    size = size._replace(norm=size.norm / scale)
    live = (size.largest > SILENT * (float(size.largest.max()) or 1.0)).nonzero().flatten()
    index = spread(live if len(live) else torch.arange(layout.rows), layout.classes)
    z, kd = layout.take(head.value, index), layout.take(gradient, index) / scale
    del gradient  # the labels' part is as large
    if not gradients.known:
        taught = torch.arange(layout.rows)
        bases = [b for x in head.labels if (b := label_gradient(layout, head.value, x, index, taught)) is not None]
        columns = [bases[0], (z.softmax(1) - 1 / layout.classes) / layout.rows] if bases else []
        return Rest(z, kd, columns, layout, index, live, size, head.z.dtype, known=False) if bases else None
    labels = gradients.labels()
    # A last token that has no next one is neither labelled nor distilled.
    together = 0 < len(live) < layout.rows and torch.equal(live, labels.rows)
    return Rest(z, kd, [], layout, index, live, size, head.z.dtype, labels.norm, labels.weight, True, together, labels)
