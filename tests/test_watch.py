"""The watch on loops of strangers: what it says, and that it leaves no trace."""

import copy
import json
from pathlib import Path

import pytest
import stranger
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

import audits
from audits import checks

HOOKED = [
    (torch.nn.utils.clip_grad, "_clip_grads_with_norm_"),
    (torch.nn.utils.clip_grad, "clip_grad_value_"),
    (torch.nn.utils, "clip_grads_with_norm_"),
    (torch.nn.utils, "clip_grad_value_"),
    (torch.autograd, "backward"),
    (torch.amp.grad_scaler.GradScaler, "unscale_"),
]


def finding(report, name):
    return next(f for f in report.findings if f.name == name)


def test_a_stranger_who_forgets_a_projector_is_told_by_name_and_line():
    report, _ = stranger.train(forget=True)
    first = report.findings[0]
    lines = Path(stranger.__file__).read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "clip_grad_norm_(student.parameters()" in text)
    assert (first.id, first.name, first.status) == ("KD201", "clip-coverage", "fail")
    assert first.observed["missed"] == ["hint.weight"] and "hint.weight" in first.message
    assert first.where["line"] == line and Path(first.where["file"]).name == "stranger.py"
    assert first.observed["step"] == 1
    assert "hint.weight" in str(report) and f"stranger.py:{line}" in str(report) and "mend:" in str(report)
    bound = finding(report, "norm-bound")
    assert bound.status == "fail" and bound.consequence_of == "KD201" and bound.observed["largest_norm"] > 0.05


@pytest.mark.parametrize("seed", range(10))
def test_the_same_stranger_with_a_whole_clip_is_clean(seed):
    report, _ = stranger.train(forget=False, seed=seed)
    assert report.failed("info") == []
    assert finding(report, "clip-coverage").status == finding(report, "norm-bound").status == "pass"


def test_stranger_knows_nothing_of_the_project():
    source = Path(stranger.__file__).read_text()
    assert "import kd" not in source and "harness" not in source.split('"""')[2]


@pytest.mark.parametrize("forget", [False, True])
def test_watching_changes_no_bit_and_no_random_number(forget):
    _, watched = stranger.train(forget)
    after = torch.get_rng_state()
    _, plain = stranger.train(forget, watched=False)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    assert torch.equal(after, torch.get_rng_state())


def test_everything_is_put_back_even_after_an_exception():
    before = [getattr(owner, name) for owner, name in HOOKED]
    student = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), audits.watch(student=student, optimizer=optimizer):
        assert torch.autograd.backward is not before[4]
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name in HOOKED] == before
    assert not torch.nn.modules.module._global_forward_hooks
    copy.deepcopy(student)


class Loop:
    """A student of two layers under a clip of the test's choice."""

    def __init__(self, seed=0, optimizer=torch.optim.SGD, device="cpu"):
        torch.manual_seed(seed)
        self.student, self.projector = nn.Linear(6, 6), nn.Linear(6, 4)
        self.params = [*self.student.parameters(), *self.projector.parameters()]
        self.optimizer = optimizer(self.params, lr=0.05)
        self.scaler = None

    def run(self, do_clip, steps=4, micro=1, **declared):
        self.watch = audits.watch(student=self.student, projectors=self.projector, optimizer=self.optimizer, **declared)
        with self.watch:
            for _ in range(steps):
                self.optimizer.zero_grad()
                for _ in range(micro):
                    loss = 10 * self.projector(self.student(torch.randn(8, 6))).square().mean()
                    (self.scaler.scale(loss) if self.scaler else loss).backward()
                if self.scaler:
                    self.scaler.unscale_(self.optimizer)
                do_clip(self)
                if self.scaler:
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                else:
                    self.optimizer.step()
        return self.watch.report


def clip_all(loop):
    clip_grad_norm_(loop.params, 1.0)


def clip_student(loop):
    clip_grad_norm_(loop.student.parameters(), 1.0)


def scale_by_hand(params):
    norm = torch.sqrt(sum(p.grad.square().sum() for p in params))
    for p in params:
        p.grad.mul_(torch.clamp(1.0 / norm, max=1.0))


