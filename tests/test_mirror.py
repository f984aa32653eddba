"""MLflow holds what the records hold, however often and whenever it is written."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from test_cli import kdbench

mlflow = pytest.importorskip("mlflow")

from mlflow.tracking import MlflowClient  # noqa: E402

from kdbench.harness.analysis.study_table import read_study, write_study  # noqa: E402
from kdbench.harness.cli import ui_command  # noqa: E402
from kdbench.harness.cli.common import LiveMirror, mirror_or_remark, stderr  # noqa: E402
from kdbench.harness.plan.grid import Grid  # noqa: E402
from kdbench.harness.plan.plan import Ground, make_plan  # noqa: E402
from kdbench.harness.plan.preset import Decision, load_preset  # noqa: E402
from kdbench.harness.plan.variants import VARIANTS  # noqa: E402
from kdbench.harness.publish import database, mlflow_summary, mlflow_view  # noqa: E402
from kdbench.harness.publish import mirror as mirror_module  # noqa: E402
from kdbench.harness.publish.mirror import mirror_study  # noqa: E402
from kdbench.harness.records.record import FaultStory, Metrics, Result, StudyFolder  # noqa: E402


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study's records as the trials write them, without the training."""
    runs = tmp_path_factory.mktemp("runs")
    plan = make_plan(load_preset("quick"), VARIANTS["both"], Ground("digits", "d" * 64, "cpu"), controls=True)
    folder = StudyFolder(runs / plan.study)
    for n, (key, spec) in enumerate(plan.trials.items()):
        trial = folder.trial(key)
        trial.write_spec(spec)
        norms = {"student": {"mean": 1.0, "max": 2.0}, "all": {"mean": 1.0, "max": 2.0}}
        line = {"lr": 0.1, "loss": {"ce": 1.0, "kd": 2.0, "total": 3.0}, "grad_norms": norms}
        line.update(train_accuracy=50.0, val_accuracy=60.0, clipped_share=0.5, overflowed_steps=0, digest="d")
        lines = [{**line, "epoch": epoch} for epoch in (1, 2, 3)]
        (trial.path / "curve.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        story = FaultStory(spec.fault, "stem", 1, True, [], 1, False) if spec.fault else None
        status = "failed" if n == 3 else "finished"
        times = {"started": "2026-11-24T08:00:00+00:00", "seconds": 7.0}
        metrics = None if status == "failed" else Metrics(90.0 + n / 10, 91.0, [90.0] * 10)
        trial.write_result(Result(key, status, None, 3, metrics, [], story, None, {"git_commit": "abc"}, times))
    write_study(folder, Decision(), plan.arms, plan.controls)
    MlflowClient(f"sqlite:///{runs / 'mlflow.db'}").search_experiments()  # to make a database takes MLflow five seconds
    return runs, folder, plan


@pytest.fixture(autouse=True)
def _own_database(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def keys_of(plan):
    """The trials that are mirrored: all but the one that was run a second time."""
    return {key for key in plan.trials if not key.startswith("again-")}


def runs_of(mirror):
    """The trials' runs."""
    runs = MlflowClient(mirror.uri).search_runs([mirror.experiment], max_results=1000)
    return [run for run in runs if run.data.tags["role"] != "summary"]


def summaries_of(mirror):
    """The arms' runs, by name."""
    runs = MlflowClient(mirror.uri).search_runs([mirror.experiment], "tags.role = 'summary'", max_results=1000)
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_mirror_is_flat_idempotent_and_rebuilt_from_the_records(study):
    runs, folder, plan = study
    mirror = mirror_study(runs, read_study(folder))
    assert mirror.written == len(keys_of(plan)) == 32
    found = runs_of(mirror)
    assert {run.data.tags["trial_key"] for run in found} == keys_of(plan)
    assert not any("mlflow.parentRunId" in run.data.tags for run in found)
    names = sorted(run.info.run_name for run in found)
    assert "feature: projector-unclipped, seed 2" in names and "teacher: corrected, r34, seed 0" in names
    assert "logit: teacher-rows-shuffled, seed 1" in names  # the positive control is nobody's teacher
    assert mirror_study(runs, read_study(folder)).written == 0


def test_a_lost_database_is_made_again_from_the_records(study, tmp_path):
    runs, folder, plan = study
    shutil.copytree(folder.path, tmp_path / "runs" / folder.path.name)
    command = [sys.executable, "-m", "kdbench", "mirror", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "32 runs written, 32 in sqlite:" in done.stdout, done.stderr
    kept, made = (mirror_study(place, read_study(folder)) for place in (runs, tmp_path / "runs"))
    before, after = (
        {r.data.tags["trial_key"]: (r.data.params, r.data.metrics, r.info.status) for r in runs_of(mirror)}
        for mirror in (kept, made)
    )
    assert made.written == 0 and before == after
    assert before.keys() == keys_of(plan)


def test_metrics_are_curves_by_epoch_and_finals_at_step_zero(study):
    runs, folder, _ = study
    mirror = mirror_study(runs, read_study(folder))
    client = MlflowClient(mirror.uri)
    run = next(r for r in runs_of(mirror) if r.data.params["method"] == "feature" and r.info.status == "FINISHED")
    assert {m.step for m in client.get_metric_history(run.info.run_id, "final/test_accuracy")} == {0}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "curve/loss")] == [1, 2, 3]
    assert {key.split("/")[0] for key in run.data.metrics} == {"curve", "final"} and len(run.data.metrics) < 15
    assert run.data.params["variant"] in ("corrected", "bugged") and run.data.params["recipe.lr"] == "0.1"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 16
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"spec.json", "result.json", "curve.jsonl"}
    failed = [r for r in runs_of(mirror) if r.info.status == "FAILED"]
    assert len(failed) == 1 and failed[0].data.tags["status"] == "failed"


