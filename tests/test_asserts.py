"""The assertions for tests: green on a right step, red on a broken one and on silence."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

from kdbench import audits
from kdbench.audits.asserts import (
    assert_clean,
    assert_clipped,
    assert_kd_scale,
    assert_optimizer_coverage,
    assert_teacher_frozen,
)

T = 4.0


class Loop:
    """A distillation with a projector, in which one thing may be wrong."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.body, self.head = nn.Sequential(nn.Linear(12, 8), nn.ReLU()), nn.Linear(8, 5)
        self.student = nn.Sequential(self.body, self.head)
        self.projector = nn.Linear(8, 16, bias=False)
        self.hint, answer = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16)), nn.Linear(16, 5)
        self.teacher = nn.Sequential(self.hint, answer).requires_grad_(False).train(wrong == "teacher in train mode")
        params = [*self.student.parameters()]
        if wrong != "projector not optimised":
            params += self.projector.parameters()
        self.optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        self.clipped = [*self.student.parameters()] if wrong == "projector not clipped" else params

    def step(self) -> None:
        x, y = torch.randn(32, 12), torch.randint(0, 5, (32,))
        hint = self.hint(x)
        hidden, answer = self.body(x), self.teacher[1](hint)
        z = self.head(hidden)
        scale = 1 if self.wrong == "no T squared" else T * T
        kd = F.kl_div(F.log_softmax(z / T, 1), F.softmax(answer / T, 1), reduction="batchmean") * scale
        loss = 0.5 * F.cross_entropy(z, y) + 0.5 * kd + F.mse_loss(self.projector(hidden), hint)
        self.optimizer.zero_grad()
        loss.backward()
        if self.wrong != "no clip":
            clip_grad_norm_(self.clipped, 0.5)
        if self.wrong != "no step":
            self.optimizer.step()

    @property
    def roles(self) -> dict[str, object]:
        return {
            "student": self.student,
            "teacher": self.teacher,
            "projectors": self.projector,
            "optimizer": self.optimizer,
        }


ASSERTIONS = (assert_clean, assert_clipped, assert_teacher_frozen, assert_optimizer_coverage, assert_kd_scale)


@pytest.mark.parametrize("check", ASSERTIONS)
def test_a_right_step_passes(check):
    loop = Loop()
    assert check(loop.step, **loop.roles).counts()["pass"] >= 10


CAUGHT = [
    (assert_clipped, "projector not clipped", "KD201 clip-coverage"),
    (assert_teacher_frozen, "teacher in train mode", "KD301 teacher-mode"),
    (assert_optimizer_coverage, "projector not optimised", "KD101 optimizer-coverage"),
    (assert_kd_scale, "no T squared", "KD312 kd-scale"),
]


@pytest.mark.parametrize(("check", "wrong", "finding"), CAUGHT, ids=[wrong for _, wrong, _ in CAUGHT])
def test_each_assertion_fails_on_its_own_fault_and_the_whole_on_all(check, wrong, finding):
    for asked in (check, assert_clean):
        loop = Loop(wrong)
        with pytest.raises(audits.AuditFailure, match=rf"(?m)^{finding}  "):
            asked(loop.step, **loop.roles)
    for other in set(ASSERTIONS[1:]) - {check}:
        loop = Loop(wrong)
        other(loop.step, **loop.roles)


def test_what_was_not_decided_is_a_failure_with_its_reason():
    loop = Loop("no clip")
    with pytest.raises(audits.AuditFailure, match=r"KD201 clip-coverage  \(undecided\): no clip was seen"):
        assert_clipped(loop.step, **loop.roles)


def test_a_bound_that_is_not_kept_is_a_failure():
    loop = Loop()
    assert_clipped(loop.step, clip=audits.Clip(0.5), **loop.roles)
    with pytest.raises(audits.AuditFailure, match=r"(?m)^KD204 norm-bound  "):
        assert_clipped(loop.step, clip=audits.Clip(0.01), **loop.roles)


def test_a_declared_weight_is_held_to():
    loop = Loop()
    assert_kd_scale(loop.step, kd=audits.KD(alpha=0.5), **loop.roles)
    with pytest.raises(audits.AuditFailure, match=r"0\.9 is declared"):
        assert_kd_scale(loop.step, kd=audits.KD(alpha=0.9), **loop.roles)


def test_a_step_that_steps_nothing_is_a_failure():
    loop = Loop("no step")
    with pytest.raises(audits.AuditFailure, match="nothing was decided: no step of the declared optimizer"):
        assert_clean(loop.step, **loop.roles)


def test_a_declared_teacher_that_is_never_asked_is_a_failure():
    loop = Loop()

    def step() -> None:
        loop.optimizer.zero_grad()
        F.cross_entropy(loop.student(torch.randn(32, 12)), torch.randint(0, 5, (32,))).backward()
        loop.optimizer.step()

    with pytest.raises(audits.AuditFailure, match="nothing was decided: no distillation was seen"):
        assert_clean(step, **loop.roles)
    assert_clean(step, student=loop.student, optimizer=loop.optimizer)


def test_the_step_runs_as_often_as_asked():
    loop, calls = Loop(), []
    assert_clean(lambda: (calls.append(1), loop.step()), n=7, **loop.roles)
    assert len(calls) == 7
    with pytest.raises(ValueError, match="at least once"):
        assert_clean(loop.step, n=0, **loop.roles)


def test_a_milder_severity_can_be_asked_for():
    loop = Loop()
    # The clip binds in every step, which is worth a remark and no more.
    with pytest.raises(audits.AuditFailure, match=r"(?m)^KD205 clip-active  .*\(note\)$"):
        assert_clean(loop.step, severity="info", **loop.roles)
