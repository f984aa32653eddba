"""What a script saves and loads back is held against the networks it trained."""

import copy

import pytest
import torch
from test_moods import WIDTH, Drops, learn, taught
from test_which_training import named_first, observed

from kdbench.audits.checks.saved import result_kept
from kdbench.audits.trace import Change, Kept, Saved, Sight, Trace


def networks():
    teacher, student = Drops(16), Drops(8)
    learn(teacher)
    return teacher.eval(), student


def found(loop):
    report, _ = observed(loop)
    return report, next(f for f in report.findings if f.id == "KD335")


@pytest.mark.parametrize(
    ("names", "status"),
    [(["student"], "pass"), (["teacher"], "fail"), (["teacher", "student"], "pass"), ([], "not_triggered")],
)
def test_a_file_holds_the_student(names, status, tmp_path):
    def loop():
        teacher, student = networks()
        torch.save(teacher.state_dict(), tmp_path / "teacher.pt")  # before the distillation anything may be saved
        taught(teacher, student)
        for name in names:
            torch.save({"model": {"student": student, "teacher": teacher}[name].state_dict()}, tmp_path / f"{name}2.pt")

    report, verdict = found(loop)
    assert verdict.status == status
    assert named_first(report) == (("KD335", "error") if status == "fail" else None)


@pytest.mark.parametrize("copied", [False, True])
def test_the_best_epoch_is_a_copy(copied):
    def loop():
        teacher, student = networks()
        taught(teacher, student)
        best = copy.deepcopy(student.state_dict()) if copied else student.state_dict()
        taught(teacher, student)
        student.load_state_dict(best)

    report, verdict = found(loop)
    assert verdict.status == ("not_triggered" if copied else "fail")
    assert named_first(report) == (None if copied else ("KD335", "error"))


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_load_that_is_not_strict_finds_names(prefix):
    def loop():
        teacher, student = networks()
        taught(teacher, student)
        deployed = Drops(8)
        deployed.load_state_dict({prefix + n: t for n, t in student.state_dict().items()}, strict=False)

    _, verdict = found(loop)
    assert verdict.status == ("fail" if prefix else "not_triggered")
    assert ("begins with _orig_mod." in verdict.message) == bool(prefix)


def test_safetensors_are_files_too(tmp_path):
    import safetensors.torch

    def loop():
        teacher, student = networks()
        taught(teacher, student)
        safetensors.torch.save_file(
            {n: t.contiguous() for n, t in teacher.state_dict().items()}, tmp_path / "model.safetensors"
        )

    assert found(loop)[1].status == "fail"


def verdict(follows=False, whole=True, **kept):
    trace = Trace()
    trace.losses.sights = [Sight(0, None)]
    trace.data.kept = Kept(whole=whole, **kept)
    if follows:
        trace.teacher.change = Change(["weight"], [], False, False, 0.01, rates=[0.01] * 5, updates=5)
        assert trace.teacher.change.follows
    return result_kept(trace).status


def test_an_averaged_teacher_may_be_what_is_wanted_and_an_early_end_decides_nothing():
    saves = [Saved(0.0, 1.0, None)]
    assert verdict(saves=saves) == "fail"
    assert verdict(saves=saves, follows=True) == "not_triggered"
    assert verdict(saves=saves, whole=False) == "not_triggered"
    assert verdict(saves=[*saves, Saved(0.6, 0.0, None)]) == "pass"


@pytest.mark.parametrize(
    ("saved", "status"), [(["teacher", "half"], "not_triggered"), (["teacher", "optimizer"], "fail")]
)
def test_a_student_that_is_converted_is_in_its_file_all_the_same(saved, status, tmp_path):
    def loop():
        teacher, student = networks()
        taught(teacher, student)
        optimizer = torch.optim.Adam(student.parameters())
        student(torch.randn(4, WIDTH)).sum().backward()
        optimizer.step()
        whats = {
            "teacher": teacher.state_dict(),
            "half": {name: t.half() for name, t in student.state_dict().items()},
            "optimizer": {"model": teacher.state_dict(), "optimizer": optimizer.state_dict()},
        }
        for name in saved:
            torch.save(whats[name], tmp_path / f"{name}.pt")

    assert found(loop)[1].status == status


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        (["student"], "not_triggered", ""),
        (["teacher", "student"], "not_triggered", ""),
        (["loaded"], "not_triggered", ""),
        (["teacher"], "fail", "scored after the last step is the teacher"),
        (["start"], "fail", "a copy of the student as it was"),
        (["start", "student"], "not_triggered", ""),
        (["stranger", "teacher"], "not_triggered", ""),
        ([], "not_triggered", ""),
    ],
)
def test_who_is_scored_at_the_end_is_the_student(asked, status, says):
    def loop():
        teacher, student = networks()
        start = copy.deepcopy(student)
        taught(teacher, student)
        loaded = Drops(8)
        loaded.load_state_dict(student.state_dict())
        there = {"teacher": teacher, "student": student, "start": start, "loaded": loaded, "stranger": Drops(5)}
        with torch.no_grad():
            for name in asked:
                torch.nn.Sequential(there[name])(torch.randn(16, WIDTH))

    report, verdict = found(loop)
    assert verdict.status == status and says in verdict.message
    assert named_first(report) == (("KD335", "error") if status == "fail" else None)
    if status == "fail":
        assert verdict.where["file"].endswith("test_saves.py")


def test_a_student_that_is_scored_beside_training_has_its_score():
    def loop():
        teacher, student = networks()
        taught(teacher, student)
        with torch.no_grad():
            student(torch.randn(16, WIDTH))
        taught(teacher, student)
        with torch.no_grad():
            teacher(torch.randn(16, WIDTH))

    assert found(loop)[1].status == "not_triggered"
