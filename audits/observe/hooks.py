"""Seeing what torch is asked to do, and leaving torch as it was found.

The names patched are module attributes that torch looks up at call time. So ``clip_grad_norm_`` is seen however and
whenever the user imported it: it calls the inner ``_clip_grads_with_norm_`` through its module. The two functions
that do not (``clip_grad_value_``, ``clip_grads_with_norm_``) are seen only when called through ``torch.nn.utils``;
imported by name before the watch began, they are writes to gradients like any hand-written clip.
"""

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import clip_grad

from kdbench.audits.observe import torch_internals
from kdbench.audits.places import is_cell, shown
from kdbench.audits.updates import Where

_shown = cache(shown)  # asked for at every call that is watched
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})
AUDITS = str(Path(__file__).parent.parent)
"The folder of the audits."
_not_the_users: tuple[str, ...] = (str(Path(torch.__file__).parent), AUDITS)


def pass_over(folder: str) -> None:
    """Pass over the frames of files in this folder, as over torch's, where a line of the user's is looked for."""
    global _not_the_users
    if folder not in _not_the_users:
        _not_the_users = (*_not_the_users, folder)


def call_site() -> Where | None:
    """Return file and line of the innermost frame of the user's: torch's, the audits' own and, where the user's code
    calls a library that trains, that library's are passed over."""
    frame = sys._getframe(1)
    library: Where | None = None
    while frame is not None:
        name = frame.f_code.co_filename
        nobodys = name.startswith("<") and not is_cell(name)
        if not name.startswith(_not_the_users) and not nobodys and "contextlib" not in name:
            found = {"file": _shown(name), "line": frame.f_lineno}
            if not name.startswith(_LIBRARIES):
                return found
            library = library or found
        frame = frame.f_back  # type: ignore[assignment]
    return library


def is_users(name: str) -> bool:
    """Say whether a file is the user's own: neither torch's nor ours nor a library's."""
    return is_cell(name) or not name.startswith((*_not_the_users, *_LIBRARIES, "<"))


@contextmanager
def patched(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace ``owner.name`` by ``wrap(original)`` for as long as the block lives; nothing if there is no such name."""
    original = owner.__dict__.get(name)
    if original is None:
        yield
        return
    wrapped, alive = wrap(original), True

    def call(*args: Any, **kwargs: Any) -> Any:
        # Another watch may have wrapped this one and end later: then this stays in place, and does nothing.
        return wrapped(*args, **kwargs) if alive else original(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        alive = False
        if owner.__dict__.get(name) is call:
            setattr(owner, name, original)


def _as_list(parameters: Any) -> list[nn.Parameter]:
    return [cast(nn.Parameter, parameters)] if isinstance(parameters, torch.Tensor) else list(parameters)


@contextmanager
def clip_log(before: Callable[[str, list[nn.Parameter], float, Any], None], done: Callable[[], None]) -> Iterator[None]:
    """Tell `before` of each call of a torch clip function (kind, parameters, bound, norm), and `done` after it."""
    depth = 0

    def wrap(kind: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(parameters: Any, bound: float, *args: Any, **kwargs: Any) -> Any:
                nonlocal depth
                params = _as_list(parameters)  # a generator is spent by looking at it, so the list goes on in its place
                depth += 1
                try:
                    if depth == 1:
                        before(kind, params, bound, args[0] if args else kwargs.get("total_norm"))
                    result = original(params, bound, *args, **kwargs)
                finally:
                    depth -= 1
                if depth == 0:
                    done()
                return result

            # The keyword names of torch's functions, so that calls by keyword still work.
            def by_keyword(*args: Any, **kwargs: Any) -> Any:
                names = ("parameters", "max_norm" if kind == "norm" else "clip_value")
                if not all(name in kwargs for name in names[len(args) :]):
                    return original(*args, **kwargs)  # which says what is missing
                return call(*args, *(kwargs.pop(name) for name in names[len(args) :]), **kwargs)

            return by_keyword

        return wrapper

    with (
        patched(clip_grad, torch_internals.INNER_CLIP, wrap("norm")),
        patched(nn.utils, "clip_grads_with_norm_", wrap("norm")),
        patched(clip_grad, "clip_grad_value_", wrap("value")),
        patched(nn.utils, "clip_grad_value_", wrap("value")),
    ):
        yield


@contextmanager
def around(
    owner: Any,
    name: str,
    then: Callable[..., None],
    before: Callable[..., None] | None = None,
    *,
    always: bool = False,
) -> Iterator[None]:
    """Call `before` and `then` with the same arguments before and after each call of ``owner.name``.

    With `always`, `then` is called too where the call raised.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                before(*args, **kwargs)
            try:
                result = original(*args, **kwargs)
            except BaseException:
                if always:
                    then(*args, **kwargs)
                raise
            then(*args, **kwargs)
            return result

        return call

    with patched(owner, name, wrap):
        yield
