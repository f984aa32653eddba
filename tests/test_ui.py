"""kdbench ui: a taken port is refused, and the server ends with the command however that is ended."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import kdbench

from kdbench.harness.cli import ui_command


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    return tmp_path


def test_a_taken_port_is_refused_and_a_free_one_named(runs, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = kdbench("ui", "--runs", runs, "--port", port)
    assert (code, out) == (2, "") and f"port {port} of 127.0.0.1 is taken by another program" in err
    free = int(err.rpartition("--port ")[2])
    assert free != port and not ui_command._is_taken(free)


def test_a_port_beside_a_server_that_is_named_is_refused(runs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    code, _, err = kdbench("ui", "--runs", runs, "--port", "5001")
    assert code == 2 and "--port does nothing here: MLFLOW_TRACKING_URI names a server" in err


SERVE = """
import subprocess, sys
from kdbench.harness import cli
from kdbench.harness.cli import ui_command

popen = subprocess.Popen
def fake(command, **more):
    port = command[command.index("--port") + 1]
    web = f"{sys.executable} -m http.server --bind 127.0.0.1 {port}"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return popen(["sh", "-c", f"{web} & echo $! > child; wait"], **more, **quiet)
ui_command.subprocess.Popen = fake
sys.exit(cli.run_cli(lambda: ui_command._serve("sqlite:///x", int(sys.argv[1]), ["it answers"])))
"""


def is_alive(pid):
    """Say whether a process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def served(tmp_path):
    """Start the command over a small web server that is the child of a shell, as MLflow's worker is of its server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would what it starts: pytest itself may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout.readline() == "it answers\n", process.communicate(timeout=30)[1]
        yield process, port, int((tmp_path / "child").read_text())
    finally:
        process.kill()
        process.wait(timeout=30)
        with contextlib.suppress(OSError):
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_however_the_command_is_ended_the_server_ends_with_it_quietly(served, number, code):
    process, port, child = served
    assert is_alive(child) and ui_command._is_taken(port)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and out == ""
    assert "Traceback" not in err and "interrupted" not in err
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child), "the server outlived the command"


def test_a_server_that_ends_by_itself_is_said_so(served):
    process, _, child = served
    os.kill(child, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and "the MLflow server ended by itself" in err
