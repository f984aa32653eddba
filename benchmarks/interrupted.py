"""Whether a study that is killed and resumed, cut into shards or spread over a cluster comes out as an unbroken one.

    python -m benchmarks.interrupted STUDY.toml --data DIR --output reports/interrupted

The study is run several ways, each in a folder of its own: unbroken, with two workers; killed at random moments (the
whole program by SIGKILL, by SIGINT, or one of its trials) and started again each time; as two shards side by side; on
a Dask cluster of two workers. Tables must be equal byte for byte, and so must every trial's weights in every epoch.

Each way may take an hour, and this program may be cut off itself: the same command, later, keeps the ways that the
output holds of the same study, device and torch, goes on with the one that the place holds half, and runs the others.
Only the unbroken one cannot be gone on with.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from kdbench.harness.cli import run_cli
from kdbench.harness.records.environment import ROOT, environment
from kdbench.harness.records.record import StudyFolder
from kdbench.harness.run.trial import prepare_device

WAYS = ("unbroken", "killed", "shards", "dask")
_HOW = ("the program, SIGKILL", "the program, SIGINT", "a trial, SIGKILL")
CUT = "all of it, with what had started it"


class Way:
    """One way of running the study, in a folder of its own."""

    def __init__(self, name: str, study: Path, data: Path | None, place: Path, workers: int, device: str) -> None:
        self.name, self.place, self.runs = name, place, place / name
        options = ["--device", device, *(["--data", data.name] if data is not None else [])]
        self.call = [sys.executable, "-m", "kdbench", "run", study.name, *options, "--runs", name]
        self.workers = workers
        self.seconds = 0.0
        self.trained: list[int] = []
        self.kills: list[dict[str, Any]] = []
        self.clock = time.monotonic()
        self.so_far, self.log = self.runs / "so-far.json", place / f"{name}.log"
        if self.so_far.is_file():
            half = json.loads(self.so_far.read_text())
            self.seconds, self.kills = half["seconds"], half["kills"]
            self.kill(CUT)

    def kill(self, how: str) -> None:
        """Note that it was killed, and what was done by then, so that a later call knows."""
        self.seconds, self.clock = self.seconds + time.monotonic() - self.clock, time.monotonic()
        self.kills.append({"how": how, "trials_done": self.done()})
        self.save()

    def save(self) -> None:
        """Leave word of it for a later call."""
        self.runs.mkdir(exist_ok=True)
        self.so_far.write_text(json.dumps({"seconds": round(self.seconds, 1), "kills": self.kills}), encoding="utf-8")

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start the program, as from a terminal: it heeds SIGINT, and its trials are in a group with it."""
        heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        with self.log.open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                [*self.call, *options, "--json"],
                cwd=self.place,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=heed,
            )

    def finish(self, running: subprocess.Popen[str]) -> None:
        """Wait for the program, which must have run all that was left."""
        out, _ = running.communicate()
        if not out:
            said = self.log.read_text(encoding="utf-8").strip()
            raise SystemExit(f"{self.name}: the study ended with code {running.returncode}: {said[-2000:]}")
        found = json.loads(out)
        if found["failed"]:
            raise SystemExit(f"{self.name}: {found['failed']} trials could not run; see {self.runs}")
        self.trained.append(found["trained"])

    @property
    def folder(self) -> StudyFolder:
        """The study's folder."""
        (path,) = self.runs.glob("*/study.json")
        return StudyFolder(path.parent)

    def done(self) -> int:
        """Return how many trials have a result."""
        return len(list(self.runs.glob("*/trials/*/result.json")))

    def trial_seconds(self) -> float:
        """Return how long a trial took, in the mean."""
        results = [folder.result() for folder in self.folder.trials()]
        return fmean(float(result.times["seconds"]) for result in results if result is not None)

    def table(self) -> str:
        """Return the digest of results.csv."""
        return hashlib.sha256((self.folder.path / "results.csv").read_bytes()).hexdigest()

    def weights(self) -> str:
        """Return a digest of every trial's weights after every epoch."""
        by_trial = {folder.key: [epoch["digest"] for epoch in folder.curve()] for folder in self.folder.trials()}
        return hashlib.sha256(json.dumps(by_trial, sort_keys=True).encode()).hexdigest()

    def code(self) -> str:
        """Return the digest of the code that its trials ran; of several codes, if it was edited meanwhile."""
        results = [folder.result() for folder in self.folder.trials()]
        return " ".join(sorted({result.environment["code_digest"] for result in results if result is not None}))

    def record(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "name": self.name,
            "code": self.code(),
            "seconds": round(self.seconds, 1),
            "trials": self.done(),
            "trial_seconds": round(self.trial_seconds(), 1),
            "trained": self.trained,
            "kills": self.kills,
            "table": self.table(),
            "weights": self.weights(),
        }


