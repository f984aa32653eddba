"""Gives each reader damaged files, and counts how it takes them.

It may accept one, or refuse it in one sentence; an error that nobody foresaw is a failure, and so is a hang.

    python tests/fuzz.py [--count 2000] [READER ...]

A reader is a command of kdbench over a study that was copied for it, or a function where no command is quick.
"""

import argparse
import contextlib
import io
import json
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mutants import damaged, damaged_toml
from PIL import Image

from kdbench.audits.report.policy import BASELINE_SCHEMA, Baseline, PolicyError
from kdbench.harness.archive import unpacking
from kdbench.harness.archive.bundle import pack
from kdbench.harness.cli import cli, run_cli
from kdbench.harness.cli.audit_config import read_config
from kdbench.harness.contract import read_contract
from kdbench.harness.records.record import Folder, StudyFolder
from kdbench.kd.data import Dataset, load_file, prepare, save
from kdbench.kd.errors import InputError
from kdbench.kd.models import build
from kdbench.kd.teacher import load_strict, save_checkpoint

EARLIER = Path(__file__).with_name("earlier")
STUDY = "earlier-digits-83ffb4"
SECONDS = 20
"What one damaged file may take."


@dataclass(frozen=True)
class Reader:
    """A file, and who reads it."""

    file: Callable[[Path], Path]
    "Of the place that :attr:`setting` made: the file to damage."
    calls: tuple[Callable[[Path], Any], ...]
    kind: str = "json"
    "json, toml or bytes."


@dataclass
class Tally:
    """What became of the damaged files of one reader."""

    taken: Counter[str] = field(default_factory=Counter)
    unforeseen: list[tuple[int, str]] = field(default_factory=list)
    "By number of the damage: the last lines of the traceback."


class _Late(Exception):
    """A reader took too long."""


def _network() -> torch.nn.Module:
    return build("r18", "cifar", 10, 2, torch.Generator())


