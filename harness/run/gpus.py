"""Trials on the GPUs of this machine: each sees one device, and so many trials share a device at most."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from kdbench.harness.records.lease import Lease
from kdbench.harness.records.record import Folder
from kdbench.harness.run.executors import LocalProcess, LocalProcesses
from kdbench.kd.errors import InputError


def visible() -> list[str]:
    """Return the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in told.split(",") if name.strip()] if told is not None else []
    return names[: torch.cuda.device_count()] or [str(number) for number in range(torch.cuda.device_count())]


def chosen(asked: str, names: Sequence[str]) -> list[str]:
    """Return the devices that were asked for, as "all" or by number ("0,2"), out of those that are visible."""
    if not names:
        raise InputError("--gpus: torch sees no CUDA device here (kdbench doctor shows what it sees)")
    if asked == "all":
        return list(names)
    numbers = [part.strip() for part in asked.split(",")]
    for number in numbers:
        if not number.isdecimal() or int(number) >= len(names):
            known = ", ".join(map(str, range(len(names))))
            raise InputError(f"--gpus {asked}: {number!r} is no GPU of this machine; it has {known}; write all, or 0,2")
    if len({*numbers}) < len(numbers):
        raise InputError(f"--gpus {asked} names a GPU twice; --per-gpu says how many trials share one")
    return [names[int(number)] for number in numbers]


class Gpus(LocalProcesses):
    """Processes of this machine, each with one of its GPUs."""

    def __init__(self, devices: Sequence[str], each: int, threads: set[int]) -> None:
        super().__init__(len(devices) * each, threads)
        self.each = each
        self.on: dict[str, list[LocalProcess]] = {device: [] for device in devices}

    def has_room(self, running: int) -> bool:
        """Say whether a device has room."""
        return any(len(self._alive(device)) < self.each for device in self.on)

    def start(self, folder: Folder, data_file: Path, lease: Lease) -> LocalProcess:
        """Start the trial of a folder on the device with the fewest trials."""
        device = min(self.on, key=lambda name: len(self._alive(name)))
        process = self.fork(folder, data_file, device)
        self.on[device].append(process)
        return process

    def _alive(self, device: str) -> list[LocalProcess]:
        self.on[device] = [process for process in self.on[device] if not process.is_over()]
        return self.on[device]
