"""Does a term come to be taught by nothing: by one number for every class, where answers stood before?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.lost import Blank
from kdbench.audits.observe.windows import FunctionCall, RawWindow
from kdbench.audits.trace import Sight, Trace

_MOST = 50
"Places that are kept: a script writes few divergences."
FEW_CLASSES = 3
"Classes from which on equal numbers are no answer: of two, a teacher may well be undecided."
_WHOLE = ("batchmean", "mean", "sum")
"Reductions behind which no row can be left out any more."


@dataclass
class _Place:
    where: Any
    told: int = 0
    "Windows in which each row told the classes apart."
    blank: int = 0
    "Windows in a row since, in which none did."


class Blanks(Observer):
    """Counts, by the line that computes it, since when a divergence has had targets without a class."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._places: dict[Any, _Place] = {}

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Note what this window's divergences hold the student against."""
        for f in raw.functions:
            reaches = raw.root.calls >> f.index & 1 and f.requires_grad
            if f.name != "kl_div" or f.where is None or not reaches or f.reduction not in _WHOLE:
                continue
            if len(f.operands) > 1 and f.operands[0][1].params & cast.student_mask:
                self._note(f)

    def _note(self, f: FunctionCall) -> None:
        x, target = f.operands[0][0], f.operands[1][0]
        if x is None or target is None or target.ndim < 2 or target.shape[-1] < FEW_CLASSES or not target.numel():
            return
        assert f.where is not None
        key = f.where["file"], f.where["line"]
        if key not in self._places and len(self._places) >= _MOST:
            return
        place = self._places.setdefault(key, _Place(f.where))
        rows = blank_rows(target)
        if not bool(rows.any()):
            place.told += not place.blank
            place.blank = 0
        elif bool(rows.all()) and not bool(blank_rows(x).all()):
            place.blank += 1

    def restart(self) -> None:
        """Forget what was seen of another training."""
        self._places = {}

    def finish(self, optimizers: list[Any]) -> None:
        """Say which places lost their answers."""
        self._trace.losses.blanks = [
            Blank(p.told, p.blank, p.where) for p in self._places.values() if p.told and p.blank
        ]


def blank_rows(answers: Tensor) -> Tensor:
    """Say of each row (..., C) whether it holds one number for every class, bit for bit."""
    with torch.no_grad():
        rows = answers.detach()
        return rows.amax(-1) == rows.amin(-1)
