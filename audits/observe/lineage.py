"""Which batch a batch was made of: a noisy view, a crop or a masked copy goes back to what it was taken from."""

from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_MOST_GIVEN, _MOST = 8, 64
"Tensors that one is made of, above which it counts as new (a batch put together of samples); ancestors remembered."


class _Line(NamedTuple):
    own: int
    ancestors: frozenset[int]


class Lineage:
    """The ancestors of data, tensor by tensor; of what networks answer, nothing."""

    def __init__(self) -> None:
        self._lines = WeakTensorKeyDictionary()
        self._next = 0

    def _line(self, value: Tensor) -> _Line:
        found: _Line | None = self._lines.get(value)
        if found is None:
            self._next += 1
            found = self._lines[value] = _Line(self._next, frozenset())
        return found

    def made(self, out: Tensor, given: list[Tensor]) -> None:
        """Take in that a tensor was made of others; one that is written in place stays itself."""
        if len(given) > _MOST_GIVEN or any(out is t for t in given):
            return
        parents = [self._line(t) for t in given if t.ndim]
        ancestors = frozenset(i for p in parents for i in (p.own, *p.ancestors))
        if ancestors and len(ancestors) <= _MOST:
            self._next += 1
            self._lines[out] = _Line(self._next, ancestors)

    def is_known(self, value: Tensor) -> bool:
        """Say whether it was seen what a tensor was made of, or that others were made of it."""
        return value in self._lines

    def is_made_of(self, value: Tensor, other: Tensor) -> bool:
        """Say whether a tensor is another one, or was made of it."""
        line, source = self._lines.get(value), self._lines.get(other)
        return value is other or (line is not None and source is not None and source.own in line.ancestors)

    def share(self, one: Tensor, other: Tensor) -> bool:
        """Say whether two tensors go back to one."""
        a, b = self._lines.get(one), self._lines.get(other)
        return one is other or (a is not None and b is not None and bool({a.own, *a.ancestors} & {b.own, *b.ancestors}))
