"""When does an unclipped projector act, and when does it matter? Feature-KD over bounds and teachers.

    python -m studies.max_norm sweep --data DIR --teacher-weights FILE --output FOLDER
    python -m studies.max_norm norms --data DIR --output FOLDER
    python -m studies.max_norm draw FOLDER

`sweep` trains corrected and unclipped arms for bounds from far below the projectors' own norm to above the norm of all,
with a teacher that is trained, random in evaluation mode, or random in training mode. `norms` looks at the first steps
of the paper's networks at full width, where a training to its end would take days. `draw` makes table and figure.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from kdbench.harness import faults
from kdbench.harness.analysis import stats
from kdbench.harness.analysis.study_table import read_study
from kdbench.harness.cli import run_cli
from kdbench.harness.cli.common import stderr
from kdbench.harness.cli.progress import Progress
from kdbench.harness.plan.outline import parse_seeds
from kdbench.harness.plan.plan import Arm
from kdbench.harness.plan.preset import load_preset, split_pair
from kdbench.harness.records.record import first_difference, write_atomic
from kdbench.harness.study import Request, carry_out, prepare
from kdbench.kd import train
from kdbench.kd.data import cache_folder, load_file
from kdbench.kd.data import prepare as prepare_data
from kdbench.kd.errors import unknown
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.teacher import save_checkpoint

TEACHERS: dict[str, tuple[str, ...]] = {
    "trained": (),
    "random-eval": ("random-teacher",),
    "random-train": ("random-teacher", "teacher-train-mode"),
}
"By teacher (trained, random in evaluation mode, random in training mode): the faults that make it so."
Row = dict[str, Any]
UNCLIPPED = "projector-unclipped"


def arms_of(teacher: str) -> tuple[str | None, str]:
    """Return the arm that clips everything and the one that leaves the projectors out, for a teacher."""
    of_teacher = TEACHERS[teacher]
    clipped = faults.get("+".join(of_teacher)).name if of_teacher else None
    return clipped, faults.get("+".join([*of_teacher, UNCLIPPED])).name


def sweep(
    request: Request, bounds: Sequence[float], teachers: Sequence[str], seeds: Sequence[int], notes: Any
) -> list[Row]:
    """Train every bound and teacher, and return one row a trial; what is done already is kept."""
    rows = []
    for bound in bounds:
        for teacher in teachers:
            preset = request.preset
            recipe = replace(preset.recipe, max_norm=bound)
            asked = replace(preset, recipe=recipe, seeds=tuple(seeds))
            arms = arms_of(teacher)
            ready = prepare(replace(request, preset=asked, faults=list(arms), named_fault=False))
            notes.print(f"bound {bound:g}, teacher {teacher}: {len(ready.todo)} trials to run, {ready.cost}")
            with Progress(ready, notes, verbose=True) as progress:
                carry_out(ready, progress.on_trial)
            study = read_study(ready.folder)
            curves: dict[tuple[str | None, int], list[str]] = {}
            for fault in arms:
                for seed, (spec, result) in sorted(study.arms[Arm(fault, preset.pairs[0], "feature")].items()):
                    if seed not in seeds:
                        continue
                    curve = ready.folder.trial(spec.key).curve()
                    curves[fault, seed] = [epoch["digest"] for epoch in curve]
                    rows.append(
                        {
                            "bound": bound,
                            "teacher": teacher,
                            "unclipped": fault == arms[1],
                            "seed": seed,
                            "trial": spec.key,
                            "status": result.status if result else "unfinished",
                            "test_accuracy": result.metrics.test_accuracy if result and result.metrics else None,
                            "clipped_share": sum(e["clipped_share"] for e in curve) / max(1, len(curve)),
                            "norms": {
                                name: {"mean": curve[0]["grad_norms"][name]["mean"], "max": _top(curve, name)}
                                for name in ("student", "projectors", "all")
                            },
                            "audits_failed": [*result.roots, *result.consequences] if result else [],
                            "diverged_at": None,
                        }
                    )
            for row in rows:
                if row["bound"] == bound and row["teacher"] == teacher and row["unclipped"]:
                    row["diverged_at"] = first_difference(curves[arms[0], row["seed"]], curves[arms[1], row["seed"]])
    return rows


def _top(curve: list[Row], name: str) -> float | None:
    tops = [epoch["grad_norms"][name]["max"] for epoch in curve]
    return max(tops) if all(top is not None for top in tops) else None


def norms(data_root: Path, pair: str, width: int, steps: int, seeds: Sequence[int], notes: Any) -> list[Row]:
    """Return the gradient norms of the first steps at full width, for each random teacher, clipped and not."""
    dataset = load_file(prepare_data("folder", data_root, cache_folder()))
    preset = load_preset("paper")
    recipe = replace(preset.recipe, epochs=1, base_width=width, val_size=64, max_norm=1.0)
    recipe = replace(recipe, train_size=steps * recipe.batch_size)
    settings = preset.settings(pair, "feature")
    teacher_arch, student_arch = split_pair(pair)
    place = cache_folder() / "audit" / "untrained.safetensors"  # whatever it holds is not loaded: that is the fault
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_file():
        save_checkpoint(torch.nn.Linear(1, 1), place)
    rows = []
    for seed in seeds:
        for teacher in list(TEACHERS)[1:]:
            for unclipped in (False, True):
                name = arms_of(teacher)[unclipped]
                assert name is not None
                procedure = faults.get(name).inject(CANONICAL, lambda: None)
                brought = train.Teacher(teacher_arch, place)
                training = train.prepare(
                    dataset, student_arch, brought, "feature", settings, recipe, procedure, seed, torch.device("cpu")
                )
                (epoch,) = train.epochs(training)
                rows.append(
                    {
                        "pair": pair,
                        "width": width,
                        "batch_size": recipe.batch_size,
                        "teacher": teacher,
                        "unclipped": unclipped,
                        "seed": seed,
                        "groups": list(training.norm_names),
                        "norms": training.first_norms,
                        "clipped_share": epoch.clipped_share,
                    }
                )
                projectors = [row[training.norm_names.index("projectors")] for row in training.first_norms]
                said = " ".join(f"{value:.2f}" for value in projectors)
                notes.print(f"seed {seed}, {teacher}, {'unclipped' if unclipped else 'clipped'}: projectors {said}")
    return rows


def table(rows: Sequence[Row], margin: float) -> str:
    """Return the sweep as a Markdown table: a line a bound and teacher."""
    lines = [
        "| bound | teacher | seeds | steps clipped | projectors' norm, epoch 1 mean / largest | student's | weights "
        "differ from epoch | clipped, % | unclipped, % | difference, pp [95%] |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for teacher in TEACHERS:
        for bound in sorted({row["bound"] for row in rows}):
            mine = [row for row in rows if row["bound"] == bound and row["teacher"] == teacher]
            if not mine:
                continue
            arms = [[r for r in mine if r["unclipped"] is flag] for flag in (False, True)]
            scores = [[r["test_accuracy"] for r in arm if r["test_accuracy"] is not None] for arm in arms]
            found = stats.compare(scores[0], scores[1], margin) if all(scores) else None
            low, high = found.ci95 if found and found.ci95 else (None, None)
            at = sorted({r["diverged_at"] for r in arms[1]}, key=lambda e: (e is None, e))
            lines.append(
                f"| {bound:g} | {teacher} | {len(arms[0])} | {sum(r['clipped_share'] for r in mine) / len(mine):.0%} | "
                f"{_mean(mine, 'projectors')} / {_most(mine, 'projectors')} | {_mean(mine, 'student')} / "
                f"{_most(mine, 'student')} | {', '.join('never' if e is None else str(e) for e in at)} | "
                f"{_scores(scores[0])} | {_scores(scores[1])} | "
                + (f"{found.difference:+.2f}" if found and found.difference is not None else "")
                + (f" [{low:+.2f}, {high:+.2f}]" if low is not None else "")
                + " |"
            )
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[Row], name: str) -> str:
    values = [row["norms"][name]["mean"] for row in rows if row["norms"][name]["mean"] is not None]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def _most(rows: Sequence[Row], name: str) -> str:
    values = [row["norms"][name]["max"] for row in rows if row["norms"][name]["max"] is not None]
    return f"{max(values):.2f}" if values else "-"


def _scores(values: Sequence[float]) -> str:
    mean, std = CANONICAL.aggregate(values) if values else (math.nan, None)
    return f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else "")


def norms_table(rows: Sequence[Row]) -> str:
    """Return the first steps as a Markdown table: the projectors' norm by step, over the seeds."""
    steps = max(len(row["norms"]) for row in rows)
    shown = [step for step in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if step <= steps]
    lines = [
        "| teacher | projectors | " + " | ".join(f"step {step}" for step in shown) + " | largest |",
        "|---|---|" + "---|" * (len(shown) + 1),
    ]
    for teacher in TEACHERS:
        for unclipped in (False, True):
            mine = [row for row in rows if row["teacher"] == teacher and row["unclipped"] is unclipped]
            if not mine:
                continue
            at = mine[0]["groups"].index("projectors")
            cells = []
            for step in shown:
                values = [row["norms"][step - 1][at] for row in mine]
                cells.append(f"{min(values):.2f} to {max(values):.2f}")
            largest = max(norm[at] for row in mine for norm in row["norms"])
            lines.append(
                f"| {teacher} | {'unclipped' if unclipped else 'clipped'} | {' | '.join(cells)} | {largest:.2f} |"
            )
    return "\n".join(lines) + "\n"


