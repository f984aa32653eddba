"""A trial that was cut off goes on to the bit as if it had not been, or starts over and says why."""

import json
import shutil
import signal

import pytest
import torch

from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.record import Folder, StudyFolder
from kdbench.harness.run import trial
from kdbench.harness.run.processes import ENDING
from kdbench.kd import checkpoint
from kdbench.kd.data import prepare


@pytest.fixture(scope="module")
def plan(tmp_path_factory, digits):
    text = """
[study]
dataset = "digits"
pairs = ["r18-r18"]
methods = ["feature"]
seeds = "0"
[recipe]
epochs = 7
batch_size = 8
base_width = 4
train_size = 80
val_size = 40
test_stride = 64
[teacher]
epochs = 2
[method.feature]
kd_weight = 1
"""
    file = tmp_path_factory.mktemp("file") / "mine.toml"
    file.write_text(text)
    return make_plan(
        load_preset(str(file)),
        (None, "select-on-test", "teacher-in-optimizer"),
        Ground(digits.name, digits.digest, "cpu"),
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory, plan, cache):
    """A study's folder in which the teacher is done."""
    study = StudyFolder(tmp_path_factory.mktemp("taught"))
    (key,) = plan.teachers.values()
    study.trial(key).write_spec(plan.trials[key])
    assert trial.run(study.trial(key), prepare("digits", None, cache)).status == "finished"
    return study.path


@pytest.fixture(scope="module")
def run(tmp_path_factory, plan, taught, cache):
    """Run the trial of an arm in this process; the unbroken ones once for all tests."""
    data_file, base = prepare("digits", None, cache), tmp_path_factory.mktemp("runs")
    keys = {arm.fault: trials[0] for arm, trials in plan.arms.items()}

    def go(fault: str | None, place: str, stop_after: int | None = None, fails: bool = False) -> Folder:
        study = StudyFolder(base / place)
        if not study.path.is_dir():
            shutil.copytree(taught, study.path)
        folder = study.trial(keys[fault])
        if place == "whole" and folder.result() is not None:
            return folder
        folder.write_spec(plan.trials[keys[fault]])
        saves = 0

        def save(training, path):
            nonlocal saves
            real(training, path)
            saves += 1
            if saves == stop_after:
                raise KeyboardInterrupt

        real = checkpoint.save
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trial, "CHECKPOINT_SECONDS", 0.0)
            patch.setattr(checkpoint, "save", save)
            status = trial.run(folder, data_file).status
        assert status == ("failed" if fails else "finished" if stop_after is None else "interrupted")
        return folder

    return go


def verdicts(folder):
    return {f["id"]: (f["status"], f["consequence_of"]) for f in folder.result().findings}


@pytest.mark.parametrize(
    ("fault", "after"),
    [(None, 4), ("select-on-test", 4), ("teacher-in-optimizer", 4), (None, 7), ("select-on-test", 7)],
)
def test_a_resumed_trial_is_the_unbroken_one(run, fault, after):
    """Also one that was cut off when it had trained all of its seven epochs."""
    whole, cut = run(fault, "whole"), run(fault, f"once {after}", stop_after=after)
    assert (cut.path / "checkpoint" / "state.pt").is_file() and cut.epochs() == after
    cut = run(fault, f"once {after}")
    assert cut.result().times["resumed_after_epoch"] == after and "resumed_after_epoch" not in whole.result().times
    names = ["curve.jsonl", "norms.csv", "student.safetensors", "method.safetensors"]
    for name in names + ["test_curve.jsonl"] * (fault == "select-on-test"):
        assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert cut.result().metrics == whole.result().metrics
    assert verdicts(cut) == verdicts(whole)
    assert not (cut.path / "checkpoint").exists(), "gone once finished"


@pytest.mark.parametrize("number", ENDING)
def test_a_trial_that_is_told_to_end_writes_its_state_after_the_epoch(run, number, monkeypatch, cache):
    """As a cluster's scheduler tells it; a minute has not gone by, so nothing else would have written it."""
    whole = run(None, "whole")
    study = StudyFolder(whole.path.parents[2] / f"told {number}")
    shutil.copytree(whole.path.parents[1], study.path)
    folder = study.trial(whole.key)
    for path in folder.path.iterdir():
        if path.name != "spec.json":
            path.unlink()
    note = trial._Curve.note

    def told(curve, epoch):
        note(curve, epoch)
        if epoch.epoch == 3:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(trial._Curve, "note", told)
        with pytest.raises(SystemExit) as ended:
            trial.run(folder, prepare("digits", None, cache))
    assert ended.value.code == 128 + number and signal.getsignal(number) is before
    assert folder.epochs() == 3 and folder.result() is None and (folder.path / "checkpoint" / "state.pt").is_file()
    assert trial.run(folder, prepare("digits", None, cache)).times["resumed_after_epoch"] == 3
    assert (folder.path / "curve.jsonl").read_bytes() == (whole.path / "curve.jsonl").read_bytes()


def test_a_trial_cut_off_twice_is_still_the_unbroken_one(run):
    whole = run(None, "whole")
    run(None, "twice", stop_after=3)
    cut = run(None, "twice", stop_after=4)  # two epochs again, and then two new ones
    assert cut.epochs() > 3
    cut = run(None, "twice")
    assert (cut.path / "curve.jsonl").read_bytes() == (whole.path / "curve.jsonl").read_bytes()
    assert cut.result().times["resumed_after_epoch"] > 3


def test_a_checkpoint_of_another_machine_is_not_gone_on_from(run, caplog):
    whole, cut = run(None, "whole"), run(None, "other", stop_after=4)
    path = cut.path / "checkpoint" / "state.pt"
    state = torch.load(path, weights_only=True)
    state["digests"][1] = "0" * 16  # as other last bits would give
    torch.save(state, path)
    cut = run(None, "other")
    assert "resumed_after_epoch" not in cut.result().times and "starting over" in caplog.text
    assert (cut.path / "curve.jsonl").read_bytes() == (whole.path / "curve.jsonl").read_bytes()


@pytest.mark.parametrize("broken", ["garbage", "curve"])
def test_a_checkpoint_that_cannot_be_used_starts_the_trial_over(run, broken):
    whole, cut = run(None, "whole"), run(None, f"broken {broken}", stop_after=3)
    if broken == "garbage":
        (cut.path / "checkpoint" / "state.pt").write_bytes(b"half a file")
    else:
        (cut.path / "curve.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    cut = run(None, f"broken {broken}")
    assert "resumed_after_epoch" not in cut.result().times
    assert (cut.path / "curve.jsonl").read_bytes() == (whole.path / "curve.jsonl").read_bytes()


def test_a_checkpoint_that_a_trial_fails_from_is_not_tried_again(run):
    whole, cut = run(None, "whole"), run(None, "fails", stop_after=4)
    path = cut.path / "checkpoint" / "state.pt"
    state = torch.load(path, weights_only=True)
    del state["optimizer"]  # as another version of kdbench may write it
    torch.save(state, path)
    cut = run(None, "fails", fails=True)
    assert "KeyError" in cut.result().reason and not path.exists()
    cut = run(None, "fails")
    assert (cut.path / "curve.jsonl").read_bytes() == (whole.path / "curve.jsonl").read_bytes()
