"""A lease on a trial: of several coordinators over one folder, each trial is run by one of them at a time."""

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from kdbench.harness.records.record import Folder
from kdbench.harness.records.temporaries import STALE, is_dead, machine

HEARTBEAT = 10.0
"Seconds after which a holder touches its lease again."
_MOST_BYTES = 4096
"Of a lease file; kdbench writes some 150."


@dataclass
class Lease:
    """A trial that is ours to run. Made by :func:`take`."""

    path: Path
    token: str
    "Written in the file, so that a lease of the same number is not taken for this one."
    beaten: float = field(default_factory=time.monotonic)

    def stands(self) -> bool:
        """Say whether the trial still is this lease's holder's, who is alive; anybody may ask, on any machine."""
        holder = _holder(self.path)
        return holder is not None and holder.get("token") == self.token and not _is_over(self.path)

    def beat(self) -> bool:
        """Renew the lease where it is time; return False if it was taken for stale and is another's now."""
        if time.monotonic() - self.beaten >= HEARTBEAT:
            if _numbered(self.path.parent)[-1:] != [self.path]:
                return False
            self.path.touch()
            self.beaten = time.monotonic()
        return True

    def release(self) -> None:
        """Give the trial back."""
        for path in _numbered(self.path.parent):  # lowest first: while this one stands, nobody takes the trial
            if _number(path) <= _number(self.path):
                path.unlink(missing_ok=True)


def take(folder: Folder) -> Lease | None:
    """Take the lease of a trial; None if another coordinator holds it.

    A lease is a file with a number, made with O_EXCL. Whose holder died is not removed but outnumbered: of several
    that find it stale only one makes the next number, and a holder that was merely slow sees that it was outnumbered.
    """
    held = _numbered(folder.path)
    if held and not _is_over(held[-1]):
        return None
    path, token = folder.path / f"lease-{_number(held[-1]) + 1 if held else 1}", uuid4().hex
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps({"machine": machine(), "pid": os.getpid(), "token": token}))
    except FileExistsError:
        return None
    return Lease(path, token)


def is_held(folder: Folder) -> bool:
    """Say whether somebody who is alive has the lease of a trial."""
    held = _numbered(folder.path)
    return bool(held) and not _is_over(held[-1])


def outlived(folder: Folder) -> list[Path]:
    """Return the leases of a trial, lowest first, if the holder of the last one is gone; else none."""
    held = _numbered(folder.path)
    return held if held and _is_over(held[-1]) else []


def _numbered(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("lease-*") if re.fullmatch(r"lease-[0-9]{1,9}", path.name))
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("lease-"))


def _holder(path: Path) -> dict[str, Any] | None:
    """Return what a lease says of its holder: {} where it says nothing that we understand, None where it is gone."""
    try:
        found = json.loads(path.read_bytes()[:_MOST_BYTES])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):  # half-written, or not ours
        return {}
    return found if isinstance(found, dict) else {}


def _is_over(path: Path) -> bool:
    """Say whether a lease's holder is gone: dead where we can see it, silent for long where we cannot."""
    try:
        silent = time.time() - path.stat().st_mtime
    except FileNotFoundError:  # given back meanwhile
        return True
    holder = _holder(path)
    if holder is None:
        return True
    pid = holder.get("pid")
    if holder.get("machine") == machine() and isinstance(pid, int) and pid > 0 and is_dead(pid):
        return True
    # A touch from the future is of a clock that was set back: as silent as its distance.
    return abs(silent) > STALE
