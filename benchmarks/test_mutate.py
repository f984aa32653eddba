"""What it costs to put every fault into a script of somebody's, one run each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("cpu_only")
SCRIPT = Path(__file__).resolve().parent.parent / "docs" / "examples" / "fixed.py"
"It takes about three seconds, PyTorch's import aside."
FEW = ("--fault", "no-zero-grad", "--steps", "2")


def test_mutate(measure, sizes):
    """kdbench mutate on a script of three seconds, all its faults over 30 steps, two runs at a time."""
    words = ["mutate", "-q", "--format", "json", "--workers", "2", *(FEW if sizes.toy else ()), SCRIPT.name]
    said = {}

    def call():
        command = [sys.executable, "-m", "kdbench", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=SCRIPT.parent)
        said.update(json.loads(done.stdout))

    measure.seconds(call, goal=240, rounds=1)
    acted = [row for row in said["faults"] if row["status"] in ("injected", "dormant")]
    measure.note(faults=len(acted), cpu_seconds=said["cpu_seconds"])
    assert sizes.toy or len(acted) >= 25
