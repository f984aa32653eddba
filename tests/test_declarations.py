"""Audits name declarations, the command line its options."""

import ast
import re
from pathlib import Path

import pytest

from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.finding import Finding, Report
from kdbench.harness.cli.audit_command import command
from kdbench.harness.declarations import spelled, spelled_mend

AUDITS = Path(__file__).resolve().parent.parent / "audits"
OF_PYTEST = {"pytest_plugin.py"}
"Its options are pytest's, and it is the edge that knows them."


def strings(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def options_in(texts: list[str]) -> set[str]:
    return {found for text in texts for found in re.findall(r"--[a-z][a-z-]+", text)}


@pytest.mark.parametrize("room", [".", "checks", "infer", "observe"])
def test_audits_name_no_option(room):
    files = [path for path in (AUDITS / room).glob("*.py") if path.name not in OF_PYTEST]
    assert files and not options_in([text for path in files for text in strings(path)])


def test_the_search_for_options_sees_one():
    assert options_in(["or more --steps"]) == {"--steps"}


@pytest.mark.parametrize(
    ("declaration", "option"),
    [
        ("steps", "--steps"),
        ("all steps", "--steps 0"),
        ("clip", "--max-norm and --clip-scope"),
        ("alpha", "--alpha"),
        ("alpha or kd_weight", "--alpha or --kd-weight"),
        ("student and teacher, or steps", "--student NAME --teacher NAME, or more --steps"),
        ("kd=kdbench.KD(alpha=)", "kd=kdbench.KD(alpha=)"),
        (None, None),
    ],
)
def test_a_declaration_is_spelled_as_an_option_that_there_is(declaration, option):
    finding = Finding("KD312", "kd-scale", "error", "not_triggered", "first", "", decide_with=declaration)
    (found,) = spelled(Report((finding,))).findings
    assert found.decide_with == option
    assert options_in([option or ""]) <= {name for param in command.params for name in param.opts}


def test_only_the_audit_that_may_be_waived_names_how():
    mends = {a.id: spelled_mend(a.id, a.mend) for a in CATALOGUE.values()}
    assert {id for id, mend in mends.items() if "--waive" in mend} == {"KD312"}
    assert mends["KD312"].endswith("waive it with the reason: --waive KD312=REASON")
