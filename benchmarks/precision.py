"""What a precision or another stack changes in accuracy: an equivalence test over seeds, not an assertion.

python -m benchmarks.precision --seeds 0-11 --output reports/precision
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import click

from kdbench.harness.analysis import stats, study_table
from kdbench.harness.cli import run_cli
from kdbench.harness.cli.common import stderr
from kdbench.harness.cli.progress import Progress
from kdbench.harness.plan.outline import parse_seeds
from kdbench.harness.plan.plan import Arm
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.record import write_atomic
from kdbench.harness.study import Request, carry_out, prepare
from kdbench.kd.errors import unknown
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Recipe

STACKS: dict[str, dict[str, object]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp32-folded": {"fold_teacher": True},
}
"What each stack changes in the recipe; the first is what the others are held against."


def scores(stack: str, request: Request) -> list[float]:
    """Train the corrected arm of one stack and return its test accuracies by seed."""
    recipe: Recipe = replace(request.preset.recipe, **STACKS[stack])  # type: ignore[arg-type]
    # One teacher for all stacks: what is asked is what the student's own training changes.
    teacher = {**request.preset.teacher, "precision": "fp32", "fold_teacher": False}
    ready = prepare(replace(request, preset=replace(request.preset, recipe=recipe, teacher=teacher)))
    stderr().print(f"{stack}: {len(ready.todo)} trials to run, {ready.cost}")
    with Progress(ready, stderr(), verbose=True) as progress:
        carry_out(ready, progress.on_trial)
    (method,) = request.preset.methods
    found = study_table.only(study_table.read_study(ready.folder), ready.plan.arms)
    return study_table.scores(found.arms[Arm(None, request.preset.pairs[0], method)])


def page(found: dict[str, list[float]], method: str, margin: float, command: str) -> str:
    """Return what was seen as Markdown."""
    first = next(iter(found))
    lines = [
        "# Does a faster stack train the same student?",
        "",
        f"    {command}",
        "",
        f"`quick` preset ({method} on digits, R34 -> R18, width 8), the same teacher for all. A stack is called",
        f"equivalent where two one-sided Welch tests put the difference within {margin:g} percentage points (p < .05);",
        "anything else is undecided, or different. An answer of one data set, width and schedule.",
        "",
        "| stack | seeds | test accuracy, % | difference, pp [95%] | largest TOST p | Welch p | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for stack, values in found.items():
        c = stats.compare(found[first], values, margin) if stack != first else None
        mean, std = CANONICAL.aggregate(values)
        spread = f" ± {std:.2f}" if std is not None else ""
        row = f"| {stack} | {len(values)} | {mean:.2f}{spread} |"
        if c is None or c.difference is None or c.ci95 is None or c.tost_p is None or c.welch_p is None:
            lines.append(f"{row} | | | |")
            continue
        low, high = c.ci95
        verdict = stats.verdict(c, c.welch_p)
        lines.append(
            f"{row} {c.difference:+.2f} [{low:+.2f}, {high:+.2f}] | {c.tost_p:.2g} | {c.welch_p:.2g} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--method", default="logit", show_default=True)
@click.option("--seeds", default="0-11", show_default=True)
@click.option("--stack", "stacks", multiple=True, metavar="|".join(STACKS), help="May be repeated; default: all.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER")
def main(method: str, seeds: str, stacks: tuple[str, ...], runs: Path, output: Path) -> None:
    """Train, compare, and write a page."""
    for name in stacks:
        if name not in STACKS:
            raise unknown("stack", name, STACKS)
    preset = replace(load_preset("quick"), methods=(method,), seeds=parse_seeds(seeds))
    request = Request(preset, [None], False, "digits", None, "cpu", None, runs, None, None, controls=False)
    names = list(dict.fromkeys(["fp32", *(stacks or STACKS)]))
    found = {name: scores(name, request) for name in names}
    margin = preset.decision.margin_pp
    output.mkdir(parents=True, exist_ok=True)
    against = {
        name: asdict(stats.compare(found["fp32"], values, margin)) for name, values in found.items() if name != "fp32"
    }
    record = {"method": method, "seeds": list(preset.seeds), "test_accuracy": found, "against_fp32": against}
    write_atomic(output / "precision.json", json.dumps(record, indent=1) + "\n")
    command = f"python -m benchmarks.precision --method {method} --seeds {seeds} --output reports/precision"
    write_atomic(output / "README.md", page(found, method, margin, command))
    click.echo(f"page: {output / 'README.md'}")


if __name__ == "__main__":
    sys.exit(run_cli(lambda: main.main(prog_name="python -m benchmarks.precision", standalone_mode=False)))
