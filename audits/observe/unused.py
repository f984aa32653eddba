"""Gradients that no step has used, and those that were zeroed before any did."""

from typing import NamedTuple

from torch import nn

from kdbench.audits.observe import hooks, torch_internals
from kdbench.audits.updates import Where


class _Fresh(NamedTuple):
    """A gradient that no step has used yet."""

    where: Where | None
    "Of the backward."
    version: int
    "Of the parameter then."
    steps: int
    "Of all optimizers, up to then."
    param: nn.Parameter


class _Thrown(NamedTuple):
    """Gradients of one parameter that were zeroed before a step."""

    where: Where | None
    "Of the last one's backward."
    zeroed_at: Where | None
    often: int


class Unused:
    """Follows each parameter's gradient from its backward to the step that uses it."""

    def __init__(self) -> None:
        self.fresh: dict[int, _Fresh] = {}
        "By the parameter's id."
        self.thrown: dict[int, _Thrown] = {}
        "By the parameter's id, since the step before."
        self.undone: dict[int, _Thrown] = {}
        "The same, whoever else stepped meanwhile."

    def grown(self, params: list[nn.Parameter], taken: int) -> None:
        """Take in which parameters a backward gave a gradient to; `taken` are the steps of all optimizers so far."""
        where = hooks.call_site()
        for param in params:
            self.fresh[id(param)] = _Fresh(where, torch_internals.version_of(param), taken, param)

    def zeroed(self, keys: set[int], taken: int) -> None:
        """Take in gradients that are gone before a step; not those put to use, as to move the weights by hand."""
        for key in keys & self.fresh.keys():
            fresh = self.fresh.pop(key)
            if torch_internals.version_of(fresh.param) == fresh.version:
                for kept in (self.thrown, self.undone) if fresh.steps == taken else (self.undone,):
                    before = kept[key].often if key in kept else 0
                    kept[key] = _Thrown(fresh.where, hooks.call_site(), before + 1)

    def before(self, stepped: set[int]) -> tuple[int, Where | None]:
        """Return how many backwards, at the line of the one that is stepped now, were undone before it; and where."""
        found = [
            lost
            for key, lost in self.thrown.items()
            if key in stepped and key in self.fresh and self.fresh[key].where == lost.where
        ]
        worst = max(found, key=lambda one: one.often, default=None)
        return (worst.often, worst.zeroed_at) if worst is not None else (0, None)

    def stepped(self, keys: set[int]) -> None:
        """Take in that a step used what there was."""
        for key in keys:
            self.fresh.pop(key, None)
            self.thrown.pop(key, None)
            self.undone.pop(key, None)
