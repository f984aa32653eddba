"""What the user chose to do with findings: each choice changes what it should, and nothing else."""

import json
from dataclasses import replace

import pytest

from kdbench.audits.finding import Finding, sorted_report
from kdbench.audits.report.policy import EXIT_CODES, Baseline, Policy, PolicyError, audit_id, fingerprint

SCALE = Finding(
    "KD312",
    "kd-scale",
    "error",
    "fail",
    "first",
    "the term acts with weight 0.04",
    {"kd_weight": 0.04, "form": "off by 16", "layers": ["b", "a"]},
    "mend it",
    {"file": "train.py", "line": 7},
)
BOUND = Finding("KD204", "norm-bound", "error", "fail", "burn-in", "too long", consequence_of="KD201")
INPUT = Finding("KD304", "same-input", "warn", "fail", "first", "other crops")
ACTIVE = Finding("KD205", "clip-active", "info", "fail", "burn-in", "binds always")
MODE = Finding("KD301", "teacher-mode", "error", "pass", "burn-in", "in evaluation mode")
SILENT = Finding("KD203", "clip-after-unscale", "error", "not_triggered", "first", "no scaler", reason="out-of-scope")
BROKEN = Finding("KD101", "optimizer-coverage", "error", "error", "first", "the audit itself broke")


def report(*findings):
    return sorted_report(findings)


def verdict(*findings, ran=True, distilled=True, **choices):
    policy = Policy.parse(**choices)
    return policy.verdict(policy.apply(report(*findings)), ran=ran, distilled=distilled)


@pytest.mark.parametrize(
    ("expected", "findings", "options"),
    [
        ("clean", (MODE, SILENT), {}),
        ("clean", (MODE, INPUT, ACTIVE), {}),
        ("failed", (MODE, SCALE), {}),
        ("failed", (MODE, INPUT), {"strict": True}),
        ("clean", (MODE, ACTIVE), {"strict": True}),
        ("undecided", (MODE, SILENT), {"distilled": False}),
        ("undecided", (SILENT,), {}),
        ("undecided", (), {}),
        ("failed", (SCALE,), {"distilled": False}),
        ("could-not-run", (MODE,), {"ran": False}),
        ("failed", (SCALE,), {"ran": False}),
        ("could-not-run", (MODE, BROKEN), {}),
        ("clean", (MODE, SCALE), {"waive": ["KD312=a mean is meant"]}),
        ("clean", (MODE, SCALE), {"waive": ["kd-scale=a mean is meant"]}),
        ("failed", (MODE, SCALE, BOUND), {"waive": ["KD312=a mean is meant"]}),
        ("clean", (MODE, SCALE), {"ignore": ["KD312"]}),
        ("clean", (MODE, SCALE), {"select": ["KD301, KD304"]}),
        ("failed", (MODE, SCALE), {"select": ["kd-scale"]}),
    ],
)
def test_verdict(expected, findings, options):
    assert verdict(*findings, **options) == expected


def test_each_verdict_has_the_exit_code_that_is_promised():
    assert EXIT_CODES == {"clean": 0, "failed": 1, "could-not-run": 3, "undecided": 4}


def test_a_waived_finding_keeps_its_message_and_gains_the_reason():
    (waived,) = Policy.parse(["KD312=a mean = all numbers"]).apply(report(SCALE)).findings
    assert waived == replace(SCALE, status="waived", reason="a mean = all numbers")


def test_only_failures_are_waived():
    policy = Policy.parse(["KD301=never mind", "KD203=never mind"])
    assert policy.apply(report(MODE, SILENT)) == report(MODE, SILENT)
    assert policy.needless(report(MODE, SILENT)) == ["KD301"]


@pytest.mark.parametrize("text", ["KD312", "KD312=", "KD312=  "])
def test_a_waiver_needs_a_reason(text):
    with pytest.raises(PolicyError, match="gives no reason; write it as KD312=REASON"):
        Policy.parse([text])


@pytest.mark.parametrize(
    ("word", "near"),
    [("kd-scal", "kd-scale"), ("KD999", "KD"), ("KD", "KD"), ("selection-ignores-tests", "selection-ignores-test")],
)
def test_an_unknown_audit_is_refused_with_the_nearest(word, near):
    with pytest.raises(PolicyError, match=f"unknown audit '{word}'.*{near}"):
        Policy.parse(ignore=[word])
    with pytest.raises(PolicyError, match="unknown audit 'KD31'"):
        Policy.parse(["KD31=a waiver is of one audit"])
    assert audit_id("KD312") == audit_id("kd312") == audit_id("kd-scale") == "KD312"


def test_the_beginning_of_ids_selects_and_ignores_them_all():
    assert Policy.parse(select=["KD31, clip-order"]).select == {"KD202", "KD311", "KD312", "KD313", "KD314"}
    assert Policy.parse(ignore=["kd30"]).apply(report(MODE, SCALE)) == report(SCALE)
    assert "KD343" in Policy.parse(select=["KD3"]).select, "property checks are audits too"


def test_a_fingerprint_leaves_out_what_changes_from_run_to_run():
    moved = replace(SCALE, where={"file": "/elsewhere/train.py", "line": 70}, message="other words")
    measured = replace(moved, observed={"kd_weight": 0.05, "form": "off by 15.9", "layers": ["a", "b"]})
    assert fingerprint(SCALE) == fingerprint(measured)
    others = [
        replace(SCALE, id="KD313"),
        replace(SCALE, where={"file": "other.py", "line": 7}),
        replace(SCALE, observed={**SCALE.observed, "layers": ["a", "b", "c"]}),
        replace(SCALE, observed={**SCALE.observed, "form": "reversed"}),
    ]
    assert len({fingerprint(f) for f in (SCALE, *others)}) == 5


def test_baseline_accepts_what_is_old_and_tells_what_is_gone(tmp_path):
    path = tmp_path / "baseline.json"
    old = report(SCALE, INPUT, ACTIVE, MODE)
    Baseline().updated(old, "train.py").updated(report(BOUND), "other.py").write(path)
    baseline = Baseline.read(path)
    assert [e["id"] for e in json.loads(path.read_text())["findings"]] == ["KD204", "KD304", "KD312"]

    assert not baseline.apply(old, "train.py").failed("warn")
    new = report(SCALE, BOUND)
    assert [f.id for f in baseline.apply(new, "train.py").failed()] == ["KD204"], "known of another script only"
    assert baseline.gone(new, "train.py") == ["KD304 same-input"]
    # A script's entries are replaced, another's stay.
    again = baseline.updated(report(SCALE), "train.py")
    assert {(e["target"], e["id"]) for e in again.entries} == {("train.py", "KD312"), ("other.py", "KD204")}


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "kdbench.baseline/9", "findings": []}', '{"findings": 1}'])
def test_a_file_that_is_no_baseline_is_refused(tmp_path, text):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"baseline\.json cannot be read"):
        Baseline.read(path)
    with pytest.raises(PolicyError, match=r"none\.json does not exist$") as raised:
        Baseline.read(tmp_path / "none.json")
    assert raised.value.remedy == "write-baseline"
