"""kdbench run: plan, train, audit, compare, mirror."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import JSON_OPTION, RUNS_OPTION, print_json, program, stderr, stdout
from kd.errors import InputError, unknown

if TYPE_CHECKING:
    from harness.plan import Plan, Preset
    from harness.record import StudyFolder

PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("cpu", "cuda")


@click.command("run")
@click.option("--variant", default="both", show_default=True, metavar="corrected|bugged|both", help="Arms to run.")
@click.option("--fault", "fault_names", multiple=True, metavar="NAME", help="Of the bugged arms, only this one.")
@click.option("--preset", "preset_name", default="quick", show_default=True, metavar="quick|cifar10|paper")
@click.option("--dataset", metavar="digits|cifar10|cifar100|folder", help="Instead of the preset's.")
@click.option("--data", "data_root", type=click.Path(path_type=Path), metavar="DIR", help="Where the images lie.")
@click.option("--pair", "pairs", multiple=True, metavar="TEACHER-STUDENT", help="e.g. r50-r18; may be repeated.")
@click.option("--method", "methods", multiple=True, metavar="baseline|logit|feature", help="May be repeated.")
@click.option("--seeds", metavar="0-2", help="Numbers and ranges.")
@click.option("--epochs", type=click.IntRange(1), help="Of the students.")
@click.option("--teacher-epochs", type=click.IntRange(1), help="Of the teachers.")
@click.option("--width", type=click.IntRange(1), help="Channels of the first stage.")
@click.option("--precision", metavar="fp32|bf16|fp16")
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda")
@click.option("--workers", type=click.IntRange(1), help="Trials at a time. Default: one a core; one on a GPU.")
@click.option("--teacher-weights", type=click.Path(path_type=Path), metavar="FILE", help="A trained teacher.")
@click.option("--teacher-sha256", metavar="HEX", help="What the file's hash must be.")
@RUNS_OPTION
@click.option("--dry-run", is_flag=True, help="Show the trials and their cost, and run nothing.")
@JSON_OPTION
def command(**options: Any) -> int:
    """Train the arms of a study, audit every trial, and compare corrected with bugged.

    Exit 0 if every fault was caught by exactly the audits that it names and no corrected arm raised an alarm, 1 if
    not, 2 for bad input, 3 if a trial could not run, 130 if interrupted. The same command again goes on where it was.
    """
    return _run(**options)


def _run(
    variant: str,
    fault_names: tuple[str, ...],
    preset_name: str,
    dataset: str | None,
    data_root: Path | None,
    teacher_weights: Path | None,
    teacher_sha256: str | None,
    device: str,
    workers: int | None,
    runs: Path,
    dry_run: bool,
    as_json: bool,
    **changes: Any,
) -> int:
    import torch

    from harness.cost import estimate
    from harness.environment import usable_cores
    from harness.plan import Ground, load_preset, make_plan
    from harness.record import FINAL, StudyFolder
    from kd.data import cache_folder, load_file, prepare

    notes = stderr()
    preset = _change(load_preset(preset_name), **changes)
    arms = _arms(variant, fault_names)
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here (kdbench doctor shows what it sees)")
    workers = workers or (usable_cores() if device == "cpu" else 1)
    weights = _teacher_weights(teacher_weights, teacher_sha256)
    if not dry_run:
        _check_writable(runs)
    dataset = dataset or preset.dataset
    data_file = prepare(dataset, data_root, cache_folder())
    data = load_file(data_file)
    ground = Ground(data.name, data.digest, device, teacher_sha256=weights[1] if weights else None)
    plan = make_plan(preset, arms, ground, named_fault=bool(fault_names))
    _check_fit(plan, data, weights)
    study = StudyFolder(runs / plan.study)
    results = {key: study.trial(key).result() for key in plan.trials}
    todo = [key for key, result in results.items() if result is None or result.status not in FINAL]
    cost = estimate(plan, todo, len(data.test_ids), workers, torch.device(device))
    notes.print(
        f"[bold]{plan.study}[/]: {len(plan.trials)} trials ({len(plan.teachers)} teachers), {len(todo)} to run, "
        f"{workers} at a time on {device}: {cost}"
    )
    for fault, method, why in plan.skipped:
        notes.print(f"  not run: {fault} with {method} ({why})", style="dim")
    if dry_run:
        _print_plan(plan, todo, cost, as_json)
        return 0
    if weights is not None:
        _import_weights(weights, study)
    return _carry_out(plan, todo, study, data_file, runs, workers, preset, data, device, as_json)


def _change(
    preset: "Preset",
    pairs: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: str | None,
    epochs: int | None,
    teacher_epochs: int | None,
    width: int | None,
    precision: str | None,
) -> "Preset":
    """Apply the options to the preset."""
    from harness.plan import parse_seeds, split_pair
    from kd.methods import METHODS

    for pair in pairs:
        split_pair(pair)
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    if precision is not None and precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    given: dict[str, Any] = {"epochs": epochs, "base_width": width, "precision": precision}
    recipe = replace(preset.recipe, **{name: value for name, value in given.items() if value is not None})
    teacher = {**preset.teacher, **({"epochs": teacher_epochs} if teacher_epochs is not None else {})}
    return replace(
        preset,
        pairs=tuple(dict.fromkeys(pairs)) or preset.pairs,
        methods=tuple(dict.fromkeys(methods)) or preset.methods,
        seeds=parse_seeds(seeds) if seeds is not None else preset.seeds,
        recipe=recipe,
        teacher=teacher,
    )


def _arms(variant: str, fault_names: tuple[str, ...]) -> list[str | None]:
    from harness import faults
    from harness.variants import VARIANTS

    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    if not fault_names:
        return list(VARIANTS[variant])
    if variant == "corrected":
        raise InputError("--fault goes with --variant bugged or both: the corrected variant has no fault")
    chosen: list[str | None] = [faults.get(name).name for name in dict.fromkeys(fault_names)]
    return ([None] if variant == "both" else []) + chosen


def _check_writable(runs: Path) -> None:
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs):
            pass
    except OSError as error:
        raise InputError(f"--runs {runs}: cannot be written to ({error.strerror}); name another folder") from error


def _teacher_weights(path: Path | None, sha256: str | None) -> tuple[Path, str] | None:
    """Return the file brought along and its hash, read once to see that it is whole."""
    from kd.teacher import file_sha256, read_checkpoint

    if path is None:
        if sha256 is not None:
            raise InputError("--teacher-sha256 says what the hash of --teacher-weights must be; no file was named")
        return None
    read_checkpoint(path)
    digest = file_sha256(path)
    if sha256 is not None and digest != sha256.lower():
        raise InputError(f"--teacher-weights {path} has SHA-256 {digest}, not the {sha256} that was declared")
    return path, digest


def _check_fit(plan: "Plan", data: Any, weights: tuple[Path, str] | None) -> None:
    """Refuse what every trial would refuse, before anything is written: sizes, and weights of another network."""
    import torch

    from harness.plan import split_pair
    from kd.data import SIZE
    from kd.models import build
    from kd.procedure import CANONICAL
    from kd.teacher import load_strict

    preset = plan.preset
    for recipe in (preset.recipe, preset.teacher_recipe):
        split = CANONICAL.split(data.train_ids, data.test_ids, recipe, torch.Generator())
        if len(split.train) < recipe.batch_size:
            raise InputError(f"recipe: batch_size {recipe.batch_size} exceeds the train split of {len(split.train)}")
    if weights is not None:
        for arch in {split_pair(pair)[0] for pair in preset.pairs}:
            width, stem = preset.recipe.base_width, CANONICAL.stem(SIZE)
            net = build(arch, stem, len(data.classes), width, torch.Generator().manual_seed(0))
            load_strict(net, *weights)


def _import_weights(weights: tuple[Path, str], study: "StudyFolder") -> None:
    """Copy the teacher brought along into the study, which so holds all that it needs."""
    import shutil

    path, digest = weights
    place = study.path / "weights" / f"{digest}{path.suffix}"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.tmp")
        shutil.copyfile(path, temporary)
        temporary.replace(place)


def _print_plan(plan: "Plan", todo: list[str], cost: Any, as_json: bool) -> None:
    from harness.spec import Spec

    def row(key: str, spec: Spec) -> dict[str, Any]:
        return {
            "key": key,
            "arch": spec.arch,
            "method": "teacher" if key in plan.teachers.values() else spec.method,
            "fault": spec.fault,
            "seed": spec.seed,
            "epochs": spec.recipe.epochs,
            "needs": plan.needs(key),
            "done": key not in todo,
        }

    rows = [row(key, spec) for key, spec in plan.trials.items()]
    if as_json:
        counts = {"trials": len(rows), "to_run": len(todo)}
        print_json(
            {
                "schema": "kdbench.plan/1",
                "study": plan.study,
                **counts,
                "estimated_seconds": round(cost.seconds),
                "pflop": cost.pflop,
                "skipped": [{"fault": f, "method": m, "reason": why} for f, m, why in plan.skipped],
                "plan": rows,
            }
        )
        return
    from rich.table import Table

    table = Table("trial", "network", "method", "arm", "seed", "epochs", "needs", "done", box=None, pad_edge=False)
    for r in rows:
        table.add_row(
            r["key"], r["arch"], r["method"], r["fault"] or "corrected", str(r["seed"]), str(r["epochs"]),
            r["needs"] or "", "yes" if r["done"] else "",
        )  # fmt: skip
    stdout().print(table)


def _carry_out(
    plan: "Plan",
    todo: list[str],
    study: "StudyFolder",
    data_file: Path,
    runs: Path,
    workers: int,
    preset: "Preset",
    data: Any,
    device: str,
    as_json: bool,
) -> int:
    from harness import compare
    from harness.cli.progress import Progress
    from harness.execute import complete_stories, execute

    notes = stderr()
    study.path.mkdir(parents=True, exist_ok=True)
    with study.lock():
        compare.write_study(study, preset.decision, plan.arms)
        with Progress(plan, todo, notes) as progress:
            outcome = execute(plan, study, data_file, workers, progress.on_trial)
        complete_stories(plan, study)
    trials = compare.only(compare.read_study(study), plan.arms)
    uri = _mirror(runs, study, notes)

    arms = compare.summary(trials)
    teachers = [
        compare.teacher_row(arch, study.trial(key)) for (arch, _), key in sorted(plan.teachers.items(), key=str)
    ]
    both = [(a, b) for a in plan.arms for b in plan.arms if b.fault and a.fault is None and _same_cell(a, b)]
    gains = [
        (a, b)
        for a in plan.arms
        for b in plan.arms
        if a.method == "baseline" and b.method != "baseline" and a.pair == b.pair and not a.fault and not b.fault
    ]
    comparisons, gained = compare.compare_arms(trials, both), compare.compare_arms(trials, gains)
    as_declared = all(row["as_expected"] for row in [*arms, *teachers])
    code = 3 if outcome.failed else 0 if as_declared else 1
    if as_json:
        print_json(
            {
                "schema": "kdbench.run/1",
                "runs": str(study.path),
                "preset": preset.name,
                "dataset": _dataset_row(data, preset),
                "device": device,
                "trained": len(outcome.trained),
                "reused": len(outcome.reused),
                "failed": len(outcome.failed),
                "arms": arms,
                "comparisons": comparisons,
                "gains": gained,
                "teachers": teachers,
            }
        )
        return code
    from harness.cli.show import show_arms, show_comparisons

    console = stdout()
    margin = preset.decision.margin_pp
    show_arms(console, arms, teachers)
    console.print()
    show_comparisons(console, gained, margin, "Does distillation gain anything here? (corrected, against the baseline)")
    if gained:
        console.print()
    show_comparisons(console, comparisons, margin, "Does the bug matter here? (bugged against corrected)")
    if comparisons:
        console.print()
    for key in outcome.failed:
        result = study.trial(key).result()
        console.print(f"[bold red]could not run[/] {key}: {result.reason if result else 'no result'}", soft_wrap=True)
    what = "every fault was caught by exactly the audits it names, and no corrected arm raised an alarm"
    console.print(
        f"[bold green]As declared:[/] {what}."
        if as_declared
        else "[bold red]Not as declared:[/] see the arms marked NO."
    )
    console.print(
        f"{len(outcome.trained)} trained, {len(outcome.reused)} reused, {len(outcome.failed)} failed. "
        "All students of a pair share one teacher (seed 0): the spread holds no teacher variance."
    )
    console.print(f"records: {study.path}", soft_wrap=True)
    if uri is not None:
        console.print(f"MLflow:  {program()} ui --runs {runs} --study {plan.study}", soft_wrap=True)
    return code


def _same_cell(a: Any, b: Any) -> bool:
    return a.pair == b.pair and a.method == b.method


def _dataset_row(data: Any, preset: "Preset") -> dict[str, Any]:
    recipe = preset.recipe
    return {
        "name": data.name,
        "digest": data.digest,
        "train": recipe.train_size,
        "val": recipe.val_size,
        "test": len(data.test_ids[:: recipe.test_stride]),
    }


def _mirror(runs: Path, study: "StudyFolder", notes: Any) -> str | None:
    """Mirror the study; MLflow in trouble costs a remark, never a result."""
    try:
        from harness.compare import read_study
        from harness.mirror import mirror_study

        mirror, _ = mirror_study(runs, read_study(study))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        notes.print(f"MLflow was not written ({reason}); the records are whole, and kdbench mirror catches up")
        return None
    return mirror.uri
