"""Every method from the command line to its record: a small study of all of them, and of two joined."""

import json
from pathlib import Path

import pytest
from conftest import TINY
from test_cli import kdbench

from kdbench.kd.methods import METHODS

JOINED = ("logit+crd", "ls+dkd+at")


@pytest.mark.long
def test_every_method_runs_and_is_proven_clean(tmp_path):
    weights = {"dkd": {"tckd": 1, "nckd": 8}, "logit": {"kd": 0.7}, "feature": {"kd": 1}}
    tables = "".join(
        f"[method.{name}]\n" + "".join(f"{term}_weight = {value}\n" for term, value in terms.items())
        for name, terms in weights.items()
    )
    study = tmp_path / "all.toml"
    study.write_text(Path(TINY).read_text(encoding="utf-8").partition("[method.")[0] + tables)
    named = [word for name in (*METHODS, *JOINED) for word in ("--method", name)]
    words = [
        "run",
        str(study),
        *named,
        "--variant",
        "corrected",
        "--seeds",
        "0",
        "--no-controls",
        "--runs",
        str(tmp_path / "runs"),
        "--json",
    ]
    code, out, err = kdbench(*words)
    found = json.loads(out)
    assert [arm["method"] for arm in found["arms"] if not arm["as_expected"]] == [], err
    assert code == 0 and {arm["method"] for arm in found["arms"]} == {*METHODS, *JOINED}
    assert all(len(arm["test_accuracy"]) == 1 for arm in found["arms"])
