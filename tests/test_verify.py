"""`kdbench verify`: each change of a study's files is named by file and field; a whole study is left in peace."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from test_cli import kdbench

from kdbench.harness.analysis.verify import verify
from kdbench.harness.archive import unpacking
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records import study_file
from kdbench.harness.records.record import StudyFolder, repeat_of, sealed_text
from kdbench.harness.run.scheduler import is_done
from kdbench.kd.teacher import file_sha256

EARLIER = Path(__file__).with_name("earlier")
STUDY = "earlier-digits-83ffb4"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A runs folder with a study of version 0.1, whose records carry no digests."""
    place = tmp_path_factory.mktemp("old")
    with tarfile.open(EARLIER / "records.tar.xz") as archive:
        unpacking.extract(archive, EARLIER / "records.tar.xz", place)
    shutil.copy(EARLIER / "results.csv", place / STUDY / "results.csv")
    return place


@pytest.fixture(scope="module")
def sealed(old, tmp_path_factory):
    """The same study as this version writes it, with the weights of the teacher that its students learned from."""
    place = tmp_path_factory.mktemp("sealed")
    study = StudyFolder(Path(shutil.copytree(old / STUDY, place / STUDY)))
    teacher = teacher_of(study)
    teacher.student.write_bytes(b"the teacher's weights")
    for folder in (*study.trials(), *(study.trial(repeat_of(p.name)) for p in (study.path / "again").iterdir())):
        raw = json.loads((folder.path / "result.json").read_text())
        if raw["teacher"] and folder.spec().teacher.key == teacher.key:
            raw["teacher"]["sha256"] = file_sha256(teacher.student)
        (folder.path / "result.json").write_text(sealed_text(raw))
        folder.write_result(folder.seal_files(folder.result()))
    study_file.write(study.path, study_file.read(study.path))
    return place


@pytest.fixture
def study(sealed, tmp_path):
    return StudyFolder(Path(shutil.copytree(sealed / STUDY, tmp_path / "runs" / STUDY)))


def teacher_of(study):
    return study.trial(next(spec.teacher.key for spec in (f.spec() for f in study.trials()) if spec.teacher))


def rewritten(folder, change):
    path = folder.path / "result.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def trials(study):
    """Return the folders of an arm's trials, which have a fault and a teacher."""
    return [f for f in study.trials() if f.spec().fault == "projector-unclipped"]


def test_a_study_that_nobody_touched_is_whole(sealed, old):
    found = verify(StudyFolder(sealed / STUDY))
    assert found.problems == [] and found.sealed == found.records == 16 and found.files > 30
    found = verify(StudyFolder(old / STUDY))
    assert found.problems == [] and (found.sealed, found.records) == (0, 16)
    code, out, _ = kdbench("verify", "--runs", old)
    assert code == 0 and "16 records of an older kdbench carry no digests" in " ".join(out.split())


def score(study):
    rewritten(trials(study)[0], lambda raw: raw["metrics"].update(test_accuracy=99.9))
    return f"{trials(study)[0].key}/result.json", "metrics.test_accuracy"


def impossible(study):
    rewritten(trials(study)[0], lambda raw: raw["metrics"].update(test_accuracy=250.0))
    return f"{trials(study)[0].key}/result.json", "metrics.test_accuracy"


def impossible_with_digest(study):
    path = trials(study)[0].path / "result.json"
    raw = json.loads(path.read_text())
    raw["metrics"]["test_accuracy"] = 250.0
    path.write_text(sealed_text(raw))
    return f"{trials(study)[0].key}/result.json", "metrics.test_accuracy"


def finding(study):
    def passed(raw):
        next(f for f in raw["findings"] if f["id"] == "KD201").update(status="pass", message="all is well")

    rewritten(trials(study)[0], passed)
    return f"{trials(study)[0].key}/result.json", "findings.KD201"


def swapped(study):
    one, other = (f.path / "result.json" for f in trials(study)[:2])
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    return f"{one.parent.name}/result.json", "key"


def swapped_with_keys(study):
    one, other = trials(study)[:2]
    texts = [(f.path / "result.json").read_text().replace(f.key, g.key) for f, g in ((one, other), (other, one))]
    for folder, text in zip((other, one), texts, strict=True):
        (folder.path / "result.json").write_text(text)
    return f"{one.key}/result.json", "metrics.test_accuracy"


