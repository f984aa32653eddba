"""How long a user waits before anything happens."""

import subprocess
import sys

import pytest

from kdbench.harness.run.processes import start_server

pytestmark = pytest.mark.usefixtures("cpu_only")


@pytest.mark.parametrize("words", [(), ("audit",)], ids=["kdbench", "audit"])
def test_help(measure, sizes, words):
    """The help of kdbench or of one of its commands, from the shell and back."""
    command = [sys.executable, "-m", "kdbench", *words, "--help"]
    subprocess.run(command, check=True, capture_output=True)
    measure.seconds(lambda: subprocess.run(command, check=True, capture_output=True), goal=0.3, rounds=sizes.starts)


@pytest.mark.skipif(sys.platform != "linux", reason="trials are forked from a warm server on Linux only")
def test_trial_start(measure, sizes):
    """A trial's process from the order to its first instruction, torch imported, the fork server being up."""
    context = start_server({1})
    receiver, sender = context.Pipe(duplex=False)

    def start():
        context.Process(target=sender.send, args=("up",), daemon=True).start()
        assert receiver.recv() == "up"

    start()  # when the server has imported all
    measure.seconds(start, goal=0.05, rounds=sizes.starts)
