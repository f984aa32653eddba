"""Files on their way to a name: whose they are, so that those of the dead are swept and those of the living are not."""

import hashlib
import os
import re
import socket
import time
from pathlib import Path
from uuid import uuid4

STALE = 90.0
"Seconds without a touch after which what another machine holds is taken for abandoned; more than clocks differ."
_NAME = re.compile(r"\..+\.((?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]{1,19})-)?[0-9a-f]{32}\.tmp(-journal|-wal|-shm)?")
"Ours and no other program's. Version 0.1 named no process."


def machine() -> str:
    """Name where a process number means something: the host, and on Linux the container."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}".strip()


def is_dead(pid: int) -> bool:
    """Say whether a process of this machine is certainly gone; never where that cannot be asked."""
    if os.name != "posix":  # elsewhere this would do more than ask
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def temporary(path: Path) -> Path:
    """Return a name beside a file's, of this process alone, under which it is written until it is whole."""
    return path.with_name(f".{path.name}.{_machine_digest()}-{os.getpid()}-{uuid4().hex}.tmp")


def sweep(folder: Path) -> int:
    """Remove the temporary files in a folder whose writers are gone; return how many."""
    count = 0
    with os.scandir(folder) as entries:
        found = [(Path(entry.path), match) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    for path, match in found:
        if _is_abandoned(path, match):
            path.unlink(missing_ok=True)
            count += 1
    return count


def _machine_digest() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def _is_abandoned(path: Path, named: re.Match[str]) -> bool:
    """Say whether nobody will finish a file: its writer is dead, or where we cannot see that, silent for long."""
    if named["machine"] == _machine_digest():
        return is_dead(int(named["pid"]))
    try:
        return abs(time.time() - path.lstat().st_mtime) > STALE
    except FileNotFoundError:
        return False
