"""kdbench run: plan, train, audit, compare, mirror."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from harness.cli.common import (
    ALLOW_OPTION,
    FAULTS_OPTION,
    JSON_OPTION,
    RUNS_OPTION,
    LiveMirror,
    mirror_or_remark,
    print_json,
    program,
    stderr,
    stdout,
)
from kd.errors import InputError, unknown

if TYPE_CHECKING:
    from harness.plan import Preset
    from harness.record import Result
    from harness.study import Ready


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
@click.option("--width", "base_width", type=click.IntRange(1), help="Channels of the first stage.")
@click.option("--train-size", type=click.IntRange(1), help="Images trained on.")
@click.option("--val-size", type=click.IntRange(1), help="Images, cut from the train set, that choose the epoch.")
@click.option("--max-norm", type=float, help="Bound on the gradient's norm.")
@click.option("--precision", metavar="fp32|bf16|fp16")
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda")
@click.option("--workers", type=click.IntRange(1), help="Trials at a time. Default: one a core; one on a GPU.")
@click.option("--teacher-weights", type=click.Path(path_type=Path), metavar="FILE", help="A trained teacher.")
@click.option("--teacher-sha256", metavar="HEX", help="What the file's hash must be.")
@FAULTS_OPTION
@RUNS_OPTION
@ALLOW_OPTION
@click.option("--dry-run", is_flag=True, help="Show the trials and their cost, and run nothing.")
@JSON_OPTION
def command(
    preset_name: str,
    pairs: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: str | None,
    teacher_epochs: int | None,
    variant: str,
    fault_names: tuple[str, ...],
    dataset: str | None,
    data_root: Path | None,
    device: str,
    workers: int | None,
    runs: Path,
    teacher_weights: Path | None,
    teacher_sha256: str | None,
    allowed: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **recipe: Any,
) -> int:
    """Train the arms of a study, audit every trial, and compare corrected with bugged.

    Exit 0 if every fault was caught by exactly the audits that it names and every corrected arm is proven clean, 1 if
    not, 2 for bad input, 3 if a trial could not run, 130 if interrupted. The same command again keeps what is done.
    """
    from harness.cli.progress import Progress
    from harness.plan import load_preset
    from harness.study import Request, carry_out, exit_code, prepare, summary

    preset = _change(load_preset(preset_name), pairs, methods, seeds, teacher_epochs, recipe)
    arms, named = _arms(variant, fault_names), bool(fault_names)
    dataset = dataset or preset.dataset
    ready = prepare(
        Request(preset, arms, named, dataset, data_root, device, workers, runs, teacher_weights, teacher_sha256)
    )
    notes = stderr()
    _announce(ready, notes)
    if dry_run:
        _print_plan(ready, as_json)
        return 0
    with Progress(ready.plan, ready.todo, notes) as progress, LiveMirror(runs, ready.folder) as live:

        def tell(key: str, result: "Result | None", epochs: int) -> None:
            progress.on_trial(key, result, epochs)
            if result is not None:
                live.trial_done()

        outcome = carry_out(ready, tell)
    found = summary(ready, outcome, allowed)
    if as_json:
        print_json(found)
        mirror_or_remark(runs, ready.folder, notes)
        return exit_code(found)
    from harness.cli.show import show_study

    console = stdout()
    show_study(console, found, preset.decision)
    for key in outcome.failed:
        result = ready.folder.trial(key).result()
        reason = escape(str(result.reason)) if result else "no result"
        console.print(f"[bold red]could not run[/] {key}: {reason}", soft_wrap=True)
    console.print(f"records: {escape(str(ready.folder.path))} (results.csv is the table)", soft_wrap=True)
    if mirror_or_remark(runs, ready.folder, notes):
        call = f"{program()} ui --runs {runs} --study {ready.plan.study}"
        console.print(f"MLflow:  {escape(call)}", soft_wrap=True)
    return exit_code(found)


def _change(
    preset: "Preset",
    pairs: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: str | None,
    teacher_epochs: int | None,
    recipe: dict[str, Any],
) -> "Preset":
    """Apply the options to the preset."""
    from harness.plan import check_method, parse_seeds, split_pair

    for pair in pairs:
        split_pair(pair)
    for method in methods:
        check_method(method)
    given = {name: value for name, value in recipe.items() if value is not None}
    teacher = {**preset.teacher, **({"epochs": teacher_epochs} if teacher_epochs is not None else {})}
    return replace(
        preset,
        pairs=tuple(dict.fromkeys(pairs)) or preset.pairs,
        methods=tuple(dict.fromkeys(methods)) or preset.methods,
        seeds=parse_seeds(seeds) if seeds is not None else preset.seeds,
        recipe=replace(preset.recipe, **given),
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


def _announce(ready: "Ready", notes: Any) -> None:
    plan, todo = ready.plan, len(ready.todo)
    work = f"{todo} to run, {ready.workers} at a time on {ready.device}: {ready.cost}" if todo else "nothing to run"
    notes.print(f"[bold]{escape(plan.study)}[/]: {len(plan.trials)} trials ({len(plan.teachers)} teachers), {work}")
    for fault, method, why in plan.skipped:
        notes.print(f"  not run: {fault} with {method} ({why})", style="dim")


def _print_plan(ready: "Ready", as_json: bool) -> None:
    plan = ready.plan
    rows: list[dict[str, Any]] = [
        {
            "key": key,
            "arch": spec.arch,
            "method": "teacher" if key in plan.teachers.values() else spec.method,
            "fault": spec.fault,
            "seed": spec.seed,
            "epochs": spec.recipe.epochs,
            "needs": plan.needs(key),
            "done": key not in ready.todo,
        }
        for key, spec in plan.trials.items()
    ]
    if as_json:
        print_json(
            {
                "schema": "kdbench.plan/1",
                "study": plan.study,
                "trials": len(rows),
                "to_run": len(ready.todo),
                "estimated_seconds": round(ready.cost.seconds),
                "pflop": ready.cost.pflop,
                "skipped": [{"fault": f, "method": m, "reason": why} for f, m, why in plan.skipped],
                "plan": rows,
            }
        )
        return
    from rich.table import Table

    table = Table("trial", "network", "method", "arm", "seed", "epochs", "needs", "done", box=None, pad_edge=False)
    for r in rows:
        arm, done = r["fault"] or "corrected", "yes" if r["done"] else ""
        table.add_row(
            r["key"], r["arch"], r["method"], arm, str(r["seed"]), str(r["epochs"]), r["needs"] or "", done
        )  # fmt: skip
    stdout().print(table)
