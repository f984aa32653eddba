"""Every fault against every audit, and correct trainings, from the command line."""

from collections.abc import Sequence
from pathlib import Path

import click

from kdbench.harness.cli.common import print_json, stderr, stdout
from kdbench.kd.errors import InputError


def run_matrix(
    *,
    faults: Sequence[str],
    methods: Sequence[str],
    seeds: str,
    zoo_seeds: str | None,
    workers: int | None,
    output: Path | None,
    format_: str,
) -> int:
    """Run the matrix; return 1 if anything in it is not as declared."""
    import json

    from rich.progress import Progress

    from kdbench.harness.faults import FAULTS, get
    from kdbench.harness.plan.plan import check_method, parse_seeds
    from kdbench.harness.records.environment import usable_cores
    from kdbench.harness.zoo import matrix, matrix_page
    from kdbench.kd.methods import METHODS

    if format_ in ("junit", "sarif", "github"):
        raise InputError(f"the matrix is printed as text, json or html, not as {format_}")
    chosen = [get(name).name for name in faults] or list(FAULTS)
    methods = list(methods) or list(METHODS)
    for method in methods:
        check_method(method)
    own_seeds = parse_seeds(seeds)
    of_zoo = parse_seeds(zoo_seeds) if zoo_seeds else own_seeds[:3]
    tasks = matrix.tasks_for(chosen, methods, own_seeds, of_zoo)
    notes = stderr()
    cells = []
    with Progress(console=notes, transient=True) as progress:
        bar = progress.add_task(f"{len(tasks)} trainings", total=len(tasks))
        for cell in matrix.run(tasks, workers or usable_cores(), lambda word: notes.print(word)):
            cells.append(cell)
            progress.advance(bar)
    found = matrix.summary(cells, methods, own_seeds)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "matrix.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (output / "matrix.html").write_text(matrix_page.page(found), encoding="utf-8")
        matrix_page.draw(found, output / "matrix.png")
    if format_ == "json":
        print_json(found)
    elif format_ == "html":
        click.echo(matrix_page.page(found), nl=False)
    else:
        matrix_page.show(stdout(), found)
    return 0 if found["exact"] else 1
