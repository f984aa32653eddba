"""kdbench run: plan, train, audit, compare, mirror."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import (
    ALLOW_OPTION,
    JSON_OPTION,
    LiveMirror,
    loudness_options,
    mirror_or_remark,
    named_options,
    print_json,
    program,
    progress_console,
    stderr,
    stdout,
)
from kdbench.harness.cli.completion import complete_fault, one_of
from kdbench.harness.cli.help import OUTPUT, explained
from kdbench.harness.cli.own_files import load_own_files
from kdbench.harness.cli.study_options import MACHINE, SPEED, STUDY, requested, study_options
from kdbench.harness.plan.outline import outline
from kdbench.harness.plan.variants import VARIANTS
from kdbench.harness.run.processes import start_server
from kdbench.kd.errors import InputError, unknown

if TYPE_CHECKING:
    from pathlib import Path

    from kdbench.harness.analysis.rows import GridRow
    from kdbench.harness.plan.plan import Plan
    from kdbench.harness.records.record import Result
    from kdbench.harness.run.scheduler import Outcome
    from kdbench.harness.study import Ready, Request


@explained(
    "run",
    loads_late=True,
    examples=[
        (
            "write a study file, see its trials and their cost, run it",
            "kdbench init study.toml\nkdbench run study.toml --dry-run\nkdbench run study.toml",
        ),
        (
            "try one deliberate bug with two methods and five seeds",
            "kdbench run --fault random-teacher --method logit --method dkd --seeds 0-4",
        ),
        ("train on images of your own", "kdbench run --dataset folder --data images --variant corrected"),
        ("run the second quarter of a study, beside other machines", "kdbench run study.toml --shard 2/4"),
    ],
)
@click.argument("study_file", required=False, metavar="[STUDY.toml]")
@click.option(
    "--variant",
    metavar="NAME",
    panel=STUDY,
    shell_complete=one_of("corrected", "bugged", "both"),
    help="Run the arms corrected, bugged (each with one deliberate bug), or both; by default both, or the file's.",
)
@click.option(
    "--fault",
    "fault_names",
    multiple=True,
    metavar="NAME",
    panel=STUDY,
    shell_complete=complete_fault,
    help="Make this fault the bugged arm (kdbench faults list); may be repeated; a+b is both at once.",
)
@click.option(
    "--controls/--no-controls",
    default=True,
    panel=STUDY,
    show_default=True,
    help="Also run one trial twice, and one severe bug that the audits must catch.",
)
@study_options
@click.option("--shard", metavar="I/N", panel=MACHINE, help="Run slice I of N; other machines run the others.")
@click.option("--gpus", metavar="all|0,2", panel=MACHINE, help="Give each trial one of these GPUs to itself.")
@click.option(
    "--per-gpu", type=click.IntRange(1), default=1, metavar="N", panel=MACHINE, help="Let N trials share a GPU."
)
@click.option("--teachers", is_flag=True, panel=MACHINE, help="Train the study's teachers, and nothing else.")
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    panel=MACHINE,
    help="Time that running trials have to write their checkpoints when the study is told to end.",
)
@click.option("--scheduler", metavar="ADDRESS", panel=MACHINE, help="Run on a Dask cluster, such as tcp://host:8786.")
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    metavar="N",
    panel=MACHINE,
    help="Retries of a trial after a crash or an out-of-memory error.",
)
@click.option(
    "--kept-answers/--no-kept-answers",
    default=True,
    panel=SPEED,
    show_default=True,
    help="Ask the teacher once for all trials on the same batches (the same bits; on a processor).",
)
@click.option("--fail-fast", is_flag=True, panel=MACHINE, help="Start no further trial after one that could not run.")
@ALLOW_OPTION
@click.option("--dry-run", is_flag=True, panel=OUTPUT, help="Show the trials and their cost, and run nothing.")
@JSON_OPTION
@loudness_options
@click.pass_context
def command(
    ctx: click.Context,
    study_file: str | None,
    allowed: tuple[str, ...],
    fail_fast: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **asked: Any,
) -> int:
    """Train the arms of a study, audit every trial, and compare the arms.

    The study is a file (kdbench init writes one) or a preset; options change it. An arm is one way to train: corrected,
    or with one deliberate bug. Run the same command again to continue: finished trials are kept.

    Exit codes: 0 if each bug was caught by exactly the audits that it names and each corrected arm is proven clean;
    1 if not; 2 for bad input; 3 if a trial could not run; 130 if interrupted.
    """
    notes = progress_console(quiet, verbose)
    if (variant := asked["variant"]) not in (None, *VARIANTS):
        raise unknown("variant", variant, VARIANTS)
    asked["shard"] = _slice(asked["shard"])
    if study_file is not None:
        asked["preset_name"] = _named(study_file, named_options(ctx).get("preset_name"))
    _say_outline(asked, notes)
    load_own_files(ctx)
    if not dry_run and asked["scheduler"] is None:
        start_server({asked["threads"]})
    from kdbench.harness.analysis.compare import check_allowed
    from kdbench.harness.study import prepare

    request = _request(asked)
    ready = prepare(request)
    check_allowed(ready.plan.trials.values(), allowed)
    _announce(ready, notes, dry_run)
    if dry_run:
        _print_plan(ready, as_json)
        return 0
    outcome = _carry_out(ready, request.runs, notes, fail_fast, verbose)
    while ready.plan.is_first_stage and not outcome.failed and not request.teachers_only:
        ready, before = prepare(request), outcome
        _announce(ready, notes)
        outcome = _carry_out(ready, request.runs, notes, fail_fast, verbose)
        outcome.trained.extend(before.trained)
        outcome.reused[:] = [key for key in outcome.reused if key not in before.trained]
    return _conclude(ready, outcome, allowed, as_json, request.teachers_only)


def _named(study_file: str, preset_option: str | None) -> str:
    """Return the study file's name; InputError for another kind of file, or a preset beside it."""
    if preset_option is not None:
        raise InputError(f"{preset_option} and the study file {study_file} are two studies; leave one out")
    if not study_file.endswith(".toml"):
        raise InputError(f"{study_file}: a study file ends in .toml; name a preset with --preset")
    return study_file


