"""The GPU queue at toy size on a processor: every item runs to its end, resumes, packs, and mixes no two teachers."""

import json
import os
import subprocess
import sys
import tarfile
import time

import pytest
from conftest import write_images

from benchmarks.gpu.call import ROOT, Call, other_teachers, remember_teachers
from benchmarks.gpu.items import ITEMS, _took
from benchmarks.gpu.page import page, read
from kdbench.harness.records.record import Result, StudyFolder
from kdbench.kd.errors import InputError


def queue(*args):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--toy", *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("queue")
    return place, queue("--state", place / "state", "--out", place / "out")


@pytest.mark.long
def test_every_item_runs_to_its_end(whole):
    place, done = whole
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("nothing is left")
    for item in ITEMS:
        assert f"{item.name}: {item.title}" in done.stdout
    parts = [p for p in (place / "state" / "results").glob("*/*.json") if p.stem not in ("study", "seconds", "calls")]
    codes = {p.stem: json.loads(p.read_text())["exit"] for p in parts if p.name != "benchmarks.json"}
    assert codes and set(codes.values()) == {0}, codes


@pytest.mark.long
def test_what_is_packed_is_small_and_has_every_record(whole):
    place, _ = whole
    with tarfile.open(place / "out" / "results.tar.xz") as packed:
        names = packed.getnames()
        arms = {
            item: json.load(packed.extractfile(f"results/{item}/study.json"))["arms"]
            for item in ("r50-r18", "stem", "pairs")
        }
        machine = json.load(packed.extractfile("results/machine/calls.json"))
    assert len([n for n in names if n.endswith("result.json")]) == 19
    assert not [n for n in names if n.endswith((".safetensors", "log.txt"))]
    assert {(a["fault"], a["method"]) for a in arms["r50-r18"] if a["method"] == "feature"} == {
        (None, "feature"), ("projector-unclipped", "feature"), ("random-teacher", "feature"),
        ("projector-unclipped+random-teacher", "feature"),
    }  # fmt: skip
    assert {a["pair"] for a in arms["pairs"]} == {"r34-r18", "r50-r34"}
    assert machine[0]["device"] == "cpu" and machine[0]["torch"] and machine[0]["toy"]


@pytest.mark.long
def test_another_machine_goes_on_where_this_one_stopped(whole, tmp_path):
    """Records travel without weights: teachers are trained again, and their students need not be."""
    place, _ = whole
    archive = place / "out" / "results.tar.xz"
    done = queue("--state", tmp_path / "s", "--out", tmp_path, "--records", archive, "--item", "stem")
    assert done.returncode == 0, done.stderr
    trained = [line.split("]  ")[1].split(":")[0] for line in done.stdout.splitlines() if ": finished" in line]
    assert trained == [" r50 baseline corrected seed 0", " r50 baseline imagenet-stem seed 0"], done.stdout
    assert "otherwise" not in done.stdout


@pytest.mark.long
def test_the_page_shows_what_is_in_the_archive(whole):
    texts = read(whole[0] / "out" / "results.tar.xz")
    text = page(texts)
    assert "TOY SIZE: no figure here means anything" in text and "Not run yet" not in text
    assert "| r50-r18 | feature | projector-unclipped+random-teacher |" in text and "KD104 KD201 | yes |" in text
    rows = [line for line in text.splitlines() if line.startswith("| r50-r18 | corrected | 1 |")]
    assert len(rows) == 1 and rows[0].count(" to ") == 3, "the norms of Feature-KD's first steps"
    del texts["results/stem/study.json"], texts["results/stem/done"]
    assert "## stem (unfinished)" in page(texts) and "Not run yet" in page(texts)


def test_an_archive_without_results_makes_no_page(tmp_path):
    with tarfile.open(tmp_path / "other.tar.xz", "w:xz") as packed:
        packed.add(__file__, "test.py")
    with pytest.raises(InputError, match="holds no results of the GPU queue"):
        read(tmp_path / "other.tar.xz")


