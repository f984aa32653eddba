"""What a machine does to a run: a full or read-only disk, folders that vanish, signals, odd files, no MLflow."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kills import command, differences, folder_of
from lives import Blow, Ended, after, live
from PIL import Image

from kdbench.harness.records.record import StudyFolder


class Fault(NamedTuple):
    """One fault, and a call that tries it and returns what was wrong with how it was taken; nothing where it held."""

    what: str
    attempt: Callable[[], list[str]]


def faults(place: Path, reference: dict[str, Any], chance: random.Random, seconds: float) -> Iterator[Fault]:
    """Return the faults; each is met by a study of its own, which the same command must finish afterwards."""
    numbers = itertools.count()

    def study(what: str, allowed: tuple[int, ...], **how: Any) -> Fault:
        return Fault(what, partial(attempt, allowed, **how))

    def attempt(allowed: tuple[int, ...], **how: Any) -> list[str]:
        number = next(numbers)
        words = command(place, f"machine{number}")
        ended = live(words, place / "runs", **how)
        failures = _of(ended, allowed)
        again = live(words, place / "runs")
        if again.code not in (0, 1):
            failures.append(f"the same command ends with {again.code} afterwards: {again.said[-200:]}")
        else:
            live(words, place / "runs")
            failures += differences(folder_of(place, f"machine{number}"), reference)
        return failures

    for code, name in ((errno.ENOSPC, "a full disk"), (errno.EROFS, "a disk that turned read-only")):
        for who in ("coordinator", "trial"):
            for _ in range(3):
                blow = Blow(who, 20, "", chance.getrandbits(32), 10**6, code)
                yield study(f"{name}, met by the {who}", (0, 1, 2, 3), blow=blow)
    for number_of, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for _ in range(3):
            how = after(chance.uniform(0.1, 0.6) * seconds, number_of)
            yield study(f"signal {number_of.name}", (0, 1, code), meanwhile=how)
    for _ in range(3):
        yield study("a runs folder that is removed", (0, 1, 2, 3), meanwhile=_removing(place, chance, seconds))
    for uri in ("http://127.0.0.1:9", f"sqlite:///{place}/none/there/x.db"):
        run = study("", (0, 1)).attempt
        yield Fault(f"MLflow at {uri.partition(':')[0]} that is not there", partial(_with_server, uri, run))
    yield from _odd_files(place, reference)
    yield from _odd_images(place)


def _of(ended: Ended, allowed: tuple[int, ...]) -> list[str]:
    said = [f"code {ended.code}: {ended.said[-300:]}"] if ended.code not in allowed else []
    return said + (["a traceback"] if "Traceback" in ended.said else [])


def _removing(place: Path, chance: random.Random, seconds: float) -> Callable[[int], int]:
    def strike(pid: int) -> int:
        time.sleep(chance.uniform(0.1, 0.6) * seconds)
        newest = max(place.glob("runs/machine*-*"), key=lambda path: path.stat().st_mtime, default=None)
        if newest is not None:
            shutil.rmtree(newest, ignore_errors=True)
        return 1

    return strike


def _with_server(uri: str, run: Callable[[], list[str]]) -> list[str]:
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        return run()
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _odd_files(place: Path, reference: dict[str, Any]) -> Iterator[Fault]:
    """Put a pipe, a folder, or a link to itself where a record belongs: each is named, and nothing hangs."""

    def pipe(path: Path) -> None:
        os.mkfifo(path)

    def attempt(make: Callable[[Path], None], name: str) -> list[str]:
        odd, study = place / "odd", folder_of(place, "reference")
        shutil.rmtree(odd, ignore_errors=True)
        shutil.copytree(study.path, odd / "runs" / study.path.name)
        path = next(StudyFolder(odd / "runs" / study.path.name).trials()).path / name
        path.unlink()
        make(path)
        failures = []
        for words in (["status"], ["report"], ["verify"]):
            failures += _of(live([*words, "--runs", str(odd / "runs")], odd / "runs"), (0, 1, 2))
        return failures

    def from_the_future() -> list[str]:
        study = folder_of(place, "reference")
        lease = next(study.trials()).path / "lease-1"
        lease.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "token": "t"}))
        os.utime(lease, (time.time() + 10**6,) * 2)  # a clock that was set back
        ended = live(command(place, "reference"), place / "runs")
        return _of(ended, (0, 1)) + differences(study, reference)

    for what, make in (
        ("a pipe", pipe),
        ("a folder", Path.mkdir),
        ("a link to itself", lambda p: p.symlink_to(p.name)),
    ):
        for name in ("result.json", "spec.json", "curve.jsonl"):
            yield Fault(f"{what} in the place of {name}", partial(attempt, make, name))
    yield Fault("a lease from the future", from_the_future)


def _odd_images(place: Path) -> Iterator[Fault]:
    """Put a pipe, a link to itself or another kind of picture among images."""

    def postscript(path: Path) -> None:
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n")

    makes: dict[str, Callable[[Path], None]] = {
        "a pipe": os.mkfifo,
        "a link to itself": lambda path: path.symlink_to(path.name),
        "PostScript": postscript,
    }

    def attempt(make: Callable[[Path], None]) -> list[str]:
        root = place / "pets"
        shutil.rmtree(root, ignore_errors=True)
        for part in ("train", "test"):
            for name in ("a", "b"):
                (root / part / name).mkdir(parents=True)
                Image.new("RGB", (32, 32), "red").save(root / part / name / "0.png")
        make(root / "train" / "a" / "1.png")
        words = ["run", "--preset", "quick", "--dataset", "folder", "--data", str(root), "--dry-run"]
        return _of(live([*words, "--runs", str(place / "runs")], place / "runs"), (2,))

    for what, make in makes.items():
        yield Fault(f"{what} among images", partial(attempt, make))
