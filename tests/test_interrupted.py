"""The benchmark that kills studies: it runs, and it would say so if the resumed one came out otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_study_file import SMALL

from benchmarks.interrupted import begun, page

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
    assert unbroken["trials"] == 4 and unbroken["trained"] == [5], "with the control"
    (kill,) = killed["kills"]
    same = {what: unbroken[what] for what in ("table", "weights")}
    assert kill["trials_done"] <= 4 and same.items() <= killed.items()
    text = (tmp_path / "out" / "interrupted.md").read_text()
    assert "equal byte for byte" in text and "DIFFERENT" not in text and str(tmp_path) not in text
    found["ways"][1] |= {"table": "0", "weights": "0"}
    assert page(found).count("DIFFERENT") == 2 and "Not run yet: shards, dask." in page(found)


def test_an_earlier_call_is_gone_on_with_if_it_is_of_the_same(tmp_path):
    study, output = tmp_path / "toy.toml", tmp_path / "interrupted.json"
    study.write_text(SMALL)
    new = begun(output, study, "cpu", 2)
    known = {**new, "ways": [{"name": "unbroken"}]}
    output.write_text(json.dumps(known))
    assert not new["ways"] and begun(output, study, "cpu", 2) == known
    study.write_text(SMALL.replace("epochs = 3", "epochs = 4"))
    with pytest.raises(SystemExit, match="is of another study_sha256, workers: bits may not be compared"):
        begun(output, study, "cpu", 4)
