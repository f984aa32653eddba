"""Each fault is caught by exactly the audits that it names; and how the matrix counts."""

import html
import io
import json
import multiprocessing
import re
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import every_method
from rich.console import Console
from test_cli import kdbench

from kdbench.harness.faults import FAULTS
from kdbench.harness.zoo import gallery, matrix, matrix_page
from kdbench.harness.zoo.language import TOKEN_FAULTS
from kdbench.harness.zoo.matrix import Cell, Task
from kdbench.harness.zoo.selfcheck import audit_once
from kdbench.kd.methods import METHODS

REPORTS = Path(__file__).resolve().parent.parent / "reports"
PAGE = (REPORTS / "faults.md").read_text(encoding="utf-8")
GALLERY = gallery.sections(PAGE)


def one_a_seam():
    """Return every fault, of which those that are not the first of their seam are for `make test-long`."""
    first = {FAULTS[name].seam: name for name in sorted(FAULTS, reverse=True)}
    return [pytest.param(name, marks=[] if name in first.values() else pytest.mark.long) for name in sorted(FAULTS)]


@pytest.mark.parametrize("name", one_a_seam())
def test_a_fault_is_caught_by_exactly_its_audits(name):
    """One seed and one method; `kdbench audits matrix --seeds 0-9` has ten seeds of every method."""
    run = audit_once(gallery.method_for(FAULTS[name]), FAULTS[name], 0, lambda _: None)
    assert run.as_declared, run.departures
    now = gallery.section(run)
    assert gallery.agree(now, GALLERY.get(name, "")), f"the gallery has drifted; {gallery.COMMAND}\n{now}"


def test_the_gallery_shows_every_fault_and_no_other():
    assert sorted(GALLERY) == sorted([*FAULTS, *TOKEN_FAULTS])


def test_one_fault_more_changes_no_other_entry(monkeypatch):
    methods = {name: gallery.method_for(fault) for name, fault in FAULTS.items()}
    monkeypatch.setitem(FAULTS, "a-fault-before-all-others", FAULTS["kl-reversed"])
    assert {name: gallery.method_for(FAULTS[name]) for name in methods} == methods
    assert len({*methods.values()}) == 3, "and all methods are shown"


