"""What a trial ran on and with: recorded beside its numbers, not part of its name."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kdbench.harness.records.digests import digest

ROOT = Path(__file__).resolve().parents[2]
"Where kd, audits and harness stand side by side: a checkout, or the package that a wheel holds."


def usable_cores() -> int:
    """Return the processor cores that this process may use, by affinity and by container quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _read(*places: str) -> dict[str, str]:
    """Return the sources in folders and files under the root, by their places; FileNotFoundError where one is not."""
    found = {}
    for place in places:
        root = ROOT / place
        paths = sorted(root.rglob("*.py")) if root.is_dir() else [root]
        found.update({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths})
    return found


_METHODS, _SHARED = (
    "kd/methods/",
    tuple(f"kd/methods/{name}.py" for name in ("__init__", "joined", "registry", "shared")),
)
"Where a file is a method, but for those that all methods share."


def _is_method(place: str) -> bool:
    return place.startswith(_METHODS) and place not in _SHARED


# Read beside the imports: what is edited later is not what runs here, or in a trial that was forked from here.
_TRAINING = _read("kd", "harness/run/trial.py")
_AUDITS = _read("audits", "harness/run/properties.py")


@cache
def code_digest() -> str:
    """Return a digest over the sources that decide any trial's numbers: the core without its methods, and the trial.

    What a trial's own method is stands in :func:`method_digest`, and its fault's function in the digest of its spec; so
    another method or fault more, or one that is edited, changes nothing here.
    """
    return digest({place: text for place, text in _TRAINING.items() if not _is_method(place)})


@cache
def method_digest(method: str) -> str | None:
    """Return a digest over a method's file, or those of its parts; None of one that has no file in the core."""
    places = [f"{_METHODS}{part.replace('-', '_')}.py" for part in method.split("+")]
    found = {place: _TRAINING[place] for place in places if place in _TRAINING}
    return digest(found) if found else None


@cache
def audits_digest() -> str:
    """Return a digest over the sources that decide what is said of a trial: the audits, and the laws put to it."""
    return digest(_AUDITS)


@cache
def git_commit() -> tuple[str, bool] | None:
    """Return the commit that the code stands at and whether it was changed since; None outside a git checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip(), bool(status.stdout.strip())


def versions(*packages: str) -> dict[str, str | None]:
    """Return the installed version of each package; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: torch.device) -> str:
    """Return the name that the device calls itself by."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def instructions() -> str:
    """Return the vector instructions that torch uses, with any limit set on oneDNN's: others have other last bits."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN at most {limit}" if limit else "")


@cache
def installed() -> dict[str, str]:
    """Return the versions of kdbench and of all that it needs, directly or not, by name; of all there is without it."""
    from packaging.requirements import Requirement  # the process of a trial does without
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    names = ["kdbench"] if versions("kdbench")["kdbench"] else [d.name for d in metadata.distributions()]
    todo = [(name, "") for name in names]
    while todo:
        name, extra = one = todo.pop()
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # another system's
            continue
        found[canonicalize_name(name)] = package.version
        if one not in seen:
            seen.add(one)
            needed = [Requirement(text) for text in package.requires or ()]
            needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]
            todo += [(r.name, part) for r in needed for part in ("", *r.extras)]
    return dict(sorted(found.items()))


def environment(device: torch.device, method: str | None = None) -> dict[str, Any]:
    """Return versions, device, threads, determinism and the digests of the code; with a trial's method, of its file."""
    commit = git_commit()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **versions("torch", "torchvision", "numpy", "kdbench"),
        "device": device.type,
        "device_name": device_name(device),
        "instructions": instructions(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "deterministic": device.type == "cpu" or torch.backends.cudnn.deterministic,
        "code_digest": code_digest(),
        **({} if method is None else {"method_digest": method_digest(method)}),
        "audits_digest": audits_digest(),
        "git_commit": commit[0] if commit else None,
        "git_dirty": commit[1] if commit else None,
    }