def _say_outline(asked: dict[str, Any], notes: Any) -> None:
    """Say what the study is before PyTorch is imported, which takes seconds."""
    arms = len({*asked["fault_names"]}) + (asked["variant"] in (None, "both")) if asked["fault_names"] else None
    if arms is None and asked["variant"] is not None:
        arms = len(VARIANTS.get(asked["variant"], ()))
    said = outline(
        asked["preset_name"],
        dataset=asked["dataset"],
        pairs=asked["pairs"],
        methods=asked["methods"],
        seeds=asked["seeds"],
        arms=arms,
        controls=asked["controls"],
    )
    if said is not None:
        notes.print(escape(f"{said}; loading PyTorch"), style="dim", soft_wrap=True)


def _request(asked: dict[str, Any]) -> "Request":
    """Return the study that the options ask for."""
    variant, fault_names = asked.pop("variant"), asked.pop("fault_names")
    taken = ("shard", "scheduler", "retries", "grace", "gpus", "per_gpu", "kept_answers")
    how = {name: asked.pop(name) for name in taken}
    how["teachers_only"] = asked.pop("teachers")
    controls = asked.pop("controls")
    request = requested(asked, _arms(variant, fault_names), named_fault=bool(fault_names), controls=controls)
    named = request.preset.arms
    if named is not None and variant is None and not fault_names:
        request = replace(request, faults=named, named_fault=True)
    return replace(request, **how)