def test_a_place_is_named_by_its_function(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("X = 1\n\n\nclass A:\n    def f(self):\n        def g():\n            return 1\n        return g\n")
    assert [gallery.function_at(file, n) for n in (1, 4, 5, 7, 8)] == ["module", "A", "A.f", "A.f.g", "A.f"]
    assert not re.search(r"\.py:\d", PAGE), "a line number drifts with every edit of its file"


def test_a_gallery_that_drifted_is_noticed():
    text = "## a\n\nReplaces `b`.\n\nAfter 20 steps: loss 1.5\n\nKD201 clip-coverage  train.py:step\n  norm 1.882"
    assert gallery.agree(text, text.replace("1.882", "2.1")) and gallery.agree(text, text.replace("  ", "\n"))
    for old, new in (
        ("1.882", "18.82"),
        ("coverage", "order"),
        ("KD201", "KD202"),
        ("train.py:step", "train.py:epoch"),
        ("`b`", "`c`"),
        ("loss 1.5", "loss 1.5 7"),
        (text, ""),
    ):
        assert not gallery.agree(text, text.replace(old, new)), new


def test_in_a_gallery_the_largest_norm_may_be_that_of_another_step():
    text = "## a\n\nAfter 20 steps: loss 1.5\n\nKD204 norm-bound  train.py:276\n  at step 2 norm 1.9\n  fix: it\n"
    assert gallery.agree(text, text.replace("step 2", "step 8").replace("276", "280"))
    assert not gallery.agree(text, text.replace("norm 1.9", "norm 19"))
    other = text.replace("KD204 norm-bound", "KD211 gradients-zeroed")
    assert not gallery.agree(other, other.replace("step 2", "step 8"))
    assert not gallery.agree(other, other.replace("276", "280"))


@pytest.mark.parametrize("method", every_method("ls", "rkd", "vid"))
def test_the_canonical_procedure_is_clean(method):
    run = audit_once(method, None, 3, lambda _: None)
    assert run.as_declared and run.report.failed("warn") == []


def test_a_training_that_is_not_as_declared_is_said_so_in_the_gallery_and_in_its_cell(monkeypatch):
    fault = replace(FAULTS["kl-reversed"], caught_by=("kd-scale",))
    monkeypatch.setitem(FAULTS, "kl-reversed", fault)
    found = matrix.look(Task("fault", "kl-reversed", "logit", 0))
    assert found.departures == ["KD312 did not fail", "KD313 failed and is not declared"] and not found.as_declared
    page = gallery.section(audit_once("logit", fault, 0, lambda _: None))
    assert "NOT as declared: KD312 did not fail; KD313 failed and is not declared." in page


def cell(kind, name, method="logit", seed=0, failed=(), departures=(), **more):
    return Cell(Task(kind, name, method, seed), dict.fromkeys(failed), [], [], [*departures], **more)


def test_the_matrix_counts_detection_alarms_and_what_lay_dormant():
    cells = [
        *(cell("clean", "fp32", seed=seed, digests=["a", "b"]) for seed in (0, 1)),
        cell("fault", "missing-t-squared", failed=["KD312"], reached=True, digests=["a", "x"]),
        cell("fault", "missing-t-squared", seed=1, departures=["KD312 did not fail"], reached=True, digests=["a", "b"]),
        cell("zoo", "plain_sgd", "foreign", failed=["KD301"], departures=["KD301 failed"]),
        cell("zoo", "plain_sgd", "declared"),
    ]
    found = matrix.summary(cells, ["logit"], [0, 1])
    (row,) = found["faults"]
    assert row["detected"] == {"KD312": [1, 2]} and row["caught"] == [1, 2] and not row["exact"]
    assert (row["first_divergence"], row["dormant"]) == (2, 1)
    assert row["inexact"] == ["logit seed 1: KD312 did not fail"]
    assert found["clean"]["runs"] == 4 and found["clean"]["alarms"] == 1
    assert found["clean"]["alarmed"] == ["zoo plain_sgd foreign seed 0: KD301 failed"]
    assert found["clean"]["members"] == ["clean:logit", "zoo:plain_sgd"] and not found["exact"]
    page = matrix_page.page(found)
    assert '<td class="n miss">1</td>' in page and "logit seed 1: KD312 did not fail" in page
    assert '<td class="n wrong">1</td>' in page, "the false alarm, in the row of the correct trainings"


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ([], [0, 1, 2]),
        (["--seeds", "4-8"], [4, 5, 6]),
        (["--fault", "kl-reversed"], []),
        (["--zoo-seeds", "none"], []),
        (["--fault", "kl-reversed", "--zoo-seeds", "7-7"], [7]),
    ],
)
def test_the_clean_zoo_is_left_out_where_faults_are_named_and_that_is_said(words, seeds, monkeypatch):
    asked = []

    def run(tasks, workers, told):
        asked.extend(tasks)
        return iter([cell(t.kind, t.name, t.method, t.seed, failed=["KD313"]) for t in tasks if t.kind == "fault"])

    monkeypatch.setattr(matrix, "run", run)
    words = ["audits", "matrix", "--method", "logit", *words]
    _, out, err = kdbench(*words)
    assert sorted({t.seed for t in asked if t.kind == "zoo"}) == seeds
    assert ("The clean zoo was left out" in out) is (seeds == [])
    assert f"{len(asked)} short trainings" in err and "loading PyTorch" in err
    _, out, err = kdbench(*words, "-q", "--format", "json")
    assert err == "" and json.loads(out)["zoo_seeds"] == seeds
    _, _, err = kdbench(*words, "-v")
    assert "fault kl-reversed, logit, seed" in err
    assert kdbench(*words, "-q", "-v")[0] == 2


