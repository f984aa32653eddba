"""The pairs of tests/reported are whole, and what is expected of them can be right or wrong."""

import tomllib

import pytest
from reported import FOLDER, Told, judged

from kdbench.audits.checks.all import CATALOGUE

EXPECTED = tomllib.loads((FOLDER / "expected.toml").read_text(encoding="utf-8"))


def test_each_pair_has_both_scripts_and_each_script_a_pair():
    named = {f"{name}_{kind}.py" for name in EXPECTED for kind in ("bug", "clean")}
    assert {path.name for path in FOLDER.glob("*.py")} == named


def test_what_is_expected_are_audits_and_one_of_three_answers():
    ids = {audit.id for audit in CATALOGUE.values()}
    for name, entry in EXPECTED.items():
        assert {*entry["audits"]} <= ids and entry["shown"] in ("yes", "partly", "no"), name


@pytest.mark.parametrize(
    ("code", "failed", "how"),
    [
        (1, ("KD201", "KD204"), "first"),
        (1, ("KD101", "KD201"), "named"),
        (1, ("KD101",), "other"),
        (4, (), "undecided"),
        (0, (), "silent"),
    ],
)
def test_a_slip_is_named_first_or_named_or_missed(code, failed, how):
    assert judged(Told(code, failed, failed), ["KD201"]) == how
