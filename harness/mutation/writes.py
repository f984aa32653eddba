"""Which files a script writes outside its folder: runs side by side write into the same ones, and into the user's."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdbench.audits.observe import hooks

_MOST = 200
"Paths that are kept: the warning names the first."


@contextmanager
def outside(folder: Path) -> Iterator[set[str]]:
    """Collect, while the block runs, the absolute paths outside `folder` that are opened to be written.

    What lies in the user's folder of caches is none of the script's results.
    """
    found: set[str] = set()
    own = [str(folder.resolve()), str(Path.home() / ".cache"), "/dev", "/proc", sys.prefix]
    listening = True

    def note(path: Any) -> None:
        if isinstance(path, str | os.PathLike) and len(found) < _MOST:
            there = os.path.realpath(path)
            if not any(there == place or there.startswith(place + os.sep) for place in own):
                found.add(there)

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if listening and event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            note(args[0])

    def wrap(original: Any) -> Any:
        def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            note(f)  # torch opens the file itself, and Python is not told
            return original(obj, f, *args, **kwargs)

        return save

    sys.addaudithook(hear)  # Python takes none back: this one stops listening
    try:
        with hooks.patched(torch, "save", wrap):
            yield found
    finally:
        listening = False
