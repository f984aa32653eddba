"""A look at the machine: packages, devices, cores, folders."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.harness.records.environment import device_name, usable_cores, versions
from kdbench.harness.run.throughput import advice, images_per_second, ways
from kdbench.harness.study import writable
from kdbench.kd.data import cache_folder

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "safetensors",
    "scipy",
    "pandas",
    "scikit-learn",
    "mlflow",
    "click",
    "rich",
)


def examine(runs: Path, *, timing: bool = True) -> dict[str, Any]:
    """Return what is installed, which devices run a convolution, where data and records lie, and what a step takes."""
    devices = [_try(torch.device("cpu"))]
    if torch.cuda.is_available():
        devices += [_try(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    folders = {"records": _place(runs), "data cache": _place(cache_folder())}
    packages = versions(*PACKAGES)
    return {
        "python": platform.python_version(),
        "packages": packages,
        "cores": usable_cores(),
        "workers": usable_cores(),
        "devices": devices,
        "folders": folders,
        "timing": [_timed(device["kind"]) for device in devices if device["works"]] if timing else [],
        "healthy": all(packages.values())
        and all(d["works"] for d in devices)
        and all(f["writable"] for f in folders.values()),
    }


def _try(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": str(device), "name": device_name(device), "works": True, "error": None}
    try:
        out = nn.Conv2d(3, 8, 3).to(device)(torch.zeros(1, 3, 8, 8, device=device))
        out.sum().backward()
        found["works"] = bool(torch.isfinite(out).all())
    except RuntimeError as error:
        found.update(works=False, error=str(error).splitlines()[0])
    return found


def _timed(device: str) -> dict[str, Any]:
    """Time a step of Logit-KD in each way that trials could share out a device (a GPU: the first)."""
    found = [(way, images_per_second(way)) for way in ways(device.partition(":")[0], usable_cores())]
    speeds = [{**asdict(way), "images_per_second": round(speed, 1) if speed else None} for way, speed in found]
    return {"device": device, "ways": speeds, "advice": advice(found)}


def _place(path: Path) -> dict[str, Any]:
    """Say whether a folder, or the nearest one above it that exists, can be written to."""
    return {"path": str(path.resolve()), "writable": writable(path)}
