"""kdbench ui: the MLflow UI over the mirrored runs."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import (
    FAULTS_OPTION,
    METHOD_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    mirror_or_remark,
    named_options,
    stderr,
    stdout,
)
from kdbench.harness.cli.help import explained
from kdbench.kd.errors import InputError

_HOST = "127.0.0.1"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"The server's jobs are eight processes for the evaluation of language models."
_PATIENCE = 10.0
"Seconds that the server has to end before it is ended by force."


@explained(
    "ui",
    examples=[
        ("open the only study in the folder runs", "kdbench ui"),
        ("choose the study and the port", "kdbench ui --study quick-digits --port 5001"),
    ],
)
@RUNS_OPTION
@STUDY_OPTION
@FAULTS_OPTION
@METHOD_OPTION
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    metavar="N",
    help="Port of the server that is started on 127.0.0.1.",
)
@click.pass_context
def command(ctx: click.Context, runs: Path, study: str | None, port: int) -> int:
    """Start the MLflow server and print the links to a study's runs, grouped by arm and by method.

    Ctrl-C ends the server. If the environment variable MLFLOW_TRACKING_URI names a server, the links lead there and
    none is started.

    Exit codes: 130 after Ctrl-C; 2 for bad input, such as a port that is taken; 3 if MLflow could not be written, or
    the server ended by itself.
    """
    remote = os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://"))
    folder = find_study(runs, study)
    if remote and "port" in named_options(ctx):
        raise InputError("--port does nothing here: MLFLOW_TRACKING_URI names a server; leave one of the two out")
    if not remote and _is_taken(port):
        raise InputError(f"port {port} of {_HOST} is taken by another program; name a free one: --port {_free(port)}")
    mirror = mirror_or_remark(runs, folder, stderr())
    if mirror is None:
        return 3
    from kdbench.harness.publish.mlflow_view import links

    base = mirror.uri.rstrip("/") if remote else f"http://{_HOST}:{port}"
    charts, table = links(base, mirror.experiment)
    said = [f"charts by arm: {escape(charts)}", f"table by arm:  {escape(table)}"]
    if remote:
        stdout().print("\n".join(said), soft_wrap=True)
        return 0
    return _serve(mirror.uri, port, [*said, "The server runs until Ctrl-C."])


def _is_taken(port: int) -> bool:
    """Say whether the port cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that just ended is no other
        try:
            probe.bind((_HOST, port))
        except OSError:
            return True
    return False


def _free(port: int) -> int:
    """Return a port that can be listened on, if possible one of the next."""
    near = (other for other in range(port + 1, min(port + 50, 65536)) if not _is_taken(other))
    return next(near, 8080)


def _serve(uri: str, port: int, said: list[str]) -> int:
    """Run the server until it ends or this process is told to; print what to open once it answers."""
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    server += ["--host", _HOST, "--port", str(port), "--workers", "1"]
    stderr().print("starting the MLflow server, which takes some seconds", style="dim")

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    # A session of its own: what a terminal says with Ctrl-C reaches this process alone, which ends the server quietly.
    process = subprocess.Popen(server, env={**os.environ, **_QUIET}, start_new_session=True)
    try:
        while process.poll() is None and not _answers(port):
            time.sleep(0.2)
        if process.poll() is None:
            stdout().print("\n".join(said), soft_wrap=True)
            process.wait()
        stderr().print(f"the MLflow server ended by itself, with exit code {process.returncode}")
        return 3
    except KeyboardInterrupt:
        return 130
    finally:
        _end(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
        return True
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server and the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    with suppress(ProcessLookupError):  # also those that it left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