def test_a_trial_that_was_tried_again_replaces_its_run(study):
    runs, folder, plan = study
    mirror_study(runs, read_study(folder))
    key = list(plan.trials)[5]
    result = folder.trial(key).result()
    folder.trial(key).write_result(Result(**{**vars(result), "metrics": Metrics(12.5, 1.0, [])}))
    mirror = mirror_study(runs, read_study(folder))
    assert mirror.written == 1
    (run,) = (r for r in runs_of(mirror) if r.data.tags["trial_key"] == key)
    assert run.data.metrics["final/test_accuracy"] == 12.5


def test_a_run_that_was_cut_off_is_written_anew(study, monkeypatch):
    runs, folder, plan = study
    mirror_study(runs, read_study(folder))
    key = list(plan.trials)[7]
    result = folder.trial(key).result()
    folder.trial(key).write_result(Result(**{**vars(result), "reason": "again"}))

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "log_batch", interrupted)
        mirror_study(runs, read_study(folder))
    mirror = mirror_study(runs, read_study(folder))
    assert mirror.written == 1
    (run,) = (r for r in runs_of(mirror) if r.data.tags["trial_key"] == key)
    assert run.info.status == "FINISHED" and run.data.metrics["final/test_accuracy"] == result.metrics.test_accuracy


def a_few(study, tmp_path, name):
    """Six of the study's trials in a runs folder of their own; the others are not done yet."""
    runs = tmp_path / "runs"
    shutil.copytree(study[1].path, runs / name)
    folder, keys = StudyFolder(runs / name), sorted(keys_of(study[2]))[:6]
    for trial in list(folder.trials()):
        if trial.key not in keys:
            (trial.path / "result.json").unlink()
    return runs, folder, keys


def test_two_who_mirror_at_once_write_each_run_once(study, tmp_path):
    """As when the UI is opened while the study runs."""
    runs, folder, keys = a_few(study, tmp_path, "twice")
    shutil.copy(study[0] / "mlflow.db", runs / "mlflow.db")
    with ThreadPoolExecutor() as pool:
        mirrors = list(pool.map(lambda _: mirror_study(runs, read_study(folder)), range(2)))
    assert sorted(mirror.written for mirror in mirrors) == [0, len(keys)]
    assert len(runs_of(mirrors[0])) == len(keys)


def test_a_request_that_was_sent_twice_leaves_one_run(study):
    runs, folder, plan = study
    mirror = mirror_study(runs, read_study(folder))
    key = sorted(keys_of(plan))[0]
    client = MlflowClient(mirror.uri)
    for _ in range(2):
        client.create_run(mirror.experiment, tags={"trial_key": key, "role": "arm", "record": "2-of-a-cut-off-run"})
    again = mirror_study(runs, read_study(folder))
    (run,) = (r for r in runs_of(again) if r.data.tags["trial_key"] == key)
    assert again.written == 0 and run.info.status == "FINISHED"


