"""A lease on a trial: of several coordinators over one folder, each trial is run by one of them at a time."""

import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from kdbench.harness.records.record import Folder

HEARTBEAT = 10.0
"Seconds after which a holder touches its lease again."
STALE = 90.0
"Seconds without a touch after which a lease is another's to take, who is on another machine; more than clocks differ."


@dataclass
class Lease:
    """A trial that is ours to run. Made by :func:`take`."""

    path: Path
    token: str
    "Written in the file, so that a lease of the same number is not taken for this one."
    beaten: float = field(default_factory=time.monotonic)

    def stands(self) -> bool:
        """Say whether the trial still is this lease's holder's, who is alive; anybody may ask, on any machine."""
        try:
            token = json.loads(self.path.read_text(encoding="utf-8"))["token"]
        except FileNotFoundError:
            return False
        return str(token) == self.token and not _is_over(self.path)

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
            file.write(json.dumps({"machine": _machine(), "pid": os.getpid(), "token": token}))
    except FileExistsError:
        return None
    return Lease(path, token)


def is_held(folder: Folder) -> bool:
    """Say whether somebody who is alive has the lease of a trial."""
    held = _numbered(folder.path)
    return bool(held) and not _is_over(held[-1])


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("lease-*"), key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("lease-"))


def _machine() -> str:
    """Name where a process number means something: the host, and on Linux the container."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}".strip()


def _is_over(path: Path) -> bool:
    """Say whether a lease's holder is gone: dead where we can see it, silent for long where we cannot."""
    try:
        silent = time.time() - path.stat().st_mtime
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:  # given back meanwhile
        return True
    if os.name == "posix" and text:  # elsewhere os.kill would do more than ask
        holder = json.loads(text)
        if holder["machine"] == _machine():
            try:
                os.kill(holder["pid"], 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                pass
    return silent > STALE
