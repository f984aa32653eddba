"""Every audit has a specimen on its page, and each is judged as the page says."""

import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdbench import check_workers
from kdbench.harness.cli.audit_catalogue import by_id
from kdbench.harness.faults import FAULTS
from kdbench.harness.zoo.language import TOKEN_FAULTS

SPECIMENS = Path(__file__).resolve().parent.parent / "docs" / "specimens"
RIGHT = (SPECIMENS / "right.py").read_text(encoding="utf-8")
SLIPS = tomllib.loads((SPECIMENS / "slips.toml").read_text(encoding="utf-8"))
NOTES = {"KD106": "warn", "KD205": "info"}
"Those that are no error."


def failed(text, folder):
    """Audit a script; return the ids of what failed with their severities, the causes first."""
    (folder / "script.py").write_text(text)
    words = [sys.executable, "-m", "kdbench", "audit", "--format", "json", "script.py"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    findings = json.loads(done.stdout)["findings"]
    return [(f["id"], f["severity"]) for f in findings if f["status"] == "fail"]


def slipped(slip):
    text = RIGHT
    for old, new in slip["changes"]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_every_audit_has_something_to_show():
    faults = [*FAULTS.values(), *TOKEN_FAULTS.values()]
    for same in by_id():
        id, name = same[0].id, same[0].name
        shown = [fault for fault in faults if name in fault.caught_by]
        assert shown or id in SLIPS or (SPECIMENS / f"{id}.py").exists(), f"{id} {name} shows nothing wrong"


@pytest.mark.long
def test_the_right_script_is_left_alone(tmp_path):
    assert failed(RIGHT, tmp_path) == []


@pytest.mark.long
@pytest.mark.parametrize("id", [id for id, slip in SLIPS.items() if "script" not in slip])
def test_each_slip_is_named_first(id, tmp_path):
    assert failed(slipped(SLIPS[id]), tmp_path)[0] == (id, NOTES.get(id, "error"))


def test_the_page_on_workers():
    names = runpy.run_path(str(SPECIMENS / "KD331.py"))
    # What is pickled for a worker is looked up by its module, and this one has none.
    assert [check_workers(names[name]()).status for name in ("Wrong", "Right")] == ["fail", "pass"]


def test_the_page_on_balance():
    distil = runpy.run_path(str(SPECIMENS / "KD314.py"))["distil"]
    assert [distil(weight=weight).status for weight in (0.01, 1.0)] == ["fail", "pass"]
