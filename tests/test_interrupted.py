"""The benchmark that kills studies: it runs, and it would say so if the resumed one came out otherwise."""

import json
import subprocess
import sys
from pathlib import Path

from test_study_file import SMALL

from benchmarks.interrupted import page

ROOT = Path(__file__).parent.parent


def test_a_study_killed_and_resumed_is_held_against_an_unbroken_one(tmp_path, cache):
    text = SMALL.replace('"baseline", "feature"', '"baseline"').replace('"projector-unclipped"', '"lr-never-decays"')
    (tmp_path / "toy.toml").write_text(text.replace("epochs = 3", "epochs = 12"))
    options = ["--place", tmp_path / "runs", "--output", tmp_path / "out", "--ways", "killed", "--kills", "1"]
    command = [sys.executable, "-m", "benchmarks.interrupted", tmp_path / "toy.toml", *options]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "interrupted.json").read_text())
    unbroken, killed = found["ways"]
    assert found["trials"] == 4 and unbroken["trained"] == [5], "with the control"
    (kill,) = killed["kills"]
    assert kill["trials_done"] <= 4 and killed["same_table"] and killed["same_weights"]
    text = (tmp_path / "out" / "interrupted.md").read_text()
    assert "equal byte for byte" in text and "DIFFERENT" not in text and str(tmp_path) not in text
    found["ways"][1] |= {"same_table": False, "same_weights": False}
    assert page(found).count("DIFFERENT") == 2
