"""kdbench report: a study as a page for a reader who was not there."""

from pathlib import Path

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import (
    ALLOW_OPTION,
    FAULTS_OPTION,
    METHOD_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    stdout,
)
from kdbench.harness.cli.completion import complete_study
from kdbench.harness.cli.help import OUTPUT, explained
from kdbench.kd.errors import InputError


@explained(
    "report",
    examples=[
        ("write the page of the only study in the folder runs", "kdbench report"),
        ("write one study's page to another folder", "kdbench report quick-digits --output pages"),
    ],
)
@click.argument("name", metavar="[STUDY]", required=False, shell_complete=complete_study)
@RUNS_OPTION
@STUDY_OPTION
@ALLOW_OPTION
@FAULTS_OPTION
@METHOD_OPTION
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    panel=OUTPUT,
    help="Write the page to this folder; by default to the study's own.",
)
def command(name: str | None, runs: Path, study: str | None, allowed: tuple[str, ...], output: Path | None) -> None:
    """Write a study as a page, report.html (one file, which works offline) and report.md, and print its headline."""
    from kdbench.harness.publish.report import write

    if name is not None and study not in (None, name):
        raise InputError(f"STUDY {name} and --study {study} name two studies; leave one out")
    folder = find_study(runs, name if name is not None else study)
    written = write(folder, output if output is not None else folder.path, allowed)
    stdout().print(escape(written.headline))
    for path in written.paths:
        stdout().print(escape(str(path)), soft_wrap=True)
