"""The pairs of tests/reported are whole, and what is expected of them can be right or wrong."""

import tomllib

import pytest
from reported import FOLDER

from kdbench.audits.checks.all import CATALOGUE

SETS = {
    folder: tomllib.loads((folder / "expected.toml").read_text())
    for folder in (FOLDER, *(FOLDER / name for name in ("sixth", "seventh", "eighth", "ninth", "tenth")))
}


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_each_pair_has_both_scripts_and_each_script_a_pair(folder):
    named = {f"{name}_{kind}.py" for name in SETS[folder] for kind in ("bug", "clean")}
    assert {path.name for path in folder.glob("*.py")} == named


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_what_is_expected_are_audits_and_one_of_three_answers(folder):
    ids = {audit.id for audit in CATALOGUE.values()}
    for name, entry in SETS[folder].items():
        assert {*entry["audits"]} <= ids and entry["shown"] in ("yes", "partly", "no"), name
