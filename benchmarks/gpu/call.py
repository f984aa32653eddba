"""One call of the queue: the time it has left, the folder that outlives it, and the commands that it runs."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdbench.harness.archive.unpacking import extract
from kdbench.harness.records.environment import environment
from kdbench.harness.records.record import StudyFolder, write_atomic
from kdbench.harness.run.trial import prepare_device
from kdbench.kd.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("spec.json", "result.json", "curve.jsonl", "norms.csv", "study.json", "results.csv")
"What of a study travels: everything but weights and logs."
ATTEMPTS = 2
"Times that a command may outlast a call before it is given up."


@dataclass
class Call:
    """State of the queue and time of this call."""

    state: Path
    deadline: float
    device: str
    toy: bool
    longest_start: float = 30.0
    "Seconds under which nothing more is started."
    images: Path | None = None

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.monotonic()

    def say(self, what: str) -> None:
        """Print a line at once, with the time that is left."""
        print(f"[{max(0, self.left()):4.0f} s left] {what}", flush=True)

    @property
    def results(self) -> Path:
        """Where results of items lie."""
        return self.state / "results"

    def write(self, item: str, name: str, value: Any) -> None:
        """Write one result of an item as JSON."""
        place = self.results / item / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def read(self, item: str, name: str) -> Any:
        """Return a result that was written before, or None."""
        place = self.results / item / f"{name}.json"
        return json.loads(place.read_text()) if place.is_file() else None

    def is_done(self, item: str) -> bool:
        """Say whether nothing is left of an item."""
        return (self.results / item / "done").is_file()

    def mark_done(self, item: str) -> None:
        """Remember that nothing is left of an item."""
        (self.results / item).mkdir(parents=True, exist_ok=True)
        (self.results / item / "done").touch()

    def note_machine(self) -> None:
        """Write down device, versions and commit of this call, beside those of earlier calls."""
        found = {**environment(prepare_device(self.device, torch.get_num_threads())), "toy": self.toy}
        if self.device == "cuda":
            found["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        known = self.read("machine", "calls") or []
        self.write("machine", "calls", [*known, found])

    def command(self, item: str, part: str, args: Sequence[str], least: float = 0.0, **env: str) -> bool:
        """Run a Python command once; return whether it is over, in this call or in an earlier one.

        Its output goes to PART.txt, its exit code and seconds to PART.json. What outlasts the call is begun anew in
        the next, and given up after that; with fewer than `least` seconds left it is not begun.
        """
        known = self.read(item, part) or {"attempts": 0}
        if known.get("over"):
            return True
        if self.left() < max(self.longest_start, least):
            return False
        place = self.results / item
        place.mkdir(parents=True, exist_ok=True)
        self.say(f"  {part}: python {' '.join(args)}")
        start = time.monotonic()
        with (place / f"{part}.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *args],
                cwd=ROOT,
                env={**_own_environment(), "PYTHONPATH": str(ROOT), **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(timeout=max(1.0, self.left() - 5))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
        attempts = known["attempts"] + 1
        over = code is not None or attempts >= ATTEMPTS
        seconds = round(time.monotonic() - start, 1)
        self.write(item, part, {"over": over, "exit": code, "seconds": seconds, "attempts": attempts})
        tail = (place / f"{part}.txt").read_text(errors="replace").strip().splitlines()[-1:]
        self.say(f"  {part}: {'cut off' if code is None else f'exit {code}'} after {seconds:.0f} s  {' '.join(tail)}")
        return over

    def take_images(self, archive: Path | None) -> None:
        """Unpack the archive of images, once; at toy size the digits that come with scikit-learn do."""
        place = self.state / "images"
        if archive is not None and not place.is_dir():
            self.say(f"unpacking {archive.name}")
            temporary = self.state / "images.tmp"
            with opened(archive) as packed:
                extract(packed, archive, temporary)
            # An archive may hold the folder of parts or the parts themselves.
            inner = [p.parent for p in temporary.rglob("train") if p.is_dir()]
            if not inner:
                raise InputError(
                    f"--images {archive} holds no folder train/; images belong in train/CLASS/ and test/CLASS/"
                )
            inner[0].rename(place)
        self.images = place if place.is_dir() else None
        if self.images is None and not self.toy:
            raise InputError("--images: name the archive of images, train/CLASS/* and test/CLASS/*; none is here yet")

    def pack(self, archive: Path) -> None:
        """Pack results and records, without weights, into one archive."""
        archive.parent.mkdir(parents=True, exist_ok=True)
        temporary = archive.with_suffix(".tmp")
        with tarfile.open(temporary, "w:xz") as packed:
            for path in sorted(self.state.rglob("*")):
                inside = path.relative_to(self.state)
                wanted = inside.parts[0] == "results" or (inside.parts[0] == "studies" and path.name in PACKED)
                if path.is_file() and wanted:
                    packed.add(path, inside.as_posix())
        temporary.replace(archive)
        self.say(f"packed {archive.name}, {archive.stat().st_size / 2**20:.1f} MiB")

    def unpack(self, archive: Path) -> None:
        """Unpack what an earlier call packed, where this machine has nothing of it yet."""
        if (self.state / "results").is_dir():
            return
        with opened(archive) as packed:
            extract(packed, archive, self.state)
        for study in (self.state / "studies").glob("*"):
            remember_teachers(StudyFolder(study))


def opened(archive: Path) -> tarfile.TarFile:
    """Open an archive; a file that is none is an InputError."""
    try:
        return tarfile.open(archive)
    except tarfile.TarError as error:
        raise InputError(f"{archive} is no archive that tar can read; name a .tar.xz file") from error


def _own_environment() -> dict[str, str]:
    """Return the environment without what a pytest that runs this queue left in it for its own workers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def remember_teachers(study: StudyFolder) -> None:
    """Keep what the curves of trials without weights were: a teacher that is trained again must be the same."""
    for folder in study.trials():
        curve = folder.path / "curve.jsonl"
        if curve.is_file() and not folder.student.is_file():
            (folder.path / "before.jsonl").write_bytes(curve.read_bytes())


def other_teachers(study: StudyFolder) -> list[str]:
    """Return the keys of teachers that were trained again and came out otherwise; the records of their students go.

    A comparison must not mix students of two teachers.
    """
    other = []
    for folder in study.trials():
        before, now = folder.path / "before.jsonl", folder.path / "curve.jsonl"
        if before.is_file() and folder.student.is_file():
            if before.read_bytes() != now.read_bytes():
                other.append(folder.key)
            before.unlink()
    for folder in study.trials():
        spec = folder.spec()
        if spec.teacher is not None and spec.teacher.key in other:
            (folder.path / "result.json").unlink(missing_ok=True)
    return other
