"""A run in a process of its own: in a copy of the folder, with a limit, and with what it printed.

Scripts are run in forks of a server in which only imports of kdbench's own have run: to import PyTorch again for each
fault would take longer than many a script. What the script imports, it imports itself, under the audits' hooks.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.harness.mutation.workspace import ORDER, RESULT, copy_of
from kdbench.harness.run.processes import start_server

_CHILD = "kdbench.harness.mutation.child"


@dataclass(frozen=True)
class Desk:
    """Where a run stands."""

    folder: Path
    "Its working folder."
    output: Path
    "The file that it prints into."
    names: dict[str, str]
    "By environment variable, the files of order and result."


@dataclass(frozen=True)
class Started:
    """A process that was started."""

    pid: int
    ended: Callable[[float], bool]
    "Waits for so many seconds at most, and says whether it has ended."


Start = Callable[[Desk], Started]


class TookTooLongError(Exception):
    """A process was ended since it took longer than it might."""


def launch(
    start: Start, order: dict[str, Any], seconds: float, share_folder: bool
) -> tuple[dict[str, Any] | None, str]:
    """Start a process on an order in a copy of this folder; return its result, and what it printed.

    A process that fails has no result; one that takes longer than `seconds` is ended: TookTooLongError.
    """
    with _desk(order, share_folder) as desk:
        process = start(desk)
        try:
            if not process.ended(seconds):
                raise TookTooLongError
        except BaseException:
            _end(process)
            raise
        printed = desk.output.read_text(encoding="utf-8", errors="replace").strip()
        result = Path(desk.names[RESULT])
        found: dict[str, Any] | None = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
        return found, printed


@contextmanager
def _desk(order: dict[str, Any], share_folder: bool) -> Iterator[Desk]:
    folder = nullcontext(Path.cwd()) if share_folder else copy_of(Path.cwd())
    with folder as there, tempfile.TemporaryDirectory(prefix="kdbench-order-") as name:
        asked, result, output = (Path(name) / file for file in ("order.json", "result.json", "output"))
        asked.write_text(json.dumps(order), encoding="utf-8")
        output.touch()
        yield Desk(there, output, {ORDER: str(asked), RESULT: str(result)})


def _end(process: Started) -> None:
    """End a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.ended(10.0)


def threads_of(workers: int) -> int:
    """Return how many threads each of so many runs at a time has."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // workers))


def anew(words: Sequence[str], workers: int) -> Start:
    """Return a start of Python with these words."""
    # The environment is the same for all runs, and sets iterate in one order.
    environment = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": str(threads_of(workers)), **os.environ}

    def start(desk: Desk) -> Started:
        with desk.output.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=desk.folder,
                env={**environment, **desk.names},
                start_new_session=True,
            )
        return Started(process.pid, lambda seconds: _waited(process, seconds))

    return start


def _waited(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def forked(workers: int) -> Start:
    """Return a start of :mod:`child` in a fork of a server that has imported it; elsewhere than on Linux, anew."""
    os.environ.setdefault("PYTHONHASHSEED", "0")  # the server's: sets iterate in one order in all runs
    threads = threads_of(workers)
    context: Any = start_server({threads}, [_CHILD, "torch._dynamo"])

    def start(desk: Desk) -> Started:
        process = context.Process(target=_run, args=(str(desk.folder), str(desk.output), desk.names, threads))
        process.start()
        return Started(process.pid, lambda seconds: _joined(process, seconds))

    return start


def _joined(process: multiprocessing.Process, seconds: float) -> bool:
    process.join(seconds)
    return process.exitcode is not None


def _run(folder: str, output: str, names: dict[str, str], threads: int) -> None:
    """Be the process of a run: what a fork has of the server is made as in a process that Python starts anew."""
    import torch

    from kdbench.harness.mutation import child

    os.setsid()
    try:
        os.chdir(folder)
    except FileNotFoundError:  # the run was interrupted, and its folder is gone already
        os._exit(1)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(names)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    torch.set_num_threads(threads)
    child.main()
