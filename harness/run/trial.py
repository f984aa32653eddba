"""One training run in a process of its own: a spec in, a record out.

``python -m kdbench.harness.run.trial FOLDER --data FILE`` runs the trial whose ``spec.json`` lies in FOLDER, with no
MLflow and no network; the coordinator calls the same :func:`run`.
"""

import argparse
import contextlib
import csv
import gc
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kdbench import audits
from kdbench.audits.checks.teacher import over_chance
from kdbench.audits.finding import finite
from kdbench.harness import faults, loading
from kdbench.harness.options import told
from kdbench.harness.records.environment import audits_digest, code_digest, environment
from kdbench.harness.records.record import (
    FINAL,
    OUT_OF_MEMORY,
    FaultStory,
    Folder,
    Metrics,
    Result,
    StudyFolder,
    TeacherRecord,
    sync,
)
from kdbench.harness.records.spec import Spec
from kdbench.harness.run.kept_answers import answers_for
from kdbench.harness.run.processes import ENDING, hear_signals
from kdbench.harness.run.properties import with_properties
from kdbench.kd import checkpoint, evaluate, train
from kdbench.kd.data import Dataset, load_file
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS, MethodSettings, Soft
from kdbench.kd.models.registry import get as model
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.teacher import file_sha256, read_checkpoint, save_checkpoint

CHECKPOINT_SECONDS = 60.0
"How often a long training is kept, so that little is lost when it is cut off."

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]


def run(folder: Folder, data_file: Path) -> Result:
    """Run the trial in `folder` and commit its result; an exception becomes a result of status failed."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    try:
        result = _run(folder, folder.spec(), data_file)
    except KeyboardInterrupt:
        result = Result(folder.key, "interrupted", "interrupted by the user")
    except InputError as error:
        result = Result(folder.key, "failed", told(error))
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error} (log.txt has the traceback)"
        result = Result(folder.key, "failed", f"{OUT_OF_MEMORY}: {said}" if _is_memory(error) else said)
    result.times.update(started=started, seconds=round(time.perf_counter() - clock, 3))
    folder.write_result(folder.seal_files(result))
    if result.status in FINAL or (result.status == "failed" and OUT_OF_MEMORY not in str(result.reason)):
        shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)  # what failed would fail again from there
    return result


def _is_memory(error: Exception) -> bool:
    """Say whether memory ran out; on a CPU torch says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def teacher_checkpoint(folder: Folder, spec: Spec) -> train.Teacher | None:
    """Return where the trial's teacher lies: beside it among the trials, or among the weights brought along."""
    if spec.teacher is None:
        return None
    kind, _, digest = spec.teacher.key.partition(":")
    study = StudyFolder(folder.path.parent.parent)
    if kind != "sha256":
        path = study.trial(spec.teacher.key).student
        return train.Teacher(spec.teacher.arch, path, file_sha256(path) if path.is_file() else None)
    paths = [study.weights(digest, suffix) for suffix in (".safetensors", ".pt")]
    path = next((p for p in paths if p.is_file()), paths[0])
    return train.Teacher(spec.teacher.arch, path, digest)


def declared(method: str, settings: MethodSettings) -> audits.KD:
    """Return what a method declares of its terms: a form of its own where it is none that an audit reads."""
    soft = METHODS[method].soft
    if soft is Soft.DECOUPLED:
        return audits.KD(form="decoupled")
    if soft is not Soft.HINTON:
        return audits.KD(form="own")
    weight, temperature = settings.weight("kd"), float(vars(settings)["temperature"])
    if settings.ce_weight + weight == 1:
        return audits.KD(temperature=temperature, alpha=weight)
    return audits.KD(temperature=temperature, kd_weight=weight)


def watched(training: train.Training, method: str, teacher: train.Teacher | None) -> audits.Watch:
    """Return the watch of a training of ours, with everything declared that its recipe and method mean."""
    return audits.watch(
        student=training.student,
        teacher=training.teacher,
        projectors=training.method.named_projectors(),
        optimizer=training.optimizer,
        clip=audits.Clip(training.recipe.max_norm),
        kd=declared(method, training.settings),
        teacher_weights=read_checkpoint(teacher.checkpoint) if teacher is not None else None,
        same_input=True,
        burn_in=train.OWN_STEPS,
    )


def prepare_device(kind: str, threads: int) -> torch.device:
    """Set up this process for bits that do not change from run to run, and return the device."""
    torch.set_num_threads(threads)
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError("the trial is for cuda, and torch sees no CUDA device")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        # Scores are fp32 whatever the precision of the training, which sees to itself (kdbench.kd.accelerate.rounding).
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(kind)


class _Seam:
    """The procedure of a trial with its fault injected, if it has one, and how often the fault was asked."""

    def __init__(self, spec: Spec) -> None:
        self.fault = faults.get(spec.fault) if spec.fault is not None else None
        self.calls = 0
        self.procedure = CANONICAL
        if self.fault is not None:
            if self.fault.digest != spec.fault_digest:
                raise InputError(f"fault {spec.fault} has changed since the trial was planned; plan it anew")
            self.procedure = self.fault.inject(CANONICAL, self._reached)

    def _reached(self) -> None:
        self.calls += 1

    def story(self, findings: Sequence[Mapping[str, Any]]) -> FaultStory | None:
        """Return how far the fault got; None without one."""
        if self.fault is None:
            return None
        revealed = sorted(f["id"] for f in findings if f["status"] == "fail" and f["severity"] == "error")
        return FaultStory(self.fault.name, self.fault.seam, self.calls, self.calls > 0, revealed)