def epoch(study):
    path = trials(study)[0].path / "curve.jsonl"
    digest = json.loads(path.read_text().splitlines()[0])["digest"]
    path.write_text(path.read_text().replace(digest, digest[::-1]))
    return f"{path.parent.name}/curve.jsonl", "SHA-256"


def curve_removed(study):
    (trials(study)[0].path / "curve.jsonl").unlink()
    return f"{trials(study)[0].key}/curve.jsonl", "is missing"


def flipped_bit(study):
    path = teacher_of(study).student
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    return f"{path.parent.name}/student.safetensors", "SHA-256"


def other_teacher(study):
    """Weights and their digest: the students that learned from the old ones tell."""
    folder = teacher_of(study)
    folder.student.write_bytes(b"other weights")
    folder.write_result(folder.seal_files(folder.result()))
    return "result.json", "teacher.sha256"


def table(study):
    path = study.path / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    cells = lines[1].split(",")
    at = lines[0].split(",").index("test_accuracy")
    lines[1] = ",".join([*cells[:at], "99.9", *cells[at + 1 :]])
    path.write_text("".join(lines))
    return "results.csv", "test_accuracy"


def table_missing(study):
    (study.path / "results.csv").unlink()
    return "results.csv", "is missing"


def row_removed(study):
    path = study.path / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:]]))
    return "results.csv", "has no row of trial"


def seed_removed(study):
    path = study.path / "study.json"
    raw = json.loads(path.read_text())
    raw["arms"][0]["trials"].pop("1")
    path.write_text(json.dumps(raw))
    return "study.json", "arms"


def seed_removed_with_digest(study):
    path = study.path / "study.json"
    raw = json.loads(path.read_text())
    raw["arms"][0]["trials"].pop("1")
    path.write_text(study_file.text(raw))
    return "results.csv", "which is none of its records"


def arms_exchanged(study):
    path = study.path / "study.json"
    raw = json.loads(path.read_text())
    a, b = (entry for entry in raw["arms"] if entry["fault"] == "random-teacher")
    a["trials"], b["trials"] = b["trials"], a["trials"]
    path.write_text(study_file.text(raw))
    return "study.json", "arms"


def trial_removed(study):
    shutil.rmtree(trials(study)[0].path)
    return "study.json", "spec.json"


CHANGES = [
    score, impossible, impossible_with_digest, finding, swapped, swapped_with_keys, epoch, curve_removed, flipped_bit,
    other_teacher, table, table_missing, row_removed, seed_removed, seed_removed_with_digest, arms_exchanged,
    trial_removed,
]  # fmt: skip


def test_a_row_that_is_missing_is_told_alone(study):
    row_removed(study)
    (problem,) = verify(study).problems
    assert problem.said.startswith("results.csv has no row of trial ")


@pytest.mark.parametrize("name", ["curve.jsonl", "norms.csv"])
def test_a_report_draws_nothing_that_the_trial_did_not_write(study, name):
    cut = next(f for f in trials(study) if (f.path / name).exists())
    lines = (cut.path / name).read_text().splitlines(keepends=True)
    (cut.path / name).write_text("".join(lines[:-1]))
    code, _, err = kdbench("report", "--runs", study.path.parent)
    assert (code, "Traceback" in err) == (2, False)
    assert f"{name} is not the file that the trial wrote" in " ".join(err.split())


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_named_by_file_and_field(study, change):
    file, named = change(study)
    found = verify(study)
    assert any(file in p.file and (named in p.fields or named in p.said) for p in found.problems), found.problems
    code, out, err = kdbench("verify", "--runs", study.path.parent, "--json")
    assert code == 1 and not err
    assert json.loads(out)["studies"][0]["problems"]


def test_whoever_reads_the_records_hears_of_it_too(study):
    score(study)
    for words in (
        ["status"],
        ["compare", "corrected", "projector-unclipped"],
        ["report", "--output", study.path / "r"],
    ):
        code, _, err = kdbench(*words, "--runs", study.path.parent)
        assert code == 2 and "metrics.test_accuracy: changed since the trial wrote it" in err, words


def test_a_teacher_whose_weights_changed_is_trained_again(study):
    plan = make_plan(load_preset(str(EARLIER / "earlier.toml")), [None], Ground("digits", "d", "cpu"))
    teacher = teacher_of(study)
    plan.teachers = {("r18", None): teacher.key}
    assert is_done(plan, study, teacher.key)
    flipped_bit(study)
    assert not is_done(plan, study, teacher.key)
