"""Which files a script writes outside its folder: runs side by side write into the same ones, and into the user's."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdbench.audits.observe import hooks

_MOST = 200
"Paths that are kept: the warning names the first."
_LARGEST = 2**30
"Bytes up to which all of them together are put back."


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


@contextmanager
def put_back(paths: Sequence[str]) -> Iterator[bool]:
    """Put files back when the block ends as they are now, after runs of the script as it is; yield whether that is so.

    A run with a bug in it may write a checkpoint where the script's own lies. Files of more than a GiB stay as they
    were left.
    """
    there = [path for path in map(Path, paths) if path.is_file()]
    if sum(path.stat().st_size for path in there) > _LARGEST:
        yield False
        return
    with tempfile.TemporaryDirectory(prefix="kdbench-kept-") as folder:
        kept = {path: Path(folder) / str(n) for n, path in enumerate(there)}
        for path, copy in kept.items():
            shutil.copy2(path, copy)
        try:
            yield True
        finally:
            for path, copy in kept.items():
                shutil.copyfile(copy, path)
