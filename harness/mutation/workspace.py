"""A working folder for each run: runs side by side write neither into each other's files nor into the user's."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.kd.errors import InputError

ORDER, RESULT = "KDBENCH_MUTATE_ORDER", "KDBENCH_MUTATE_RESULT"
"Environment variables that name the files of what a run is to do, and of what came of it."
_LARGE = 8 * 2**20
"Bytes above which a file is linked and not copied: checkpoints and data, which scripts read."
_MOST_FILES, _MOST_BYTES = 20_000, 2**30
"What is copied at most for each run."
_LEFT_OUT = {".git", "__pycache__", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
_ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
"By which a folder is known that holds an environment of Python's, whatever its name."


@contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    """Yield a copy of a folder, in which large files are links to the real ones; it is gone afterwards.

    A folder with more files than can be copied is an InputError.
    """
    with tempfile.TemporaryDirectory(prefix="kdbench-mutate-") as name:
        there = Path(name) / folder.name
        _copy(folder, there)
        yield there


def _copy(folder: Path, there: Path) -> None:
    files = size = 0
    for root, names, found in os.walk(folder):
        names[:] = [n for n in names if not _is_left_out(Path(root) / n)]
        place = there / Path(root).relative_to(folder)
        place.mkdir(parents=True, exist_ok=True)
        for n in found:
            source = Path(root) / n
            if not source.is_file():
                continue
            large = source.stat().st_size > _LARGE
            files, size = files + 1, size + (0 if large else source.stat().st_size)
            if files > _MOST_FILES or size > _MOST_BYTES:
                raise InputError(
                    f"{folder} holds more than {_MOST_FILES:,} files or {_MOST_BYTES >> 30} GiB, and each run gets "
                    "a copy of it; call kdbench mutate from the script's own folder, or give --share-folder"
                )
            if large:
                (place / n).symlink_to(source.resolve())
            else:
                shutil.copy2(source, place / n)


def _is_left_out(folder: Path) -> bool:
    known = folder.name in _LEFT_OUT or folder.name.endswith(".egg-info")
    return known or any((folder / mark).exists() for mark in _ENVIRONMENT)
