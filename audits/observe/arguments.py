"""By which names a network was handed its tensors."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors among the arguments of a call, by the names that the module's forward has for them."""
    # Of a loaded script module the class has none.
    positional = dict(zip(_names(getattr(type(module), "forward", None)), args, strict=False))
    return {name: value for name, value in {**positional, **kwargs}.items() if isinstance(value, Tensor)}


@lru_cache(256)
def _names(forward: Callable[..., Any] | None) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(forward).parameters)[1:] if forward is not None else ()
    except (TypeError, ValueError):
        return ()


def keeps_graph(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a backward keeps its graph for another; `args` are those after the losses, and the inputs if it has
    some before the gradients."""
    retain, create = ((*args[1:], None, None)[:2]) if args else (None, None)
    retain, create = kwargs.get("retain_graph", retain), kwargs.get("create_graph", create)
    return bool(create if retain is None else retain)  # torch's own default
