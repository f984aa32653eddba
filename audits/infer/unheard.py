"""Is a divergence between student and teacher computed with a gradient, and in no loss?"""

from dataclasses import dataclass
from typing import Any

from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import Sight, Trace, Unheard

_MOST = 50
"Places that are kept: a script writes few divergences."


@dataclass
class _Place:
    windows: int = 0
    heard: bool = False
    where: Any = None
    last: int = -1


class Divergences(Observer):
    """Counts, by the line that computes it, how often a divergence could have been learned from and was not."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._places: dict[Any, _Place] = {}

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Note the divergences of this window that reach its backward, and those that do not."""
        for f in raw.functions:
            if f.name != "kl_div" or f.where is None or len(self._places) >= _MOST:
                continue
            sides = [made.params for _, made, _ in f.operands[:2]]
            between = any(s & cast.student_mask for s in sides) and any(s & cast.teacher_mask for s in sides)
            if not between or not f.requires_grad:
                continue
            place = self._places.setdefault((f.where["file"], f.where["line"]), _Place(where=f.where))
            place.heard |= bool(raw.root.calls >> f.index & 1)
            if raw.number != place.last:
                place.windows, place.last = place.windows + 1, raw.number

    def restart(self) -> None:
        """Forget what was seen of another training."""
        self._places = {}

    def finish(self, optimizers: list[Any]) -> None:
        """Say which were never heard."""
        silent = [p for p in self._places.values() if not p.heard]
        self._trace.losses.unheard = [Unheard(p.windows, p.where) for p in silent]
