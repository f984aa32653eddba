"""The benchmark that kills studies: it runs, and it would say so if the resumed one came out otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_study_file import SMALL

from benchmarks.interrupted import CUT, Way, begun, killed, page, unbroken

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_a_study_killed_and_resumed_is_held_against_an_unbroken_one(tmp_path, cache):
    text = SMALL.replace('"baseline", "feature"', '"baseline"').replace('"projector-unclipped"', '"lr-never-decays"')
    (tmp_path / "toy.toml").write_text(text.replace("epochs = 3", "epochs = 4"))
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


def test_a_study_that_cannot_begin_is_reported_in_its_own_words(tmp_path):
    (tmp_path / "toy.toml").write_text(SMALL.replace("epochs = 3", "epoks = 3"))
    way = Way("killed", tmp_path / "toy.toml", None, tmp_path, 2, "cpu")
    with pytest.raises(SystemExit, match=r"(?s)killed: the study ended with code 2: .*error: .*epoks"):
        way.finish(way.start())


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


def test_a_way_that_is_cut_off_itself_is_gone_on_with_and_the_cut_is_counted(tmp_path, monkeypatch):
    started = []

    class Over:
        """A program whose trials are done at once."""

        pid = 0

        def poll(self):
            return None

        def kill(self):
            started.append("killed")

        communicate = kill

    def way(name):
        made = Way(name, tmp_path / "toy.toml", None, tmp_path, 2, "cpu")
        made.start, made.done, made.finish = lambda *_: Over(), lambda: 9, lambda _: started.append("finished")
        return made

    first = {"trials": 9, "trial_seconds": 0.0}
    monkeypatch.setattr("benchmarks.interrupted.os.killpg", lambda *_: None)
    monkeypatch.setattr("benchmarks.interrupted.time.sleep", lambda _: None)
    once = way("killed")
    killed(once, first, kills=2, seed=0)  # and is cut off in what comes after
    again = way("killed")
    assert [kill["how"] for kill in again.kills] == ["the program, SIGKILL", "the program, SIGINT", CUT]
    killed(again, first, kills=3, seed=0)
    assert [kill["how"] for kill in again.kills][2:] == [CUT, "a trial, SIGKILL"] and started.count("finished") == 2
    way("unbroken").save()
    with pytest.raises(SystemExit, match="unbroken was begun before, so it is not unbroken"):
        unbroken(way("unbroken"))
