"""kdbench mirror: MLflow's database, made from the records."""

from pathlib import Path

import click

from harness.cli.common import RUNS_OPTION, STUDY_OPTION, find_study, stdout


@click.command("mirror")
@RUNS_OPTION
@STUDY_OPTION
def command(runs: Path, study: str | None) -> None:
    """Write to MLflow whatever it does not have of a study; the records on disk are all that is needed.

    MLFLOW_TRACKING_URI names a server; without it, the database is mlflow.db in the runs folder.
    """
    from harness.compare import read_study
    from harness.mirror import mirror_study

    mirror, written = mirror_study(runs, read_study(find_study(runs, study)))
    stdout().print(f"{written} runs written, {len(mirror.known)} in {mirror.uri}", soft_wrap=True)
