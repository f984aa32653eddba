"""The peak memory of one training; it runs in a process of its own."""

import resource
import sys

import torch
from trainings import Bench

from kdbench.kd.recipe import Precision


def peak_mb(bench: Bench, method: str, precision: Precision, textbook: bool) -> float:
    """Train some steps, ours or the textbook's; return the process's peak in MiB (on a GPU that of its tensors)."""
    torch.set_num_threads(1)
    training = bench.prepare(method, precision)
    call = bench.step_textbook(training) if textbook else bench.ours(training)
    if textbook:
        del training  # its networks are copies
    call(), call()
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
