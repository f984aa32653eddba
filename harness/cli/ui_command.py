"""kdbench ui: the MLflow UI over the mirrored runs."""

import os
import subprocess
import sys
from pathlib import Path

import click

from harness.cli.common import RUNS_OPTION, STUDY_OPTION, find_study, stdout


@click.command("ui")
@RUNS_OPTION
@STUDY_OPTION
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def command(runs: Path, study: str | None, port: int) -> int:
    """Start the MLflow server on 127.0.0.1 and print the links to a study's runs, grouped by arm and method."""
    from harness.compare import read_study
    from harness.mirror import links, mirror_study

    mirror, _ = mirror_study(runs, read_study(find_study(runs, study)))
    console = stdout()
    charts, table = links(f"http://127.0.0.1:{port}", mirror.experiment, mirror.view)
    console.print("The server takes some seconds to start; Ctrl-C ends it.")
    console.print(f"charts by arm: {charts}", soft_wrap=True)
    console.print(f"table by arm:  {table}", soft_wrap=True)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", mirror.uri]
    server += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    try:
        code = subprocess.run(server, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}).returncode
    except KeyboardInterrupt:
        return 0
    return 3 if code else 0