def setting(place: Path) -> None:
    """Put a finished study into a folder, with its file, a bundle of it, and one good file for each other reader."""
    with tarfile.open(EARLIER / "records.tar.xz") as archive:
        unpacking.extract(archive, EARLIER / "records.tar.xz", place / "runs")
    shutil.copy(EARLIER / "earlier.toml", place / "earlier.toml")
    study = StudyFolder(place / "runs" / STUDY)
    for kind in ("zip", "tar.gz"):
        pack(study, place / f"bundle.{kind}")
    (place / "contract.toml").write_text(CONTRACT, encoding="utf-8")
    (place / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (place / "baseline.json").write_text(json.dumps(BASELINE), encoding="utf-8")
    model = _network()
    save_checkpoint(model, place / "teacher.safetensors")
    torch.save(model.state_dict(), place / "teacher.pt")
    pixels = torch.arange(8 * 32 * 32 * 3).remainder(256).to(torch.uint8).reshape(8, 32, 32, 3)
    save(Dataset("digits", pixels, torch.arange(8) % 2, 6, ("a", "b"), ""), place / "data.safetensors")
    for part in ("train", "test"):
        for name in ("a", "b"):
            folder = place / "images" / part / name
            folder.mkdir(parents=True)
            Image.fromarray(pixels[0].numpy()).save(folder / "0.png")


def command(*words: str) -> Callable[[Path], Any]:
    """Return a call of a command; {} in a word is the place."""

    def call(place: Path) -> int:
        said = [word.replace("{}", str(place)) for word in words]
        return run_cli(lambda: cli.main(said, prog_name="kdbench", standalone_mode=False))

    return call


def _trial(place: Path) -> Path:
    return next(
        p.parent
        for p in sorted((place / "runs" / STUDY / "trials").glob("*/result.json"))
        if '"fault": {' in p.read_text()
    )


CONTRACT = """
student = "net"
teacher = "teacher"
temperature = 4.0
kd_weight = 0.9
"""
PYPROJECT = """
[project]
name = "mine"

[tool.kdbench]
steps = 20
strict = true
baseline = "baseline.json"
waive = { KD201 = "deliberate" }
"""
BASELINE = {
    "schema": BASELINE_SCHEMA,
    "findings": [{"fingerprint": "0" * 16, "id": "KD201", "name": "clip", "file": "train.py", "target": "train.py"}],
}


def _unpack(name: str) -> Callable[[Path], Any]:
    def call(place: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            unpacking.unpack(place / name, Path(folder), lambda files: None)

    return call


def _teacher(name: str) -> Callable[[Path], Any]:
    return lambda place: load_strict(_network(), place / name)


def _images(place: Path) -> None:
    with tempfile.TemporaryDirectory() as cache:
        prepare("folder", place / "images", Path(cache))


_READ = (
    command("status", "--runs", "{}/runs"),
    command("compare", "--runs", "{}/runs", "corrected", "random-teacher"),
)
READERS = {
    "study.json": Reader(lambda place: place / "runs" / STUDY / "study.json", _READ),
    "result.json": Reader(lambda place: _trial(place) / "result.json", _READ),
    "spec.json": Reader(lambda place: _trial(place) / "spec.json", _READ),
    "curve.jsonl": Reader(lambda place: _trial(place) / "curve.jsonl", (lambda place: Folder(_trial(place)).curve(),)),
    "study.toml": Reader(
        lambda place: place / "earlier.toml",
        (command("run", "{}/earlier.toml", "--dry-run", "--runs", "{}/runs"),),
        "toml",
    ),
    "contract": Reader(
        lambda place: place / "contract.toml", (lambda place: read_contract(place / "contract.toml"),), "toml"
    ),
    "pyproject": Reader(lambda place: place / "pyproject.toml", (read_config,), "toml"),
    "baseline": Reader(lambda place: place / "baseline.json", (lambda place: Baseline.read(place / "baseline.json"),)),
    "bundle.zip": Reader(lambda place: place / "bundle.zip", (_unpack("bundle.zip"),), "bytes"),
    "bundle.tar.gz": Reader(lambda place: place / "bundle.tar.gz", (_unpack("bundle.tar.gz"),), "bytes"),
    "teacher.pt": Reader(lambda place: place / "teacher.pt", (_teacher("teacher.pt"),), "bytes"),
    "teacher.safetensors": Reader(
        lambda place: place / "teacher.safetensors", (_teacher("teacher.safetensors"),), "bytes"
    ),
    "data cache": Reader(
        lambda place: place / "data.safetensors", (lambda place: load_file(place / "data.safetensors"),), "bytes"
    ),
    "image": Reader(lambda place: place / "images" / "train" / "a" / "0.png", (_images,), "bytes"),
}


@contextlib.contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """End what is inside by an exception after so many seconds."""

    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_reader(reader: Reader, place: Path, numbers: range) -> Tally:
    """Damage the reader's file once a number, call the reader, and put the file back."""
    tally = Tally()
    path = reader.file(place)
    good = path.read_bytes()
    for number in numbers:
        path.write_bytes(
            damaged_toml(good, number) if reader.kind == "toml" else damaged(good, number, reader.kind == "json")
        )
        for call in reader.calls:
            how, told = outcome(call, place)
            tally.taken[how] += 1
            if how in ("unforeseen", "late"):
                tally.unforeseen.append((number, told))
    path.write_bytes(good)
    return tally


def outcome(call: Callable[[Path], Any], place: Path) -> tuple[str, str]:
    try:
        with (
            bounded(SECONDS),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            code = call(place)
    except (InputError, PolicyError):
        return "refused", ""
    except _Late:
        return "late", ""
    except BaseException:
        return "unforeseen", "".join(traceback.format_exc().splitlines(keepends=True)[-7:])
    if code == 70:
        return "unforeseen", said.getvalue()
    return ("refused" if code == 2 else f"exit {code}" if isinstance(code, int) and code else "accepted"), ""


def main() -> int:
    """Try the readers, print a line each and every unforeseen error once; return 1 if there was any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", choices=[[], *READERS])
    parser.add_argument("--count", type=int, default=2000)
    asked = parser.parse_args()
    bad = 0
    for name in asked.readers or READERS:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            setting(place)
            begun = time.monotonic()
            tally = try_reader(READERS[name], place, range(asked.count))
            print(f"{name:14s} {dict(tally.taken)} in {time.monotonic() - begun:.0f} s", flush=True)
            kinds: dict[str, int] = {}
            for number, told in tally.unforeseen:
                kinds.setdefault(told.strip().rpartition("\n")[2][:60], number)
            for told, number in kinds.items():
                print(f"    damage {number}: {told}\n{next(t for n, t in tally.unforeseen if n == number)}")
            bad += len(tally.unforeseen)
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
