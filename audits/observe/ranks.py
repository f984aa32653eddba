"""The processes of one training (ranks), and the store over which they agree and report.

The store is the one at which the training's own processes meet: that of torchrun's agent, there from the first line, or
the one that ``init_process_group`` makes. Nothing here is a collective, so no rank that fell behind or died can keep
another one waiting for longer than is said here.
"""

import json
import os
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

_dist: Any = torch.distributed
_BEAT = 0.5
"Seconds between two signs of life."
_SILENT, _LOST = 60.0, 10.0
"""Seconds without a sign of life after which a rank is taken to be dead; and where this one crashed, as the peers of a
dead one do. A launcher mostly says so at once."""
_GRACE = 6.0
"Seconds for the others to report once one of them is known to be gone."
_NAME = "kdbench"


def place() -> tuple[int, int] | None:
    """Return rank and number of ranks that a launcher gave this process; None where it is the only one."""
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, world) if world > 1 and 0 <= rank < world else None


class Ranks:
    """This process among the others: what they agreed on, who lives, and what each one saw."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._store: Any = None
        self._agreed: dict[str, tuple[int, str]] = {}
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._home = os.getpid()
        self.ended_by_launcher = False
        "Whether the launcher asked this process to end, as it does when another one died."

    # -- the store

    def connect(self) -> bool:
        """Find the store, if there is one yet; say whether there is."""
        if self._store is None:
            with suppress(Exception):  # none, or none any more: then each rank is for itself
                store = _agents_store() or _trainings_store()
                if store is not None:
                    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                    self._store = _dist.PrefixStore(f"{_NAME}/{attempt}", store)
        return self._store is not None

    def _tell(self, key: str, value: str | bytes) -> None:
        if self.connect():
            with suppress(Exception):
                self._store.set(key, value)

    def _told(self, key: str) -> bytes | None:
        """Return what is known under a key, without waiting for it."""
        if not self.connect():
            return None
        try:
            return bytes(self._store.get(key)) if self._store.check([key]) else None
        except Exception:
            return None

    # -- agreements

    def propose(self, what: str, at: int, why: str = "") -> None:
        """Propose that all do something after the step of this number; whoever comes first decides.

        The answer is waited for: what another rank asks after it entered a collective with this one, it is told.
        """
        if self.agreed(what) is None and self.connect():
            with suppress(Exception):
                self._store.compare_set(f"agreed/{what}", "", json.dumps([at, why]))
            self.agreed(what)

    def agreed(self, what: str) -> tuple[int, str] | None:
        """Return after which step all do something, and why; None where nobody asked for it."""
        if what not in self._agreed and (told := self._told(f"agreed/{what}")) is not None:
            at, why = json.loads(told)
            self._agreed[what] = (int(at), str(why))
        return self._agreed.get(what)

    # -- signs of life

    def live(self, on_halt: Callable[[str], None], woken: Callable[[float], bool]) -> None:
        """Give signs of life from a thread, and call `on_halt` with the reason once all are to stop where they are.

        `woken` waits for so many seconds, and says whether the launcher asked this process to end.
        """

        def beat() -> None:
            count = 0
            while not self._over.is_set() and os.getpid() == self._home:
                self._tell(f"alive/{self.rank}", str(count))
                count += 1
                if woken(_BEAT):
                    self.ended_by_launcher = True
                    on_halt("the launcher ended the processes")
                    return
                if (halt := self.agreed("halt")) is not None:
                    on_halt(halt[1])
                    return
                if self.rank == 0 and (silent := self._silent(_SILENT)):
                    self.propose("halt", 0, f"rank {silent[0]} gave no sign of life for {_SILENT:g} seconds")

        self._thread = threading.Thread(target=beat, daemon=True, name="kdbench ranks")
        self._thread.start()

    def _silent(self, seconds: float) -> list[int]:
        """Return the ranks that gave a sign of life once, none for so long, and no report."""
        now, silent = time.monotonic(), []
        for rank in range(self.world):
            beat = self._told(f"alive/{rank}") if rank != self.rank else None
            if beat is None:
                continue
            if self._beats.get(rank, (b"", 0.0))[0] != beat:
                self._beats[rank] = (beat, now)
            elif now - self._beats[rank][1] > seconds and self._told(f"seen/{rank}") is None:
                silent.append(rank)
        return silent

    # -- reports

    def report(self, seen: dict[str, Any]) -> None:
        """Hand what this rank saw to rank 0."""
        self._tell(f"seen/{self.rank}", zlib.compress(json.dumps(seen, default=str).encode()))

    def gather(self, seconds: float, crashed: bool = False) -> dict[int, dict[str, Any] | None]:
        """Return what every other rank saw, waiting for at most so long; None of a rank that is gone.

        `crashed` says that this one did: then it does not wait long for one that gives no sign of life.
        """
        found: dict[int, dict[str, Any] | None] = {}
        until, since = time.monotonic() + seconds, None
        while len(found) < self.world - 1 and time.monotonic() < until and self.connect():
            for rank in range(self.world):
                if rank != self.rank and rank not in found and (told := self._told(f"seen/{rank}")) is not None:
                    found[rank] = json.loads(zlib.decompress(told))
            if len(found) == self.world - 1:
                break
            gone = [r for r in self._silent(_LOST if crashed else _SILENT) if r not in found]
            if self.ended_by_launcher or gone:
                since = since if since is not None else time.monotonic()
                if time.monotonic() - since > _GRACE:
                    break
            time.sleep(0.05)
        return {rank: found.get(rank) for rank in range(self.world) if rank != self.rank}

    def tell_verdict(self, code: int) -> None:
        """Tell the other ranks with what exit code rank 0 reported."""
        self._tell("verdict", str(code))

    def verdict(self, seconds: float) -> int | None:
        """Return the exit code with which rank 0 reported, waiting for at most so long; None where it did not."""
        until = time.monotonic() + seconds
        while (told := self._told("verdict")) is None and time.monotonic() < until and self.connect():
            time.sleep(0.05)
        return None if told is None else int(told)

    def close(self, wake: Callable[[], object]) -> None:
        """Give no more signs of life: a thread that is in the store when Python ends would abort the process."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            wake()
            self._thread.join(_GRACE)


def _agents_store() -> Any:
    """Return a client of the store of torchrun's agent, which outlives every rank; None where there is no agent."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from datetime import timedelta

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return _dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=20))


def _trainings_store() -> Any:
    """Return the store of the process group, once the script made one; it is held on to when the group is gone."""
    from kdbench.audits.observe import torch_internals

    return torch_internals.store_of_ranks()
