"""Where trials run: in processes of this machine, or (:mod:`harness.run.dask_cluster`) on those of a cluster."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from kdbench.harness import loading
from kdbench.harness.records.lease import Lease
from kdbench.harness.records.record import Folder
from kdbench.harness.run.processes import start_server
from kdbench.harness.run.trial import run_in_child


class Running(Protocol):
    """A trial on its way."""

    def is_over(self) -> bool:
        """Say whether it has ended, one way or the other."""

    def death(self) -> str:
        """Say how it ended, where it left no result."""

    def end(self, hard: bool = False) -> None:
        """Ask it to end, or make it."""


class Engine(Protocol):
    """Where trials run."""

    def has_room(self, running: int) -> bool:
        """Say whether one more can run beside so many."""

    def start(self, folder: Folder, data_file: Path, lease: Lease) -> Running:
        """Start the trial of a folder, which is ours as long as the lease stands."""

    def wait(self, running: Sequence[Running], seconds: float) -> None:
        """Wait until one of them may have ended, and no longer than that."""

    def close(self) -> None:
        """Give back what was taken."""


@dataclass
class LocalProcess:
    """A trial in a process of this machine."""

    process: BaseProcess

    def is_over(self) -> bool:
        """Say whether the process has ended."""
        return not self.process.is_alive()

    def death(self) -> str:
        """Say by what it was ended."""
        self.process.join()
        return death_of(self.process.exitcode)

    def end(self, hard: bool = False) -> None:
        """Ask the process to end, or kill it."""
        if hard:
            self.process.kill()
            self.process.join()
        else:
            self.process.terminate()


class LocalProcesses:
    """Processes of this machine, so many at a time."""

    def __init__(self, workers: int, threads: set[int]) -> None:
        self.workers = workers
        self.threads = threads

    def has_room(self, running: int) -> bool:
        """Say whether fewer run than may."""
        return running < self.workers

    def start(self, folder: Folder, data_file: Path, lease: Lease) -> LocalProcess:
        """Start the trial of a folder."""
        return self.fork(folder, data_file)

    def fork(self, folder: Folder, data_file: Path, device: str | None = None) -> LocalProcess:
        """Start the process of a trial; where a device is named, it sees that GPU and no other."""
        process: BaseProcess = start_server(self.threads).Process(  # type: ignore[attr-defined]
            target=run_in_child, args=(str(folder.path), str(data_file), [*loading.LOADED], device), daemon=True
        )
        process.start()
        return LocalProcess(process)

    def wait(self, running: Sequence[Running], seconds: float) -> None:
        """Wait for the first to end."""
        if running:
            wait([r.process.sentinel for r in running if isinstance(r, LocalProcess)], timeout=seconds)
        else:
            time.sleep(seconds)

    def close(self) -> None:
        """Do nothing: processes are given back one by one."""


def death_of(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code} and left no result (log.txt may say why)"
