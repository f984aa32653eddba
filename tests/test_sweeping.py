"""What dead runs leave is swept by the next, what the living hold is not; a reader that leaves ends a command."""

import json
import os
import subprocess
import sys
import time

import pytest
from test_cli import kdbench

from kdbench.harness.records import temporaries
from kdbench.harness.records.lease import take
from kdbench.harness.records.record import Result, StudyFolder, write_atomic
from kdbench.harness.run.sweeping import sweep


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def study(tmp_path):
    study = StudyFolder(tmp_path / "runs" / "one")
    for key, status in (("a" * 16, "finished"), ("b" * 16, "interrupted")):
        folder = study.trial(key)
        (folder.path / "checkpoint").mkdir(parents=True)
        (folder.path / "checkpoint" / "state.pt").write_bytes(b"a minute ago")
        folder.write_result(Result(key, status))
    return study


def left_by(pid, path):
    """Write the temporary file that a process would."""
    made = temporaries.temporary(path)
    made = made.with_name(made.name.replace(f"-{os.getpid()}-", f"-{pid}-"))
    made.write_text("half")
    return made


def aged(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def holder(folder, pid, number=1):
    path = folder.path / f"lease-{number}"
    path.write_text(json.dumps({"machine": temporaries.machine(), "pid": pid, "token": "t"}))
    return path


def test_what_the_dead_left_goes_and_what_the_living_write_stays(study, dead):
    trial = study.trial("a" * 16)
    theirs = [left_by(dead, study.path / "study.json"), left_by(dead, trial.path / "result.json")]
    ours = [left_by(os.getpid(), study.path / "study.json"), left_by(os.getppid(), trial.path / "spec.json")]
    for path in ours:
        aged(path, 10_000)  # stopped for long, and alive
    older, young = (trial.path / f".result.json.{n * 32}.tmp" for n in "01")
    foreign = trial.path / ".editor.swp.tmp"
    for path in (older, young, foreign):
        path.write_text("half")
    aged(older, 1000)
    aged(foreign, 1000)
    assert sweep(study) == len(theirs) + 2  # the older one, and the finished trial's checkpoint
    assert not any(path.exists() for path in (*theirs, older))
    assert all(path.exists() for path in (*ours, young, foreign))
    assert sweep(study) == 0


def test_another_machines_file_is_its_own_until_it_was_silent_for_long(study, dead, monkeypatch):
    monkeypatch.setattr(temporaries, "machine", lambda: "another")
    path = left_by(dead, study.path / "study.json")
    monkeypatch.undo()
    sweep(study)
    assert path.exists()
    aged(path, temporaries.STALE + 10)
    sweep(study)
    assert not path.exists()


def test_a_finished_trials_leases_and_checkpoint_go_and_an_unfinished_ones_stay(study, dead):
    done, cut_off = study.trial("a" * 16), study.trial("b" * 16)
    leases = [holder(done, dead), holder(done, dead, 2), holder(cut_off, dead)]
    assert sweep(study) == 3
    assert [path.exists() for path in leases] == [False, False, True]
    assert not (done.path / "checkpoint").exists() and (cut_off.path / "checkpoint" / "state.pt").exists()


def test_nothing_of_a_trial_that_somebody_runs_is_touched(study):
    lease = take(study.trial("a" * 16))
    assert sweep(study) == 0 and lease.stands()
    assert (study.trial("a" * 16).path / "checkpoint").exists()


def test_a_record_that_cannot_be_read_is_left_to_whoever_reads_it(study, dead):
    (study.trial("a" * 16).path / "result.json").write_text("{")
    holder(study.trial("a" * 16), dead)
    assert sweep(study) == 0


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "study.json", "text")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_left_ends_a_command_quietly(tmp_path, more):
    rows = [f"{m},{s},{70 + s}" for m in ("plain", "kd") for s in range(4)]
    (tmp_path / "runs.csv").write_text("\n".join(["m,s,acc", *rows]))
    words = ["compare", "--csv", tmp_path / "runs.csv", "--group", "m", "--baseline", "plain", "--seed", "s"]
    words = [*map(str, words), "--metric", "acc", "--margin", "1", *more]
    assert kdbench(*words)[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "kdbench", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141