def _conclude(ready: "Ready", outcome: "Outcome", allowed: tuple[str, ...], as_json: bool, teachers_only: bool) -> int:
    """Print what came of the study, mirror it, and return the exit code."""
    from kdbench.harness.study import exit_code, summary

    found, runs = summary(ready, outcome, allowed), ready.folder.path.parent
    if as_json:
        print_json(found.as_json())
        mirror_or_remark(runs, ready.folder, stderr())
        return exit_code(found)
    if ready.plan.is_first_stage and not teachers_only:
        return _grid_is_short(ready, found.grid, outcome.failed)
    if ready.mine is not None and found.unfinished:
        return _shard_is_done(ready, found.unfinished, outcome.failed, teachers_only)
    from kdbench.harness import loading
    from kdbench.harness.cli.show import show_study

    console = stdout()
    show_study(console, found, ready.plan.preset.decision)
    _show_failed(ready, outcome.failed, console)
    console.print(f"records: {escape(str(ready.folder.path))} (results.csv is the table)", soft_wrap=True)
    if mirror_or_remark(runs, ready.folder, stderr()):
        call = f"{program()} ui --runs {runs} --study {ready.plan.study}{loading.as_options('faults', 'methods')}"
        console.print(f"MLflow:  {escape(call)}", soft_wrap=True)
    return exit_code(found)


def _carry_out(ready: "Ready", runs: "Path", notes: Any, fail_fast: bool, verbose: bool) -> "Outcome":
    """Run a study's trials, with their progress on stderr and the mirror beside them."""
    from kdbench.harness.cli.progress import Progress
    from kdbench.harness.study import carry_out

    with Progress(ready, notes, verbose) as progress, LiveMirror(runs, ready.folder) as live:

        def tell(key: str, result: "Result | None", epochs: int) -> None:
            progress.on_trial(key, result, epochs)
            if result is not None:
                live.trial_done()

        return carry_out(ready, tell, lambda key: not (fail_fast and progress.failed))


