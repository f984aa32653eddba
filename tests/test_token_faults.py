"""Each fault of the language model's training is caught by exactly the audits that it names; and where it is shown."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SEED
from test_matrix import cell, printed

from kdbench.harness.faults import FAULTS
from kdbench.harness.zoo import gallery, matrix, matrix_page
from kdbench.harness.zoo.language import RIGHT, TOKEN_FAULTS, audit_tokens, letters, texts
from kdbench.harness.zoo.matrix import Task

PAGE = (Path(__file__).resolve().parent.parent / "reports" / "faults.md").read_text(encoding="utf-8")
SECTIONS = gallery.sections(PAGE)


def one_an_audit():
    """Return every fault, of which those that are not the first of their decision are for `make test-long`."""
    first = {fault.seam: name for name, fault in reversed(TOKEN_FAULTS.items())}
    return [pytest.param(name, marks=[] if name in first.values() else pytest.mark.long) for name in TOKEN_FAULTS]


def test_the_training_without_a_fault_is_clean():
    run = audit_tokens(None, SEED)
    assert run.departures == []


@pytest.mark.parametrize("name", one_an_audit())
def test_a_fault_is_caught_by_exactly_its_audits(name):
    run = audit_tokens(TOKEN_FAULTS[name], 0)
    assert run.departures == []
    now = gallery.token_section(run)
    assert gallery.agree(now, SECTIONS.get(name, "")), f"the gallery has drifted; {gallery.COMMAND}\n{now}"


def test_what_is_not_as_declared_is_said():
    fault = replace(TOKEN_FAULTS["padding-distilled"], caught_by=("alignment",))
    run = audit_tokens(fault, 0)
    assert run.departures == ["KD305 did not fail", "KD352 failed and is not declared"]
    assert "NOT as declared: KD305 did not fail; KD352 failed" in gallery.token_section(run)
    assert replace(run, fault=None).departures[0] == "KD352 failed"


def test_each_decision_has_a_fault_and_a_story():
    assert {fault.seam for fault in TOKEN_FAULTS.values()} == {*vars(RIGHT)}
    assert not TOKEN_FAULTS.keys() & FAULTS.keys()
    for name, fault in TOKEN_FAULTS.items():
        assert fault.story and f"fault {name}" in fault.difference() and fault.decisions != RIGHT


def test_the_texts_are_the_same_wherever_they_are_read():
    assert texts()[:2] == ["The Zen of Python, by", "Tim Peters"] and len(texts()) == 45
    assert min(letters().values()) == 1 and max(letters().values()) == len(letters())


def test_the_matrix_counts_the_faults_of_the_language_model_apart():
    names = ["teacher-one-ahead", "each-text-by-its-own"]
    cells = [
        cell("fault", "kl-reversed", failed=["KD313"], reached=True),
        cell("tokens", matrix.CORRECTED, "tokens"),
        cell("tokens", names[0], "tokens", failed=["KD305"]),
        cell("tokens", names[1], "tokens", failed=["KD351"]),
    ]
    found = matrix.summary(cells, ["logit"], [0])
    assert [row["name"] for row in found["tokens"]] == sorted(names) and [len(found["faults"])] == [1]
    assert found["exact"] and found["clean"]["runs"] == 1
    assert "2 faults of a language model's training, token by token, in 2 runs: 2 are caught" in printed(found, 200)
    assert "teacher-one-ahead<small>tokens: meet</small>" in matrix_page.page(found)
    cells[3] = cell("tokens", names[1], "tokens", departures=["KD351 did not fail"])
    found = matrix.summary(cells, ["logit"], [0])
    assert not found["exact"] and "NO: each-text-by-its-own with tokens seed 0: KD351 did not fail" in printed(
        found, 80
    )
    cells[1] = cell("tokens", matrix.CORRECTED, "tokens", failed=["KD352"], departures=["KD352 failed"])
    assert matrix.summary(cells, ["logit"], [0])["clean"]["alarms"] == 1


def test_the_matrix_runs_them_with_the_clean_zoo():
    tasks = matrix.tasks_for(["kl-reversed"], ["logit"], [0], [3])
    asked = [t for t in tasks if t.kind == "tokens"]
    assert {t.name for t in asked} == {matrix.CORRECTED, *TOKEN_FAULTS} and {t.seed for t in asked} == {3}
    assert not [t for t in matrix.tasks_for(["kl-reversed"], ["logit"], [0], []) if t.kind == "tokens"]
    seen = matrix.look(Task("tokens", "labels-not-shifted", "tokens", 0))
    assert seen.as_declared and [*seen.failed] == ["KD305"]