class _Curve:
    """The lines of a training, written as they come; first the ones of before it was cut off."""

    def __init__(self, folder: Folder, training: train.Training, earlier: Sequence[Mapping[str, Any]]) -> None:
        self._folder, self._training, self._earlier = folder, training, earlier
        self._written = 0
        path = folder.path / "curve.jsonl"
        path.unlink(missing_ok=True)  # an orphan of a dead coordinator may still hold the old one open
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> "_Curve":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, epoch: train.Epoch) -> None:
        """Write an epoch, and the earlier ones before it that are not written yet."""
        self._write([*self._earlier[self._written : epoch.epoch - 1], finite(asdict(epoch))])

    def catch_up(self, epochs: int) -> None:
        """Write what is left of the earlier epochs."""
        self._write(self._earlier[self._written : epochs])

    def _write(self, new: Sequence[Mapping[str, Any]]) -> None:
        self._file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in new)
        self._file.flush()
        self._written += len(new)
        if self._training.scores_test:
            with (self._folder.path / "test_curve.jsonl").open("w") as scores:
                for number, score in enumerate(self._training.test_scores, 1):
                    scores.write(json.dumps({"epoch": number, "test_accuracy": score}) + "\n")
        write_norms(self._folder.path / "norms.csv", self._training)


class _Clock:
    """The seconds of a trial's parts."""

    def __init__(self) -> None:
        self.times: dict[str, float | str] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the time since the lap before."""
        now = time.perf_counter()
        self.times[name], self._last = round(now - self._last, 3), now


def _data_of(spec: Spec, data_file: Path) -> Dataset:
    """Return the data set, or raise InputError if it is not the one that the trial is for."""
    dataset = load_file(data_file)
    if dataset.digest != spec.data_digest:
        raise InputError(f"{data_file} holds data {dataset.digest[:16]}, the trial is for {spec.data_digest[:16]}")
    return dataset


def _run(folder: Folder, spec: Spec, data_file: Path) -> Result:
    clock = _Clock()
    device = prepare_device(spec.device, spec.threads)
    dataset = _data_of(spec, data_file)
    seam = _Seam(spec)
    _check_files(spec)
    teacher = teacher_checkpoint(folder, spec)
    training = train.prepare(
        dataset,
        spec.arch,
        teacher,
        spec.method,
        spec.settings,
        spec.recipe,
        seam.procedure,
        spec.seed,
        device,
        spec.stages,
    )
    training.answers = answers_for(folder, spec, training.provenance.sha256 if training.provenance else None)
    training.scores_test = seam.fault is not None and seam.fault.needs_test_scores
    teacher_record = _teacher_record(training, spec)
    clock.lap("prepare_seconds")

    kept = folder.path / "checkpoint" / "state.pt"
    training.resume = checkpoint.load(kept, device)
    earlier = _earlier(folder) if training.resume is not None else []
    if training.resume is not None and len(earlier) < len(training.resume["digests"]):
        training.resume = None
    diverged, saved = None, time.monotonic()
    with (
        _Curve(folder, training, earlier) as curve,
        watched(training, spec.method, teacher) as watch,
        _asked_to_end() as asked,
    ):
        for epoch in train.epochs(training, watch.labels):
            curve.note(epoch)
            if not epoch.finite:
                diverged = epoch.epoch
                break
            ends = bool(asked) and epoch.epoch < spec.recipe.epochs
            if ends or time.monotonic() - saved >= CHECKPOINT_SECONDS:
                checkpoint.save(training.state_dict(), kept)
                saved = time.monotonic()
            if ends:
                raise SystemExit(128 + asked[0])
        curve.catch_up(training.resumed_after or 0)  # cut off after its last epoch, it trains none of the rest
    clock.lap("train_seconds")
    if training.resumed_after is not None:
        clock.times["resumed_after_epoch"] = training.resumed_after
    if training.kept_epochs:
        clock.times["kept_answers_epochs"] = training.kept_epochs

    findings = with_properties(watch.report, training).to_dicts()
    selected, metrics = None, None
    if diverged is None:
        selected = training.restore_selected()
        metrics = _score(training, selected)
        save_checkpoint(training.student, folder.student)
        sync(folder.student)
        if any(True for _ in training.method.parameters()):
            save_checkpoint(training.method, folder.path / "method.safetensors")
    clock.lap("test_seconds")
    return Result(
        key=folder.key,
        status="finished" if diverged is None else "diverged",
        reason=None if diverged is None else f"the loss was no number in epoch {diverged}",
        selected_epoch=selected,
        metrics=metrics,
        findings=findings,
        fault=seam.story(findings),
        teacher=teacher_record,
        environment=environment(device, spec.method),
        times=clock.times,
        peak_memory_mb=_peak_memory_mb(device),
    )


@contextlib.contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """Note the signals that end a job on a cluster, and do not die by them: the state is written after the epoch.

    Elsewhere than in a process's main thread nothing is noted, since Python hears signals there alone.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in ENDING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _earlier(folder: Folder) -> list[dict[str, Any]]:
    """Return the epochs of before the trial was cut off; none where they cannot be read: then it begins anew."""
    try:
        return folder.curve()
    except InputError as error:
        logging.getLogger(__name__).warning("the training begins anew: %s", error)
        return []


