"""MLflow holds what the records hold, however often and whenever it is written."""

import json
import shutil
import subprocess
import sys

import pytest

mlflow = pytest.importorskip("mlflow")

from mlflow.tracking import MlflowClient  # noqa: E402

from harness.compare import read_study, write_study  # noqa: E402
from harness.mirror import Mirror, links, mirror_study  # noqa: E402
from harness.plan import Decision, Ground, load_preset, make_plan  # noqa: E402
from harness.record import FaultStory, Metrics, Result, StudyFolder  # noqa: E402
from harness.variants import VARIANTS  # noqa: E402


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study's records as the trials write them, without the training."""
    runs = tmp_path_factory.mktemp("runs")
    plan = make_plan(load_preset("quick"), VARIANTS["both"], Ground("digits", "d" * 64, "cpu"))
    folder = StudyFolder(runs / plan.study)
    for n, (key, spec) in enumerate(plan.trials.items()):
        trial = folder.trial(key)
        trial.write_spec(spec)
        norms = {"student": {"mean": 1.0, "max": 2.0}, "all": {"mean": 1.0, "max": 2.0}}
        line = {"lr": 0.1, "loss": {"ce": 1.0, "kd": 2.0, "total": 3.0}, "grad_norms": norms}
        line.update(train_accuracy=50.0, val_accuracy=60.0)
        lines = [{**line, "epoch": epoch} for epoch in (1, 2, 3)]
        (trial.path / "curve.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        story = FaultStory(spec.fault, "stem", 1, True, [], 1, False) if spec.fault else None
        status = "failed" if n == 3 else "finished"
        times = {"started": "2026-11-24T08:00:00+00:00", "seconds": 7.0}
        metrics = None if status == "failed" else Metrics(90.0 + n / 10, 91.0, [90.0] * 10)
        trial.write_result(Result(key, status, None, 3, metrics, [], story, None, {"git_commit": "abc"}, times))
    write_study(folder, Decision(), plan.arms)
    return runs, folder, plan


@pytest.fixture(autouse=True)
def _own_database(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def runs_of(mirror):
    return MlflowClient(mirror.uri).search_runs([mirror.experiment], max_results=1000)


def test_mirror_is_flat_idempotent_and_rebuilt_from_the_records(study):
    runs, folder, plan = study
    mirror = mirror_study(runs, read_study(folder))
    assert mirror.written == len(plan.trials) == 29
    found = runs_of(mirror)
    assert {run.data.tags["trial_key"] for run in found} == set(plan.trials)
    assert not any("mlflow.parentRunId" in run.data.tags for run in found)
    names = sorted(run.info.run_name for run in found)
    assert "feature · r34-r18 · projector-unclipped · s2" in names and "teacher · r34 · corrected · s0" in names
    assert mirror_study(runs, read_study(folder)).written == 0


def test_a_lost_database_is_made_again_from_the_records(study, tmp_path):
    _, folder, plan = study
    shutil.copytree(folder.path, tmp_path / "runs" / folder.path.name)
    command = [sys.executable, "-m", "harness.cli", "mirror", "--runs", str(tmp_path / "runs")]
    seen = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "29 runs written, 29 in sqlite:" in done.stdout, done.stderr
        database = (tmp_path / "runs" / "mlflow.db").rename(tmp_path / f"lost-{len(seen)}.db")
        client = MlflowClient(f"sqlite:///{database}")
        (experiment,) = client.search_experiments(filter_string=f"name = '{folder.path.name}'")
        found = client.search_runs([experiment.experiment_id])
        seen.append({r.data.tags["trial_key"]: (r.data.params, r.data.metrics, r.info.status) for r in found})
    assert seen[0] == seen[1]
    assert seen[0].keys() == set(plan.trials)


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


def test_the_shared_view_is_stored_and_linked(study):
    runs, folder, _ = study
    mirror = Mirror(runs, folder.path.name)
    tags = MlflowClient(mirror.uri).get_experiment(mirror.experiment).tags
    state = json.loads(tags[f"mlflow.sharedViewState.{mirror.view}"])
    assert state["runsHiddenMode"] == "SHOW_ALL"
    charts, table = links("http://127.0.0.1:5000", mirror.experiment, mirror.view)
    assert f"/experiments/{mirror.experiment}/runs?compareRunsMode=CHART&viewStateShareKey={mirror.view}" in charts
    assert "compareRunsMode" not in table


def test_mlflow_in_trouble_costs_a_remark(study, monkeypatch, capsys):
    from harness.cli.common import mirror_or_remark, stderr

    runs, folder, _ = study
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    assert mirror_or_remark(runs, folder, stderr()) is None
    assert "kdbench mirror catches up" in " ".join(capsys.readouterr().err.split())
