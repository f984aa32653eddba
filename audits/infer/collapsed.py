"""Do the targets still tell the samples apart, where the teacher's own answers do?"""

from typing import Any

import torch
from torch import Tensor

from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.lost import Collapsed
from kdbench.audits.observe.windows import FunctionCall, RawWindow
from kdbench.audits.trace import Sight, Trace

_ROWS, _CLASSES = 8, 3
"Rows and classes from which rows that are all alike are no chance."
_ALIKE, _APART = 1e-2, 0.5
"Mean distance (L1) of rows of probabilities from their mean up to which they are one, and from which they differ."
_OF_OTHERS = 0.25
"Part of the rows for which the teacher itself must name another class than the one that all targets name."


class CollapsedTargets(Observer):
    """Counts the windows in which one target stands for every sample, and no other could be told from the answers."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._found: Collapsed | None = None

    def restart(self) -> None:
        """Forget what was seen of another training."""
        self._found = None

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Hold the teacher's softmaxes against what they were taken of."""
        for f in raw.functions:
            if f.name != "softmax" or not raw.root.calls >> f.index & 1 or f.made.params & cast.student_mask:
                continue
            if f.made.params & cast.teacher_mask and (found := _collapsed(f, cast)) is not None:
                windows = 1 if self._found is None else self._found.windows + 1
                self._found = Collapsed(windows, *found, f.where)
                return

    def finish(self, optimizers: list[Any]) -> None:
        """Say in how many windows it was so."""
        self._trace.losses.collapsed = self._found


def _collapsed(f: FunctionCall, cast: Cast) -> tuple[int, int] | None:
    """Return the class that the targets of all rows name, and the number of rows, where the teacher names others."""
    target = f.out
    if target is None or target.ndim < 2 or f.arg(1, "dim", -1) not in (-1, target.ndim - 1):
        return None
    rows = target.detach().flatten(0, -2).float()
    if len(rows) < _ROWS or rows.shape[1] < _CLASSES or _spread(rows) > _ALIKE:
        return None
    said = int(rows.mean(0).argmax())
    calls = [c for g in cast.teachers for c in g.calls]
    answers = [c.output[1] for c in calls if c.output is not None and c.output[1].shape[-1] == rows.shape[1]]
    for answer in answers:
        own = answer.detach().flatten(0, -2).float()
        if _spread(own.softmax(1)) > _APART and float((own.argmax(1) != said).float().mean()) > _OF_OTHERS:
            return said, len(rows)
    return None


def _spread(rows: Tensor) -> float:
    with torch.no_grad():
        return float((rows - rows.mean(0)).abs().sum(1).mean())
