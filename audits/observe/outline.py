"""What is kept of logits that a loss was given and that are too large to keep: their shape, and some of their rows.

A loss over the words is mostly handed a copy of a network's answer: its positions but the last, row by row. Torch lets
go of that copy at once, and to hold it costs as much memory as the answer itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.audits.observe import windows
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import LABEL_LOSSES, ModuleCall

_LOOKED_AT = 8
"Rows that are compared with the answer: a copy has all of them."


@dataclass(eq=False)
class Outline:
    """Logits of a loss that are a network's answer, as it is or without its first or its last position."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    source: Tensor
    "The answer."
    place: Tensor
    "By row of the logits (n,), the number of its row in the answer."
    classes: int
    "The dimension of the classes in the answer."

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return how many numbers the logits have."""
        return len(self.place) * self.source.shape[self.classes]

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows (k, C) of these numbers."""
        return _rows(self.source.detach(), self.place[index])


def kept(name: str, args: tuple[Any, ...], made: Made, calls: list[ModuleCall]) -> tuple[Any, ...]:
    """Return the arguments of a loss as they are kept: large logits by their outline, if they are one of the answers.

    `made` is what the logits were made of, and `calls` are those that may have answered them.
    """
    if name not in LABEL_LOSSES or not args or not isinstance(args[0], Tensor) or args[0].numel() <= windows.SMALL:
        return args
    made_by = (c for c in calls if made.calls >> c.index & 1 and c.large is not None)
    outline = outline_of(args[0], [said[0] for c in made_by if (said := c.output) is not None])
    return args if outline is None else (outline, *args[1:])


def outline_of(logits: Tensor, answers: list[Tensor]) -> Outline | None:
    """Return what is kept of logits (..., C) that are one of these answers (B, L, C); None where they are none."""
    classes = logits.shape[-1]
    count = logits.numel() // classes
    for answer in answers:
        if answer.ndim != 3 or answer.shape[-1] != classes or answer.dtype != logits.dtype:
            continue
        whole = torch.arange(len(answer) * answer.shape[1]).reshape(answer.shape[:2])
        for place in (whole.flatten(), whole[:, :-1].flatten(), whole[:, 1:].flatten()):
            if len(place) != count:
                continue
            some = torch.linspace(0, count - 1, min(count, _LOOKED_AT)).round().long()
            if torch.equal(_rows(logits.detach(), some), _rows(answer.detach(), place[some])):
                shape = tuple(logits.shape)
                return Outline(shape, logits.dtype, logits.requires_grad, answer, place, answer.ndim - 1)
    return None


def _rows(value: Tensor, index: Tensor) -> Tensor:
    at = torch.unravel_index(index.to(value.device), value.shape[:-1])
    return value[at]