def test_a_file_that_is_no_archive_is_said_to_be_none(tmp_path):
    (tmp_path / "results.tar.xz").write_text("text")
    with pytest.raises(InputError, match="is no archive that tar can read"):
        read(tmp_path / "results.tar.xz")


def write_trial(study, key, spec, digest):
    folder = study.trial(key)
    folder.path.mkdir(parents=True)
    (folder.path / "spec.json").write_text(spec)
    (folder.path / "curve.jsonl").write_text(digest)
    (folder.path / "result.json").write_text("{}")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("again", ["same", "other"])
def test_students_of_a_teacher_that_came_out_otherwise_are_trained_anew(whole, tmp_path, again):
    source = StudyFolder(next((whole[0] / "state" / "studies").iterdir()))
    student = next(f for f in source.trials() if f.spec().method == "logit")
    teacher = source.trial(student.spec().teacher.key)
    study = StudyFolder(tmp_path)
    for folder in (student, teacher):
        write_trial(study, folder.key, (folder.path / "spec.json").read_text(), "same")
    remember_teachers(study)
    mine = study.trial(teacher.key)
    mine.student.write_bytes(b"weights")
    (mine.path / "curve.jsonl").write_text(again)
    study.trial(student.key).student.write_bytes(b"weights")
    assert other_teachers(study) == ([] if again == "same" else [teacher.key])
    assert (study.trial(student.key).path / "result.json").is_file() == (again == "same")
    assert (mine.path / "result.json").is_file()


def a_call(tmp_path, seconds, toy=True):
    return Call(tmp_path / "state", time.monotonic() + seconds, "cpu", toy, longest_start=0.5)


def test_a_command_that_outlasts_two_calls_is_given_up(tmp_path):
    sleep = ["-c", "print('begun', flush=True); import time; time.sleep(60)"]
    assert not a_call(tmp_path, 6).command("item", "part", sleep)
    assert a_call(tmp_path, 6).command("item", "part", sleep), "a second time is enough"
    call = a_call(tmp_path, 6)
    assert call.command("item", "part", sleep) and call.left() > 5, "it is not run a third time"
    assert call.read("item", "part") == {**call.read("item", "part"), "over": True, "exit": None, "attempts": 2}
    assert (call.results / "item" / "part.txt").read_text() == "begun\n"


def test_a_trial_whose_process_died_has_no_seconds_to_count():
    died, finished = Result("a", "failed", "killed"), Result("b", "finished", times={"seconds": 12.5})
    assert (_took(died), _took(finished)) == (None, 12.5)


def test_nothing_is_started_without_time(tmp_path):
    call = a_call(tmp_path, 0.1)
    assert not call.command("item", "part", ["-c", "pass"]) and call.read("item", "part") is None


def test_a_command_that_fails_is_over_and_seen(tmp_path):
    call = a_call(tmp_path, 30)
    assert call.command("item", "part", ["-c", "raise SystemExit(4)"])
    assert call.read("item", "part")["exit"] == 4


@pytest.mark.parametrize("inner", ["", "cifar10-jpeg/"])
def test_images_come_from_an_archive(tmp_path, inner):
    write_images(tmp_path / "source")
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as packed:
        for part in ("train", "test"):
            packed.add(tmp_path / "source" / part, inner + part)
    call = a_call(tmp_path, 30, toy=False)
    call.take_images(tmp_path / "images.tar.xz")
    assert len(list(call.images.rglob("*.png"))) == 10
    call.take_images(None)  # a later call has them


def test_an_archive_of_something_else_is_refused(tmp_path):
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as packed:
        packed.add(__file__, "train.py")
    with pytest.raises(InputError, match="holds no folder train/"):
        a_call(tmp_path, 30).take_images(tmp_path / "images.tar.xz")
    with pytest.raises(InputError, match="--images: name the archive"):
        a_call(tmp_path, 30, toy=False).take_images(None)
