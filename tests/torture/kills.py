"""A small real study, killed again and again; each finished one is held against one that nobody disturbed."""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lives import Blow, after, live, on_trials

from kdbench.harness.analysis.verify import verify
from kdbench.harness.records.record import StudyFolder

STUDY = """
[study]
dataset = "digits"
pairs = ["r18-r18"]
methods = ["logit"]
seeds = "0-1"
[recipe]
epochs = 3
batch_size = 32
base_width = 2
lr = 0.1
lr_min = 0.0
warmup = 0.1
schedule = "step"
crop_padding = 2
flip = false
train_size = 64
val_size = 20
test_stride = 32
[teacher]
epochs = 2
[method.logit]
ce_weight = 0.3
kd_weight = 0.7
temperature = 4
"""
OPTIONS = ("--variant", "corrected", "--no-controls", "--workers", "1", "--retries", "50", "-q")
_MOST_LIVES = 40
"Starts after which a study that is not finished counts as stuck."


Dealt = Callable[[int], dict[str, Any]]
"How the next run is struck, at most so many times."


@dataclass
class Count:
    """What became of the blows of one kind."""

    tried: int = 0
    studies: int = 0
    "That were finished after them."
    failures: list[str] = field(default_factory=list)


def command(place: Path, name: str) -> list[str]:
    """Write a study's file and return the words that run it."""
    (place / f"{name}.toml").write_text(STUDY)
    return ["run", str(place / f"{name}.toml"), *OPTIONS, "--runs", str(place / "runs")]


def folder_of(place: Path, name: str) -> StudyFolder:
    """Return the folder of the study of this name."""
    (path,) = (place / "runs").glob(f"{name}-*")
    return StudyFolder(path)


def image(study: StudyFolder) -> dict[str, Any]:
    """Return what must be the same of two runs of a study: the table, and each trial's weights, scores and findings."""
    trials = {}
    for folder in study.trials():
        result = folder.result()
        said = None if result is None else (result.status, str(result.metrics), json.dumps(result.findings))
        weights = hashlib.sha256(folder.student.read_bytes()).hexdigest() if folder.student.is_file() else None
        trials[folder.key] = (said, folder.digests(), weights)
    return {"table": (study.path / "results.csv").read_bytes(), "trials": trials}


def leftovers(study: StudyFolder) -> list[str]:
    """Return what lies in a study that belongs to no finished trial."""
    odd = [path for word in (".*.tmp", "lease-*", "checkpoint") for path in study.path.rglob(word)]
    return sorted(str(path.relative_to(study.path)) for path in odd)


def differences(study: StudyFolder, reference: dict[str, Any]) -> list[str]:
    """Return in what a finished study is not the undisturbed one."""
    mine, found = image(study), []
    lost = reference["trials"].keys() - mine["trials"].keys()
    more = mine["trials"].keys() - reference["trials"].keys()
    found += [f"lost: {key}" for key in sorted(lost)] + [f"doubled: {key}" for key in sorted(more)]
    found += [f"another result: {k}" for k, v in mine["trials"].items() if reference["trials"].get(k, v) != v]
    found += ["another table"] if mine["table"] != reference["table"] else []
    found += [f"verify: {problem.said}" for problem in verify(study).problems]
    return found + [f"left over: {name}" for name in leftovers(study)]


def until_done(place: Path, name: str, blows: Dealt, most: int, count: Count, reference: dict[str, Any]) -> None:
    """Start a study again and again, up to `most` times with a blow, until it is finished; note what came of it."""
    words, struck = command(place, name), 0
    for start in range(_MOST_LIVES):
        ended = live(words, place / "runs", **(blows(most - struck) if struck < most else {}))
        struck, count.tried = struck + ended.struck, count.tried + ended.struck
        if "Traceback" in ended.said or ended.code in (70, 124):
            count.failures.append(f"{name}, start {start}: code {ended.code}: {ended.said[-300:]}")
        elif not ended.struck and ended.code not in (0, 1):
            count.failures.append(f"{name}, start {start}: code {ended.code} without a blow: {ended.said[-300:]}")
        if not ended.struck and ended.code in (0, 1):
            break
    else:
        count.failures.append(f"{name}: not finished after {_MOST_LIVES} starts")
        return
    live(words, place / "runs")  # what the last blow left is swept by the next
    count.studies += 1
    count.failures += [f"{name}: {said}" for said in differences(folder_of(place, name), reference)]


