"""A study from what was asked for to what came of it: checked, carried out, summed up.

ready = prepare(request)            # everything checked, nothing written
outcome = carry_out(ready, tell)    # trials run, stories completed, results.csv written
found = summary(ready, outcome)     # what kdbench.run/1 holds
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdbench.harness.analysis import arms, compare
from kdbench.harness.analysis.because import Because, because
from kdbench.harness.analysis.best import BestOfPair, best_of_pairs
from kdbench.harness.analysis.controls import controls
from kdbench.harness.analysis.over_pairs import OverPairs, over_pairs
from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, ControlsRow, GridRow, TeacherRow
from kdbench.harness.analysis.study_table import (
    check_declared,
    grid_rows,
    only,
    read_study,
    write_grid,
    write_study,
    write_table,
)
from kdbench.harness.plan.grid import Point, Tried, best
from kdbench.harness.plan.plan import Arm, Ground, Plan, make_plan
from kdbench.harness.plan.preset import Preset, chain_of
from kdbench.harness.plan.stages import stages_together
from kdbench.harness.records.environment import usable_cores
from kdbench.harness.records.record import FINAL, StudyFolder, write_atomic
from kdbench.harness.records.temporaries import temporary
from kdbench.harness.run.cost import Cost, bf16_speed, estimate
from kdbench.harness.run.executors import Engine
from kdbench.harness.run.gpus import Gpus, chosen, visible
from kdbench.harness.run.rehearsal import rehearse
from kdbench.harness.run.scheduler import OnTrial, Outcome, changed_weights, complete_stories, execute, is_done
from kdbench.harness.run.sweeping import sweep
from kdbench.kd.data import SIZE, Dataset, cache_folder, load_file, statistics
from kdbench.kd.data import prepare as prepare_data
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.models import build
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.teacher import file_sha256, load_strict, read_checkpoint

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    preset: Preset
    faults: Sequence[str | None]
    "One arm each; None is the corrected one."
    named_fault: bool
    "Whether the faults were named one by one, so that one that applies nowhere is an error."
    dataset: str
    data_root: Path | None
    device: str
    workers: int | None
    runs: Path
    teacher_weights: Path | None
    teacher_sha256: str | None
    threads: int = 1
    "Of the processor, for each trial."
    command: str | None = None
    "As it was typed, to be noted in the study."
    controls: bool = True
    "Whether one trial is run twice, and the positive control as well."
    shard: tuple[int, int] | None = None
    "Which slice of how many is this coordinator's, counted from 1; None for the whole."
    scheduler: str | None = None
    "Address of the Dask cluster that the trials run on; None for processes here."
    retries: int = 1
    "How often a trial is tried again at once whose process died or found no memory."
    gpus: str | None = None
    "Which GPUs of this machine have a trial each, as all or 0,2; None for the one that torch takes."
    per_gpu: int = 1
    "Trials that share a GPU."
    teachers_only: bool = False
    "Whether the teachers are trained and nothing else."
    grace: float = 5.0
    "Seconds that a running trial has to write its state when the study is told to end."
    kept_answers: bool = True
    "Whether trials on the same batches read the teacher's answers from each other."
    image_size: int | None = None
    "Height and width that a folder's images are resized to; None for the usual 32."


@dataclass(frozen=True)
class Ready:
    """A study that can start."""

    plan: Plan
    todo: list[str]
    "Keys of the trials that have no final result yet."
    cost: Cost
    data: Dataset
    data_file: Path
    folder: StudyFolder
    device: str
    workers: int | None
    "Trials at a time; None for as many as the cluster has threads."
    weights: tuple[Path, str] | None
    "The teacher's file that was brought along, and its hash."
    command: str | None = None
    mine: list[str] | None = None
    "Keys of this shard's trials; None for all."
    scheduler: str | None = None
    retries: int = 0
    grace: float = 5.0
    gpus: tuple[str, ...] = ()
    "The devices that trials are spread over, if any were named."
    per_gpu: int = 1
    kept_answers: bool = False
    bf16_speed: float | None = None
    "How fast this processor computes in bf16, as a multiple of fp32; None where nothing is to run in it here."
    later: tuple[int, Cost] | None = None
    "Of a first stage: how many trials the second has, and their cost."

    @property
    def changed_teachers(self) -> list[str]:
        """Keys of the teachers that are trained again since somebody changed their weights."""
        found = []
        for key in self.todo:
            trial = self.folder.trial(key)
            result = trial.result() if key in self.plan.teachers.values() else None
            if result is not None and trial.student.is_file() and changed_weights(trial, result):
                found.append(key)
        return found


def prepare(request: Request) -> Ready:
    """Check everything and lay out the trials; nothing is written but the cache of decoded images.

    A study with a grid has two stages. The first is returned until all of its trials are decided, then the second.
    """
    workers = _check_machine(request)
    weights = _brought(request.teacher_weights, request.teacher_sha256)
    data_file = prepare_data(request.dataset, request.data_root, cache_folder(), request.image_size or SIZE)
    data = load_file(data_file)
    ground = Ground(data.name, data.digest, request.device, request.threads, weights[1] if weights else None)
    lay_out = partial(
        make_plan,
        request.preset,
        request.faults,
        ground,
        named_fault=request.named_fault,
        controls=request.controls,
    )
    plan = lay_out()
    folder = StudyFolder(request.runs / plan.study)
    check_declared(folder, request.preset.decision)
    first = plan if plan.is_first_stage else None
    if first is not None and all(is_done(first, folder, key) for key in first.trials):
        plan, first = lay_out(chosen=_chosen(first, folder)), None
    _check_fit(plan, data, weights, request.device)
    mine = _mine(plan, request)
    if (
        first is not None
        and request.shard is not None
        and not request.teachers_only
        and all(is_done(plan, folder, key) for key in mine or ())
    ):
        mine = list(plan.trials)  # no arm can start before the whole grid is done, whoever does it
    todo = [key for key in (plan.trials if mine is None else mine) if not is_done(plan, folder, key)]

    def cost_of(plan: Plan, keys: list[str]) -> Cost:
        device, kept = torch.device(request.device), request.kept_answers
        return estimate(plan, keys, len(data.test_ids), workers or 1, device, data.size, kept_answers=kept)

    later = None
    if first is not None:  # what the settings will be changes no cost
        second = lay_out(chosen={arm: points[0][0] for arm, points in first.grid.items()})
        rest = [key for key in second.trials if key not in first.trials and not is_done(second, folder, key)]
        later = len(rest), cost_of(second, rest)
    in_bf16 = (
        bool(todo)
        and request.device == "cpu"
        and request.scheduler is None
        and request.preset.recipe.precision == "bf16"
    )
    return Ready(
        plan,
        todo,
        cost_of(plan, todo),
        data,
        data_file,
        folder,
        request.device,
        workers,
        weights,
        request.command,
        mine=mine,
        scheduler=request.scheduler,
        retries=request.retries,
        grace=request.grace,
        gpus=tuple(chosen(request.gpus, visible())) if request.gpus is not None else (),
        per_gpu=request.per_gpu,
        kept_answers=request.kept_answers and request.device == "cpu",
        bf16_speed=bf16_speed() if in_bf16 else None,
        later=later,
    )


def _mine(plan: Plan, request: Request) -> list[str] | None:
    """Return the keys of the part of a study that was asked for; None for all of it."""
    if request.teachers_only:
        return plan.shard_of_teachers(*(request.shard or (1, 1)))
    return plan.shard(*request.shard) if request.shard is not None else None


def _check_machine(request: Request) -> int | None:
    """Refuse what this machine cannot do; return how many trials run at a time, None for as many as a cluster has."""
    if request.device not in DEVICES:
        raise unknown("device", request.device, DEVICES)
    if request.device == "cuda" and request.scheduler is None and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here (kdbench doctor shows what it sees)")
    recipes = (request.preset.recipe, request.preset.teacher_recipe)
    needs = next(filter(None, (recipe.needs_cuda() for recipe in recipes)), None)
    if request.device != "cuda" and needs is not None:
        raise InputError(f"{needs} needs --device cuda; leave it out on a processor")
    if not writable(request.runs):
        raise InputError(f"--runs {request.runs}: cannot be written to; name another folder")
    if not writable(cache_folder()):
        raise InputError(f"the data cache {cache_folder()} cannot be written to; set KDBENCH_CACHE to another folder")
    if request.gpus is not None:
        _check_gpus(request)
        return len(chosen(request.gpus, visible())) * request.per_gpu
    if request.per_gpu != 1:
        raise InputError("--per-gpu goes with --gpus, which says over which GPUs the trials are spread")
    if request.scheduler is not None:
        return request.workers
    if request.device == "cpu":
        return share_cores(request.workers, request.threads, usable_cores())
    return request.workers or 1


def _check_gpus(request: Request) -> None:
    if request.device != "cuda":
        raise InputError(f"--gpus goes with --device cuda, and the study is for {request.device}")
    for option, value in (("--scheduler", request.scheduler), ("--workers", request.workers)):
        if value is not None:
            raise InputError(
                f"--gpus says where trials run and how many at a time, and so does {option}; leave one out"
            )


def _chosen(plan: Plan, folder: StudyFolder) -> dict[Arm, Point]:
    """Return what is best on validation for each arm that chooses; InputError if all of its points diverged."""
    chosen = {}
    for arm, points in plan.grid.items():
        tried = [
            Tried(point, {seed: (plan.trials[key], folder.trial(key).result()) for seed, key in trials.items()})
            for point, trials in points
        ]
        winner = best(tried)
        if winner is None:
            raise InputError(f"no setting of the grid trained {arm.method} of {arm.pair}: all diverged")
        chosen[arm] = winner.point
    return chosen


def share_cores(workers: int | None, threads: int, cores: int) -> int:
    """Return how many trials of so many threads run at a time: what was asked for, or as many as have cores.

    More threads than cores are refused: OpenMP's wait for each other, and all trials take several times as long.
    """
    most = max(1, cores // threads)
    if workers is not None and workers > most:
        raise InputError(
            f"--workers {workers} with --threads {threads} is more than the {cores} cores here; threads that share a "
            f"core wait for each other, and everything takes several times as long; --workers {most} fits"
        )
    return workers or most


def writable(path: Path) -> bool:
    """Say whether a folder, or the nearest one above it that exists, can be written to."""
    existing = next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # the rights alone tell root nothing of a read-only place
            return True
    except OSError:
        return False


def _brought(path: Path | None, sha256: str | None) -> tuple[Path, str] | None:
    if path is None:
        if sha256 is not None:
            raise InputError("--teacher-sha256 says what the hash of --teacher-weights must be; no file was named")
        return None
    read_checkpoint(path)
    digest = file_sha256(path)
    if sha256 is not None and digest != sha256.lower():
        raise InputError(f"--teacher-weights {path} has SHA-256 {digest}, not the {sha256} that was declared")
    return path, digest


def _check_fit(plan: Plan, data: Dataset, weights: tuple[Path, str] | None, device: str) -> None:
    """Refuse what a trial would refuse: sizes, colours, weights of another network, and files that do not work."""
    preset = plan.preset
    for recipe in (preset.recipe, preset.teacher_recipe):
        split = CANONICAL.split(data.train_ids, data.test_ids, recipe, torch.Generator())
        recipe.check_batches(len(split.train))
        if recipe.normalisation == "train":
            statistics(data.pixels[split.train])
    stages_together(preset, data)
    if weights is not None:
        for arch in {chain_of(pair)[0] for pair in preset.pairs}:
            width, stem = preset.recipe.base_width, CANONICAL.stem(data.size)
            net = build(arch, stem, len(data.classes), width, torch.Generator().manual_seed(0), data.size)
            load_strict(net, *weights)
    rehearse(plan.trials.values(), data, device)


def carry_out(ready: Ready, tell: OnTrial, may_start: Callable[[str], bool] = lambda key: True) -> Outcome:
    """Run what is to run and bring the study's own files up to date; `tell` hears of each trial.

    `may_start` is asked before each trial, as :func:`harness.run.scheduler.execute` has it.
    """
    study = ready.folder
    study.path.mkdir(parents=True, exist_ok=True)
    with study.lock(shared=ready.mine is not None):
        with study.writing():
            sweep(study)
            if ready.weights is not None:
                _import_weights(ready.weights, study)
            if ready.todo and ready.kept_answers:
                study.answers.mkdir(exist_ok=True)
            elif ready.todo:
                shutil.rmtree(study.answers, ignore_errors=True)
            plan = ready.plan
            if plan.preset.text is not None:
                write_atomic(study.path / "study.toml", plan.preset.text)
            write_study(study, plan.preset.decision, plan.arms, plan.controls, ready.command, plan.grid)
        outcome = execute(
            ready.plan,
            study,
            ready.data_file,
            ready.workers or 1,
            tell,
            may_start,
            only=ready.mine,
            retries=ready.retries,
            engine=_engine(ready),
            grace=ready.grace,
        )
        if not plan.is_first_stage and {*outcome.trained, *outcome.reused} >= plan.trials.keys():
            shutil.rmtree(study.answers, ignore_errors=True)  # of shards, the call without one comes here
        with study.writing():
            trials = read_study(study)
            complete_stories({**trials.controls, **trials.arms}, study)
            write_grid(trials)
            write_table(read_study(study))
    return outcome


def _engine(ready: Ready) -> Engine | None:
    """Return the cluster, or the GPUs, that were asked for; None for processes here."""
    if ready.gpus:
        return Gpus(ready.gpus, ready.per_gpu, {spec.threads for spec in ready.plan.trials.values()})
    if ready.scheduler is None:
        return None
    from kdbench.harness.run.dask_cluster import Cluster

    return Cluster(ready.scheduler, ready.workers)


def _import_weights(weights: tuple[Path, str], study: StudyFolder) -> None:
    """Copy the teacher brought along into the study, which so holds all that it needs."""
    path, digest = weights
    place = study.weights(digest, ".safetensors" if path.suffix == ".safetensors" else ".pt")
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = temporary(place)
        shutil.copyfile(path, unfinished)
        unfinished.replace(place)


@dataclass(frozen=True)
class Families:
    """How many comparisons p is adjusted for."""

    comparisons: int
    gains: int


@dataclass(frozen=True)
class Images:
    """What was trained and scored on: the data set, and how many images of it."""

    name: str
    digest: str
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class StudySummary:
    """What came of a study: the kdbench.run/1 object."""

    runs: str
    preset: str
    dataset: Images
    device: str
    trained: int
    reused: int
    failed: int
    retried: int
    diverged: int
    unfinished: int
    grid: list[GridRow]
    arms: list[ArmRow]
    comparisons: list[ComparisonRow]
    "Each bugged arm against its corrected one."
    gains: list[ComparisonRow]
    "Each method against its baseline."
    over_pairs: list[OverPairs]
    "Each method over all pairs, where there are several."
    best: list[BestOfPair]
    "Of each pair, the method of the highest mean, and those that the seeds do not tell from it."
    families: Families
    controls: ControlsRow | None
    teachers: list[TeacherRow]
    because: list[Because]
    "Why what is not as declared is not: a row's reasons in the order of teachers, arms, controls."

    @property
    def as_declared(self) -> bool:
        """Whether the audits of every arm and teacher said exactly what is declared."""
        return all(arm.as_expected for arm in self.arms) and all(teacher.as_expected for teacher in self.teachers)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"schema": "kdbench.run/1", **asdict(self)}


def summary(ready: Ready, outcome: Outcome, allowed: Sequence[str] = ()) -> StudySummary:
    """Return what came of a study; a comparison that must be refused stands in it as undefined, with the reason."""
    plan, recipe, data = ready.plan, ready.plan.preset.recipe, ready.data
    whole = read_study(ready.folder)
    trials = only(whole, plan.arms)
    results = [ready.folder.trial(key).result() for key in plan.trials]
    taught = sorted(plan.teachers.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    teachers = [(arch, ready.folder.trial(key)) for (arch, _), key in taught]
    seen = controls(trials, allowed) if plan.controls is not None else None
    # Of all seeds that the study has, however few of its arms and seeds this call was about.
    comparisons, bugs = compare.compare_within_family(whole, compare.bug_pairs(plan.arms), allowed, refuse=False)
    gains, methods = compare.compare_within_family(whole, compare.gain_pairs(plan.arms), allowed, refuse=False)
    return StudySummary(
        runs=str(ready.folder.path),
        preset=plan.preset.name,
        dataset=Images(
            data.name, data.digest, recipe.train_size, recipe.val_size, len(data.test_ids[:: recipe.test_stride])
        ),
        device=ready.device,
        trained=len(outcome.trained),
        reused=len(outcome.reused),
        failed=len(outcome.failed),
        retried=sum(bool(result.attempts) for result in results if result is not None),
        diverged=sum(result.status == "diverged" for result in results if result is not None),
        unfinished=sum(result is None or result.status not in FINAL for result in results),
        grid=grid_rows(trials),
        arms=arms.with_effects(arms.summary(trials), comparisons),
        comparisons=comparisons,
        gains=gains,
        over_pairs=over_pairs(gains),
        best=best_of_pairs(gains),
        families=Families(bugs, methods),
        controls=seen,
        teachers=[arms.teacher_row(arch, folder) for arch, folder in teachers],
        because=because(trials, [folder for _, folder in teachers], seen),
    )


def exit_code(found: StudySummary) -> int:
    """Return 3 if a trial could not run, 1 if an arm or a control is not as declared, else 0.

    Of a study whose other shards are not done nothing is declared yet: 0.
    A positive control that its audit sees and these few seeds do not show in accuracy is no failure of the program's.
    """
    if found.failed:
        return 3
    if found.unfinished:
        return 0
    seen = found.controls is None or found.controls.as_declared
    return 0 if seen and found.as_declared else 1
