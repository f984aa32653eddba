"""One study by several coordinators: leases, shards, a cluster; each trial once, and the table as of one alone."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_cli import kdbench
from test_study_file import SMALL

from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records import lease as leases
from kdbench.harness.records.lease import Lease, take
from kdbench.harness.records.record import Folder, StudyFolder
from kdbench.harness.run.scheduler import execute
from kdbench.kd.data import prepare

STUDY = SMALL


@pytest.fixture
def trial(tmp_path):
    return Folder(tmp_path)


def pretend(lease: Lease, **holder) -> None:
    lease.path.write_text(json.dumps({**json.loads(lease.path.read_text()), **holder}))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_trial_is_one_coordinators_until_it_gives_it_back(trial):
    first = take(trial)
    assert first is not None and first.stands() and take(trial) is None
    first.release()
    assert not first.stands() and list(trial.path.glob("lease-*")) == []
    second = take(trial)
    assert second is not None and not first.stands(), "of the same number, and another's"


def test_a_dead_holder_is_outnumbered_at_once(trial):
    dead = take(trial)
    pretend(dead, pid=dead_process())
    assert not dead.stands()
    heir = take(trial)
    assert heir is not None and heir.path.name == "lease-2" and take(trial) is None
    heir.release()
    assert list(trial.path.glob("lease-*")) == []


def test_a_holder_elsewhere_is_believed_for_as_long_as_it_beats(trial, monkeypatch):
    far = take(trial)
    pretend(far, machine="elsewhere", pid=dead_process())
    assert far.stands() and take(trial) is None, "a process number of another machine means nothing here"
    os.utime(far.path, (time.time() - leases.STALE - 5,) * 2)
    assert not far.stands()
    monkeypatch.setattr(leases, "HEARTBEAT", 0.0)
    assert far.beat() and far.stands(), "it was slow, and nobody took the trial meanwhile"
    os.utime(far.path, (time.time() - leases.STALE - 5,) * 2)
    heir = take(trial)
    assert heir is not None and not far.beat() and heir.beat()
    far.release()
    assert heir.stands(), "what was lost cannot be given back"


def test_shards_cut_a_plan_into_parts_that_are_whole_together(tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    plan = make_plan(
        load_preset(str(tmp_path / "mine.toml")), (None, "projector-unclipped"), Ground("digits", "0", "cpu")
    )
    teachers = set(plan.teachers.values())
    for of in (1, 2, 5, 50):
        parts = [plan.shard(number, of) for number in range(1, of + 1)]
        own = [key for part in parts for key in part if key not in teachers]
        assert sorted(own) == sorted(plan.trials.keys() - teachers), "each trial in one part"
        assert all(plan.needs(key) in {None, *part} for part in parts for key in part), "with its teacher"
    assert plan.shard(2, 5) == plan.shard(2, 5) != plan.shard(3, 5)


class Jammed:
    """Where no trial can be started."""

    def has_room(self, running):
        return True

    def start(self, folder, data_file, lease):
        assert lease.stands()
        raise OSError("no process can be started here")

    def close(self):
        pass


def test_a_trial_that_could_not_be_started_is_anybodys(tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    plan = make_plan(load_preset(str(tmp_path / "mine.toml")), (None,), Ground("digits", "0", "cpu"))
    study = StudyFolder(tmp_path / "study")
    with pytest.raises(OSError, match="no process can be started"):
        execute(plan, study, tmp_path / "none.pt", 1, print, engine=Jammed())
    assert all(take(study.trial(key)) is not None for key in plan.trials)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_shard_is_said(shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = kdbench("run", "--shard", shard, "--dry-run")
    assert code == 2 and "write the first of four as 1/4" in err


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The table of the study as one coordinator writes it, and how many trials there are."""
    place = tmp_path_factory.mktemp("whole")
    (place / "mine.toml").write_text(STUDY)
    with contextlib.chdir(place):
        _, out, err = kdbench("run", "mine.toml", "--json")
    found = json.loads(out)
    assert found["failed"] == found["unfinished"] == 0, err
    return table(place), found["trained"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(STUDY)
    return tmp_path


def start(*args):
    command = [sys.executable, "-m", "kdbench", "run", "mine.toml", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def table(place, runs="runs"):
    (path,) = (place / runs).glob("*/results.csv")
    return path.read_bytes()


def test_shards_side_by_side_give_the_table_of_one(here, whole):
    shards = [start("--shard", f"{number}/2", "--workers", "1", "--json") for number in (1, 2)]
    said = [json.loads(shard.communicate(timeout=240)[0]) for shard in shards]
    assert sum(found["trained"] for found in said) == whole[1], "each trial by one of them, the teacher as well"
    assert all(found["trained"] > 2 and found["failed"] == 0 for found in said)
    assert table(here) == whole[0]
    (study,) = (here / "runs").glob("*/study.json")
    assert list(study.parent.glob("*/*/lease-*")) == []


def test_shards_one_after_another_leave_the_rest_to_the_others(here, whole):
    code, out, err = kdbench("run", "mine.toml", "--shard", "2/2")
    assert code == 0 and "This shard is done" in out and "are not yet" in out, err
    assert b"unfinished" in table(here)
    code, out, _ = kdbench("run", "mine.toml", "--shard", "1/2")
    assert code in (0, 1) and "Does the bug matter here?" in out, "the last one shows what came of it"
    assert table(here) == whole[0]


def test_a_whole_run_and_a_shard_do_not_mix(here):
    (here / "runs").mkdir()
    code, out, _ = kdbench("run", "mine.toml", "--dry-run", "--json")
    study = StudyFolder(here / "runs" / json.loads(out)["study"])
    study.path.mkdir()
    with study.lock():
        code, _, err = kdbench("run", "mine.toml", "--shard", "1/2")
        assert code == 2 and "is being run by another kdbench" in err
    with study.lock(shared=True):
        code, _, err = kdbench("run", "mine.toml")
        assert code == 2 and "each with a --shard" in err


def most_at_once(runs, over):
    """How many trials were held at a time, at the most."""
    most = 0
    while not over.wait(0.02):
        most = max(most, len(list(runs.glob("*/trials/*/lease-*"))))
    return most


@pytest.mark.long
def test_a_cluster_gives_the_table_of_one(here, cache):
    """Of three trials: each starts a Python of its own, as where workers are far away."""
    distributed = pytest.importorskip("distributed")
    few = ["--no-controls", "--method", "feature", "--variant", "corrected"]
    assert kdbench("run", "mine.toml", *few, "--runs", "alone")[0] in (0, 1)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(processes=True, **options) as cluster, ThreadPoolExecutor() as pool:
        over = threading.Event()
        at_once = pool.submit(most_at_once, here / "runs", over)
        try:
            _, out, err = kdbench("run", "mine.toml", *few, "--scheduler", cluster.scheduler_address, "--json")
        finally:
            over.set()
    found = json.loads(out)
    assert (found["trained"], found["failed"]) == (3, 0), err
    assert at_once.result() == 2, "both students, once there is a teacher"
    assert table(here) == table(here, "alone")


def test_a_cluster_that_is_not_there_is_said(here):
    pytest.importorskip("distributed")
    code, _, err = kdbench("run", "mine.toml", "--scheduler", "tcp://127.0.0.1:9")
    assert code == 2 and "no scheduler answers there" in err


def test_a_worker_ends_what_its_coordinator_gave_up(here, digits, cache):
    """Interrupted, or silent for long: then the trial will be started anew, and this one must not go on beside it."""
    from kdbench.harness.run.dask_cluster import run_trial

    (here / "mine.toml").write_text(STUDY.replace("epochs = 3", "epochs = 2000"))
    preset = load_preset("mine.toml")
    plan = make_plan(preset, (None,), Ground(digits.name, digits.digest, "cpu"))
    key = next(iter(plan.arms.values()))[0]
    folder = Folder(here / key)
    folder.write_spec(plan.trials[key])
    lease = take(folder)
    with ThreadPoolExecutor() as pool:
        data_file = prepare("digits", None, cache)
        running = pool.submit(run_trial, str(folder.path), str(data_file), [], lease)
        deadline = time.monotonic() + 60
        while folder.epochs() < 1 and time.monotonic() < deadline and not running.done():
            time.sleep(0.1)
        assert folder.epochs() >= 1 and not running.done()
        lease.release()
        assert running.result(timeout=30) == "its coordinator gave it up"
    assert folder.result() is None
    assert "finds no" in run_trial(str(here / "nowhere"), str(data_file), [], lease)