def draw(folder: Path) -> Path:
    """Draw what the folder holds: accuracy and norms over the bound, and the first steps at full width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = json.loads((folder / "sweep.json").read_text()) if (folder / "sweep.json").is_file() else []
    first = json.loads((folder / "norms.json").read_text()) if (folder / "norms.json").is_file() else []
    colours = dict(zip(TEACHERS, ("#1d4ed8", "#b45309", "#15803d"), strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
    for row in rows:
        style = {"color": colours[row["teacher"]], "alpha": 0.7, "marker": "x" if row["unclipped"] else "o"}
        nudge = 1.06 if row["unclipped"] else 1 / 1.06
        if row["test_accuracy"] is not None:
            axes[0].scatter(row["bound"] * nudge, row["test_accuracy"], s=24, **style)
        if row["norms"]["projectors"]["max"] is not None:
            axes[1].scatter(row["bound"] * nudge, row["norms"]["projectors"]["max"], s=24, **style)
    for row in first:
        at = row["groups"].index("projectors")
        values = [norm[at] for norm in row["norms"]]
        dashes = "--" if row["unclipped"] else "-"
        axes[2].plot(range(1, len(values) + 1), values, dashes, color=colours[row["teacher"]], alpha=0.8)
    axes[2].axhline(4.65, color="#6b7280", lw=1, ls=":")
    axes[2].annotate("4.65, the paper's", (1, 4.7), color="#6b7280", fontsize=9)
    axes[2].set_ylim(0, max(5.2, axes[2].get_ylim()[1]))
    for axis, title, y in (
        (axes[0], "accuracy by bound (o clipped, x unclipped)", "test accuracy, %"),
        (axes[1], "largest gradient norm of the projectors", "norm before clipping"),
        (axes[2], "first steps at full width (solid clipped, dashed not)", "projectors' gradient norm"),
    ):
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(y)
        axis.grid(alpha=0.25)
    for axis in axes[:2]:
        axis.set_xscale("log")
        axis.set_xlabel("max_norm")
    axes[1].set_yscale("log")
    axes[2].set_xlabel("step")
    handles = [plt.Line2D([], [], color=colour, marker="s", ls="", label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path = folder / "max-norm.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


@click.group()
def main() -> None:
    """Feature-KD over bounds and teachers, with the projectors clipped and not."""


_OUTPUT = click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER")
_DATA = click.option("--data", "data_root", type=click.Path(path_type=Path, exists=True), required=True, metavar="DIR")


@main.command("sweep")
@_DATA
@_OUTPUT
@click.option("--teacher-weights", type=click.Path(path_type=Path), required=True, help="Of the trained teacher.")
@click.option("--bounds", default="0.1,1,1000", show_default=True)
@click.option("--teacher", "teachers", multiple=True, metavar="|".join(TEACHERS), help="May be repeated; default: all.")
@click.option("--seeds", default="0-2", show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--workers", type=int)
@click.option("--epochs", type=int)
def sweep_command(
    data_root: Path,
    output: Path,
    teacher_weights: Path,
    bounds: str,
    teachers: tuple[str, ...],
    seeds: str,
    runs: Path,
    workers: int | None,
    epochs: int | None,
) -> None:
    """Train corrected and unclipped arms for each bound and teacher at the cifar10 preset's scale."""
    preset = load_preset("cifar10")
    recipe = replace(preset.recipe, epochs=epochs) if epochs else preset.recipe
    preset = replace(preset, methods=("feature",), recipe=recipe)
    request = Request(
        preset, [], False, "folder", data_root, "cpu", workers, runs, teacher_weights, None, controls=False
    )
    for name in teachers:
        if name not in TEACHERS:
            raise unknown("teacher", name, TEACHERS)
    found = sweep(
        request, [float(bound) for bound in bounds.split(",")], teachers or list(TEACHERS), parse_seeds(seeds), stderr()
    )
    rows = _added(output / "sweep.json", found)
    click.echo(table(rows, preset.decision.margin_pp), nl=False)


