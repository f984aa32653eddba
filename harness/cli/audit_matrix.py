"""Every fault against every audit, and correct trainings, from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from kdbench.harness.cli.common import print_json, progress_console, stdout
from kdbench.harness.cli.own_files import load_own_files
from kdbench.harness.plan.outline import asked_seeds
from kdbench.kd.errors import InputError

if TYPE_CHECKING:
    from kdbench.harness.zoo.matrix import Cell, Task


def run_matrix(
    *,
    faults: Sequence[str],
    methods: Sequence[str],
    seeds: str,
    zoo_seeds: str | None,
    workers: int | None,
    output: Path | None,
    format_: str,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run the matrix; return 1 if anything in it is not as declared.

    Where faults are named, the clean zoo is run only if its seeds are named as well; it never is if they are "none".
    """
    if format_ in ("junit", "sarif", "github"):
        raise InputError(f"the matrix is printed as text, json or html, not as {format_}")
    notes = progress_console(quiet, verbose)
    own_seeds = asked_seeds(seeds)
    left_out = zoo_seeds == "none" or (faults and not zoo_seeds)
    of_zoo = () if left_out else asked_seeds(zoo_seeds, "--zoo-seeds") if zoo_seeds else own_seeds[:3]
    notes.print(f"audits matrix, {len(own_seeds)} seed{'s' * (len(own_seeds) > 1)}: loading PyTorch", style="dim")
    load_own_files(click.get_current_context())
    from kdbench.harness.faults import FAULTS, get
    from kdbench.harness.plan.preset import check_method
    from kdbench.harness.records.environment import usable_cores
    from kdbench.harness.zoo import matrix
    from kdbench.kd.methods import METHODS

    chosen = [get(name).name for name in dict.fromkeys(faults)] or list(FAULTS)
    methods = list(dict.fromkeys(methods)) or list(METHODS)
    for method in methods:
        check_method(method)
    tasks = matrix.tasks_for(chosen, methods, own_seeds, of_zoo)
    workers = workers or usable_cores()
    kinds = {kind: sum(task.kind == kind for task in tasks) for kind in ("fault", "clean", "tokens", "zoo")}
    notes.print(
        f"{len(tasks)} short trainings, {workers} at a time: {kinds['fault']} with a fault, {kinds['clean']} of our "
        f"own without one, {kinds['tokens']} of a language model, {kinds['zoo']} of the clean zoo",
        soft_wrap=True,
    )
    cells = _look(tasks, workers, notes, verbose)
    found = {**matrix.summary(cells, methods, own_seeds), "zoo_seeds": list(of_zoo)}
    found["named_faults"] = chosen if faults else []
    if output is not None:
        _write(found, output)
    _print(found, format_)
    return 0 if found["exact"] else 1


def _look(tasks: "Sequence[Task]", workers: int, notes: Console, verbose: bool) -> "list[Cell]":
    """Run the trainings, with their progress."""
    from kdbench.harness.cli.progress import Meter
    from kdbench.harness.zoo import matrix

    cells: list[Cell] = []
    with Meter(notes, len(tasks), "trainings", len(tasks)) as meter:
        for cell in matrix.run(tasks, workers, lambda word: notes.print(word)):
            cells.append(cell)
            meter.update(len(cells), len(cells))
            if verbose:
                task, said = cell.task, "as declared" if cell.as_declared else cell.told
                what = f"{task.kind} {task.name}, {task.method}, seed {task.seed}"
                notes.print(f"[{len(cells)}/{len(tasks)}] {what}: {said}", markup=False, soft_wrap=True)
    return cells


def _write(found: dict[str, Any], output: Path) -> None:
    """Write the matrix as JSON, as a page and as a picture."""
    import json

    from kdbench.harness.zoo import matrix_page

    output.mkdir(parents=True, exist_ok=True)
    (output / "matrix.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (output / "matrix.html").write_text(matrix_page.page(found), encoding="utf-8")
    matrix_page.draw(found, output / "matrix.png")


def _print(found: dict[str, Any], format_: str) -> None:
    """Print the matrix in the format asked for."""
    from kdbench.harness.zoo import matrix_page

    if format_ == "json":
        print_json(found)
    elif format_ == "html":
        click.echo(matrix_page.page(found), nl=False)
    else:
        matrix_page.show(stdout(), found)
        if not found["zoo_seeds"]:
            stdout().print("The clean zoo was left out; --zoo-seeds 0-2 runs it too.")