def test_warnings_that_the_zoo_provokes_stay_out_of_the_terminal():
    with warnings.catch_warnings(record=True) as heard:
        matrix._begin([])
        warnings.warn("Using `torch.compile(module)` when there are global hooks", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["something else"]


def test_a_bound_is_one_sided_and_exact():
    assert matrix.bound(0, 300, "upper") == pytest.approx(1 - 0.05 ** (1 / 300))
    assert matrix.bound(10, 10, "lower") == pytest.approx(0.05 ** (1 / 10))
    assert matrix.bound(0, 0, "upper") is None


def test_whoever_interrupts_the_matrix_does_not_wait_for_the_rest():
    cells = matrix.run([Task("clean", "fp32", "baseline", seed) for seed in range(40)], 1, lambda _: None)
    assert next(cells).as_declared
    (process,) = multiprocessing.active_children()
    cells.close()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM, f"it had others to train: {process.exitcode}"


def test_an_error_of_a_training_is_counted_and_not_raised():
    seen = matrix.look(Task("fault", "random-teacher", "no such method", 0))
    assert seen.error and not seen.as_declared


def test_a_fault_that_is_not_declared_so_is_painted_red(tmp_path):
    found = matrix.summary(
        [cell("fault", "kl-reversed", failed=["KD313", "KD201"], departures=["KD201 failed"], reached=True)],
        ["logit"],
        [0],
    )
    kinds = {id: matrix_page.kind_of(found["faults"][0], id) for id in matrix_page.ids_of(found)}
    assert kinds == {"KD201": "wrong", "KD313": "hit"}
    assert '<span class="no">NO</span>: logit seed 0: KD201 failed' in matrix_page.page(found)
    matrix_page.draw(found, tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def printed(found, width):
    console = Console(width=width, file=io.StringIO(), highlight=False)
    matrix_page.show(console, found)
    return console.file.getvalue()


def test_a_fault_that_escapes_as_it_declares_is_told_from_a_miss():
    name = "student-norms-frozen"
    assert FAULTS[name].escapes and not FAULTS[name].caught_by
    caught = cell("fault", "kl-reversed", failed=["KD313"], reached=True)
    told = matrix.summary([cell("fault", name, reached=True), caught], ["logit"], [0])
    page = matrix_page.page(told)
    assert f"escapes, as declared: {html.escape(FAULTS[name].escapes)}" in page and 'class="n miss"' not in page
    assert "escapes, as declared" in printed(told, 80) and "NO" not in printed(told, 80)
    told = matrix.summary([cell("fault", name, failed=["KD321"], departures=["KD321 failed"])], ["logit"], [0])
    assert {matrix_page.kind_of(told["faults"][0], id) for id in matrix_page.ids_of(told)} == {"wrong"}
    assert "NO: student-norms-frozen with logit seed 0: KD321 failed" in printed(told, 80)
    assert "escapes, as declared" not in printed(told, 80)


def test_the_page_names_the_command_that_makes_it_again():
    cells = [cell("fault", "kl-reversed", seed=n, failed=["KD313"], reached=True) for n in range(10)]
    told = matrix.summary([*cells, cell("zoo", "plain_sgd", "declared", 2)], list(METHODS), range(10))
    assert matrix_page.command_of(told) == "kdbench audits matrix --seeds 0-9 --zoo-seeds 2 --output DIR"
    assert "kdbench audits matrix --seeds 0-9 --zoo-seeds 2 --output DIR" in matrix_page.page(told)
    told = {**told, "methods": ["logit"], "seeds": [3, 7]}
    del told["zoo_seeds"]  # of a matrix that was made before it was noted
    assert matrix_page.command_of(told) == "kdbench audits matrix --seeds 3,7 --method logit --output DIR"
    told |= {"zoo_seeds": [], "named_faults": ["kl-reversed"]}
    wanted = "kdbench audits matrix --seeds 3,7 --zoo-seeds none --fault kl-reversed --method logit --output DIR"
    assert matrix_page.command_of(told) == wanted


def test_the_table_fits_a_terminal_of_80_columns_and_says_more_in_a_wide_one():
    told = json.loads((REPORTS / "matrix" / "matrix.json").read_text())
    narrow, wide = printed(told, 80).partition("\n\n")[0], printed(told, 150).partition("\n\n")[0]
    assert max(map(len, narrow.splitlines())) <= 80 and all(row["name"] in narrow for row in told["faults"])
    assert "followed by" in wide and "followed by" not in narrow


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--matrix", "--format", "sarif"], "printed as text, json or html"),
        (["--matrix", "--steps", "3"], "--steps does nothing with --matrix"),
        (["--matrix", "--fault", "kl-revered"], "did you mean 'kl-reversed'"),
        (["--format", "html"], "works with --matrix only"),
        (["--seeds", "0-1"], "--seeds does nothing without --matrix"),
        (["--matrix", "--seeds", "5"], "write 0-4 for 5 seeds"),
    ],
)
def test_what_the_matrix_refuses(words, says):
    code, out, err = kdbench("audit", *words)
    assert code == 2 and out == "" and says in " ".join(err.split())
