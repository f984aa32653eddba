"""Runs of kdbench that are cut off, each a child forked from here, where PyTorch is imported already.

A child can be told to die, or to find its disk full, at the n-th step that it takes with a file below its runs folder.
Such a step is what Python asks the system for: a file that is opened to be written, renamed, removed, a folder made.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.harness.cli import main, run_command
from kdbench.harness.publish import mirror as _mirror  # noqa: F401  # imported once, for all children
from kdbench.harness.run import executors, trial

TIMEOUT = 600.0
"Seconds after which a run counts as stuck."
_STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


@dataclass(frozen=True)
class Blow:
    """What happens to a run."""

    who: str
    "coordinator or trial."
    most: int
    "The step, among those whose path holds `word`, is drawn from 1 to this number."
    word: str = ""
    seed: int = 0
    times: int = 1
    "How often, of trials that are tried again."
    error: int | None = None
    "An errno that this step and all after it end with; None where the process is killed."


def arm(blow: Blow, runs: Path, marker: Path) -> None:
    """Have the blow fall on this process, or on children of it; each time, a file in the marker's folder says so."""
    coordinator, taken, step = os.getpid(), [0], [0]

    def heed(event: str, args: tuple[Any, ...]) -> None:
        if event not in _STEPS or not isinstance(args[0], str | os.PathLike):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = os.fspath(args[0])
        if not isinstance(path, str) or not path.startswith(str(runs)) or blow.word not in path:
            return
        if (os.getpid() == coordinator) != (blow.who == "coordinator"):
            return
        taken[0] += 1
        if not step[0]:  # this process's first: each has a step of its own
            fallen = sum(1 for _ in marker.iterdir())
            step[0] = 10**9 if fallen >= blow.times else random.Random(f"{blow.seed} {fallen}").randint(1, blow.most)
        if taken[0] < step[0]:
            return
        os.close(os.open(marker / f"{os.getpid()}", os.O_CREAT))
        if blow.error is not None:
            raise OSError(blow.error, os.strerror(blow.error), path)
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heed)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    "The exit code; of a signal its number, negative."
    said: str
    struck: int
    "How often the blow fell."


def live(
    words: Sequence[str],
    runs: Path,
    blow: Blow | None = None,
    meanwhile: Callable[[int], int] | None = None,
) -> Ended:
    """Run kdbench with these words in a child; `meanwhile` is called with its number beside it, and says if it struck.

    A run that does not end is killed, and its code is that of a timeout, 124.
    """
    log, marker = runs.parent / "said.txt", runs.parent / "struck"
    shutil.rmtree(marker, ignore_errors=True)
    marker.mkdir()
    pid = os.fork()
    if pid == 0:
        _be(words, log, lambda: arm(blow, runs, marker) if blow is not None else None)
    struck = meanwhile(pid) if meanwhile is not None else 0
    code = _wait(pid)
    _end_group(pid)
    return Ended(code, log.read_text(errors="replace"), struck + sum(1 for _ in marker.iterdir()))


def _be(words: Sequence[str], log: Path, armed: Callable[[], None]) -> None:
    code = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = ["kdbench", *words]
        armed()
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _wait(pid: int) -> int:
    deadline = time.monotonic() + TIMEOUT
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 124
        time.sleep(0.01)


def _end_group(pid: int) -> None:
    """Wait for the trials of a coordinator that was killed: they end by themselves, or the run counts as stuck."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.02)
    raise AssertionError("trials outlived their coordinator")


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that live."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def after(seconds: float, number: int = signal.SIGKILL) -> Callable[[int], int]:
    """Return a blow of the clock's: a signal for the coordinator, unless it is over by then."""

    def strike(pid: int) -> int:
        time.sleep(seconds)
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return 0
        os.kill(pid, number)
        return 1

    return strike


def on_trials(chance: random.Random, within: float, times: int) -> Callable[[int], int]:
    """Return blows for trials of the coordinator's, each some time after the one before."""

    def strike(pid: int) -> int:
        struck, due = 0, time.monotonic() + chance.uniform(0, within)
        while struck < times and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
            for child in children(pid) if time.monotonic() > due else ():
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                struck, due = struck + 1, time.monotonic() + chance.uniform(0, within)
                break
        return struck

    return strike


def forked_at_once() -> None:
    """Have trials forked from the coordinator, which imported everything, and every epoch kept on the disk."""
    context = multiprocessing.get_context("fork")
    executors.start_server = lambda threads: context
    run_command.start_server = lambda threads: context
    trial.CHECKPOINT_SECONDS = 0.0
