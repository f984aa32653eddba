"""The laws on our own decisions, and how their verdicts join a training's report."""

from dataclasses import replace

import pytest

from kdbench.audits.finding import Finding, Report
from kdbench.harness import faults
from kdbench.harness.run.properties import judge, with_properties
from kdbench.kd.procedure import CANONICAL

SEEN = Finding(
    id="KD344",
    name="group-schedule",
    severity="error",
    status="pass",
    phase="burn-in",
    message="seen in the training",
    observed={},
    mend="mend",
)


def status(report, id):
    return {f.id: (f.status, f.message) for f in report.findings}[id]


def test_every_decision_of_the_canonical_procedure_holds_its_law(prepare):
    found = {f.name: f.status for f in judge(prepare("logit"))}
    assert set(found.values()) == {"pass"} and len(found) == 10


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("split-leak", "split-hygiene test-held-out"),
        ("validation-trained-on", "split-hygiene"),
        ("test-as-validation", "test-held-out"),
        ("alpha-swapped", "weight-endpoints"),
        ("lr-never-decays", "schedule-endpoints"),
        ("projector-lr-lost", "group-schedule"),
        ("select-on-test", "selection-ignores-test"),
        ("std-of-population", "sample-spread"),
        ("worst-seed-dropped", "all-seeds-counted"),
        ("seed-ignored", "seeds-independent"),
        ("no-augmentation", "augmentation-active"),
    ],
)
def test_a_wrong_decision_fails_its_law_and_no_other(prepare, name, law):
    found = judge(prepare("feature", faults.get(name).inject(CANONICAL, lambda: None)))
    assert [f.name for f in found if f.status == "fail"] == law.split()
    assert all(f.status in ("pass", "fail") for f in found)


def test_what_was_seen_stands_unless_it_decided_nothing_or_the_law_fails(prepare):
    right, wrong = (
        prepare("feature"),
        prepare("feature", faults.get("projector-lr-lost").inject(CANONICAL, lambda: None)),
    )
    assert status(with_properties(Report((SEEN,)), right), "KD344") == ("pass", "seen in the training")
    silent = replace(SEEN, status="not_triggered", reason="out-of-scope")
    assert status(with_properties(Report((silent,)), right), "KD344")[1].startswith("the schedule moves all 3")
    for seen in (SEEN, silent, replace(SEEN, status="fail", severity="warn")):
        found = next(f for f in with_properties(Report((seen,)), wrong).findings if f.id == "KD344")
        assert (found.status, found.severity) == ("fail", "error")


def test_a_consequence_of_what_did_not_fail_stands_on_its_own(prepare):
    follows = replace(SEEN, id="KD204", name="norm-bound", status="fail", consequence_of="KD201")
    (found,) = with_properties(Report((follows,)), prepare("logit")).failed("error")
    assert found.consequence_of is None


def test_what_follows_from_a_failure_that_a_law_alone_saw_is_marked_so(prepare):
    """The weights that the loss was called with need not show which of them was applied twice."""
    scale = replace(SEEN, id="KD312", name="kd-scale", status="fail")
    twice = prepare("logit", faults.get("alpha-twice").inject(CANONICAL, lambda: None))
    found = {f.id: f.consequence_of for f in with_properties(Report((scale,)), twice).failed("error")}
    assert found == {"KD341": None, "KD312": "KD341"}
    assert with_properties(Report((scale,)), prepare("logit")).failed("error")[0].consequence_of is None
