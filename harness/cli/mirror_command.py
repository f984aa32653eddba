"""kdbench mirror: MLflow's database, made from the records."""

from pathlib import Path

import click
from rich.markup import escape

from kdbench.harness.cli.common import (
    METHOD_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    mirror_or_remark,
    stderr,
    stdout,
    studies,
)


@click.command("mirror")
@RUNS_OPTION
@STUDY_OPTION
@METHOD_OPTION
def command(runs: Path, study: str | None) -> int:
    """Write to MLflow whatever it does not have of the studies; the records on disk are all that is needed.

    MLFLOW_TRACKING_URI names a server; without it, the database is mlflow.db in the runs folder. Exit 3 if MLflow
    could not be written.
    """
    code = 0
    for name in [study] if study is not None else studies(runs):
        mirror = mirror_or_remark(runs, find_study(runs, name), stderr())
        if mirror is None:
            code = 3
            continue
        counts = f"{mirror.written} runs written, {len(mirror.known)} in"
        stdout().print(f"{escape(name)}: {counts} {escape(mirror.uri)}", soft_wrap=True)
    return code
