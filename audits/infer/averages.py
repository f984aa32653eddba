"""Does a teacher follow its student as a moving average does: all of it, by one share, from step to step?

A teacher that averages obeys teacher' = d teacher + (1 - d) student between two backwards, with one d for every tensor.
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.readable import address, numbers

_SAMPLE = 512
"Numbers compared of each tensor, at even distances."
_OFF_THE_WAY = 2e-2
"Share of a teacher's movement that may lead elsewhere than to the student: rounding, where the share moved is small."
_SETTLED = 8
"Updates after which a student is far enough from its average for that to move in half precision, if it ever does."
_READABLE = 3
"Roundings that a movement must exceed for its direction to say anything."
_USUALLY = 0.9
"Part of the updates in which a tensor must have stood still to be one that is not averaged."


class Pair(NamedTuple):
    """A parameter of a teacher and the student's of the same name."""

    name: str
    teacher: nn.Parameter
    student: nn.Parameter


class _Was(NamedTuple):
    teacher: Tensor
    student: Tensor
    version: int


class Averages:
    """Holds each movement of the teacher against that of the student."""

    def __init__(self) -> None:
        self._before: dict[int, _Was] = {}
        "By the teacher's parameter: of two teachers some have one name."
        self._window = -2
        self.rates: list[float] = []
        "The share 1 - d, for each update that was one."
        self.astray = 0
        "Updates that moved the teacher elsewhere than towards the student."
        self.updates = 0
        "Between two backwards in a row, those in which somebody wrote to the teacher."
        self.unstepped = 0
        "Of these, those between which the student did not move, as between the micro-batches of one step."
        self._still: Counter[str] = Counter()
        self._numbers = [0, 0]
        "Of the numbers of the teacher whose twin in the student moved: those that moved, and all."
        self.dtype: torch.dtype | None = None
        self.shared: list[nn.Parameter] = []
        "The teacher's parameters that lie in the student's own memory."

    def window(self, pairs: list[Pair], number: int) -> None:
        """Take in what both hold before a backward, the `number`th."""
        pairs = [pair for pair in pairs if numbers(pair.teacher) is not None and numbers(pair.student) is not None]
        if number == self._window + 1 and self._before:
            self._compare(pairs)
        self.shared = [p.teacher for p in pairs if _in_one_place(p)] or self.shared
        self._window = number
        self._before = {id(p): _Was(_some(p), _some(s), torch_internals.version_of(p)) for _, p, s in pairs}

    def _compare(self, pairs: list[Pair]) -> None:
        known = [(pair, self._before[id(pair.teacher)]) for pair in pairs if id(pair.teacher) in self._before]
        written = any(torch_internals.version_of(pair.teacher) != was.version for pair, was in known)
        if not written and all(torch.equal(_some(pair.teacher), was.teacher) for pair, was in known):
            return  # a write to .data changes no version
        self.updates += 1
        self.unstepped += all(torch.equal(_some(pair.student), was.student) for pair, was in known)
        if self.updates == _SETTLED:
            self._numbers = [0, 0]
        moved, way, old_way, rounding = [], [], [], 0.0
        for pair, was in known:
            now, other = _some(pair.teacher), _some(pair.student)
            changes = (other != was.student) & (other != was.teacher)
            self._numbers[0] += int(((now != was.teacher) & changes).sum())
            self._numbers[1] += int(changes.sum())
            self.dtype = pair.teacher.dtype
            if torch.equal(now, was.teacher):
                self._still[pair.name] += bool(changes.any())
                continue
            rounding += (torch.finfo(pair.teacher.dtype).eps * float(now.norm())) ** 2
            moved.append(now - was.teacher)
            way.append(other - was.teacher)
            old_way.append(was.student - was.teacher)
        if not moved:
            return
        m, lost = torch.cat(moved), rounding**0.5
        if float(m.norm()) <= _READABLE * lost:
            return  # so small a movement is mostly rounding
        for w in (torch.cat(way), torch.cat(old_way)):
            size = float(w @ w)
            q = float(m @ w) / size if size else 0.0
            off = float((m - q * w).norm())
            if size and 0 < q <= 1 + _OFF_THE_WAY and off <= _OFF_THE_WAY * float(m.norm()) + lost:
                self.rates.append(min(q, 1.0))
                return
        self.astray += 1

    @property
    def moved_share(self) -> float | None:
        """Of the teacher's numbers whose twins moved, the part that moved; None where nobody wrote to the teacher."""
        return self._numbers[0] / self._numbers[1] if self.updates and self._numbers[1] else None

    @property
    def still(self) -> list[str]:
        """The tensors that stood still in the updates although the student's moved."""
        return [name for name, count in self._still.items() if self.rates and count >= _USUALLY * self.updates]


def _some(value: Tensor) -> Tensor:
    here = numbers(value)
    assert here is not None
    flat = here.reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].to("cpu", torch.float64)


def _in_one_place(pair: Pair) -> bool:
    return pair.teacher.numel() > 0 and address(pair.teacher) == address(pair.student)