def kinds(chance: random.Random, seconds: float) -> dict[str, tuple[int, Dealt]]:
    """Return each kind of kill: how many, and how one is dealt; `seconds` is what the undisturbed study took."""

    def at_a_step(who: str, word: str, most: int) -> Dealt:
        return lambda left: {"blow": Blow(who, most, word, chance.getrandbits(32), left)}

    return {
        "coordinator, at a random moment": (
            50,
            lambda left: {"meanwhile": after(chance.uniform(0, 0.7 * seconds))},
        ),
        "coordinator, at a step with a file": (50, at_a_step("coordinator", "", 30)),
        "trial, at a random moment": (30, lambda left: {"meanwhile": on_trials(chance, seconds / 3, left)}),
        "trial, at a step with a file": (30, at_a_step("trial", "", 14)),
        "commit of a result": (20, at_a_step("trial", "result.json", 2)),
        "checkpoint": (20, at_a_step("trial", "checkpoint", 4)),
    }


def undisturbed(place: Path) -> tuple[dict[str, Any], float]:
    """Run the study as it is; return its image, and the seconds that it took."""
    begun = time.monotonic()
    ended = live(command(place, "reference"), place / "runs")
    assert ended.code in (0, 1), ended.said
    seconds = time.monotonic() - begun
    assert not leftovers(folder_of(place, "reference"))
    return image(folder_of(place, "reference")), seconds


def mirror_kills(place: Path, count: Count, wanted: int, chance: random.Random, reference: dict[str, Any]) -> None:
    """Kill `kdbench mirror` while it makes the database and while it writes; the last one must bring all, once."""
    runs, seconds = place / "runs", 4.0
    while count.tried < wanted:
        for path in runs.glob("*mlflow.db*"):
            path.unlink()
        struck = 0
        while count.tried < wanted and struck < 8:
            ended = live(["mirror", "--runs", str(runs)], runs, meanwhile=after(chance.uniform(0, seconds)))
            if not ended.struck:
                break
            count.tried, struck = count.tried + 1, struck + 1
        ended = live(["mirror", "--runs", str(runs)], runs)
        count.studies += 1
        if ended.code != 0:
            count.failures.append(f"mirror: code {ended.code}: {ended.said[-300:]}")
            continue
        with closing(sqlite3.connect(runs / "mlflow.db")) as database:
            rows = database.execute(
                "select tags.value, count(*) from tags join runs on runs.run_uuid = tags.run_uuid "
                "where tags.key = 'trial_key' and runs.lifecycle_stage = 'active' group by tags.value"
            ).fetchall()  # a run whose writing was cut off is deleted, and MLflow keeps what is deleted
        keys = {*reference["trials"]}
        studies = len([*runs.glob("*-*/study.json")])
        odd = [key for key, times in rows if times != studies]
        if {key for key, _ in rows} != keys or odd:
            count.failures.append(f"mirror: {len(rows)} of {len(keys)} trials, {len(odd)} not once a study")


def server_kills(place: Path, count: Count, wanted: int, chance: random.Random, reference: dict[str, Any]) -> None:
    """Kill the server that trials are forked from, in real processes; the same command must finish the study."""
    while count.tried < wanted:
        name, lives = f"server{count.tried}", 0
        words = [sys.executable, "-m", "kdbench", *command(place, name)]
        while lives < 6:
            lives += 1
            running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            struck = count.tried < wanted and _strike_server(running.pid, chance)
            said, _ = running.communicate(timeout=600)
            count.tried += struck
            if running.returncode not in (0, 1, 3) or "kdbench broke" in said:
                count.failures.append(f"{name}: code {running.returncode}: {said[-300:]}")
            if not struck and running.returncode in (0, 1):
                break
        live(command(place, name), place / "runs")
        count.studies += 1
        count.failures += [f"{name}: {said}" for said in differences(folder_of(place, name), reference)]


def _strike_server(pid: int, chance: random.Random) -> bool:
    """Kill the fork server of a run some seconds after it appeared."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                if "forkserver" in Path(f"/proc/{child}/cmdline").read_text():
                    time.sleep(chance.uniform(0, 12))
                    os.kill(int(child), signal.SIGKILL)
                    return True
            except OSError:
                continue
        time.sleep(0.05)
    return False