def by_hand_all(loop):
    scale_by_hand(loop.params)


def by_hand_student(loop):
    scale_by_hand(list(loop.student.parameters()))


def assigned_by_hand(loop):
    for p in loop.params:
        p.grad = p.grad * 0.01


def public_with_norm(loop):
    norm = nn.utils.get_total_norm([p.grad for p in loop.params])
    nn.utils.clip_grads_with_norm_(loop.params, max_norm=1.0, total_norm=norm)


def by_value(loop):
    nn.utils.clip_grad_value_(loop.params, clip_value=0.1)


def by_value_student(loop):
    nn.utils.clip_grad_value_(loop.student.parameters(), 0.1)


def generator(loop):
    clip_grad_norm_((p for p in loop.params), max_norm=1.0)


def infinity_norm(loop):
    clip_grad_norm_(loop.params, 1.0, norm_type=float("inf"))


def by_group(loop):
    clip_grad_norm_(loop.student.parameters(), 1.0)
    clip_grad_norm_(loop.projector.parameters(), 1.0)


def nothing(loop):
    pass


DECLARED = {"clip": audits.Clip(1.0)}


@pytest.mark.parametrize(
    ("clip", "declared", "coverage", "bound"),
    [
        (clip_all, DECLARED, "pass", "pass"),
        (clip_all, {}, "pass", "pass"),
        (clip_student, DECLARED, "fail", "fail"),
        (clip_student, {}, "fail", "fail"),
        (by_hand_all, DECLARED, "pass", "pass"),
        (by_hand_student, DECLARED, "fail", "fail"),
        (by_hand_student, {}, "not_triggered", "not_triggered"),  # writing to gradients is no clip till one is declared
        (assigned_by_hand, DECLARED, "pass", "pass"),
        (public_with_norm, {}, "pass", "pass"),
        (by_value, {}, "pass", "not_triggered"),
        (by_value_student, {}, "fail", "not_triggered"),
        (generator, {}, "pass", "pass"),
        (infinity_norm, {}, "pass", "not_triggered"),
        (by_group, {"clip": audits.Clip(1.0, "per_group")}, "pass", "pass"),
        (by_group, DECLARED, "pass", "fail"),
        (by_group, {}, "pass", "not_triggered"),
        (nothing, {}, "not_triggered", "not_triggered"),
        (nothing, DECLARED, "not_triggered", "fail"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_clip_coverage_and_bound(clip, declared, coverage, bound, seed):
    report = Loop(seed).run(clip, **declared)
    assert finding(report, "clip-coverage").status == coverage
    assert finding(report, "norm-bound").status == bound
    if coverage == "fail":
        assert set(finding(report, "clip-coverage").observed["missed"]) == {"projectors.weight", "projectors.bias"}
        assert finding(report, "clip-coverage").where["file"].endswith("test_watch.py")
    for f in report.findings:
        assert (f.status == "not_triggered") == (f.reason is not None)


def test_a_bound_that_was_not_declared_is_only_warned_of():
    declared, inferred = Loop().run(clip_student, **DECLARED), Loop().run(clip_student)
    assert finding(declared, "norm-bound").severity == "error"
    assert finding(inferred, "norm-bound").severity == "warn"


@pytest.mark.parametrize("clip", [clip_all, clip_student])
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_grad_scaler_the_clip_calls_decide(clip, fused):
    loop = Loop(optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr, fused=fused))
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    report = loop.run(clip, **DECLARED)
    wanted = "pass" if clip is clip_all else "fail"
    assert finding(report, "clip-coverage").status == finding(report, "norm-bound").status == wanted


def test_a_step_that_the_scaler_skips_is_no_alarm():
    loop = Loop(optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr, fused=True))
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    report = loop.run(clip_all, **DECLARED)
    assert report.failed("info") == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("micro", [1, 3])
def test_other_optimizers_and_accumulation_are_clean(optimizer, micro):
    report = Loop(optimizer=optimizer).run(clip_all, micro=micro, **DECLARED)
    assert finding(report, "clip-coverage").status == finding(report, "norm-bound").status == "pass"


def test_an_optimizer_that_calls_its_parents_step_is_counted_once():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    report = Loop(optimizer=Twice).run(clip_all, steps=5, **DECLARED)
    assert finding(report, "clip-coverage").observed["steps"] == 5


def test_a_frozen_layer_without_gradient_is_not_missed():
    loop = Loop()
    loop.projector.bias.requires_grad_(False)
    report = loop.run(lambda x: clip_grad_norm_([p for p in x.params if p.requires_grad], 1.0), **DECLARED)
    assert finding(report, "clip-coverage").status == "pass"


def test_after_the_burn_in_every_nth_step_is_seen():
    loop = Loop()
    loop.run(clip_all, steps=30, burn_in=5, every=10, **DECLARED)
    assert [s.number for s in loop.watch._trace.steps] == [1, 2, 3, 4, 5, 10, 20, 30]


def test_failures_can_be_raised_or_warned_of():
    with pytest.raises(audits.AuditFailure, match="KD201"):
        Loop().run(clip_student, on_fail="raise", **DECLARED)
    with pytest.raises(audits.AuditFailure, match="KD201"):
        Loop().run(clip_student, steps=30, burn_in=2, on_fail="raise", **DECLARED)
    with pytest.warns(UserWarning, match="KD201"):
        Loop().run(clip_student, on_fail="warn", **DECLARED)
    Loop().run(clip_all, on_fail="raise", **DECLARED)


def test_an_audit_that_breaks_is_said_and_stops_nothing(monkeypatch):
    def broken(trace):
        raise RuntimeError("oh")

    entry = checks.CATALOGUE["norm-bound"]
    monkeypatch.setitem(checks.CATALOGUE, "norm-bound", checks.Audit(**{**vars(entry), "check": broken}))
    report = Loop().run(clip_student, **DECLARED)
    assert finding(report, "norm-bound").status == "error" and "oh" in finding(report, "norm-bound").message
    assert finding(report, "clip-coverage").status == "fail"


def test_watching_that_breaks_is_said_and_stops_nothing(monkeypatch):
    loop = Loop()
    monkeypatch.setattr(audits.Watch, "_params", lambda self, optimizer: 1 / 0)
    before = loop.student.weight.clone()
    report = loop.run(clip_student, **DECLARED)
    assert not torch.equal(before, loop.student.weight)
    assert {f.status for f in report.findings} == {"error"}
    assert "ZeroDivisionError" in report.findings[0].message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"student": nn.ReLU()}, "student has no parameters"),
        ({"optimizer": []}, "no optimizer"),
        ({"clip": audits.Clip(0.0)}, "must be positive"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(wrong, says):
    student = nn.Linear(2, 2)
    declared = {"student": student, "optimizer": torch.optim.SGD(student.parameters(), lr=0.1), **wrong}
    with pytest.raises(ValueError, match=says):
        audits.watch(**declared)


def test_report_as_json_has_the_contracts_keys():
    report, _ = stranger.train(forget=True)
    keys = {
        "id", "name", "severity", "status", "phase", "message", "observed", "mend", "where", "consequence_of", "reason",
        "decide_with",
    }  # fmt: skip
    rows = json.loads(report.to_json())
    assert all(set(row) == keys for row in rows)
    assert [row["status"] for row in rows] == sorted(
        (row["status"] for row in rows), key=["fail", "error", "not_triggered", "pass"].index
    )
    assert sum(report.counts().values()) == len(checks.CATALOGUE)


def test_labels_may_come_in_any_shape_and_cost_nothing_but_the_verdict():
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as w:
        x = torch.randn(8, 4)
        teacher(x)
        w.labels(torch.rand(8, 3))
        w.labels(torch.zeros(7, dtype=torch.long))
        F.cross_entropy(student(x), torch.zeros(8, dtype=torch.long)).backward()
        optimizer.step()
    assert finding(w.report, "teacher-above-chance").reason == "intent-unknown"
