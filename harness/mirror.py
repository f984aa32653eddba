"""MLflow, written from the records: one flat run a trial, by the coordinator alone, as often as one likes.

A run is looked up by its trial's key before it is made, so mirroring twice changes nothing, and the whole database can
be made again from the records.
"""

import hashlib
import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# A server that is down is told at once, not after minutes of patience: the records can be mirrored any time.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from harness.compare import Trials
from harness.plan import Arm
from harness.record import Result, StudyFolder
from harness.spec import Spec

_STATUS = {"finished": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_BATCH = 1000
"Metrics that one call may carry."


def tracking_uri(runs: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, or the SQLite database in the runs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


class Mirror:
    """The experiment of one study in MLflow."""

    def __init__(self, runs: Path, study: str) -> None:
        self.uri = tracking_uri(runs)
        self.client = MlflowClient(self.uri)
        found = self.client.get_experiment_by_name(study)
        if found is None:
            local = self.uri.startswith("sqlite:")
            where = (runs / "mlartifacts").resolve().as_uri() if local else None
            self.experiment = str(self.client.create_experiment(study, artifact_location=where))
        else:
            self.experiment = str(found.experiment_id)
        self.written = 0
        self.view = _share_view(self.client, self.experiment)
        self.known = {
            run.data.tags["trial_key"]: (run.info.run_id, run.data.tags.get("record"))
            for run in self._runs()
            if "trial_key" in run.data.tags
        }

    def _runs(self) -> list[Any]:
        runs, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def write(self, arm: Arm | None, spec: Spec, result: Result, study: StudyFolder) -> None:
        """Mirror one trial, unless it is there as it is. `arm` is None for a teacher."""
        folder = study.trial(result.key)
        record = hashlib.sha256((folder.path / "result.json").read_bytes()).hexdigest()[:16]
        if result.key in self.known:
            run_id, mirrored = self.known[result.key]
            if mirrored == record:
                return
            self.client.delete_run(run_id)  # the trial was tried again, or its story completed
        started = int(datetime.fromisoformat(str(result.times["started"])).timestamp() * 1000) if result.times else None
        label = "teacher" if arm is None else spec.method
        pair = spec.arch if arm is None else arm.pair
        run_name = f"{label} · {pair} · {spec.fault or 'corrected'} · s{spec.seed}"
        tags = {
            "trial_key": result.key,
            "study": study.path.name,
            "group": f"{label} · {pair} · {spec.fault or 'corrected'}",
            "git_commit": str(result.environment.get("git_commit")),
            "git_dirty": str(result.environment.get("git_dirty")),
            "status": result.status + (f": {result.reason}" if result.reason else ""),
            "findings": " ".join([*result.roots, *result.consequences]) or "none",
        }
        run = self.client.create_run(self.experiment, start_time=started, tags=tags, run_name=run_name)
        run_id = run.info.run_id
        params = {
            "variant": "corrected" if spec.fault is None else "bugged",
            "fault": spec.fault or "none",
            "pair": pair,
            "method": label,
            "seed": spec.seed,
            "arch": spec.arch,
            "dataset": spec.dataset,
            "device": spec.device,
            **{f"recipe.{name}": value for name, value in vars(spec.recipe).items()},
            **{f"method.{name}": value for name, value in vars(spec.settings).items()},
        }
        self.client.log_batch(
            run_id,
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag("mlflow.note.content", _note(result))],
        )
        metrics = _metrics(result, folder.curve(), started or int(time.time() * 1000))
        for first in range(0, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[first : first + _BATCH])
        self.client.log_inputs(
            run_id,
            [
                DatasetInput(
                    Dataset(spec.dataset, spec.data_digest[:16], "kdbench", json.dumps({"name": spec.dataset})),
                    [InputTag("mlflow.data.context", "training")],
                )
            ],
        )
        for name in ("spec.json", "result.json", "curve.jsonl"):
            if (folder.path / name).is_file():
                self.client.log_artifact(run_id, str(folder.path / name))
        seconds = float(result.times.get("seconds", 0)) if result.times else 0.0
        ended = started + int(seconds * 1000) if started else None
        self.client.set_terminated(run_id, _STATUS[result.status], ended)
        self.client.set_tag(run_id, "record", record)  # last: a run without it was cut off, and is written anew
        self.known[result.key] = (run_id, record)
        self.written += 1


def _note(result: Result) -> str:
    failed = [f"- {f['id']} {f['name']}: {f['message']}" for f in result.findings if f["status"] == "fail"]
    return "Audits that failed:\n" + "\n".join(failed) if failed else "No audit failed."


def _metrics(result: Result, curve: list[dict[str, Any]], time_ms: int) -> list[Metric]:
    """Return `curve/*` by epoch, which the UI draws as lines, and `final/*` at step 0, which it draws as bars."""
    metrics = []
    for line in curve:
        values = {
            "curve/loss": line["loss"]["total"],
            "curve/kd_loss": line["loss"].get("kd"),
            "curve/val_accuracy": line["val_accuracy"],
            "curve/train_accuracy": line["train_accuracy"],
            "curve/lr": line["lr"],
            "curve/grad_norm": line["grad_norms"]["all"]["max"],
            "curve/projector_grad_norm": line["grad_norms"].get("projectors", {}).get("max"),
        }
        metrics += [Metric(k, float(v), time_ms, line["epoch"]) for k, v in values.items() if v is not None]
    if result.metrics is not None:
        final = {
            "final/test_accuracy": result.metrics.test_accuracy,
            "final/val_accuracy": result.metrics.val_accuracy,
            "final/agreement": result.metrics.agreement,
            "final/audits_failed": len(result.roots) + len(result.consequences),
        }
        metrics += [Metric(k, float(v), time_ms, 0) for k, v in final.items() if v is not None]
    return metrics


def _share_view(client: MlflowClient, experiment: str) -> str:
    """Store the view that the UI should open on, grouped by variant and method; return the name to ask for it by.

    By itself the UI shows the ten newest runs. The tag is undocumented: where a version of MLflow ignores it, the link
    opens the plain experiment.
    """
    state = json.dumps(
        {
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [
                    {"mode": "param", "groupByData": "fault"},
                    {"mode": "param", "groupByData": "method"},
                ],
            },
            "runsHiddenMode": "SHOW_ALL",
            "selectedColumns": [
                "params.`variant`",
                "params.`fault`",
                "params.`method`",
                "metrics.`final/test_accuracy`",
                "metrics.`final/audits_failed`",
            ],
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
        },
        sort_keys=True,
    )
    name = hashlib.md5(state.encode(), usedforsecurity=False).hexdigest()
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{name}", state)
    return name


def links(base: str, experiment: str, view: str) -> tuple[str, str]:
    """Return the links to the grouped charts and to the table of group means."""
    table = f"{base}/#/experiments/{experiment}/runs?viewStateShareKey={view}&workflowType=machine_learning"
    return table.replace("runs?", "runs?compareRunsMode=CHART&"), table


def mirror_study(runs: Path, study: Trials) -> Mirror:
    """Write everything of a study that MLflow does not have; `written` of what is returned counts the runs."""
    mirror = Mirror(runs, study.folder.path.name)
    arm_of: dict[str, Arm] = {}
    for arm, trials in study.arms.items():
        for spec, _ in trials.values():
            arm_of.setdefault(spec.key, arm)
    for folder in study.folder.trials():
        result = folder.result()
        if result is not None:
            mirror.write(arm_of.get(folder.key), folder.spec(), result, study.folder)
    return mirror
