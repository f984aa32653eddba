"""A study packed, carried elsewhere, trained anew there, and held against what was packed."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import put_back, write_images
from test_cli import kdbench
from test_own_faults import FILES
from test_run import folder_of
from test_study_file import SMALL

from kdbench.audits.checks.all import CATALOGUE
from kdbench.harness import faults, loading
from kdbench.harness.analysis import study_table
from kdbench.harness.analysis.controls import controls
from kdbench.harness.archive import reproduce as reproducing
from kdbench.harness.archive.bundle import ROOT, _command, _cut, pack, plain
from kdbench.harness.archive.unpacking import extract
from kdbench.harness.plan.plan import Arm
from kdbench.harness.records import study_file
from kdbench.harness.records.record import StudyFolder, sealed_text
from kdbench.kd.data import SIZE
from kdbench.kd.errors import InputError
from kdbench.kd.models import build
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.teacher import save_checkpoint

STUDY = SMALL.replace("0-1", "0").replace("epochs = 3", "epochs = 2")


@pytest.fixture(scope="module")
def here(tmp_path_factory, cache):
    """A study of six trials in a folder whose name has a blank, and the folder where it was run."""
    place = tmp_path_factory.mktemp("her e")
    (place / "mine.toml").write_text(STUDY)
    typed = ["run", str(place / "mine.toml"), "--runs", str(place / "my runs")]
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdbench", *typed])
        code, _, err = kdbench(*typed)
    assert code in (0, 1), err  # so short a training may be caught for its teacher's sake
    return place


def study_of(place):
    (path,) = (p.parent for p in (place / "my runs").glob("*/study.json"))
    return StudyFolder(path)


@pytest.fixture(scope="module")
def packed(here):
    """The archive, and its members by name within the study's folder."""
    with contextlib.chdir(here):
        code, out, err = kdbench("bundle", "--runs", "my runs", "--output", "it.zip")
    assert code == 0 and hashlib.sha256((here / "it.zip").read_bytes()).hexdigest() in out, err
    (here / "taken.zip").mkdir()
    code, _, err = kdbench("bundle", "--runs", here / "my runs", "--output", here / "taken.zip")
    assert code == 2 and "taken.zip cannot be written" in err, err
    (here / "taken.zip").rmdir()
    assert sorted(path.name for path in here.iterdir()) == ["it.zip", "mine.toml", "my runs"]
    return here / "it.zip", read(here / "it.zip")


def read(archive):
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            found = {info.filename: file.read(info) for info in file.infolist()}
    else:
        with tarfile.open(archive) as file:
            found = {info.name: file.extractfile(info).read() for info in file}
    (root,) = {name.split("/")[0] for name in found}
    return {name.removeprefix(f"{root}/"): content for name, content in found.items()}


def digested(members):
    """Make the digests in the records anew, as somebody would who knows of them."""
    members = dict(members)
    for name in [name for name in members if name.endswith("/result.json")]:
        with contextlib.suppress(ValueError):
            raw = json.loads(members[name])
            beside = {file: members.get(name.replace("result.json", file)) for file in raw["files"]}
            raw["files"] |= {
                file: hashlib.sha256(text).hexdigest() for file, text in beside.items() if text is not None
            }
            members[name] = sealed_text(raw).encode()
    with contextlib.suppress(ValueError):
        members["study.json"] = study_file.text(json.loads(members["study.json"])).encode()
    return members


def forged(place, members, manifest=True, digests=True):
    """Write an archive of changed members; with `manifest` and `digests`, as somebody would who mends those as well."""
    members = digested(members) if digests else dict(members)
    study = re.search("`kdbench report --runs .. --study (.*?)`", members["REPRODUCE.md"].decode())[1]
    if manifest:
        noted = json.loads(members["MANIFEST.json"])
        noted["files"] = {
            name: hashlib.sha256(content).hexdigest() for name, content in members.items() if name != "MANIFEST.json"
        }
        noted["sizes"] = {name: len(content) for name, content in members.items() if name != "MANIFEST.json"}
        members["MANIFEST.json"] = json.dumps(noted).encode()
    archive = place / "forged.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(f"{study}/{name}", content)
    return archive


