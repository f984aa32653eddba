"""The torture runs, counts what it does, and would say so if anything failed; the long form is `make torture`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).with_name("torture")
ROOT = TORTURE.parent.parent


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(TORTURE)
    import page
    import versions

    yield page, versions
    for name in ("page", "versions"):
        sys.modules.pop(name, None)


def torture(place, *words):
    """Run some of it; its exit code, its state and its page."""
    more = ["--state", place / "state.json", "--output", place / "trust.md"]
    command = [sys.executable, TORTURE, *words, *more]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, cwd=place)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return done.returncode, json.loads((place / "state.json").read_text()), (place / "trust.md").read_text()


def test_a_result_that_is_killed_at_its_commit_is_made_again(tmp_path, cache):
    code, state, text = torture(tmp_path, "--part", "kills", "--only", "commit", "--scale", "0.1")
    row = state["kills"]["commit of a result"]
    assert code == 0 and row["failures"] == [] and row["tried"] == 2 and row["studies"] >= 1
    assert "| commit of a result | 2 | 2 | 0 |" in text and "**2 tried, 2 held, 0 failed.**" in text
    assert text.count("Not run.") == 2, "the other parts"
    first = (tmp_path / "state.json").read_text()
    torture(tmp_path, "--part", "report")
    assert (tmp_path / "state.json").read_text() == first


@pytest.mark.long
@pytest.mark.parametrize("part", ["kills", "machine"])
def test_a_little_of_everything_holds(part, tmp_path, cache):
    code, state, _ = torture(tmp_path, "--part", part, "--scale", "0.02")
    assert code == 0, state
    assert len(state[part]) == {"kills": 8, "machine": 22}[part]


def test_damaged_files_are_counted(tmp_path):
    code, state, text = torture(tmp_path, "--part", "fuzz", "--only", "contract", "--scale", "0.01")
    assert code == 0 and state["fuzz"]["contract"]["tried"] == 20 and "| contract | 20 | 20 | 0 |" in text


def test_a_page_says_what_failed(modules):
    page, _ = modules
    rows = {
        "checkpoint": {"tried": 20, "failures": ["v1: another table", "v1: lost: a"], "seconds": 3},
        "mirror": {"tried": 5, "held": 4, "failures": ["mirror: code 1"] * 9, "seconds": 3},
    }
    text = page.page({"kills": rows}, ("kills", "fuzz"))
    assert "| checkpoint | 20 | 18 | 2 | 3 |" in text and "| mirror | 5 | 4 | 1 | 3 |" in text
    assert "**25 tried, 22 held, 3 failed.**" in text and "- checkpoint: v1: another table" in text
    assert "python tests/torture --part kills" in text and "Not run." in text


def test_the_oldest_versions_are_those_of_the_project(modules, tmp_path):
    _, versions = modules
    lines = versions.oldest(ROOT / "pyproject.toml")
    assert "torch==2.11" in lines and "numpy==1.26" in lines and "pytest==8" in lines
    assert not any(line.startswith(("kdbench", "peft")) for line in lines)
    made = tmp_path / "pyproject.toml"
    groups = 'test = ["b"]\nlightning = []\nhuggingface = []\ndask = ["c>1"]'
    made.write_text(f'[project]\ndependencies = ["a[x]>=1.2,<3"]\n[project.optional-dependencies]\n{groups}\n')
    assert versions.oldest(made) == ["a==1.2"]
