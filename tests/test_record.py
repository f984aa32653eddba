"""The record: atomic, strict, and never a number that JSON cannot hold."""

import json
import os

import pytest

from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records import reading, seal, study_file
from kdbench.harness.records.record import (
    FaultStory,
    Folder,
    Metrics,
    Result,
    StudyFolder,
    finite,
    sealed_text,
    write_atomic,
)
from kdbench.kd.errors import InputError

EPOCH = {"epoch": 1, "digest": "d", "lr": 0.1, "loss": {"total": None}, "train_accuracy": 50.0, "val_accuracy": 40.0,
         "grad_norms": {"all": {"mean": 1.0, "max": 2.0}}, "clipped_share": 0.5, "overflowed_steps": 0}  # fmt: skip
FINDING = {"id": "KD201", "name": "clip-coverage", "severity": "error", "status": "fail", "phase": "burn-in",
           "message": "it is not clipped", "consequence_of": None}  # fmt: skip


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
    with pytest.raises(InputError, match="the study's command makes it anew"):
        folder.result()


def test_a_half_written_line_of_the_curve_is_left_out(folder):
    (folder.path / "curve.jsonl").write_text(f'{json.dumps(EPOCH)}\n{{"epoch": 2')
    assert folder.curve() == [EPOCH]


@pytest.mark.parametrize("damage", [{"epoch": "1"}, {"val_accuracy": 250.0}, {"loss": []}, {"digest": None}])
def test_a_line_of_the_curve_that_is_no_epoch_is_named(folder, damage):
    (folder.path / "curve.jsonl").write_text(f"{json.dumps(EPOCH)}\n{json.dumps(EPOCH | damage)}\n")
    with pytest.raises(InputError, match=rf"curve\.jsonl, line 2 is not an epoch: {next(iter(damage))}"):
        folder.curve()


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("metrics.test_accuracy", lambda raw: raw["metrics"].update(test_accuracy=99.9)),
        ("metrics.test_accuracy", lambda raw: raw["metrics"].update(test_accuracy=250.0)),
        (r"findings\.KD201", lambda raw: raw["findings"][0].update(status="pass")),
        ("findings", lambda raw: raw["findings"].clear()),
        ("key", lambda raw: raw.update(key="0" * 16)),
        ("selected_epoch", lambda raw: raw.update(selected_epoch=1)),
        ("attempts", lambda raw: raw.pop("attempts")),
        (r"files", lambda raw: raw["files"].update({"curve.jsonl": "0"})),
    ],
)
def test_an_edited_result_is_named_by_file_and_field(folder, named, change):
    folder.write_result(folder.seal_files(Result(folder.key, "finished", None, 2, Metrics(98.5, 99.0, []), [FINDING])))
    path = folder.path / "result.json"
    raw = json.loads(path.read_text())
    assert folder.result() is not None
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=rf"result\.json.*{named}"):
        folder.result()


def test_a_changed_file_beside_the_result_is_named(folder):
    (folder.path / "curve.jsonl").write_text(json.dumps(EPOCH) + "\n")
    (folder.path / "student.safetensors").write_bytes(b"weights")
    result = folder.seal_files(Result(folder.key, "finished"))
    assert folder.changed_files(result) == []
    (folder.path / "student.safetensors").write_bytes(b"weightz")
    assert folder.changed_files(result) == ["student.safetensors"]
    assert folder.changed_files(result, ["curve.jsonl"]) == []


def test_a_pipe_or_a_huge_file_is_not_read(folder):
    os.mkfifo(folder.path / "result.json")
    with pytest.raises(InputError, match="is no file"):
        folder.result()
    with pytest.raises(InputError, match="more than 10 are not read"):
        reading.content(folder.path / "spec.json", 10)


def test_one_coordinator_a_study(tmp_path):
    study = StudyFolder(tmp_path)
    with study.lock(), pytest.raises(InputError, match="another kdbench"), study.lock():
        pass
    with StudyFolder(tmp_path).lock():
        pass


def test_an_arm_without_a_trial_is_refused(tmp_path):
    """An edit that leaves an arm empty once broke the comparison of its trials."""
    text = study_file.text(
        {
            "schema": "kdbench.study/1",
            "decision": {"metric": "test_accuracy", "margin_pp": 0.5, "alpha": 0.05},
            "arms": [{"fault": None, "pair": "r18-r18", "method": "logit", "trials": {}}],
        }
    )
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(InputError, match=r"study\.json is not a study's file: arms\.0\.trials: .*has no trial"):
        study_file.read(tmp_path)
    (tmp_path / "study.json").write_text(text.replace('"trials": {}', '"trials": {"0": "' + "a" * 16 + '"}'))
    with pytest.raises(InputError, match="arms: changed since kdbench wrote it"):
        study_file.read(tmp_path)


def test_one_digest_says_that_a_record_is_whole_and_its_fields_say_what_is_not(tmp_path):
    raw = {"key": "a" * 16, "status": "finished", "reason": "b"}
    text = sealed_text(raw)
    sealed = json.loads(text)["seal"]
    assert seal.is_whole(text.encode(), "a" * 16, sealed) and not seal.is_whole(text.encode(), "c" * 16, sealed)
    assert not seal.is_whole(text.replace('"b"', '"d"').encode(), "a" * 16, sealed)
    assert not seal.is_whole(b"{}", "a" * 16, sealed)
    again = json.dumps(json.loads(text)).encode()  # laid out otherwise, and the same
    assert not seal.is_whole(again, "a" * 16, sealed) and seal.broken(json.loads(again), "a" * 16, sealed) == []
    assert seal.broken({**json.loads(text), "reason": "d"}, "a" * 16, sealed) == ["reason"]