def _check_files(spec: Spec) -> None:
    """Raise InputError if a method or network is of another file than the trial was planned with."""
    if METHODS[spec.method].digest != spec.method_digest:
        raise InputError(f"the file of method {spec.method} has changed since the trial was planned; plan it anew")
    nets = [(spec.arch, spec.arch_digest)]
    nets += [(spec.teacher.arch, spec.teacher_digest)] if spec.teacher is not None else []
    for arch, digest in nets:
        if model(arch).digest != digest:
            raise InputError(f"the file of network {arch} has changed since the trial was planned; plan it anew")


def write_norms(path: Path, training: train.Training) -> None:
    """Write the gradient norms of the first steps, a step a line, before clipping."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", *training.norm_names])
        table.writerows([step, *norms] for step, norms in enumerate(training.first_norms, 1))


def _teacher_record(training: train.Training, spec: Spec) -> TeacherRecord | None:
    if training.teacher is None or training.provenance is None or spec.teacher is None:
        return None
    ids = training.split.val
    labels = training.pool.labels[ids.to(training.pool.device)]
    logits = evaluate.logits_of(training.teacher, training.batches(ids), training.pool.centre)
    floor = 100 * over_chance((torch.bincount(labels).max() / len(labels)).item())
    value = evaluate.accuracy(logits, labels)
    p = training.provenance
    return TeacherRecord(spec.teacher.arch, p.file, p.sha256, p.loaded_fraction, value, floor, value > floor)


def _score(training: train.Training, selected: int) -> Metrics:
    ids = training.split.test
    labels = training.pool.labels[ids.to(training.pool.device)]
    logits = evaluate.logits_of(training.student, training.batches(ids), training.pool.centre)
    close = None
    if training.teacher is not None:
        answers = evaluate.logits_of(training.teacher, training.batches(ids), training.pool.centre)
        close = evaluate.fidelity(logits, answers)
    return Metrics(
        test_accuracy=evaluate.accuracy(logits, labels),
        val_accuracy=training.val_scores[selected - 1],
        per_class=evaluate.per_class_accuracy(logits, labels),
        agreement=close.agreement if close else None,
        kl_t1=close.kl_t1 if close else None,
        kl_t4=close.kl_t4 if close else None,
    )


def _peak_memory_mb(device: torch.device) -> float | None:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _end_with_coordinator(parent: int) -> None:
    """End this process when who started it is gone: an orphan would write to a folder that is another's by then.

    Under multiprocessing that is not the parent, which may be a server that lives for as long as this process.
    """
    from multiprocessing import parent_process

    coordinator = parent_process()
    if coordinator is not None:
        coordinator.join()
    while coordinator is None and os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def run_in_child(path: str, data_file: str, files: Sequence[tuple[str, str | Path]], device: str | None = None) -> None:
    """Run a trial in this (fresh) process with its output in the trial's log; `device` is the one GPU that it sees."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # torch reads it when it first uses CUDA, which nothing has yet
    hear_signals()
    threading.Thread(target=_end_with_coordinator, args=(os.getppid(),), daemon=True).start()
    gc.freeze()  # what was imported stays; to look through it for garbage is a fifth of a short trial
    folder = Folder(Path(path))
    with (folder.path / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True)
        loading.load_all(files)
        run(folder, Path(data_file))


code_digest()  # worked out beside the imports: a trial that is forked from here need not
audits_digest()


def main() -> int:
    """Run one trial from the command line; exit 0 if it finished, 2 for bad input, 3 if it could not run."""
    parser = argparse.ArgumentParser(prog="python -m kdbench.harness.run.trial", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder that holds spec.json; the record goes there too")
    parser.add_argument(
        "--data", type=Path, required=True, help="tensor file of the data set (kdbench doctor says where)"
    )
    for kind in loading.KINDS.values():
        own = f"file of {kind.name} of your own"
        parser.add_argument(kind.option, dest=kind.name, type=Path, action="append", default=[], help=own)
    args = parser.parse_args()
    folder = Folder(args.folder.resolve())
    try:
        loading.load_all((kind, file) for kind in loading.KINDS for file in getattr(args, kind))
        folder.spec()
    except InputError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 2
    result = run(folder, args.data)
    score = f", test accuracy {result.metrics.test_accuracy:.2f}%" if result.metrics else ""
    print(f"{result.key} {result.status}{score}{': ' + result.reason if result.reason else ''}")
    return 0 if result.status == "finished" else 3


if __name__ == "__main__":
    ended = main()
    gc.freeze()  # see kdbench.harness.cli
    sys.exit(ended)
