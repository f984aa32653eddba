"""The record: atomic, strict, and never a number that JSON cannot hold."""

import json
import os

import pytest

from kdbench.harness.plan.plan import Ground, load_preset, make_plan
from kdbench.harness.records.record import FaultStory, Folder, Metrics, Result, StudyFolder, finite, write_atomic
from kdbench.kd.errors import InputError


@pytest.fixture
def folder(tmp_path):
    spec = next(iter(make_plan(load_preset("quick"), [None], Ground("digits", "d", "cpu")).trials.values()))
    found = Folder(tmp_path / "trials" / spec.key)
    found.write_spec(spec)
    return found


def test_a_result_survives_its_json(folder):
    story = FaultStory("x", "stem", 3, True, ["KD105"], 1, False)
    result = Result(folder.key, "finished", None, 2, Metrics(98.5, 99.0, [1.0, None]), [], story)
    folder.write_result(result)
    assert folder.result() == result


def test_what_is_no_number_becomes_null(folder):
    folder.write_result(Result(folder.key, "diverged", metrics=Metrics(float("nan"), float("inf"), [])))
    text = (folder.path / "result.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["metrics"]["test_accuracy"] is None
    assert finite({"a": [1.0, float("-inf")], "b": ("x", float("nan"))}) == {"a": [1.0, None], "b": ["x", None]}


def test_a_crash_while_writing_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, "old")

    def crash(descriptor):
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_an_edited_spec_is_refused(folder):
    path = folder.path / "spec.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="edited or moved"):
        folder.spec()


def test_a_folder_without_spec_or_with_a_broken_result_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"no spec\.json"):
        Folder(tmp_path).spec()
    (folder.path / "result.json").write_text("{")
    with pytest.raises(InputError, match="delete it and run again"):
        folder.result()


def test_a_half_written_line_of_the_curve_is_left_out(folder):
    (folder.path / "curve.jsonl").write_text('{"epoch": 1}\n{"epoch": 2')
    assert folder.curve() == [{"epoch": 1}]


def test_one_coordinator_a_study(tmp_path):
    study = StudyFolder(tmp_path)
    with study.lock(), pytest.raises(InputError, match="another kdbench"), study.lock():
        pass
    with StudyFolder(tmp_path).lock():
        pass
