"""MLflow, written from the records by the coordinator alone: one flat run per trial, and one per arm with its means.

A run is looked up before it is made, by its trial's key or its arm's name, so mirroring twice changes nothing, and the
whole database can be made again from the records.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kdbench.harness.records.tracking  # noqa: F401  # isort: skip  # before mlflow, which reads it once
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.tracking import MlflowClient

from kdbench.harness.analysis.study_table import Trials
from kdbench.harness.plan.plan import Arm
from kdbench.harness.publish import database, mlflow_summary, mlflow_view
from kdbench.harness.publish.mlflow_summary import ArmSummary
from kdbench.harness.records.record import Folder, Result, StudyFolder
from kdbench.harness.records.spec import Spec

_STATUS = {"finished": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_LAYOUT = "3"
"Which params, metrics and tags a run gets; where it differs from a run's, the run is written anew."
PATIENCE = 15.0
"Seconds in which a server has to get one call done; one that sends a byte a second would hold a call for ever."


def tracking_uri(runs: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, or the SQLite database in the runs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


@dataclass(frozen=True)
class Place:
    """What a trial is in its study."""

    role: str
    "arm, control, grid or teacher."
    method: str
    pair: str
    group: str
    "The name that it shares with the other seeds."
    title: str
    "The short name that its seeds' runs begin with."
    colour: str = ""
    "Of its arm; empty where the UI may choose."


class _Told:
    """A client of MLflow's that tells of each call that was answered."""

    def __init__(self, client: MlflowClient, told: Callable[[], None]) -> None:
        self._client, self._told = client, told

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def answered(*args: Any, **named: Any) -> Any:
            found = call(*args, **named)
            self._told()
            return found

        return answered if callable(call) else call


