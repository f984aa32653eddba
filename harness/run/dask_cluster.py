"""Trials on the workers of a Dask cluster; records, data and kdbench itself lie where all of them find them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.harness import loading
from kdbench.harness.records.lease import Lease
from kdbench.harness.records.record import Folder
from kdbench.harness.run.executors import Running, death_of
from kdbench.kd.errors import InputError

_CHILD = """
import json, sys
from pathlib import Path
from kdbench.harness.run.trial import run_in_child
path, data_file, files = json.loads(sys.argv[1])
run_in_child(path, data_file, files)
"""


def run_trial(path: str, data_file: str, files: Sequence[tuple[str, str]], lease: Lease) -> str:
    """Run a trial on this worker, in a process of its own; return how it ended if it left no result.

    The process is ended when the coordinator gives the lease back, or is silent for long: it was interrupted, and will
    start the trial anew. It ends itself when this worker dies.
    """
    folder, here = Folder(Path(path)), f"worker {socket.gethostname()}"
    for needed in (folder.path / "spec.json", Path(data_file)):
        if not needed.is_file():
            return (
                f"{here} finds no {needed}; runs and the data cache (KDBENCH_CACHE) must lie where all workers see them"
            )
    threads = str(folder.spec().threads)
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps([path, data_file, list(files)])],
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    )
    while process.poll() is None:
        if not lease.stands():
            process.kill()
            process.wait()
            return "its coordinator gave it up"
        time.sleep(0.2)
    return death_of(process.returncode)


@dataclass
class ClusterTask:
    """A trial that some worker runs, or will."""

    future: Any

    def is_over(self) -> bool:
        """Say whether the task has ended."""
        return bool(self.future.done())

    def death(self) -> str:
        """Say how it ended, in the worker's words or in Dask's."""
        if self.future.status == "finished":
            return str(self.future.result())
        if self.future.status == "error":
            return f"{type(self.future.exception()).__name__} on a worker: {self.future.exception()}"
        return f"the cluster lost it ({self.future.status})"

    def end(self, hard: bool = False) -> None:
        """Take the task back; one that runs ends when its lease is given back."""
        self.future.cancel()


class Cluster:
    """The workers of a Dask cluster, a trial a thread of theirs; at most `workers` at a time, where that is said."""

    def __init__(self, address: str, workers: int | None) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise InputError("--scheduler needs Dask: pip install 'kdbench[dask]'") from error
        try:
            self.client = Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"--scheduler {address}: no scheduler answers there ({error})") from error
        self.workers = workers
        self.asked, self.threads = 0.0, 0
        if not self._threads():
            self.close()
            raise InputError(f"--scheduler {address} has no workers; start some: dask worker {address} --nthreads 1")

    def _threads(self) -> int:
        if time.monotonic() - self.asked > 5:  # workers come and go
            self.threads, self.asked = sum(self.client.nthreads().values()), time.monotonic()
        return self.threads

    def has_room(self, running: int) -> bool:
        """Say whether a worker's thread is free."""
        return running < (min(self.workers, self._threads()) if self.workers else self._threads())

    def start(self, folder: Folder, data_file: Path, lease: Lease) -> ClusterTask:
        """Hand a trial to the cluster."""
        files = [(loaded.kind, str(loaded.path)) for loaded in loading.LOADED]
        where = str(folder.path.resolve()), str(data_file.resolve())
        lease = Lease(lease.path.resolve(), lease.token)
        return ClusterTask(self.client.submit(run_trial, *where, files, lease, pure=False))

    def wait(self, running: Sequence[Running], seconds: float) -> None:
        """Wait for the first to end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not any(task.is_over() for task in running):
            time.sleep(0.05)

    def close(self) -> None:
        """Leave the cluster as it is, and let go of it."""
        self.client.close()
