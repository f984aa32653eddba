"""The watch on loops of strangers: what it says, and that it leaves no trace."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import stranger
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from kdbench import audits
from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.checks.catalogue import Audit
from kdbench.audits.observe import torch_internals

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
    assert "hint.weight" in str(report) and f"stranger.py:{line}" in str(report) and "fix:" in str(report)
    bound = finding(report, "norm-bound")
    assert bound.status == "fail" and bound.consequence_of == "KD201" and bound.observed["largest_norm"] > 0.05


@pytest.mark.parametrize("seed", range(10))
def test_the_same_stranger_with_a_whole_clip_is_clean(seed):
    report, _ = stranger.train(forget=False, seed=seed)
    assert report.failed("warn") == []
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
    assert not _global_optimizer_pre_hooks and not _global_optimizer_post_hooks
    assert not student._forward_hooks and not optimizer._optimizer_step_pre_hooks


def test_watches_may_end_in_any_order():
    before = torch.autograd.backward
    student = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    a, b = (audits.watch(student=student, optimizer=optimizer) for _ in range(2))
    a.__enter__(), b.__enter__()
    a.__exit__(None, None, None)
    student(torch.randn(2, 2)).sum().backward()
    clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    b.__exit__(None, None, None)
    assert finding(b.report, "clip-coverage").status == "pass" and finding(a.report, "clip-coverage").reason
    student(torch.randn(2, 2)).sum().backward()
    assert len(b.trace.updates.steps) == 1
    assert torch.autograd.backward is before or torch.autograd.backward.__module__ == "kdbench.audits.observe.hooks"
    assert torch_internals.mode_depth() == 0, "the first one's mode lay below the second's"


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
    norm = nn.utils.get_total_norm([p.grad for p in loop.params])
    for p in loop.params:
        p.grad = p.grad / norm


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
        (nothing, DECLARED, "fail", "fail"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_clip_coverage_and_bound(clip, declared, coverage, bound, seed):
    report = Loop(seed).run(clip, **declared)
    assert finding(report, "clip-coverage").status == coverage
    assert finding(report, "norm-bound").status == bound
    if coverage == "fail":
        left_out = {"projectors.weight", "projectors.bias"} | (
            {"student.weight", "student.bias"} if clip is nothing else set()
        )
        assert set(finding(report, "clip-coverage").observed["missed"]) == left_out
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


class Two:
    """Two optimizers, one for the student and one for the projector, stepped in either order."""

    def __init__(self, declared, order, clip):
        torch.manual_seed(0)
        self.student, self.projector = nn.Linear(6, 6), nn.Linear(6, 4)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (self.student, self.projector)]
        both = [*self.student.parameters(), *self.projector.parameters()]
        with audits.watch(
            student=self.student, projectors=self.projector, optimizer=optimizers, **declared
        ) as self.watch:
            for _ in range(4):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                (10 * self.projector(self.student(torch.randn(8, 6))).square().mean()).backward()
                clip(self, both)
                for i in order:
                    optimizers[i].step()
        self.report = self.watch.report


ORDERS = pytest.mark.parametrize("order", [(0, 1), (1, 0)])


@ORDERS
def test_one_clip_over_two_optimizers_is_clean(order):
    report = Two(DECLARED, order, lambda loop, both: clip_grad_norm_(both, 1.0)).report
    assert finding(report, "clip-coverage").status == finding(report, "norm-bound").status == "pass"


@ORDERS
def test_a_parameter_of_the_second_optimizer_is_missed_in_either_order(order):
    def clip(loop, both):
        clip_grad_norm_([*loop.student.parameters(), loop.projector.bias], 1.0)

    report = Two({}, order, clip).report
    assert finding(report, "clip-coverage").observed["missed"] == ["projectors.weight"]


@ORDERS
def test_a_whole_optimizer_left_out_is_missed_where_one_clip_is_declared(order):
    report = Two(DECLARED, order, lambda loop, both: clip_grad_norm_(loop.student.parameters(), 1.0)).report
    assert set(finding(report, "clip-coverage").observed["missed"]) == {"projectors.weight", "projectors.bias"}
    undeclared = Two({}, order, lambda loop, both: clip_grad_norm_(loop.student.parameters(), 1.0)).report
    assert finding(undeclared, "clip-coverage").status == "pass"


def test_somebody_elses_clip_is_no_clip_of_ours():
    loop, other = Loop(), nn.Linear(2, 2)
    other(torch.randn(3, 2)).sum().backward()
    report = loop.run(lambda x: clip_grad_norm_(other.parameters(), 1.0))
    assert finding(report, "clip-coverage").status == "not_triggered"


def test_scaling_all_gradients_is_no_clip_of_those_that_torchs_left_out():
    def average_then_clip(loop):
        for p in loop.params:
            p.grad.div_(2)
        clip_student(loop)

    report = Loop().run(average_then_clip, **DECLARED)
    assert finding(report, "clip-coverage").status == "fail"


@pytest.mark.parametrize("first", ["torch", "hand"])
def test_torchs_clip_and_one_by_hand_may_share_the_work(first):
    def clip(loop):
        calls = [lambda: clip_student(loop), lambda: scale_by_hand(list(loop.projector.parameters()))]
        for call in calls if first == "torch" else calls[::-1]:
            call()

    report = Loop().run(clip, clip=audits.Clip(1.0, "per_group"))
    assert finding(report, "clip-coverage").status == "pass"


def test_measuring_a_norm_with_an_infinite_bound_is_no_clip():
    def measure(loop):
        clip_grad_norm_(loop.student.parameters(), float("inf"))

    report = Loop().run(measure)
    assert finding(report, "clip-coverage").reason == "no-clip-call"
    json.loads(report.to_json())


def separate(loop, clip, steps=4, declared=None, after=None):
    """Two backwards a step, the second of which reaches only the projector; `clip(loop, 0)` and `(loop, 1)` between."""
    with audits.watch(
        student=loop.student, projectors=loop.projector, optimizer=loop.optimizer, **(declared or {})
    ) as watch:
        for _ in range(steps):
            loop.optimizer.zero_grad()
            hidden = loop.student(torch.randn(8, 6))
            (10 * hidden.square().mean()).backward()
            clip(loop, 0)
            (10 * loop.projector(hidden.detach()).square().mean()).backward()
            clip(loop, 1)
            loop.optimizer.step()
            if after:
                after(loop)
    return watch.report


def test_a_backward_that_does_not_reach_what_was_clipped_undoes_nothing():
    parts = [lambda loop: list(loop.student.parameters()), lambda loop: list(loop.projector.parameters())]
    by_hand = separate(Loop(), lambda loop, i: scale_by_hand(parts[i](loop)), declared={"clip": audits.Clip(1.0)})
    assert finding(by_hand, "clip-coverage").status == "pass"

    def mixed(loop, i):
        scale_by_hand(parts[0](loop)) if i == 0 else clip_grad_norm_(parts[1](loop), 1.0)

    report = separate(Loop(), mixed, declared={"clip": audits.Clip(1.0, "per_group")})
    assert finding(report, "clip-coverage").status == "pass"
    both = separate(Loop(), lambda loop, i: clip_grad_norm_(parts[i](loop), 1.0))
    assert finding(both, "clip-coverage").status == "pass"


@pytest.mark.parametrize("case", ["after the step", "before another backward"])
def test_a_clip_that_what_came_later_undid_covers_nothing(case):
    loop = Loop()
    with audits.watch(student=loop.student, projectors=loop.projector, optimizer=loop.optimizer) as watch:
        for _ in range(3):
            loop.optimizer.zero_grad(set_to_none=False)
            for _ in range(2):
                (0.01 * loop.projector(loop.student(torch.randn(8, 6))).square().mean()).backward()
                if case == "before another backward" and not loop.params[0].grad.eq(0).all():
                    loop.clipped = getattr(loop, "clipped", 0) + 1
                    if loop.clipped % 2:
                        clip_all(loop)
            loop.optimizer.step()
            if case == "after the step":
                clip_all(loop)
    assert finding(watch.report, "clip-coverage").status == "fail"


def test_a_zeroed_gradient_that_no_backward_reached_needs_no_clip():
    loop = Loop()
    with audits.watch(student=loop.student, projectors=loop.projector, optimizer=loop.optimizer, **DECLARED) as watch:
        for step in range(6):
            loop.optimizer.zero_grad(set_to_none=False)
            hidden = loop.student(torch.randn(8, 6))
            if step % 2:
                (10 * hidden.square().mean()).backward()
                clip_student(loop)
            else:
                (10 * loop.projector(hidden.detach()).square().mean()).backward()
                clip_grad_norm_(loop.projector.parameters(), 1.0)
            loop.optimizer.step()
    assert watch.report.failed("info") == []


def test_a_hook_of_the_users_on_a_parameter_may_clip_it():
    loop = Loop()
    for p in loop.student.parameters():
        p.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
    report = loop.run(lambda loop: clip_grad_norm_(loop.projector.parameters(), 1.0))
    assert finding(report, "clip-coverage").status == "pass"


def test_clips_in_every_micro_step_are_clean():
    loop = Loop()
    with audits.watch(student=loop.student, projectors=loop.projector, optimizer=loop.optimizer) as watch:
        for _ in range(3):
            loop.optimizer.zero_grad()
            for _ in range(2):
                loop.projector(loop.student(torch.randn(8, 6))).square().mean().backward()
                clip_all(loop)
            loop.optimizer.step()
    assert watch.report.failed("info") == [] and finding(watch.report, "clip-coverage").status == "pass"


def test_torch_and_hand_clips_together_leave_the_bound_undecided():
    def clip(loop):
        clip_student(loop)
        scale_by_hand(list(loop.projector.parameters()))

    for declared in ({}, {"clip": audits.Clip(1.0, "per_group")}):
        report = Loop().run(clip, **declared)
        assert report.failed("info") == [] and finding(report, "norm-bound").status == "not_triggered"


def test_a_write_beside_a_hand_clip_that_had_nothing_to_do_accuses_nobody():
    def clip(loop):
        for p in loop.params:
            if p.ndim > 1:  # gradient centralisation
                p.grad.sub_(p.grad.mean(1, keepdim=True))

    assert Loop().run(clip, clip=audits.Clip(1e4)).failed("info") == []


def test_two_optimizers_under_one_scaler_may_be_unscaled_and_clipped_in_turn():
    torch.manual_seed(0)
    student, projector = nn.Linear(6, 6), nn.Linear(6, 4)
    a, b = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (student, projector))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with audits.watch(student=student, projectors=projector, optimizer=[a, b], **DECLARED) as watch:
        for _ in range(4):
            a.zero_grad(), b.zero_grad()
            scaler.scale(10 * projector(student(torch.randn(8, 6))).square().mean()).backward()
            scaler.unscale_(a)
            scale_by_hand(list(student.parameters()))
            scaler.unscale_(b)
            clip_grad_norm_(projector.parameters(), 1.0)
            scaler.step(b), scaler.step(a)
            scaler.update()
    assert finding(watch.report, "clip-coverage").status != "fail"


def test_a_call_without_its_bound_fails_as_it_does_unwatched():
    loop = Loop()
    with audits.watch(student=loop.student, optimizer=loop.optimizer), pytest.raises(TypeError, match="clip_value"):
        nn.utils.clip_grad_value_(loop.params)


@pytest.mark.parametrize("order", ["labels first", "masked in place", "as it should be"])
def test_labels_are_held_against_the_answer_to_their_own_batch(order):
    student = nn.Linear(3, 10)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)

    class Knows(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(x[:, 0].long(), 10).float()

    teacher = Knows()
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as w:
        for _ in range(10):
            x = torch.randint(0, 10, (64, 3)).float()
            y = x[:, 0].long()
            if order == "labels first":
                w.labels(y)
            answer = teacher(x)
            if order == "masked in place":
                answer.scatter_(1, y[:, None], -1000.0)
            if order != "labels first":
                w.labels(y)
            optimizer.zero_grad()
            F.cross_entropy(student(x), y).backward()
            optimizer.step()
    found = finding(w.report, "teacher-above-chance")
    assert found.status == ("not_triggered" if order == "labels first" else "pass")


def test_hand_clips_by_group_only_where_needed_accuse_nobody():
    def clip(loop):
        for p in loop.params:
            if p.grad.norm() > 1:
                p.grad.mul_(1 / p.grad.norm())

    report = Loop().run(clip, clip=audits.Clip(1.0, "per_group"))
    assert report.failed("info") == []


@pytest.mark.parametrize("kwargs", [False, True])
def test_a_closure_is_seen_with_its_own_gradients(kwargs):
    for whole in (True, False):
        loop = Loop()
        with audits.watch(
            student=loop.student, projectors=loop.projector, optimizer=loop.optimizer, **DECLARED
        ) as watch:
            for _ in range(3):

                def closure(loop=loop, whole=whole):
                    loop.optimizer.zero_grad()
                    loss = 10 * loop.projector(loop.student(torch.randn(8, 6))).square().mean()
                    loss.backward()
                    (clip_all if whole else clip_student)(loop)
                    return loss

                loss = loop.optimizer.step(closure=closure) if kwargs else loop.optimizer.step(closure)
                assert loss > 0
        status = "pass" if whole else "fail"
        assert [s.number for s in watch.trace.updates.steps] == [1, 2, 3]
        assert finding(watch.report, "clip-coverage").status == finding(watch.report, "norm-bound").status == status


def test_lbfgs_is_seen_once_a_step():
    loop = Loop(optimizer=lambda params, lr: torch.optim.LBFGS(params, lr=lr, max_iter=3))
    with audits.watch(student=loop.student, projectors=loop.projector, optimizer=loop.optimizer, **DECLARED) as watch:
        for _ in range(3):
            x = torch.randn(8, 6)

            def closure(x=x):
                loop.optimizer.zero_grad()
                loss = 10 * loop.projector(loop.student(x)).square().mean()
                loss.backward()
                clip_all(loop)
                return loss

            loop.optimizer.step(closure)
    assert [s.number for s in watch.trace.updates.steps] == [1, 2, 3]
    assert watch.report.failed("info") == []


def test_a_step_that_raised_blinds_nobody():
    class Fragile(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            Fragile.calls += 1
            if Fragile.calls == 1:
                raise RuntimeError("once")
            return super().step(closure)

    loop = Loop(optimizer=Fragile)
    whole = iter([True, False, False, False])

    def step():
        with watch_step(), pytest.raises(RuntimeError) if Fragile.calls == 0 else nullcontext():
            loop.optimizer.step()

    def watch_step():
        loop.optimizer.zero_grad()
        (10 * loop.projector(loop.student(torch.randn(8, 6))).square().mean()).backward()
        (clip_all if next(whole) else clip_student)(loop)
        return nullcontext()

    with audits.watch(student=loop.student, projectors=loop.projector, optimizer=loop.optimizer, **DECLARED) as watch:
        for _ in range(4):
            step()
    assert finding(watch.report, "clip-coverage").status == "fail"


def test_a_wrapper_that_steps_for_the_declared_optimizer_is_seen():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner

        @property
        def param_groups(self):
            return self.inner.param_groups

        def step(self, closure=None):
            self.inner.step(closure)

    loop = Loop()
    loop.optimizer = Wrapper(loop.optimizer)
    loop.optimizer.zero_grad = loop.optimizer.inner.zero_grad
    report = loop.run(clip_student, **DECLARED)
    assert finding(report, "clip-coverage").status == "fail"


def test_two_alternating_optimizers_are_both_sampled_after_the_burn_in():
    student, projector = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (student, projector)]
    with audits.watch(student=student, optimizer=optimizers, burn_in=2, every=4) as watch:
        for _ in range(12):
            for net, optimizer in zip((student, projector), optimizers, strict=True):
                optimizer.zero_grad()
                net(torch.randn(2, 3)).sum().backward()
                optimizer.step()
    assert [s.number for s in watch.trace.updates.steps] == [1, 1, 2, 2, 4, 4, 8, 8, 12, 12]


def test_steps_that_the_scaler_skipped_leave_no_clips_behind():
    loop = Loop()
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    report = loop.run(clip_all, steps=12)
    assert [len(s.clips) for s in loop.watch.trace.updates.steps] == [1] * len(loop.watch.trace.updates.steps)
    assert len(loop.watch.trace.updates.steps) > 2
    assert finding(report, "norm-bound").status == "pass"


def test_a_fused_optimizer_under_a_scaler_that_never_unscaled_by_hand_is_measured_unscaled():
    loop = Loop(optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr, fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with audits.watch(student=loop.student, projectors=loop.projector, optimizer=loop.optimizer) as watch:
        loss = 10 * loop.projector(loop.student(torch.randn(8, 6))).square().mean()
        norm = nn.utils.get_total_norm(torch.autograd.grad(loss, loop.params, retain_graph=True))
        scaler.scale(loss).backward()
        scaler.step(loop.optimizer)
    assert watch.trace.updates.steps[0].norm == pytest.approx(norm.item(), rel=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_bf16_parameters_are_held_to_what_bf16_can_tell(seed):
    loop = Loop(seed)
    for module in (loop.student, loop.projector):
        module.bfloat16()
    with audits.watch(student=loop.student, projectors=loop.projector, optimizer=loop.optimizer, **DECLARED) as watch:
        for _ in range(3):
            loop.optimizer.zero_grad()
            (10 * loop.projector(loop.student(torch.randn(8, 6).bfloat16())).square().mean()).backward()
            clip_all(loop)
            loop.optimizer.step()
    assert watch.report.failed("info") == []


def test_one_step_without_a_clip_hides_nothing_of_the_others():
    calls = iter(range(10))
    report = Loop().run(lambda loop: clip_student(loop) if next(calls) > 1 else None)
    assert finding(report, "norm-bound").status == "fail" and finding(report, "norm-bound").severity == "warn"


def test_sparse_gradients_are_measured_too():
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with audits.watch(student=table, optimizer=optimizer) as watch:
        table(torch.tensor([1, 2, 1])).sum().backward()
        optimizer.step()
    assert watch.trace.broken is None and watch.trace.updates.steps[0].norm > 0


def test_a_compiled_student_is_watched_without_a_graph_break():
    student = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with audits.watch(student=student, optimizer=optimizer, **DECLARED) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            compiled(torch.randn(2, 4)).sum().backward()
            clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    assert finding(watch.report, "clip-coverage").status == "pass"


def test_a_stale_gradient_of_a_frozen_parameter_is_not_missed():
    loop = Loop()
    report = None

    def clip(loop):
        loop.projector.bias.requires_grad_(False)
        clip_grad_norm_([p for p in loop.params if p.requires_grad], 1.0)

    zero = loop.optimizer.zero_grad
    loop.optimizer.zero_grad = lambda: zero(set_to_none=False)
    report = loop.run(clip, **DECLARED)
    assert report.failed("info") == []


def test_a_frozen_layer_without_gradient_is_not_missed():
    loop = Loop()
    loop.projector.bias.requires_grad_(False)
    report = loop.run(lambda x: clip_grad_norm_([p for p in x.params if p.requires_grad], 1.0), **DECLARED)
    assert finding(report, "clip-coverage").status == "pass"


def test_after_the_burn_in_every_nth_step_is_seen_and_forwards_no_more():
    loop = Loop()
    hooked = []

    def look(loop):
        hooked.append(len(torch.nn.modules.module._global_forward_hooks))
        clip_all(loop)

    loop.run(look, steps=30, burn_in=5, every=10, **DECLARED)
    assert hooked == [2] * 5 + [0] * 25
    assert [s.number for s in loop.watch.trace.updates.steps] == [1, 2, 3, 4, 5, 10, 20, 30]


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

    entry = CATALOGUE["norm-bound"]
    monkeypatch.setitem(CATALOGUE, "norm-bound", Audit(**{**vars(entry), "check": broken}))
    report = Loop().run(clip_student, **DECLARED)
    assert finding(report, "norm-bound").status == "error" and "oh" in finding(report, "norm-bound").message
    assert finding(report, "clip-coverage").status == "fail"


def test_watching_that_breaks_is_said_and_stops_nothing(monkeypatch):
    loop = Loop()
    monkeypatch.setattr(sys.modules["kdbench.audits.observe.steps"], "with_gradient", lambda optimizer: 1 / 0)
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
        ({"clip": audits.Clip(1.0, "per-group")}, "scope is 'global' or 'per_group'"),
        ({"on_fail": "rasie"}, "on_fail is one of record, warn, raise"),
        ({"burn_in": 0}, "at least 1"),
        ({"every": 0}, "at least 1"),
        ({"optimizer": {"a": 1}}, "takes optimizers"),
        ({"projectors": {"student": nn.Linear(2, 2)}}, "cannot be called student"),
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
    assert sum(report.counts().values()) == len(CATALOGUE)


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
    assert finding(w.report, "teacher-above-chance").reason == "form-not-recognised"


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.float32])
def test_labels_of_any_number_type_and_ignored_ones_are_counted(kind):
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as w:
        for context in (torch.inference_mode, torch.no_grad):
            with context():
                teacher(torch.randn(8, 4))
            w.labels(torch.ones(8).to(kind))
        teacher(torch.randn(8, 4))
        w.labels(torch.tensor([-100] * 4 + [2] * 4))
    assert w.trace.broken is None and w.trace.teacher.hits.by_class.tolist() == [0, 16, 4]


LATER = {
    "dropped": lambda answer, step: None,
    "blank": lambda answer, step: torch.zeros_like(answer),
    "of another batch": lambda answer, step: torch.full_like(answer, 0.5),
    "live": lambda answer, step: answer,
    "live every other step": lambda answer, step: answer if step % 2 else None,
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("term", ["soft", "feature"])
def test_an_answer_that_stops_to_count_is_seen_at_the_end_of_the_burn_in(later, term):
    torch.manual_seed(0)
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as w:
        for step in range(20):
            x, y = torch.randn(16, 6), torch.randint(4, (16,))
            with torch.no_grad():
                answer = teacher(x)
            target = answer if step < 8 else LATER[later](answer, step)
            logits = student(x)
            loss = F.cross_entropy(logits, y)
            if target is not None and term == "soft":
                loss = loss + F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
            elif target is not None:
                loss = loss + F.mse_loss(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = finding(w.report, "term-provenance")
    assert found.status == ("pass" if later.startswith("live") else "fail"), found.message
    if found.status == "fail":
        assert "reached the loss at first, and no longer does" in found.message