class Mirror:
    """The experiment of one study in MLflow; `told` hears of each call that MLflow answered."""

    def __init__(self, runs: Path, study: str, told: Callable[[], None] = lambda: None) -> None:
        self.uri = tracking_uri(runs)
        self.set_aside: Path | None = None
        "Where a database lies now that was found broken."
        if self.uri.startswith("sqlite:///"):
            self.set_aside = database.ensure(Path(self.uri.removeprefix("sqlite:///")))
        self.client: Any = _Told(MlflowClient(self.uri), told)
        found = self.client.get_experiment_by_name(study)
        if found is None:
            local = self.uri.startswith("sqlite:")
            where = (runs / "mlartifacts").resolve().as_uri() if local else None
            self.experiment = str(self.client.create_experiment(study, artifact_location=where))
        else:
            self.experiment = str(found.experiment_id)
        self.written = 0
        self._tags = dict(found.tags) if found is not None else {}
        self.known: dict[str, tuple[str, str | None]] = {}
        "The trials' runs, by key."
        self._summaries: dict[str, tuple[str, str | None]] = {}
        "The arms' runs, by the name of the group."
        for run in self._runs():
            # A run whose writing was cut off is still running, says MLflow: it is written anew.
            record = run.data.tags.get("record") if run.info.status != "RUNNING" else None
            self._meet(self.known, run.data.tags.get("trial_key"), run.info.run_id, record)
            self._meet(self._summaries, run.data.tags.get("summary_of"), run.info.run_id, record)

    def _meet(self, known: dict[str, tuple[str, str | None]], key: str | None, run_id: str, record: str | None) -> None:
        """Note a run; a second one of the same, from a request that was answered late and sent again, is deleted."""
        if key is None:
            return
        this, other = (run_id, record), known.get(key)
        if other is not None and other[1] is not None:
            this, other = other, this
        known[key] = this
        if other is not None:
            self.client.delete_run(other[0])

    def _runs(self) -> list[Any]:
        runs, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def share(self, groups: list[str]) -> None:
        """Store the view that the links open, with these arms closed, unless it is there as it is."""
        wanted = mlflow_view.tags(groups, int(time.time() * 1000))
        if any(self._tags.get(tag) != value for tag, value in wanted.items() if not tag.endswith("-menu")):
            for tag, value in wanted.items():
                self.client.set_experiment_tag(self.experiment, tag, value)

    def write(self, place: Place, spec: Spec, result: Result, study: StudyFolder) -> None:
        """Mirror one trial, unless it is there as it is."""
        folder = study.trial(result.key)
        record = f"{_LAYOUT}-{hashlib.sha256((folder.path / 'result.json').read_bytes()).hexdigest()[:16]}"
        if result.key in self.known:
            run_id, mirrored = self.known[result.key]
            if mirrored == record:
                return
            self.client.delete_run(run_id)  # the trial was tried again, or its story completed
        started = int(datetime.fromisoformat(str(result.times["started"])).timestamp() * 1000) if result.times else None
        tags = {
            "trial_key": result.key,
            "record": record,
            "study": study.path.name,
            "role": place.role,
            "group": place.group,
            "git_commit": str(result.environment.get("git_commit")),
            "git_dirty": str(result.environment.get("git_dirty")),
            "status": result.status + (f": {result.reason}" if result.reason else ""),
            "findings": " ".join([*result.roots, *result.consequences]) or "none",
            "mlflow.note.content": _note(result),
            **({mlflow_view.COLOUR: place.colour} if place.colour else {}),
        }
        name = f"{place.title}, seed {spec.seed}"
        run_id = self.client.create_run(self.experiment, started, tags, name).info.run_id
        # Files before values: MLflow reads a whole run to learn where its files go. And in one errand, not one each.
        with TemporaryDirectory() as together:
            for file in ("spec.json", "result.json", "curve.jsonl"):
                if (folder.path / file).is_file():
                    shutil.copy(folder.path / file, together)
            self.client.log_artifacts(run_id, together)
        self._log(run_id, place, spec, result, folder, started)
        seconds = float(result.times.get("seconds", 0)) if result.times else 0.0
        ended = started + int(seconds * 1000) if started else None
        self.client.set_terminated(run_id, _STATUS[result.status], ended)  # last: see `known`
        self.known[result.key] = (run_id, record)
        self.written += 1

    def _log(self, run_id: str, place: Place, spec: Spec, result: Result, folder: Folder, started: int | None) -> None:
        """Write a run's data set, parameters and metrics."""
        data = Dataset(spec.dataset, spec.data_digest[:16], "kdbench", json.dumps({"name": spec.dataset}))
        self.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
        params = {
            "variant": "corrected" if spec.fault is None else "bugged",
            "fault": spec.fault or "none",
            "pair": place.pair,
            "method": place.method,
            "seed": spec.seed,
            "arch": spec.arch,
            "dataset": spec.dataset,
            "device": spec.device,
            **{f"recipe.{name}": value for name, value in vars(spec.recipe).items()},
            **{f"method.{name}": value for name, value in vars(spec.settings).items()},
        }
        self.client.log_batch(
            run_id,
            metrics=_metrics(result, folder.curve(), started or int(time.time() * 1000)),
            params=[Param(name, _shown(value)) for name, value in params.items()],
        )

    def write_summary(self, summary: ArmSummary, study: str) -> None:
        """Write the run of an arm as a whole, unless it is there as it is."""
        record = f"{_LAYOUT}-{summary.record}"
        if summary.group in self._summaries:
            run_id, mirrored = self._summaries[summary.group]
            if mirrored == record:
                return
            self.client.delete_run(run_id)  # a seed more, or one that was tried again
        tags = {
            "summary_of": summary.group,
            "group": summary.group,
            "record": record,
            "study": study,
            "role": "summary",
            "mlflow.note.content": "Means over the seeds of this arm. Each seed has a run: clear the search box.",
            mlflow_view.COLOUR: summary.colour,
            **summary.tags,
        }
        now = int(time.time() * 1000)
        run_id = self.client.create_run(self.experiment, now, tags, summary.title).info.run_id
        metrics = [Metric(name, value, now, 0) for name, value in summary.final.items()]
        for name, values in summary.curves.items():
            metrics += [Metric(name, v, now, epoch) for epoch, v in enumerate(values, 1) if v is not None]
        params = [Param(name, value) for name, value in summary.params.items()]
        self.client.log_batch(run_id, metrics=metrics[:_BATCH], params=params)
        for at in range(_BATCH, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[at : at + _BATCH])
        self.client.set_terminated(run_id, "FINISHED", now)
        self._summaries[summary.group] = (run_id, record)