def edited(members, name, change):
    """Change a JSON member."""
    raw = json.loads(members[name])
    change(raw)
    return {**members, name: json.dumps(raw).encode()}


@pytest.fixture(scope="module")
def elsewhere(packed, tmp_path_factory):
    """Where the archive was reproduced: the folder, what was said, and the object."""
    place = tmp_path_factory.mktemp("elsewhere")
    with contextlib.chdir(place):
        code, out, err = kdbench("reproduce", str(packed[0]), "--json")
    assert code == 0, err
    return place, json.loads(out)


def again(elsewhere, archive, *options):
    """Reproduce an archive where another of the same study was: the trainings are there already."""
    with contextlib.chdir(elsewhere[0]):
        code, out, err = kdbench("reproduce", str(archive), "--json", *options)
    return code, json.loads(out) if out else None, err


def student(members, method="baseline", fault=None):
    """Return the folder of a trial in the archive."""
    specs = {name: json.loads(content) for name, content in members.items() if name.endswith("/spec.json")}
    (name,) = (
        name
        for name, spec in specs.items()
        if (spec["method"], spec["fault"], spec["arch"]) == (method, fault, "r18") and name.startswith("trials/")
    )
    return name.removesuffix("/spec.json")


# -- what is in it


def test_it_holds_the_records_and_what_reproducing_them_needs(here, packed):
    _, members = packed
    study = study_of(here)
    trials = [*study.trials(), *(study.trial(f"again-{path.name}") for path in (study.path / "again").iterdir())]
    assert len(trials) == 6
    for trial in trials:
        for name in ("spec.json", "curve.jsonl", "norms.csv", "log.txt"):
            content = (trial.path / name).read_bytes()
            assert members[(trial.path / name).relative_to(study.path).as_posix()] == content
    assert members["results.csv"] == (study.path / "results.csv").read_bytes()
    assert members["study.toml"].decode() == STUDY
    lock = json.loads(members["environment.json"])
    pins = members["requirements.txt"].decode().splitlines()
    for name in ("torch", "numpy", "safetensors", "markupsafe"):  # the last is needed by what jinja2 needs
        assert f"{name}=={lock['here']['packages'][name]}" in pins
    assert not any(pin.startswith("kdbench=") for pin in pins), "it is in no index"
    ran = trials[0].result().environment
    assert lock["trials"]["code_digest"] == [ran["code_digest"]] and ran["audits_digest"] and ran["instructions"]
    manifest = json.loads(members["MANIFEST.json"])
    assert manifest["data"] == {"name": "digits", "digest": trials[0].spec().data_digest}
    page = members["REPRODUCE.md"].decode()
    assert "    kdbench reproduce FILE\n" in page and ran["torch"] in page and ran["code_digest"] in page
    assert "    kdbench run .../mine.toml --runs '.../my runs'\n" in page


def test_it_holds_no_image_no_weight_and_no_place_of_the_machine(here, packed):
    _, members = packed
    assert not [name for name in members if name.endswith((".safetensors", ".png", ".pt", ".lock"))]
    assert sum(map(len, members.values())) < 1e6
    study = study_of(here)
    raw = next(study.trials()).path / "result.json"
    assert str(ROOT) in raw.read_text(), "else the next lines would show nothing"
    for name, content in members.items():
        for place in (here, ROOT, Path.home(), here.parent):
            assert str(place) not in content.decode(), name


