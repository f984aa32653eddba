"""What several commands share: finding a study, and printing."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.record import StudyFolder
from kd.errors import InputError, unknown

RUNS_OPTION = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the records."
)
STUDY_OPTION = click.option("--study", help="Name of the study in the runs folder; needed if there are several.")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")


def program() -> str:
    """Return how this command was called, so that a command shown to the user works as it is printed."""
    called = Path(sys.argv[0])
    if shutil.which("kdbench") or called.name != "kdbench":
        return "kdbench"
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


def stdout() -> Console:
    """Return the console of results; without a terminal it is wide enough for a table."""
    return Console(width=None if os.isatty(1) or "COLUMNS" in os.environ else 140, highlight=False, soft_wrap=False)


def stderr() -> Console:
    """Return the console of progress and remarks."""
    return Console(stderr=True, highlight=False, width=None if os.isatty(2) or "COLUMNS" in os.environ else 140)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def find_study(runs: Path, name: str | None) -> StudyFolder:
    """Return the study of this name, or the only one there is."""
    names = sorted(path.parent.name for path in runs.glob("*/study.json"))
    if not names:
        raise InputError(f"{runs} holds no study; start one with: kdbench run --runs {runs}")
    if name is None:
        if len(names) > 1:
            raise InputError(f"{runs} holds {len(names)} studies; say which: --study {' | '.join(names)}")
        name = names[0]
    if name not in names:
        raise unknown("study", name, names)
    return StudyFolder(runs / name)