_BATCH = 1000
"Metrics that MLflow takes at once."


def _shown(value: Any) -> str:
    """Return a parameter as it is read: a number without the digits that only its binary form has."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _note(result: Result) -> str:
    failed = [f"- {f['id']} {f['name']}: {f['message']}" for f in result.findings if f["status"] == "fail"]
    return "Audits that failed:\n" + "\n".join(failed) if failed else "No audit failed."


def _metrics(result: Result, curve: list[dict[str, Any]], time_ms: int) -> list[Metric]:
    """Return `curve/*` by epoch, which the UI draws as lines, and `final/*` at step 0, which it draws as bars."""
    metrics = []
    for line in curve:
        values = _by_epoch(line)
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


def _by_epoch(line: dict[str, Any]) -> dict[str, float | None]:
    """Return what is drawn of one epoch."""
    return {
        "curve/loss": line["loss"]["total"],
        "curve/kd_loss": line["loss"].get("kd"),
        "curve/val_accuracy": line["val_accuracy"],
        "curve/train_accuracy": line["train_accuracy"],
        "curve/lr": line["lr"],
        "curve/grad_norm": line["grad_norms"]["all"]["max"],
        "curve/projector_grad_norm": line["grad_norms"].get("projectors", {}).get("max"),
    }


def _places(study: Trials) -> dict[str, Place]:
    """Return what each trial is, by key; a training that several share is the first arm's."""
    places = {}
    several = len({arm.pair for arm in study.arms}) > 1

    def place(role: str, arm: Arm, fault: str | None, point: str = "", colour: str = "") -> Place:
        title = mlflow_view.title(arm.method, fault, arm.pair if several else "", point)
        return Place(role, arm.method, arm.pair, mlflow_view.group(arm.method, fault, arm.pair, point), title, colour)

    for arm, points in study.grid.items():
        for tried in points:
            point = ", ".join(f"{name} {value:g}" for name, value in tried.point.items())
            for spec, _ in tried.trials.values():
                places[spec.key] = place("grid", arm, spec.fault, point)
    painted = mlflow_summary.colours(study)
    for role, arms in (("control", study.controls), ("arm", study.arms)):
        for arm in reversed(arms):
            for spec, _ in arms[arm].values():
                places[spec.key] = place(role, arm, spec.fault, colour=painted[arm] if role == "arm" else "")
    return places


def mirror_study(runs: Path, study: Trials) -> Mirror:
    """Write everything of a study that MLflow does not have; `written` of what is returned counts the trials' runs.

    A server that gets nothing done for :data:`PATIENCE` seconds is a TimeoutError; SQLite may take its time.
    """
    if tracking_uri(runs).startswith("sqlite:"):
        return _write_all(runs, study, lambda: None)
    last = time.monotonic()

    def told() -> None:
        nonlocal last
        last = time.monotonic()

    found: list[Mirror | BaseException] = []

    def work() -> None:
        try:
            found.append(_write_all(runs, study, told))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)  # whoever hangs on a server is left there
    thread.start()
    while thread.is_alive() and time.monotonic() - last < PATIENCE:
        thread.join(0.05)
    if not found:
        raise TimeoutError(f"{tracking_uri(runs)} got nothing done for {PATIENCE:.0f} s")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _write_all(runs: Path, study: Trials, told: Callable[[], None]) -> Mirror:
    places = _places(study)
    with study.folder.mirroring():
        mirror = Mirror(runs, study.folder.path.name, told)
        mirror.share(sorted({place.group for place in places.values()}))
        for folder in study.folder.trials():
            result = folder.result()
            if result is not None:
                spec = folder.spec()
                group, title = (of("teacher", spec.fault, spec.arch) for of in (mlflow_view.group, mlflow_view.title))
                teacher = Place("teacher", "teacher", spec.arch, group, title)
                mirror.write(places.get(folder.key, teacher), spec, result, study.folder)
        for arm, trials in study.arms.items():
            keys = [spec.key for spec, result in trials.values() if result is not None]
            curves = [[_by_epoch(line) for line in study.folder.trial(key).curve()] for key in keys]
            summary = mlflow_summary.summarise(study, arm, curves)
            if summary is not None:
                mirror.write_summary(summary, study.folder.path.name)
    return mirror
