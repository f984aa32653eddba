"""kdbench mirror: MLflow's database, made from the records."""

from pathlib import Path

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
from kdbench.harness.cli.help import explained


@explained(
    "mirror",
    examples=[
        ("write what is missing to runs/mlflow.db", "kdbench mirror"),
        ("write it to a server", "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 kdbench mirror"),
    ],
)
@RUNS_OPTION
@STUDY_OPTION
@METHOD_OPTION
def command(runs: Path, study: str | None) -> int:
    """Bring MLflow up to date with the records: write the runs that it does not have yet.

    kdbench run does this by itself. The environment variable MLFLOW_TRACKING_URI names a server; without it, the
    database is mlflow.db in the runs folder. Exit code 3: MLflow could not be written.
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