def _slice(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    number, slash, of = shard.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise InputError(f"--shard {shard} is not a slice; write the first of four as 1/4, the last as 4/4")
    return int(number), int(of)


def _grid_is_short(ready: "Ready", rows: "list[GridRow]", failed: list[str]) -> int:
    """Say that no settings could be chosen, since trials of the grid could not run."""
    from kdbench.harness.cli.show import show_grid
    from kdbench.harness.cli.tables import note

    console = stdout()
    show_grid(console, rows)
    _show_failed(ready, failed, console)
    note(
        console,
        "No settings were chosen, and no arm was run. The same command tries the failed trials again.",
        style="",
        indent=0,
    )
    return 3


def _shard_is_done(ready: "Ready", unfinished: int, failed: list[str], teachers_only: bool) -> int:
    """Say what is left for the other shards; the last one to end shows what came of the study."""
    from kdbench.harness.cli.tables import note

    mirror_or_remark(ready.folder.path.parent, ready.folder, stderr())
    console = stdout()
    _show_failed(ready, failed, console)
    part, others, option = ("These teachers are", "all trials", "--teachers") if teachers_only else (
        "This shard is", "the other shards", "--shard"
    )  # fmt: skip
    note(
        console,
        f"{part} done; {unfinished} of the study's {len(ready.plan.trials)} trials are not yet. When {others} "
        f"are done, the same command without {option} shows the results.",
        style="",
        indent=0,
    )
    return 3 if failed else 0


def _show_failed(ready: "Ready", failed: list[str], console: Any) -> None:
    for key in failed:
        result = ready.folder.trial(key).result()
        reason = escape(str(result.reason)) if result else "no result"
        console.print(f"[bold red]could not run[/] {key}: {reason}", soft_wrap=True)


def _arms(variant: str | None, fault_names: tuple[str, ...]) -> list[str | None]:
    from kdbench.harness import faults

    variant = variant or "both"
    if not fault_names:
        return list(VARIANTS[variant])
    if variant == "corrected":
        raise InputError("--fault goes with --variant bugged or both: the corrected variant has no fault")
    chosen: list[str | None] = [faults.get(name).name for name in dict.fromkeys(fault_names)]
    return ([None] if variant == "both" else []) + chosen


def _announce(ready: "Ready", notes: Any, dry_run: bool = False) -> None:
    from kdbench.harness.plan.plan import unused
    from kdbench.harness.plan.stages import stages_together

    plan, todo = ready.plan, len(ready.todo)
    where = f"on the cluster at {ready.scheduler}" if ready.scheduler else f"{ready.workers} at a time"
    cost = f"{ready.cost}{'' if ready.workers else ' if they ran one after another'}"
    work = f"{todo} to run, {where} on {ready.device}: {cost}" if todo else "nothing to run"
    if ready.mine is not None:
        work = f"{len(ready.mine)} of them here: {work}"
    teachers = f"{len(plan.teachers)} teacher{'s' * (len(plan.teachers) != 1)}"
    notes.print(f"[bold]{escape(plan.study)}[/]: {len(plan.trials)} trials ({teachers}), {work}", soft_wrap=True)
    if ready.data.resized:
        more = "image_size under [study], or --image-size, sets another size"
        notes.print(escape(f"  {ready.data.resized}; {more}"), style="dim")
    if ready.bf16_speed is not None and ready.bf16_speed < 0.9:  # nearer to 1 it may be the clock
        notes.print(
            f"  bf16 is slow on this processor: a convolution runs at {ready.bf16_speed:.2f} times the speed of fp32; "
            "--precision fp32 trains faster here (kdbench doctor times whole steps)",
            soft_wrap=True,
        )
    _announce_gpu(plan, notes)
    for key in ready.changed_teachers:
        notes.print(f"  teacher {key} is trained again: its weights are not those that its record has the digest of")
    for fault, method, why in plan.skipped:
        notes.print(f"  not run: {fault} with {method} ({why})", style="dim")
    for pair, stages in stages_together(plan.preset, ready.data).items() if dry_run else ():
        notes.print(f"  stages of {escape(pair)}, the teacher's with the student's: {', '.join(stages)}", style="dim")
    for table in unused(plan.preset):
        notes.print(f"  not used: {escape(table)}", style="dim")
    if ready.later is not None:
        notes.print(
            f"  these are the grid's; then {ready.later[0]} trials with the settings that are best on validation: "
            f"{ready.later[1]}"
        )


def _announce_gpu(plan: "Plan", notes: Any) -> None:
    """Say what is otherwise on a GPU: what the study's file has for it, and which arms have no CUDA graphs."""
    from kdbench.harness.plan.graphs import eager

    on_gpu = [spec for spec in plan.trials.values() if spec.device == "cuda"]
    for name, value in plan.preset.cuda.items() if on_gpu else ():
        if getattr(plan.preset.recipe, name) == value:
            notes.print(f"  {name} is {value}, as {escape(plan.preset.name)} has it for a GPU", style="dim")
    for why, arms in eager(on_gpu).items():
        notes.print(f"  no CUDA graphs: {escape(', '.join(arms))} ({escape(why)})", style="dim")


def _print_plan(ready: "Ready", as_json: bool) -> None:
    plan = ready.plan
    tried = {key: point for points in plan.grid.values() for point, trials in points for key in trials.values()}
    ours = {*plan.teachers.values(), *tried, *(key for trials in plan.arms.values() for key in trials.values())}
    rows: list[dict[str, Any]] = [
        {
            "key": key,
            "arch": spec.arch,
            "method": "teacher" if key in plan.teachers.values() else spec.method,
            "fault": spec.fault,
            "seed": spec.seed,
            "epochs": spec.recipe.epochs,
            "control": key not in ours,
            "grid": dict(tried[key]) if key in tried else None,
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
                "later": None if ready.later is None else ready.later[0],
                "skipped": [{"fault": f, "method": m, "reason": why} for f, m, why in plan.skipped],
                "plan": rows,
            }
        )
        return
    from kdbench.harness.cli.tables import Column, show_table

    columns = [
        Column("trial", names=True, drop=3),
        Column("network", drop=2),
        Column("method", names=True),
        Column("arm", names=True, wraps=True),
        Column("seed", names=True),
        Column("epochs"),
        Column("needs", drop=1),
        Column("done"),
    ]
    table = []
    for r in rows:
        point = ", ".join(f"{name} {value:g}" for name, value in (r["grid"] or {}).items())
        kind = " (control)" if r["control"] else f" (grid: {point})" if point else ""
        arm, done = (r["fault"] or "corrected") + kind, "yes" if r["done"] else ""
        table.append((r["key"], r["arch"], r["method"], arm, str(r["seed"]), str(r["epochs"]), r["needs"] or "", done))
    show_table(stdout(), columns, table)
