"""The pairs of tests/reported are whole, and what is expected of them can be right or wrong."""

import tomllib

from reported import FOLDER

from kdbench.audits.checks.all import CATALOGUE

EXPECTED = tomllib.loads((FOLDER / "expected.toml").read_text(encoding="utf-8"))


def test_each_pair_has_both_scripts_and_each_script_a_pair():
    named = {f"{name}_{kind}.py" for name in EXPECTED for kind in ("bug", "clean")}
    assert {path.name for path in FOLDER.glob("*.py")} == named


def test_what_is_expected_are_audits_and_one_of_three_answers():
    ids = {audit.id for audit in CATALOGUE.values()}
    for name, entry in EXPECTED.items():
        assert {*entry["audits"]} <= ids and entry["shown"] in ("yes", "partly", "no"), name