def state_of(mirror, name="kdbench"):
    tags = MlflowClient(mirror.uri).get_experiment(mirror.experiment).tags
    named = json.loads(tags[f"mlflow.sharedViewState.{name}-menu"])
    title = {"kdbench": "kdbench: arms side by side", "kdbench-seeds": "kdbench: every seed, by arm"}[name]
    assert named["name"] == title and named["state"] == tags[f"mlflow.sharedViewState.{name}"]
    head, _, packed = named["state"].partition(";")
    assert head == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_the_view_of_the_links_shows_a_run_per_arm_with_a_colour_of_its_own(study):
    runs, folder, plan = study
    mirror = mirror_study(runs, read_study(folder))
    state, found = state_of(mirror), summaries_of(mirror)
    metrics = {metric for run in found.values() for metric in run.data.metrics}
    drawn = [chart["metricKey"] for chart in state["compareRunCharts"]]
    assert metrics <= set(drawn) and len(drawn) == len(set(drawn))
    assert {chart["type"] for chart in state["compareRunCharts"] if chart["metricKey"].startswith("final")} == {"BAR"}
    assert [section["name"] for section in state["compareRunSections"]] == ["final", "curve"]
    names = {key for run in found.values() for key in (*run.data.params, *run.data.tags)}
    assert {column.split("`")[1] for column in state["selectedColumns"]} <= names
    assert state["searchFilter"] == "tags.role = 'summary'" and state["groupBy"] is None
    assert state["runsHiddenMode"] == "SHOW_ALL" and state["orderByKey"] == "tags.`group`"
    assert len(found) == len(plan.arms) and "feature: projector-unclipped" in found
    colours = {name: run.data.tags["mlflow.runColor"] for name, run in found.items()}
    assert len(set(colours.values())) == len(plan.arms)
    seeds = [run for run in runs_of(mirror) if run.data.tags["role"] == "arm"]
    assert all(run.data.tags["mlflow.runColor"] == colours[run.info.run_name.rsplit(",", 1)[0]] for run in seeds)


def test_a_list_of_295_pixels_cuts_no_two_names_alike(study):
    mirror = mirror_study(study[0], read_study(study[1]))
    assert len({name[:24] for name in summaries_of(mirror)}) == len(study[2].arms)


def test_the_other_view_shows_every_seed_and_closes_every_arm(study):
    runs, folder, plan = study
    mirror = mirror_study(runs, read_study(folder))
    state, found = state_of(mirror, "kdbench-seeds"), runs_of(mirror)
    names = {key for run in found for key in (*run.data.params, *run.data.tags, *run.data.metrics)}
    assert {column.split("`")[1] for column in state["selectedColumns"]} <= names
    wanted = MlflowClient(mirror.uri).search_runs([mirror.experiment], state["searchFilter"], max_results=1000)
    assert {run.data.tags["trial_key"] for run in wanted} == {k for arm in plan.arms.values() for k in arm.values()}
    roles = Counter(run.data.tags["role"] for run in found)
    assert roles == {"arm": len(wanted), "teacher": 2, "control": 3}
    closed = {f"tag.group.{run.data.tags['group']}" for run in found if run.data.tags["role"] != "teacher"}
    assert closed == set(state["groupsExpanded"]) and not any(state["groupsExpanded"].values())


