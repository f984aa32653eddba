"""What a network is told of a text beside its words, as segments, and whether it was told more when it learned."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.windows import ModuleCall

_MOST = 8192
"Texts that a network is remembered to have learned on."
_FEWEST = 4
"Texts that show what a network is told of them."


class Lacking(NamedTuple):
    """What a network is told no longer of texts that it learned on."""

    names: list[str]
    rows: int
    "Texts of the batch that it learned on with these."


class Told:
    """Remembers, by network and text, what it was told beside the words while it learned for itself."""

    def __init__(self) -> None:
        self._learned: Any = WeakKeyDictionary()
        self._largest: Any = WeakKeyDictionary()
        "By network, the largest number of a word that it learned on."
        self._ndim: Any = WeakKeyDictionary()
        "Dimensions of a network's first answer: one that computes its own loss answers with a number."

    def note(self, call: ModuleCall) -> None:
        """Take in a call in which a network learns for itself."""
        words = _words(call)
        known = self._learned.setdefault(call.module, {})
        if words is not None and words.numel():
            self._largest[call.module] = max(int(words.max()), self._largest.get(call.module, 0))
        if words is None or call.shape is None or len(known) >= _MOST:
            return
        self._ndim[call.module] = len(call.shape)
        told = {name: value for name, value in call.named.items() if _tells_more(name, value, words)}
        varies = {name: (value != value[:, :1]).any(1).tolist() for name, value in told.items()}
        for i, key in enumerate(row_keys(words)):
            known[key] = frozenset(name for name, rows in varies.items() if rows[i])

    def knows(self, call: ModuleCall) -> int | None:
        """Return how many words a network was seen to learn on, counted from the first; None where it was not seen."""
        largest = self._largest.get(call.module)
        return None if largest is None else int(largest) + 1

    def lacking(self, call: ModuleCall) -> Lacking | None:
        """Return what a network was told of these very texts when it learned on them, and is not told now."""
        words, known = _words(call), self._learned.get(call.module)
        if words is None or not known or call.shape is None or len(call.shape) != self._ndim.get(call.module):
            return None
        missed = [names for key in row_keys(words) if (names := known.get(key, frozenset()) - call.named.keys())]
        return Lacking(sorted(frozenset().union(*missed)), len(missed)) if len(missed) >= _FEWEST else None


def _words(call: ModuleCall) -> Tensor | None:
    first = call.given[0] if call.given else None
    return first if first is not None and first.ndim == 2 and _are_numbers(first) else None


def _are_numbers(value: Tensor) -> bool:
    return not value.is_floating_point() and value.dtype != torch.bool and is_readable(value)


def _tells_more(name: str, value: Tensor, words: Tensor) -> bool:
    """Say whether an argument tells something of each word and is no label: labels are left out by intention."""
    if value is words or value.shape != words.shape or not _are_numbers(value) or "label" in name or "target" in name:
        return False
    # Labels of words are these words, or leave some out by a number below 0.
    return bool((value >= 0).all()) and not torch.equal(value, words)
