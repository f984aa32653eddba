"""Trials spread over GPUs, with a list of devices that need not be there: each trial sees one, and none is overfull."""

import dataclasses
import time

import pytest
from test_cli import kdbench

from kdbench.harness.plan.outline import preset_text
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import parse_preset
from kdbench.harness.records.record import OUT_OF_MEMORY, Result, StudyFolder
from kdbench.harness.run import gpus
from kdbench.harness.run.gpus import Gpus, chosen
from kdbench.harness.run.scheduler import execute
from kdbench.kd.errors import InputError


@dataclasses.dataclass
class Fake:
    """A process of a trial that ends after some looks at it, and leaves a result."""

    folder: object
    device: str | None
    result: Result
    looks: int = 60
    over: bool = False

    def is_over(self):
        self.looks -= 1
        if self.looks <= 0 and not self.over:
            self.over = True
            self.folder.write_result(self.result)
            (self.folder.path / "student.safetensors").touch()
        return self.over

    def death(self):
        return "ended"

    def end(self, hard=False):
        self.over = True


class Box(Gpus):
    """A machine of so many GPUs, on which nothing is trained: who starts where, and beside whom, is noted."""

    def __init__(self, devices, each, fails=()):
        super().__init__(devices, each, {1})
        self.fails, self.started, self.beside = list(fails), [], []

    def fork(self, folder, data_file, device=None):
        result = Result(folder.key, "finished", times={"train_seconds": 1.0})
        if self.fails:
            result = Result(folder.key, "failed", self.fails.pop(0), times={"train_seconds": 1.0})
        self.started.append((folder.key, device))
        self.beside.append({name: len(self._alive(name)) for name in self.on})
        return Fake(folder, device, result)

    def wait(self, running, seconds):
        time.sleep(0.001)


@pytest.fixture
def plan():
    return make_plan(parse_preset("quick", preset_text("quick")), [None], Ground("digits", "d", "cpu"))


def carried_out(plan, box, tmp_path, retries=0):
    study = StudyFolder(tmp_path / "study")
    return execute(plan, study, tmp_path / "none", 1, lambda *_: None, engine=box, retries=retries)


@pytest.mark.parametrize("each", [1, 2])
def test_each_trial_has_a_device_and_no_device_more_than_its_share(plan, tmp_path, each):
    box = Box(["0", "GPU-7"], each)
    outcome = carried_out(plan, box, tmp_path)
    assert sorted(outcome.trained) == sorted(plan.trials)
    assert {device for _, device in box.started} == {"0", "GPU-7"}
    assert all(max(counts.values()) <= each and min(counts.values()) < each for counts in box.beside)
    assert max(sum(counts.values()) for counts in box.beside) == 2 * each - 1, "all of them are used"


def test_a_trial_that_ran_out_of_memory_is_tried_again_alone(plan, tmp_path):
    said = f"{OUT_OF_MEMORY}: CUDA out of memory"
    box = Box(["0", "1"], 2, fails=[f"{OUT_OF_MEMORY}: once"] + [said] * 2)
    outcome = carried_out(plan, box, tmp_path, retries=2)
    assert sorted(outcome.trained) == sorted(plan.trials)
    again = [at for at, (key, _) in enumerate(box.started) if key in {k for k, _ in box.started[:at]}]
    assert again and all(sum(box.beside[at].values()) == 0 for at in again)
    following = [at + 1 for at in again if at + 1 < len(box.started)]
    assert all(sum(box.beside[at].values()) == 0 for at in following), "nobody joins it"


def test_what_was_asked_for_is_found_among_what_is_visible(monkeypatch):
    monkeypatch.setattr(gpus.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 2,7")
    assert gpus.visible() == ["4", "2", "7"]
    assert chosen("all", gpus.visible()) == ["4", "2", "7"] and chosen("0,2", gpus.visible()) == ["4", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.visible() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("asked", "names", "says"),
    [
        ("all", [], "torch sees no CUDA device"),
        ("3", ["0", "1"], "it has 0, 1"),
        ("0,x", ["0", "1"], "'x' is no GPU of this machine"),
        ("0,0", ["0", "1"], "names a GPU twice"),
    ],
)
def test_what_is_not_there_is_refused(asked, names, says):
    with pytest.raises(InputError, match=says):
        chosen(asked, names)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpus", "all"], "--gpus goes with --device cuda"),
        (["--per-gpu", "2"], "--per-gpu goes with --gpus"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, says, tmp_path):
    code, _, err = kdbench("run", *words, "--runs", str(tmp_path), "--dry-run")
    assert code == 2 and says in " ".join(err.split())


def test_the_process_of_a_trial_sees_its_device_alone(tmp_path, monkeypatch):
    from kdbench.harness.run import trial

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(trial.os, "dup2", lambda *_: None)
    monkeypatch.setattr(trial.gc, "freeze", lambda: None)
    monkeypatch.setattr(trial, "_end_with_coordinator", lambda *_: None)
    monkeypatch.setattr(trial, "hear_signals", lambda: None)
    monkeypatch.setattr(trial.logging, "basicConfig", lambda **_: None)
    seen = []
    monkeypatch.setattr(trial, "run", lambda *_: seen.append(trial.os.environ["CUDA_VISIBLE_DEVICES"]))
    trial.run_in_child(str(tmp_path), "none", [], "2")
    trial.run_in_child(str(tmp_path), "none", [])
    assert seen == ["2", "2"]
