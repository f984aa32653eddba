"""Where the user's code looks for modules by name to hook them, and which it hooks: a name that misses is silent."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import CodeType
from typing import Any
from weakref import ref

from torch import nn

from kdbench.audits.observe import hooks
from kdbench.audits.updates import Where

_MOST = 2000
"Searches and hooks that are kept in mind."
_DEEP = 6
"Frames up to which a hook is set on behalf of who called."
_HOOK = "register_forward_hook"


@dataclass
class Search:
    """One walk through the named modules of a network by code that sets hooks."""

    code: CodeType
    root: Any
    "The network, weakly."
    where: Where | None


@dataclass
class Hooked:
    """One hook that was set."""

    codes: list[CodeType]
    "Of the functions on the stack."
    module: Any
    "Weakly."
    where: Where | None
    handle: Any


class Hookups:
    """Notes the searches and the hooks of the user's code since the script began."""

    def __init__(self) -> None:
        self._searches: list[Search] = []
        self._hooked: list[Hooked] = []

    def open(self, stack: ExitStack) -> None:
        """Note them for as long as the stack lives."""
        stack.enter_context(hooks.patched(nn.Module, "named_modules", self._wrap_walk))
        stack.enter_context(hooks.patched(nn.Module, _HOOK, self._wrap_hook))

    def _wrap_walk(self, original: Any) -> Any:
        def walk(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            code = sys._getframe(2).f_code
            if len(self._searches) < _MOST and hooks.is_users(code.co_filename) and _sets_hooks_by_name(code):
                self._searches.append(Search(code, ref(module), hooks.call_site()))
            return original(module, *args, **kwargs)

        return walk

    def _wrap_hook(self, original: Any) -> Any:
        def register(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            handle = original(module, *args, **kwargs)
            frame = sys._getframe(2)
            codes: list[CodeType] = []
            while frame is not None and len(codes) < _DEEP:
                codes.append(frame.f_code)
                frame = frame.f_back  # type: ignore[assignment]
            if len(self._hooked) < _MOST and hooks.is_users(codes[0].co_filename):
                self._hooked.append(Hooked(codes, ref(module), hooks.call_site(), handle))
            return handle

        return register

    def in_vain(self) -> Iterator[tuple[nn.Module, Where | None]]:
        """Yield the networks that were searched by name and of which no module was hooked by that code, and where."""
        for search in self._searches:
            root = search.root()
            if root is None:
                continue
            parts = {id(part) for part in root.modules()}
            mine = (h.module() for h in self._hooked if search.code in h.codes)
            if not any(part is not None and id(part) in parts for part in mine):
                yield root, search.where

    def still_set(self) -> Iterator[tuple[nn.Module, Where | None]]:
        """Yield the modules whose hooks have not been removed, and where they were set."""
        for hooked in self._hooked:
            module = hooked.module()
            table = hooked.handle.hooks_dict_ref()
            if module is not None and table is not None and hooked.handle.id in table:
                yield module, hooked.where


def _sets_hooks_by_name(code: CodeType) -> bool:
    """Say whether a function's own code sets hooks and chooses by name: to look for classes may well find none."""
    inner = [code, *(c for c in code.co_consts if isinstance(c, CodeType))]
    names = {name for c in inner for name in c.co_names}
    return _HOOK in names and "isinstance" not in names
