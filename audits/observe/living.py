"""Objects of the user's that are alive, found by their type."""

import gc
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from kdbench.audits.observe import torch_internals

T = TypeVar("T")


def living(kind: type[T]) -> Iterator[T]:
    """Yield the living objects of a class; by their type, since to ask them for it can run code of theirs."""
    kinds, new = {kind}, [kind]
    while new:
        new = [sub for one in new for sub in type.__subclasses__(one) if sub not in kinds]
        kinds.update(new)
    for thing in gc.get_objects():
        if type(thing) in kinds:
            yield thing


def live_parameters() -> set[int]:
    """Return the ids of the parameters that some living module holds."""
    found: set[int] = set()
    for module in living(nn.Module):
        found.update(id(p) for p in torch_internals.parameters_of(module).values() if p is not None)
    return found
