"""kdbench ui: the MLflow UI over the mirrored runs."""

import os
import subprocess
import sys
from pathlib import Path

import click
from rich.markup import escape

from kdbench.harness.cli.common import RUNS_OPTION, STUDY_OPTION, find_study, mirror_or_remark, stderr, stdout

_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"The server's jobs are eight processes for the evaluation of language models."


@click.command("ui")
@RUNS_OPTION
@STUDY_OPTION
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def command(runs: Path, study: str | None, port: int) -> int:
    """Start the MLflow server on 127.0.0.1 and print the links to a study's runs, grouped by arm and method.

    If MLFLOW_TRACKING_URI names a server, that one is linked to and none is started.
    """
    mirror = mirror_or_remark(runs, find_study(runs, study), stderr())
    if mirror is None:
        return 3
    from kdbench.harness.publish.mlflow_view import links

    remote = mirror.uri.startswith(("http://", "https://"))
    base = mirror.uri.rstrip("/") if remote else f"http://127.0.0.1:{port}"
    charts, table = links(base, mirror.experiment)
    console = stdout()
    if not remote:
        console.print("The server takes some seconds to start; Ctrl-C ends it.")
    console.print(f"charts by arm: {escape(charts)}", soft_wrap=True)
    console.print(f"table by arm:  {escape(table)}", soft_wrap=True)
    if remote:
        return 0
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", mirror.uri]
    server += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    try:
        code = subprocess.run(server, env={**os.environ, **_QUIET}).returncode
    except KeyboardInterrupt:
        return 0
    return 3 if code else 0
