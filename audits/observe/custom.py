"""Functions of the user's with a backward of their own, of which no function mode tells.

Whether such a function sends a gradient to an input, only its backward says: an edge of the graph leads to each input
that could get one. To run it for an answer might change what it keeps, so it is heard in the training's own backward.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


@contextmanager
def applied(around: Callable[[str, Callable[[], Any], tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Hand each call of such a function to `around`: its name, what computes it, its arguments."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return around(cls.__name__, lambda: original.__get__(None, cls)(*args, **kwargs), args, kwargs)

    setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.autograd.Function, "apply", original)  # noqa: B010


@contextmanager
def named_variable(tell: Callable[[Any, Any], None]) -> Iterator[None]:
    """Tell of each tensor that is wrapped in ``autograd.Variable``, and of the new tensor that comes of it."""
    kind = type(torch.autograd.Variable)

    def call(cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = type.__call__(cls, *args, **kwargs)
        if cls is torch.autograd.Variable and args:
            tell(args[0], made)
        return made

    kind.__call__ = call  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if kind.__dict__.get("__call__") is call:
            del kind.__call__


class Passing:
    """Which inputs of each kind of such a function were seen to get a gradient."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[type, dict[tuple[bool, ...], set[int]]] = WeakKeyDictionary()
        "By kind and by which inputs could get one, the places of those that did."
        self.unheard: list[Any] = []
        "Nodes met since :meth:`listen` of kinds whose backward was never heard."

    def edges(self, node: Any) -> Iterable[tuple[Any, int]]:
        """Return the edges of a graph's node along which a gradient goes on; all, where it is not known yet."""
        if not isinstance(node, BackwardCFunction):
            return node.next_functions
        passed = self._known.get(type(node), {}).get(_wanted(node))
        if passed is None:
            self.unheard.append(node)
            return node.next_functions
        return [edge for place, edge in enumerate(node.next_functions) if place in passed]

    def listen(self) -> None:
        """Hear in the backward that is about to run what the nodes met pass on."""
        for node in self.unheard:
            passed = self._known.setdefault(type(node), {}).setdefault(_wanted(node), set())

            def heard(got: Any, given: Any, passed: set[int] = passed) -> None:
                passed.update(place for place, grad in enumerate(got) if grad is not None)

            node.register_hook(heard)
        self.unheard = []


def _wanted(node: Any) -> tuple[bool, ...]:
    return tuple(parent is not None for parent, _ in node.next_functions)


def holds_custom(node: Any, most: int = 10_000) -> bool:
    """Say whether a backward from this node of a graph may run a function of the user's; so it is of a vast graph."""
    seen: set[Any] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction) or len(seen) >= most:
            return True
        seen.add(node)
        todo.extend(parent for parent, _ in node.next_functions)
    return False


CHECKPOINT = "CheckpointFunction"
"What torch calls a checkpoint of the older kind (use_reentrant=True): it runs in a whole backward alone."


def passes_custom(root: Tensor, z: Tensor, name: str | None = None) -> bool:
    """Say whether a backward from a loss to a tensor runs a function of the user's; or one of this name."""
    leads: dict[Any, bool] = {z.grad_fn: True}
    todo: list[Any] = [root.grad_fn] if z.grad_fn is not None else []
    while todo:  # from the leaves upwards, without recursion: a graph may be thousands of nodes deep
        node = todo[-1]
        below = [parent for parent, _ in node.next_functions if parent is not None]
        if node in leads:
            todo.pop()
        elif missing := [parent for parent in below if parent not in leads]:
            todo += missing
        else:
            leads[todo.pop()] = any(leads[parent] for parent in below)
    return any(
        leads[node] and isinstance(node, BackwardCFunction) and name in (None, type(node).__name__)
        for node in leads
        if node is not z.grad_fn
    )