def unbroken(way: Way) -> None:
    """Run the study from beginning to end."""
    if way.kills or way.done():
        raise SystemExit(f"{way.runs} was begun before, so it is not unbroken; remove it to begin it again")
    way.finish(way.start("--workers", str(way.workers)))


def killed(way: Way, first: dict[str, Any], kills: int, seed: int) -> None:
    """Kill it so many times, at random moments of random trials, and let it finish."""
    draws, trials, seconds = random.Random(seed), first["trials"], first["trial_seconds"]
    moments = [(target, draws.uniform(0, seconds)) for target in sorted(draws.sample(range(trials - 1), kills))]
    for number in range(sum(kill["how"] != CUT for kill in way.kills), kills):
        target, later = moments[number]
        running = way.start("--workers", str(way.workers))
        while running.poll() is None and way.done() < target:
            time.sleep(0.05)
        time.sleep(later)
        if running.poll() is not None:
            raise SystemExit(f"the study was over before kill {number + 1}; take a longer one")
        how = _HOW[number % len(_HOW)]
        if how == "a trial, SIGKILL":
            victim = _trial_of(way)
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
            time.sleep(2)
            os.killpg(running.pid, signal.SIGTERM)
        elif how == "the program, SIGINT":
            os.killpg(running.pid, signal.SIGINT)
        else:
            running.kill()
        running.communicate()
        way.kill(how)
    way.finish(way.start("--workers", str(way.workers)))


def _trial_of(way: Way) -> int | None:
    """Return the process of a trial that is being trained."""
    curves = {path.resolve() for path in way.runs.glob("*/*/*/curve.jsonl")}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(fd.readlink() in curves for fd in (entry / "fd").iterdir()):
                return int(entry.name)
    return None


def shards(way: Way) -> None:
    """Run it as shards side by side, one worker each."""
    running = [way.start("--shard", f"{i}/{way.workers}", "--workers", "1") for i in range(1, way.workers + 1)]
    for program in running:
        way.finish(program)