@main.command("norms")
@_DATA
@_OUTPUT
@click.option("--pair", default="r50-r18", show_default=True)
@click.option("--width", type=int, default=64, show_default=True)
@click.option("--steps", type=int, default=16, show_default=True)
@click.option("--seeds", default="0-2", show_default=True)
def norms_command(data_root: Path, output: Path, pair: str, width: int, steps: int, seeds: str) -> None:
    """Look at the gradient norms of the first steps of the paper's networks, with random teachers."""
    rows = norms(data_root, pair, width, steps, parse_seeds(seeds), stderr())
    click.echo(norms_table(_added(output / "norms.json", rows)), nl=False)


@main.command("draw")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def draw_command(folder: Path) -> None:
    """Print the tables of a folder and draw its figure."""
    for name, show in (("sweep.json", lambda rows: table(rows, 0.5)), ("norms.json", norms_table)):
        if (folder / name).is_file():
            click.echo(show(json.loads((folder / name).read_text())))
    click.echo(f"figure: {draw(folder)}")


def _added(path: Path, found: list[Row]) -> list[Row]:
    """Write rows into the file beside those of other bounds, teachers and seeds that stand there; return all."""

    def key(row: Row) -> tuple[Any, ...]:
        return (list(TEACHERS).index(row["teacher"]), row.get("bound", 0), row["unclipped"], row["seed"])

    known = json.loads(path.read_text()) if path.is_file() else []
    rows = list({key(row): row for row in [*known, *found]}.values())
    rows.sort(key=key)
    _write(path, rows)
    return rows


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(lambda: main.main(prog_name="python -m studies.max_norm", standalone_mode=False)))