def test_an_arms_run_has_its_means_exactly_and_rounded_for_reading(study):
    runs, folder, _ = study
    mirror = mirror_study(runs, read_study(folder))
    run = summaries_of(mirror)["feature: projector-unclipped"]
    values = [
        result.metrics.test_accuracy
        for arm, trials in read_study(folder).arms.items()
        if (arm.method, arm.fault) == ("feature", "projector-unclipped")
        for _, result in trials.values()
    ]
    assert run.data.metrics["final/test_accuracy"] == fmean(values)
    assert run.data.metrics["final/test_accuracy_sd"] == pytest.approx(stdev(values)) and stdev(values) > 0
    assert run.data.tags["test accuracy"] == f"{fmean(values):.2f} ± {stdev(values):.2f} (3 seeds)"
    assert run.data.params["seeds"] == "0, 1, 2"
    history = MlflowClient(mirror.uri).get_metric_history(run.info.run_id, "curve/val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 60.0), (2, 60.0), (3, 60.0)]


def test_an_arms_run_follows_its_seeds_and_is_left_alone_otherwise(study, tmp_path):
    runs, folder, _ = a_few(study, tmp_path, "summaries")
    shutil.copy(study[0] / "mlflow.db", runs / "mlflow.db")
    before = summaries_of(mirror_study(runs, read_study(folder)))
    assert {run.info.run_id for run in summaries_of(mirror_study(runs, read_study(folder))).values()} == {
        run.info.run_id for run in before.values()
    }
    name, run = next(iter(before.items()))
    key = next(
        spec.key
        for arm, trials in read_study(folder).arms.items()
        if run.data.tags["group"] == mlflow_view.group(arm.method, arm.fault, arm.pair)
        for spec, result in trials.values()
        if result is not None and result.metrics is not None
    )
    result = folder.trial(key).result()
    folder.trial(key).write_result(replace(result, metrics=replace(result.metrics, test_accuracy=12.5)))
    after = summaries_of(mirror_study(runs, read_study(folder)))
    assert [n for n in before if before[n].info.run_id != after[n].info.run_id] == [name]
    assert after[name].data.metrics["final/test_accuracy"] != before[name].data.metrics["final/test_accuracy"]


def test_no_two_of_many_arms_share_a_colour():
    colours = [mlflow_summary.colour(number) for number in range(250)]
    assert len(set(colours)) == 250 and all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


def test_parameters_are_written_as_they_are_read(study):
    mirror = mirror_study(study[0], read_study(study[1]))
    run = next(r for r in runs_of(mirror) if r.data.params["method"] == "logit")
    assert run.data.params["recipe.weight_decay"] == "0.0005" and run.data.params["recipe.flip"] == "False"
    assert mirror_module._shown(0.1 + 0.2) == "0.3" and mirror_module._shown(1e-4) == "0.0001"


def test_what_a_grid_tries_stands_apart_by_its_settings(study, tmp_path):
    preset = replace(load_preset("quick"), grid=Grid((7, 8), {"logit": {"alpha": (0.5, 0.9)}}))
    plan = make_plan(preset, [None], Ground("digits", "d" * 64, "cpu"))
    folder = StudyFolder(tmp_path / "grid")
    for key, spec in plan.trials.items():
        folder.trial(key).write_spec(spec)
        folder.trial(key).write_result(Result(key, "finished", None, 3, Metrics(90.0, 91.0, [])))
    write_study(folder, Decision(), plan.arms, grid=plan.grid)
    shutil.copy(study[0] / "mlflow.db", tmp_path / "mlflow.db")
    found = runs_of(mirror_study(tmp_path, read_study(folder)))
    assert {run.info.run_name for run in found} >= {"logit: corrected, alpha 0.5, seed 7"}
    assert Counter((run.data.tags["role"], run.data.tags["group"]) for run in found) == {
        ("grid", "logit · corrected · alpha 0.5 · r34-r18"): 2,
        ("grid", "logit · corrected · alpha 0.9 · r34-r18"): 2,
        ("teacher", "teacher · corrected · r34"): 1,
    }


def test_the_view_of_a_study_of_every_fault_fits_into_a_tag():
    groups = [f"{m} · some-fault-{n} · r34-r18" for m in ("baseline", "logit", "feature") for n in range(70)]
    assert all(len(value) < 5000 for value in mlflow_view.tags(groups, 0).values())


def test_the_links_open_the_view():
    charts, table = mlflow_view.links("http://127.0.0.1:5000", "7")
    assert table.startswith("http://127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=kdbench&")
    assert "runs?compareRunsMode=CHART&viewStateShareKey=kdbench&" in charts
    # With any of these in the link, the UI ignores the view.
    assert not any(word in table + charts for word in ("searchFilter", "orderByKey", "startTime", "lifecycleFilter"))


def test_mlflow_in_trouble_costs_a_remark(study, monkeypatch, capsys):
    runs, folder, _ = study
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    assert mirror_or_remark(runs, folder, stderr()) is None
    assert "kdbench mirror catches up" in " ".join(capsys.readouterr().err.split())


class Server:
    """An MLflow server on a free port of the loopback, with a database of its own."""

    def __init__(self, place):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self._command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{place / 'server.db'}"]
        self._command += ["--artifacts-destination", str(place / "artifacts")]
        self._log = place / "server.log"

    @contextlib.contextmanager
    def running(self):
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self._log.open("a") as log:
            process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not self._answers():
                assert process.poll() is None and time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.1)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the server and its worker, and nobody else
            process.wait(timeout=30)

    def _answers(self):
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