def dask(way: Way) -> None:
    """Run it on a cluster of this machine's processes."""
    from distributed import LocalCluster

    options = {"n_workers": way.workers, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(processes=True, **options) as cluster:  # type: ignore[no-untyped-call]
        way.finish(way.start("--scheduler", cluster.scheduler_address))


def page(found: dict[str, Any]) -> str:
    """Return the result in words."""
    first, workers = found["ways"][0], found["workers"]
    device = f" --device {found['device']}" if found["device"] != "cpu" else ""
    lines = [
        "# A study killed and resumed, in shards, and on a cluster",
        "",
        f"    python -m benchmarks.interrupted {found['study']} --data DIR --output OUT{device} --workers {workers}",
        "",
        f"{first['trials']} trials, {workers} at a time, on {found['device_name']} with torch {found['torch']}. Each",
        "way ran in a folder of its own.",
        "",
        "| way | code | minutes | trained, by start | results.csv | weights of every trial in every epoch |",
        "|---|---|---|---|---|---|",
    ]
    for way in found["ways"]:
        table, weights = (
            f"sha256 {way[what][:16]}"
            if way is first
            else "equal byte for byte"
            if way[what] == first[what]
            else "**DIFFERENT**"
            for what in ("table", "weights")
        )
        trained = " + ".join(map(str, way["trained"]))
        lines.append(f"| {way['name']} | {way['code']} | {way['seconds'] / 60:.1f} | {trained} | {table} | {weights} |")
    for way in found["ways"]:
        if way["kills"]:
            lines += ["", f"The kills of {way['name']}, and how many trials were done by then:", ""]
            lines += [f"{i}. {kill['how']}: {kill['trials_done']}" for i, kill in enumerate(way["kills"], 1)]
    missing = [name for name in WAYS if name not in [way["name"] for way in found["ways"]]]
    lines += ["", f"Not run yet: {', '.join(missing)}."] if missing else []
    lines += [
        "",
        "Minutes are of a machine that may have done other work, without those before a cut; a start that was killed",
        "reports nothing trained.",
    ]
    return "\n".join(lines) + "\n"


def begun(output: Path, study: Path, device: str, workers: int) -> dict[str, Any]:
    """Return the kdbench.interrupted/2 object so far: of an earlier call of the same, or one without any way."""
    here = environment(prepare_device(device, 1))
    new = {
        "schema": "kdbench.interrupted/2",
        "study": study.name,
        "study_sha256": hashlib.sha256(study.read_bytes()).hexdigest(),
        "workers": workers,
        "device": device,
        "device_name": here["device_name"],
        "torch": here["torch"],
        "ways": [],
    }
    if not output.is_file():
        return new
    known: dict[str, Any] = json.loads(output.read_text())
    differing = [name for name in new if name != "ways" and known.get(name) != new[name]]
    if differing:
        raise SystemExit(
            f"{output} is of another {', '.join(differing)}: bits may not be compared; name another --output"
        )
    return known


def _same_study(study: Path, place: Path) -> None:
    """Copy the study beside its runs, so that it notes its command without a path of this machine."""
    there = place / study.name
    if there.is_file() and there.read_bytes() != study.read_bytes():
        raise SystemExit(f"{place} holds another {study.name}; name another --place")
    shutil.copy(study, place)


def main() -> int:
    """Run the study each way, compare, write page and record; exit 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--place", type=Path, default=Path("interrupted"), help="where the runs go, and go on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], default=WAYS[1:])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    found = begun(args.output / "interrupted.json", args.study, args.device, args.workers)
    known = [way["name"] for way in found["ways"]]
    os.environ["PYTHONPATH"] = str(ROOT)  # the programs run elsewhere, and are to be of this checkout
    args.place.mkdir(parents=True, exist_ok=True)
    _same_study(args.study, args.place)
    if args.data is not None and not (args.place / args.data.name).exists():
        (args.place / args.data.name).symlink_to(args.data.resolve())
    run: dict[str, Callable[[Way], None]] = {
        "unbroken": unbroken,
        "killed": lambda way: killed(way, found["ways"][0], args.kills, args.seed),
        "shards": shards,
        "dask": dask,
    }
    for name in ("unbroken", *args.ways):
        if name in known:
            continue
        way = Way(name, args.study, args.data, args.place, args.workers, args.device)
        way.save()
        run[name](way)
        way.seconds += time.monotonic() - way.clock
        print(f"{way.name}: {way.seconds / 60:.1f} min, {way.done()} results", flush=True)
        found["ways"].append(way.record())
        # After each: the whole takes hours, and may be cut off itself.
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "interrupted.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (args.output / "interrupted.md").write_text(page(found), encoding="utf-8")
    first = found["ways"][0]
    return 0 if all(way[what] == first[what] for way in found["ways"] for what in ("table", "weights")) else 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
