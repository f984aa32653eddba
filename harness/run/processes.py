"""Processes for trials: on Linux forked from a server in which only imports have run, elsewhere started anew.

Light to import, so that a command can have the server import PyTorch while it does so itself.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence, Set
from multiprocessing.context import BaseContext

# The others are imported where a network and an optimizer are built, which every trial does.
_IMPORTED = ["kdbench.harness.run.trial", "torchvision.models", "torch._dynamo"]


ENDING = (signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"What a cluster's scheduler sends before it ends a job."


def hear_signals() -> None:
    """Let through what the server that this process was forked from does not hear."""
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(ENDING))


def start_server(threads: Set[int], imported: Sequence[str] = _IMPORTED) -> BaseContext:
    """Return how processes for trials of so many threads are started; on Linux start the server, unless it runs.

    The server imports `imported` beside the caller. It inherits its environment now, so the size of its OpenMP pools is
    set before. Ctrl-C and the signals that a cluster ends a job by are the coordinator's to hear: the server would end
    amid an import, and its trials with it. A trial lets the latter through again (:func:`hear_signals`).
    """
    if len(threads) == 1:
        count = str(next(iter(threads)))
        os.environ.update(OMP_NUM_THREADS=count, MKL_NUM_THREADS=count)
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imported))
    resource_tracker.ensure_running()  # else the server starts it first, and that lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