def test_a_server_gets_the_runs_and_after_an_outage_what_it_missed(study, tmp_path, monkeypatch, capsys):
    shutil.copy(study[0] / "mlflow.db", tmp_path / "server.db")
    runs, folder, keys = a_few(study, tmp_path, "remote")
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    with server.running():
        client, written, deadline = MlflowClient(server.url), 0, time.monotonic() + 60
        trials = "tags.role != 'summary'"
        with LiveMirror(runs, folder) as live:
            live.trial_done()
            while written < len(keys) and time.monotonic() < deadline:
                time.sleep(0.1)
                experiment = client.get_experiment_by_name("remote")
                written = len(client.search_runs([experiment.experiment_id], trials)) if experiment else 0
        mirror = mirror_or_remark(runs, folder, stderr())
        assert mirror.written == 0, "the live mirror wrote them all"
        found = runs_of(mirror)
        assert {run.data.tags["trial_key"] for run in found} == set(keys) and len(found) == len(keys)
        assert client.list_artifacts(found[0].info.run_id)
        assert set(state_of(mirror, "kdbench-seeds")["groupsExpanded"]) >= {"tag.group.logit · corrected · r34-r18"}
        monkeypatch.setattr(ui_command, "_serve", lambda *a, **k: pytest.fail("a second server was started"))
        code, out, _ = kdbench("ui", "--runs", runs, "--study", "remote")
        assert code == 0 and out.count(f"{server.url}/#/experiments/{mirror.experiment}/runs?") == 2
    result = folder.trial(keys[0]).result()
    folder.trial(keys[0]).write_result(Result(**{**vars(result), "reason": "while the server was down"}))
    with LiveMirror(runs, folder) as live:
        live.trial_done()
    capsys.readouterr()
    assert mirror_or_remark(runs, folder, stderr()) is None
    printed = capsys.readouterr()
    assert f"{server.url} does not answer" in " ".join(printed.err.split()) and printed.out == ""
    with server.running():
        for counts in ("1 runs written, 6 in", "0 runs written, 6 in"):
            code, out, err = kdbench("mirror", "--runs", runs, "--study", "remote")
            assert code == 0 and out == f"remote: {counts} {server.url}\n", err
        assert len(runs_of(mirror)) == len(keys)


def test_a_server_that_takes_calls_and_never_answers_is_asked_twice(study, monkeypatch, capsys):
    """MLflow by itself asks eight times, for minutes."""
    runs, folder, _ = study
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.2)
        over = threading.Event()

        def listen():
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    calls.append(silent.accept())

        listener = threading.Thread(target=listen)
        listener.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        assert mirror_or_remark(runs, folder, stderr()) is None
        over.set()
        listener.join()
    for connection, _ in calls:
        connection.close()
    assert len(calls) == 2
    assert "does not answer" in " ".join(capsys.readouterr().err.split())


def test_a_database_whose_making_was_cut_off_is_set_aside_and_written_anew(study, tmp_path, capsys):
    """As a kill leaves it: the first tables are there, and no note of which version they are of."""
    runs, folder, keys = a_few(study, tmp_path, "cut")
    with sqlite3.connect(runs / "mlflow.db") as broken:
        broken.execute("CREATE TABLE secrets (name TEXT)")
    broken.close()
    mirror = mirror_or_remark(runs, folder, stderr())
    assert "was broken and lies in" in capsys.readouterr().err
    assert mirror is not None and mirror.written == len(keys)
    assert sqlite3.connect(runs / "mlflow.db.broken-1").execute("SELECT name FROM sqlite_master").fetchone()
    assert mirror_or_remark(runs, folder, stderr()).written == 0


def test_a_making_that_is_cut_off_leaves_no_database(tmp_path, monkeypatch):
    class Dies:
        def __init__(self, uri, artifacts):
            Path(uri.removeprefix("sqlite:///")).write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(database, "SqlAlchemyStore", Dies)
    with pytest.raises(KeyboardInterrupt):
        database.ensure(tmp_path / "mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_only_a_broken_database_is_set_aside(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    path.write_text("this is no database, though it is long enough for its header to be read by SQLite" * 3)
    (tmp_path / "mlflow.db.broken-1").touch()
    assert database.ensure(path).name == "mlflow.db.broken-2" and database.ensure(path) is None

    def locked(uri, artifacts):
        raise ValueError("database is locked")

    monkeypatch.setattr(database, "SqlAlchemyStore", locked)
    with pytest.raises(ValueError, match="locked"):
        database.ensure(path)
    assert path.exists() and len(list(tmp_path.iterdir())) == 3


def test_a_server_that_trickles_holds_nobody(study, tmp_path, monkeypatch, capsys):
    """A byte a second: no read times out, and no answer ends."""
    runs, folder, _ = a_few(study, tmp_path, "slow")
    monkeypatch.setattr(mirror_module, "PATIENCE", 1.0)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def trickle():
            held = []
            while not over.wait(0.05):
                with contextlib.suppress(OSError):
                    held.append(server.accept()[0])
                for one in held:
                    with contextlib.suppress(OSError):
                        one.sendall(b"H")

        thread = threading.Thread(target=trickle)
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        try:
            assert mirror_or_remark(runs, folder, stderr()) is None
        finally:
            over.set()
            thread.join()
    assert "got nothing done for 1 s" in " ".join(capsys.readouterr().err.split())