def test_equal_studies_give_equal_bytes(here, tmp_path):
    shutil.copytree(here / "my runs", tmp_path / "my runs", copy_function=shutil.copy)  # other times
    name = study_of(here).path.name
    for suffix in (".zip", ".tar.gz"):
        written = [pack(study_of(place), tmp_path / f"{i}{suffix}") for i, place in enumerate((here, here, tmp_path))]
        assert len({one.sha256 for one in written}) == 1
        assert read(written[0].path)["study.json"]
    os.utime(tmp_path / "my runs" / name / "study.json", (0, 0))
    assert pack(study_of(tmp_path), tmp_path / "3.tar.gz").sha256 == written[0].sha256
    (tmp_path / "my runs" / name / "trials" / "notes.txt").write_text("of no trial")
    assert pack(study_of(tmp_path), tmp_path / "3.tar.gz").sha256 == written[0].sha256


def test_weights_go_along_if_asked_for_and_are_compared(here, elsewhere, tmp_path):
    archive = pack(study_of(here), tmp_path / "it.tar.gz", weights=True).path
    members = read(archive)
    assert len([name for name in members if name.endswith("/student.safetensors")]) == 6
    assert again(elsewhere, archive)[1]["identical"]
    place = student(members)
    other = student(members, "feature")
    changed = {**members, f"{place}/student.safetensors": members[f"{other}/student.safetensors"]}
    code, found, _ = again(elsewhere, forged(tmp_path, changed))
    assert code == 1
    assert [(t["key"], t["differs"]) for t in found["trials"] if t["differs"]] == [
        (place.split("/")[1], ["student.safetensors"])
    ]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ('File "/opt/some one/kdbench/kd/train.py", line 3', None),
        (
            "data file /home/me/a/digits.safetensors cannot be read",
            "data file .../digits.safetensors cannot be read",
        ),
        ("PATH=/usr/local/bin:/home/me/bin", "PATH=.../bin:.../bin"),
        ("C:\\Users\\me\\images\\cat.png is broken", ".../cat.png is broken"),
        ("--data ../images, 1/2 of 3 / 4, and/or/else, .../kept.py", None),
        ("see https://pytorch.org/docs/stable/x.html", None),
        (f"-I{ROOT}/kd/include", "-I.../include"),
        (f"in {Path.home()} only", "in ... only"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_name(text, cut, monkeypatch):
    if "some one" in text:  # a place that the program knows may have blanks in it
        monkeypatch.setattr("kdbench.harness.archive.bundle.ROOT", Path("/opt/some one/kdbench"))
        cut = 'File ".../train.py", line 3'
    assert _cut(text) == (cut or text)
    assert _cut(_cut(text)) == _cut(text)


def test_words_of_a_command_and_files_of_a_finding_are_cut_whole():
    typed = "kdbench run '/home/some one/my study.toml' --data=/mnt/a\\ b/images --faults own.py --seeds 0-1"
    assert _command(typed) == "kdbench run '.../my study.toml' --data=.../images --faults own.py --seeds 0-1"
    assert plain({"where": [{"file": "/home/some one/a.py", "line": 1}]}) == {
        "where": [{"file": ".../a.py", "line": 1}]
    }


# -- trained anew


def test_a_study_is_reproduced_to_the_bit_in_a_study_of_its_own(here, packed, elsewhere):
    place, found = elsewhere
    assert (found["trained"], found["reused"], found["failed"]) == (6, 0, 0)
    assert found["identical"] and found["as_promised"] and found["whole"] and found["environment"] == []
    assert {t["verdict"] for t in found["trials"]} == {"identical"} and all(t["promised"] for t in found["trials"])
    assert len(found["trials"]) == 6 and found["trials"] == sorted(found["trials"], key=lambda t: t["key"])
    kinds = [row["kind"] for row in found["verdicts"]]
    assert kinds == ["gain", "bug", "audits", "audits", "audits"] and not any(r["changed"] for r in found["verdicts"])
    anew = folder_of(place)
    assert anew.path.name == f"{study_of(here).path.name}-reproduced"
    assert (anew.path / "results.csv").read_bytes() == packed[1]["results.csv"]
    assert controls(study_table.read_study(anew)).again.verdict == "identical"


def test_what_is_printed_says_so(packed, elsewhere):
    with contextlib.chdir(elsewhere[0]):
        code, out, err = kdbench("reproduce", str(packed[0]))
    assert code == 0 and "Reproduced: the same weights in every epoch" in out and "all as packed" in out
    assert "6 trials: 6 identical; 6 of them were trained by an earlier call" in out and "nothing to run" in err


def test_a_part_is_reproduced_with_its_teachers(packed, elsewhere, tmp_path):
    members = packed[1]
    key = student(members, "feature").split("/")[1]
    teacher = json.loads(members[f"trials/{key}/spec.json"])["teacher"]["key"]
    code, found, _ = again(elsewhere, packed[0], "--only", key[:9])
    assert code == 0 and {t["key"] for t in found["trials"]} == {key, teacher}
    assert not found["whole"] and found["verdicts"] == [] and found["identical"]
    code, found, _ = again(elsewhere, packed[0], "--trials", "2")
    assert code == 0 and len([t for t in found["trials"] if t["method"] != "teacher"]) == 2
    code, out, err = kdbench("reproduce", str(packed[0]), "--only", teacher, "--runs", str(tmp_path), "--json")
    assert code == 0 and [t["verdict"] for t in json.loads(out)["trials"]] == ["identical"], err
    code, found, err = again(elsewhere, packed[0], "--only", "zzz")
    assert code == 2 and "unknown trial 'zzz'" in err and found is None
    code, _, err = again(elsewhere, packed[0], "--only", key, "--trials", "1")
    assert code == 2 and "say one of the two" in err


def better(raw):
    raw["metrics"]["test_accuracy"] += 5


def with_table(members, place, change, **columns):
    """Change a trial's result, and the table with it, as somebody would who takes care."""
    members = edited(members, f"{place}/result.json", change)
    raw = json.loads(members[f"{place}/result.json"])
    columns = {"test_accuracy": raw["metrics"]["test_accuracy"], "selected_epoch": raw["selected_epoch"], **columns}
    rows = list(csv.DictReader(io.StringIO(members["results.csv"].decode())))
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({**row, **columns} if place.endswith(row["trial"]) else row for row in rows)
    return {**members, "results.csv": text.getvalue().encode()}


def test_an_edited_score_is_exposed(packed, elsewhere, tmp_path):
    place = student(packed[1])
    archive = forged(tmp_path, with_table(packed[1], place, better))
    code, found, _ = again(elsewhere, archive)
    assert code == 1 and not found["as_promised"] and not found["identical"]
    (row,) = (t for t in found["trials"] if t["verdict"] != "identical")
    assert row["key"] == place.split("/")[1] and row["differs"] == ["test_accuracy"]
    assert row["difference_pp"] == pytest.approx(-5) and row["weights_differ_from"] is None and row["broken"]
    with contextlib.chdir(elsewhere[0]):
        code, out, _ = kdbench("reproduce", str(archive))
    assert code == 1 and "Not reproduced" in out and "test_accuracy" in out and "1 different" in out


def rewritten(name, old, new):
    def change(members, place):
        text = members[f"{place}/{name}"].decode()
        assert old in text
        before, marker, sealed = text.partition('"seal": {')  # a result's digests have the names of its fields
        after = sealed.partition("}")
        changed = before + marker + after[1] + after[2] if marker else text
        changed = {**members, f"{place}/{name}": changed.replace(old, new, 1).encode()}
        return with_table(changed, place, lambda raw: None)

    return change


EDITS = {
    "curve": (rewritten("curve.jsonl", '"lr": ', '"lr": 1'), "lr from epoch 1", "same scores"),
    "weights": (rewritten("curve.jsonl", '"digest": "', '"digest": "x'), "weights from epoch 1", "same scores"),
    "norms": (rewritten("norms.csv", "\n1,", "\n1,1"), "norms.csv", "same scores"),
    "finding": (rewritten("result.json", '"message": "', '"message": "not '), "what KD", "same scores"),
    "status": (rewritten("result.json", '"status": "not_triggered"', '"status": "pass"'), "KD", "different"),
    "epoch": (rewritten("result.json", '"selected_epoch": ', '"selected_epoch": 1'), "selected_epoch", "different"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_course_or_finding_is_exposed(packed, elsewhere, tmp_path, name):
    change, says, verdict = EDITS[name]
    place = student(packed[1], "feature")
    code, found, err = again(elsewhere, forged(tmp_path, change(packed[1], place)))
    assert code == 1, err
    (row,) = (t for t in found["trials"] if t["verdict"] != "identical")
    assert row["key"] in place and any(d.startswith(says) for d in row["differs"]) and row["verdict"] == verdict


def test_a_course_cut_short_is_exposed(packed, elsewhere, tmp_path):
    place = student(packed[1])
    first = packed[1][f"{place}/curve.jsonl"].splitlines(keepends=True)[0]
    code, found, _ = again(elsewhere, forged(tmp_path, {**packed[1], f"{place}/curve.jsonl": first}))
    (row,) = (t for t in found["trials"] if t["verdict"] != "identical")
    assert code == 1 and row["differs"] == ["weights from epoch 2"] and row["weights_differ_from"] == 2


def on_another(members, name, value):
    """Make the records those of other circumstances, with other scores."""

    def change(raw):
        raw["environment"][name] = value
        better(raw)

    for place in [n.removesuffix("/result.json") for n in members if n.endswith("/result.json")]:
        members = with_table(members, place, change)
    raw = json.loads(members["environment.json"])
    raw["trials"][name] = [value]
    return {**members, "environment.json": json.dumps(raw).encode()}


@pytest.mark.parametrize(
    ("name", "value"),
    [("torch", "2.0.1"), ("device_name", "another processor"), ("code_digest", "0" * 16), ("instructions", "AVX2")],
)
def test_what_differs_elsewhere_is_said_and_is_no_failure(packed, elsewhere, tmp_path, name, value):
    code, found, _ = again(elsewhere, archive := forged(tmp_path, on_another(packed[1], name, value)))
    assert code == 0 and found["as_promised"] and not found["identical"]
    assert [(e["name"], e["packed"]) for e in found["environment"]] == [(name, value)]
    differing = [t for t in found["trials"] if t["verdict"] == "different"]
    assert differing and not any(t["promised"] or t["broken"] for t in found["trials"])
    with contextlib.chdir(elsewhere[0]):
        code, out, _ = kdbench("reproduce", str(archive))
    assert code == 0 and value in out and "Not the same bits" in out and "5.00 pp" in out


def test_verdicts_that_changed_are_named(packed, elsewhere, tmp_path):
    def unproven(raw):
        raw["environment"]["torch"] = "2.0.1"
        for finding in raw["findings"]:
            if finding["id"] == "KD211":
                finding["status"] = "fail"

    place = student(packed[1])
    members = with_table(packed[1], place, unproven, failed_audits="KD211")
    code, found, _ = again(elsewhere, forged(tmp_path, members))
    changed = [row for row in found["verdicts"] if row["kind"] == "audits" and row["changed"]]
    assert code == 0 and [(r["method"], r["b"], r["verdict"]) for r in changed] == [
        ("baseline", "corrected", ["not as declared", "as declared"])
    ]


def test_findings_of_other_audits_are_no_broken_promise(packed, elsewhere, tmp_path):
    def other(raw):
        raw["environment"]["audits_digest"] = "0" * 16
        raw["findings"][0]["message"] = "in other words"

    place = student(packed[1])
    code, found, _ = again(elsewhere, forged(tmp_path, edited(packed[1], f"{place}/result.json", other)))
    (row,) = (t for t in found["trials"] if t["verdict"] != "identical")
    assert code == 0 and row["verdict"] == "same scores" and row["promised"] and not row["broken"]


def test_what_an_earlier_call_trained_with_other_code_is_trained_again(packed, elsewhere, tmp_path):
    shutil.copytree(elsewhere[0] / "runs", tmp_path / "runs")
    trial = folder_of(tmp_path).trial(student(packed[1]).split("/")[1])
    result = trial.result()
    trial.write_result(replace(result, environment={**result.environment, "code_digest": "0" * 16}))
    code, out, err = kdbench("reproduce", str(packed[0]), "--runs", str(tmp_path / "runs"), "--json")
    found = json.loads(out)
    assert code == 0 and (found["trained"], found["reused"]) == (1, 5) and found["identical"], err


def test_an_unfinished_trial_is_packed_and_has_nothing_to_be_held_against(here, packed, elsewhere, tmp_path):
    shutil.copytree(here / "my runs", tmp_path / "my runs")
    key = student(packed[1]).split("/")[1]
    (study_of(tmp_path).trial(key).path / "result.json").unlink()
    written = pack(study_of(tmp_path), tmp_path / "it.zip")
    assert written.remarks[0] == "1 trials have no final result"
    assert written.remarks[0] in read(tmp_path / "it.zip")["REPRODUCE.md"].decode()
    code, found, _ = again(elsewhere, tmp_path / "it.zip")
    assert code == 0 and found["identical"]
    assert [t["key"] for t in found["trials"] if t["verdict"] == "no record"] == [key]


def test_a_trial_that_cannot_run_here_is_exit_3(here, packed, elsewhere, tmp_path):
    """A fault whose code is another than it was."""
    for place in (here / "my runs", elsewhere[0] / "runs"):
        shutil.copytree(place, tmp_path / place.name)
    study = study_of(tmp_path)
    old = study.trial(student(packed[1]).split("/")[1])
    spec = replace(old.spec(), fault="no-zero-grad", fault_digest="0" * 16)
    study.trial(spec.key).write_spec(spec)
    study.trial(spec.key).write_result(study.trial(spec.key).seal_files(replace(old.result(), key=spec.key)))
    trials = study_table.read_study(study)
    study_table.write_study(study, trials.decision, {Arm("no-zero-grad", "r34-r18", "baseline"): {0: spec.key}})
    written = pack(study, tmp_path / "it.zip")
    assert any("no-zero-grad has changed since" in remark for remark in written.remarks)
    with contextlib.chdir(tmp_path):
        code, out, err = kdbench("reproduce", "it.zip", "--json")
    found = json.loads(out)
    assert code == 3 and found["failed"] == 1 and not found["identical"], err
    assert [t["key"] for t in found["trials"] if t["verdict"] == "could not run"] == [spec.key]


# -- what is brought along: images, a teacher, faults


def alone(*args):
    """Run a command in this process as in one of its own: what it loads of a user's is gone afterwards."""
    with pytest.MonkeyPatch.context() as patch, put_back(faults.FAULTS, CATALOGUE):
        patch.setattr(loading, "LOADED", [])
        return kdbench(*args)


OWN = """
[study]
dataset = "folder"
data = "DATA"
pairs = ["r34-r18"]
methods = ["logit"]
arms = ["first-epoch-lost"]
seeds = "0"
[recipe]
epochs = 2
batch_size = 8
base_width = 4
train_size = 16
val_size = 8
[method.logit]
ce_weight = 0.5
kd_weight = 0.5
"""


def test_a_study_of_own_images_teacher_and_faults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = write_images(tmp_path / "pets", train=12, test=4)
    (tmp_path / "own_faults.py").write_text(FILES["own_faults.py"])
    (tmp_path / "own.toml").write_text(OWN.replace("DATA", str(images)))
    teacher = build("r34", CANONICAL.stem(SIZE), 2, 4, torch.Generator().manual_seed(0))
    save_checkpoint(teacher, tmp_path / "teacher.safetensors")
    own = ["--faults", "own_faults.py"]
    code, _, err = alone("run", "own.toml", *own, "--teacher-weights", "teacher.safetensors", "--no-controls")
    assert code in (0, 1), err  # a teacher that nobody trained is no better than chance
    code, _, err = alone("bundle", "--output", "it.zip")
    assert code == 2 and "the fault first-epoch-lost, of a file of yours; name that file: --faults FILE" in err
    (tmp_path / "changed.py").write_text(FILES["own_faults.py"].replace("else 0.0", "else 0.001"))
    code, _, err = alone("bundle", "--output", "it.zip", "--faults", "changed.py")
    assert code == 2 and "has changed since the study was run" in err and not (tmp_path / "it.zip").exists()
    code, _, err = alone("bundle", "--output", "it.zip", *own)
    assert code == 0, err
    members = read(tmp_path / "it.zip")
    assert members["faults/own_faults.py"].decode() == FILES["own_faults.py"]
    digest = hashlib.sha256((tmp_path / "teacher.safetensors").read_bytes()).hexdigest()
    assert hashlib.sha256(members[f"weights/{digest}.safetensors"]).hexdigest() == digest
    assert 'data = ".../pets"' in members["study.toml"].decode()
    assert "kdbench reproduce FILE --data DIR --trust-faults" in members["REPRODUCE.md"].decode()

    images.rename(tmp_path / "animals")
    there = ["reproduce", "it.zip", "--runs", "there"]
    code, _, err = alone(*there, "--data", "animals")
    assert code == 2 and "brings code of its author's (faults/own_faults.py)" in err and "--trust-faults" in err
    code, _, err = alone(*there, "--trust-faults")
    assert code == 2 and "images of folder-pets are not in the archive; say where they lie: --data DIR" in err
    others = write_images(tmp_path / "others", train=12, test=5)
    code, _, err = alone(*there, "--trust-faults", "--data", str(others))
    assert code == 2 and "the images here are not those of" in err and "nothing was trained" in err
    assert not (tmp_path / "there").exists()
    code, out, err = alone(*there, "--trust-faults", "--data", "animals", "--json")
    found = json.loads(out)
    assert code == 0 and found["identical"] and [t["fault"] for t in found["trials"]] == ["first-epoch-lost"], err
    assert found["trials"][0]["promised"] and (folder_of_there := next((tmp_path / "there").iterdir()))
    assert (folder_of_there / "weights" / f"{digest}.safetensors").is_file()


# -- what is refused


def refused(archive, place):
    """Return what is said of an archive that is not reproduced, and make sure that nothing was written."""
    before = sorted(place.rglob("*"))
    with contextlib.chdir(place):
        code, out, err = kdbench("reproduce", str(archive), "--json", "-q")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "Traceback" not in err, err
    assert sorted(place.rglob("*")) == before
    return err


def test_an_archive_that_was_changed_is_refused(packed, tmp_path):
    members = packed[1]
    place = student(members)
    changed = edited(members, f"{place}/result.json", better)
    assert f"{place}/result.json was changed" in refused(forged(tmp_path, changed, manifest=False), tmp_path)
    fewer = {name: content for name, content in members.items() if name != f"{place}/curve.jsonl"}
    assert f"{place}/curve.jsonl is missing" in refused(forged(tmp_path, fewer, manifest=False), tmp_path)
    more = {**members, "faults/evil.py": b"raise SystemExit"}
    assert "faults/evil.py is not in the manifest" in refused(forged(tmp_path, more, manifest=False), tmp_path)


def test_an_archive_that_contradicts_itself_is_refused(packed, tmp_path):
    members = packed[1]
    place = student(members)
    key = place.split("/")[1]
    careless = edited(members, f"{place}/result.json", better)
    says = refused(forged(tmp_path, careless, digests=False), tmp_path)
    assert f"trials/{key}/result.json, metrics.test_accuracy: changed since" in says and "another kdbench" not in says
    longer = {**members, f"{place}/norms.csv": members[f"{place}/norms.csv"] + b"9,9,9\n"}
    says = refused(forged(tmp_path, longer, digests=False), tmp_path)
    assert f"trials/{key}/norms.csv: changed since" in says
    says = refused(forged(tmp_path, careless), tmp_path)
    assert "results.csv says test_accuracy" in says and key in says
    other = edited(members, "MANIFEST.json", lambda raw: raw["data"].update(digest="0" * 64))
    assert "other data than its trials' specs" in refused(forged(tmp_path, other), tmp_path)

    def traverse(raw):
        raw["arms"][0]["trials"]["0"] = "../../../trials/" + key

    assert "is no trial's name" in refused(forged(tmp_path, edited(members, "study.json", traverse)), tmp_path)

    def traverse_grid(raw):
        raw["grid"] = [{**raw["arms"][0], "point": {"alpha": 0.5}, "trials": {"9": "../../../trials/" + key}}]

    assert "is no trial's name" in refused(forged(tmp_path, edited(members, "study.json", traverse_grid)), tmp_path)
    unknown = edited(members, f"{place}/spec.json", lambda raw: raw.update(colour="red"))
    assert "another kdbench than this one? Its commit:" in refused(forged(tmp_path, unknown), tmp_path)
    for name in ("study.json", f"{place}/curve.jsonl", f"{place}/result.json", "environment.json", "MANIFEST.json"):
        says = refused(forged(tmp_path, {**members, name: b"{\n"}, manifest=name != "MANIFEST.json"), tmp_path)
        assert "forged.zip" in says, name


def tar(place, name, kind=tarfile.REGTYPE, link=""):
    archive = place / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
        file.addfile(info, io.BytesIO(b"evil"))
    return archive


@pytest.mark.parametrize("name", ["../evil", "study/../../evil", "/evil", "C:\\evil"])
def test_a_member_that_would_land_elsewhere_is_refused(tmp_path, name):
    assert "outside of its folder; nothing was unpacked" in refused(tar(tmp_path, name), tmp_path)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr(name, "evil")
    assert "outside of its folder; nothing was unpacked" in refused(tmp_path / "evil.zip", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_no_plain_file_is_refused(tmp_path, kind):
    assert "no plain file; nothing was unpacked" in refused(tar(tmp_path, "study/a", kind, "/etc/passwd"), tmp_path)


@pytest.mark.filterwarnings("ignore:Python 3.14:DeprecationWarning")
def test_an_archive_is_unpacked_without_filters_too(tmp_path, monkeypatch):
    """Python 3.11.2, Debian 12's, has none."""
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    archive = tar(tmp_path, "study/a")
    with tarfile.open(archive) as file:
        extract(file, archive, tmp_path / "there")
    assert (tmp_path / "there" / "study" / "a").read_bytes() == b"evil"


def test_what_is_no_archive_of_ours_is_refused(packed, tmp_path):
    assert "does not exist" in refused("none.zip", tmp_path)
    (tmp_path / "cut.zip").write_bytes(packed[0].read_bytes()[:2000])
    assert "cannot be unpacked" in refused(tmp_path / "cut.zip", tmp_path)
    assert "no archive of kdbench bundle" in refused(tar(tmp_path, "study/a"), tmp_path)


def test_numerics_of_another_version_are_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(reproducing, "NUMERICS", 99)
    says = refused(packed[0], tmp_path)
    assert "numerics 1, and this kdbench trains by 99" in says and "commit" in says


def test_what_cannot_be_packed_is_said(here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    code, _, err = kdbench("bundle", "--runs", "my runs", "--output", "it.rar")
    assert code == 2 and "an archive ends in .zip or .tar.gz" in err
    code, _, err = kdbench("bundle", "--runs", "my runs", "--output", "none/it.zip")
    assert code == 2 and "there is no folder none" in err
    shutil.copytree(here / "my runs", tmp_path / "my runs")
    study = study_of(tmp_path)
    with study.lock(), pytest.raises(InputError, match="is being run by another kdbench"):
        pack(study, tmp_path / "it.zip")
    for path in study.path.rglob("result.json"):
        path.unlink()
    with pytest.raises(InputError, match="no finished trial yet"):
        pack(study, tmp_path / "it.zip")
    assert not (tmp_path / "it.zip").exists()
