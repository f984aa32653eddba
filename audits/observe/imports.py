"""To do something as soon as the user's code imports a module, which may be never."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Watcher:
    """A finder that finds nothing itself, and is told when the module was made."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return what the other finders find, its loader made to tell of the module."""
        if name != self._name:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]  # a second watcher would ask this one, for ever
        others = (f for f in behind if hasattr(f, "find_spec"))
        spec = next((s for f in others if (s := f.find_spec(name, path, target)) is not None), None)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None and hasattr(loader, "exec_module"):
            plain = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                plain(module)
                self._then(module)

            loader.exec_module = exec_module
        return spec


@contextmanager
def when_imported(name: str, then: Callable[[ModuleType], None]) -> Iterator[None]:
    """Call `then` with the module of this name: now if it is there, or once it is imported in the block."""
    if name in sys.modules:
        then(sys.modules[name])
        yield
        return
    watcher = _Watcher(name, then)
    sys.meta_path.insert(0, watcher)
    try:
        yield
    finally:
        if watcher in sys.meta_path:
            sys.meta_path.remove(watcher)
