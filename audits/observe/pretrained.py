"""What Transformers loads: by a loader of its own, which passes by every function of torch's.

Its public report of a loading names what the checkpoint lacked; all else of the network came from it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from kdbench.audits.observe.imports import when_imported

_HOME = "transformers.modeling_utils"


def follows(module: nn.Module) -> bool:
    """Say whether a network is of a class whose loading is told of."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == f"{_HOME}.PreTrainedModel" for kind in type(module).__mro__)


@contextmanager
def watching(
    loaded: Callable[[nn.Module, set[str]], None],
    resized: Callable[[list[nn.Parameter], list[nn.Parameter]], None],
    saved: Callable[[nn.Module], None],
) -> Iterator[None]:
    """Tell of each network that was loaded, with the names that its checkpoint lacked; of a changed vocabulary, with
    the embeddings before and after; and of each network that is about to be saved."""
    with ExitStack() as stack:

        def patch(module: ModuleType) -> None:
            base = getattr(module, "PreTrainedModel", None)
            if base is not None:
                stack.enter_context(_replaced(base, "from_pretrained", lambda old: _loading(old, loaded)))
                stack.enter_context(_replaced(base, "save_pretrained", lambda old: _saving(old, saved)))
                stack.enter_context(_replaced(base, "resize_token_embeddings", lambda old: _resizing(old, resized)))

        stack.enter_context(when_imported(_HOME, patch))
        yield


@contextmanager
def _replaced(owner: type, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    original = owner.__dict__.get(name)
    if original is None:
        yield
        return
    setattr(owner, name, wrapped := wrap(original))
    try:
        yield
    finally:
        if owner.__dict__.get(name) is wrapped:
            setattr(owner, name, original)


def _loading(original: Any, loaded: Callable[[nn.Module, set[str]], None]) -> Any:
    def from_pretrained(cls: type, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        result = original.__get__(None, cls)(*args, output_loading_info=True, **kwargs)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            return result
        model, info = result
        lacking = [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]
        loaded(model, {key if isinstance(key, str) else key[0] for key in lacking})
        return result if output_loading_info else model

    return classmethod(from_pretrained)


def _saving(original: Any, saved: Callable[[nn.Module], None]) -> Any:
    def save_pretrained(model: Any, *args: Any, **kwargs: Any) -> Any:
        saved(model)
        return original(model, *args, **kwargs)

    return save_pretrained


def _resizing(original: Any, resized: Callable[[list[nn.Parameter], list[nn.Parameter]], None]) -> Any:
    def embeddings(model: Any) -> list[nn.Parameter]:
        parts = [model.get_input_embeddings(), model.get_output_embeddings()]
        return [p for part in parts if part is not None for p in part.parameters()]

    def resize_token_embeddings(model: Any, *args: Any, **kwargs: Any) -> Any:
        before = embeddings(model)
        result = original(model, *args, **kwargs)
        resized(before, embeddings(model))
        return result

    return resize_token_embeddings
