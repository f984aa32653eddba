"""The one loop: reproducible, faithful to the procedure, and never waiting for the device inside an epoch."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import SEED, every_method, halves
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.kd import train
from kdbench.kd.errors import InputError
from kdbench.kd.evaluate import logits_of
from kdbench.kd.procedure import CANONICAL


def run(training):
    return list(train.epochs(training))


@pytest.mark.parametrize("method", every_method())
def test_the_same_seed_gives_bitwise_the_same_weights(prepare, method):
    a, b, other = (run(prepare(method, seed=seed)) for seed in (3, 3, 4))
    assert a == b
    assert a[-1].digest != other[-1].digest


@pytest.mark.parametrize("method", ["baseline", "logit", "feature"])
def test_first_step_against_a_plain_loop(prepare, method):
    """One step of the stack (channels-last, fused, resident data) is one step of the textbook in float64.

    Through 18 layers of batch norm over 16 images, fp32 itself is good to a percent: layouts differ by half of one.
    The weight decay is large, so that a step without it would be far off.
    """
    ours, twin = (prepare(method, epochs=1, train_size=16, lr=0.05, weight_decay=0.05) for _ in range(2))
    start = [p.detach().double().clone() for p in [*ours.student.parameters(), *ours.method.parameters()]]
    (epoch,) = run(ours)

    student, head = twin.student.double(), twin.method.double()
    ids = twin.split.train[torch.randperm(16, generator=CANONICAL.stream(SEED, "order/0"))]
    draws = train.draw_crops(16, 2, False, CANONICAL.stream(SEED, "crops/0"))
    images, labels = twin.pool.crop(ids, draws).double().contiguous(), twin.pool.labels[ids]
    student.train()
    answer = student(images)
    ce = F.cross_entropy(answer.logits, labels)
    loss = ce
    if method != "baseline":
        with torch.no_grad():
            target = twin.teacher.double().eval()(images)
    if method == "logit":
        log_s, p_t = (z.div(4) for z in (answer.logits, target.logits))
        log_s, p_t = log_s.log_softmax(1), p_t.softmax(1)
        loss = 0.5 * ce + 0.5 * 16 * (p_t * (p_t.log() - log_s)).sum(1).mean()
    elif method == "feature":
        stages = []
        for conv, s, t in zip(head.projectors, answer.features, target.features, strict=True):
            p = conv(s)
            cosine = F.cosine_similarity(p.mean((2, 3)), t.mean((2, 3)))
            stages.append((p - t).square().mean() + 0.5 * (1 - cosine).mean())
        loss = 0.5 * ce + 0.5 * sum(stages) / 4
    params = [*student.parameters(), *head.parameters()]
    gradients = torch.autograd.grad(loss, params)
    norm = torch.sqrt(sum(g.square().sum() for g in gradients))
    assert epoch.loss["total"] == pytest.approx(loss.item(), rel=1e-4)
    assert epoch.grad_norms["all"]["max"] == pytest.approx(norm.item(), rel=0.02)
    clip = min(1.0, 1 / (norm.item() + 1e-6))
    nesterov = 1 + 0.9  # of the first step, whose momentum is its own gradient
    wanted = [-0.05 * nesterov * (g * clip + 0.05 * p) for p, g in zip(start, gradients, strict=True)]
    moved = [
        p.double() - q for p, q in zip([*ours.student.parameters(), *ours.method.parameters()], start, strict=True)
    ]
    error = nn.utils.get_total_norm([a - b for a, b in zip(moved, wanted, strict=True)])
    assert error / nn.utils.get_total_norm(wanted) < 0.03


@pytest.fixture
def reads(monkeypatch):
    """Counts whatever waits for the device: numbers, lists, arrays and copies taken off it."""
    counts = {"n": 0}

    class Scalars(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts["n"] += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    for name in ("tolist", "numpy", "cpu", "nonzero"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, **kwargs):
            counts["n"] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    with Scalars():
        yield counts


@pytest.mark.parametrize("method", every_method())
def test_no_step_waits_for_the_device(prepare, method, reads):
    counts = []
    for size in (16, 64):  # one step an epoch, and four
        training = prepare(method, train_size=size)
        reads["n"] = 0
        run(training)
        counts.append(reads["n"])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("read", [lambda t: t.item(), lambda t: t.tolist(), lambda t: t.cpu().numpy(), bool, float])
def test_the_reads_are_counted(reads, read):
    read(torch.zeros(1))
    assert reads["n"] >= 1


@pytest.mark.parametrize("method", ["logit", "feature"])
def test_the_teacher_stays_as_it_was(prepare, method):
    training = prepare(method)
    before = train.weight_digest(training.teacher)
    run(training)
    assert train.weight_digest(training.teacher) == before
    assert all(p.grad is None for p in training.teacher.parameters())
    assert not training.teacher.training


def test_projectors_are_trained_and_their_norm_is_recorded(prepare):
    training = prepare("feature")
    before = train.weight_digest(training.method)
    epochs = run(training)
    assert train.weight_digest(training.method) != before
    for epoch in epochs:
        norms = epoch.grad_norms
        assert norms["projectors"]["mean"] > 0
        assert norms["all"]["max"] >= max(norms["student"]["max"], norms["projectors"]["max"])


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_the_selected_epochs_weights_are_restored(prepare, chosen):
    rule = dataclasses.replace(CANONICAL, select=lambda val, test: min(chosen, len(val) - 1))
    training = prepare("feature", procedure=rule, epochs=3)
    epochs = run(training)
    assert training.restore_selected() == chosen + 1
    assert train.weight_digest(training.student, training.method) == epochs[chosen].digest
    assert len({epoch.digest for epoch in epochs}) == 3


def test_a_rule_that_goes_back_on_its_choice_is_refused(prepare):
    training = prepare(procedure=dataclasses.replace(CANONICAL, select=lambda val, test: len(val) // 2), epochs=4)
    run(training)
    with pytest.raises(InputError, match="its weights were not kept"):
        training.restore_selected()


@pytest.mark.parametrize(("method", "has", "says"), [("logit", False, "needs a teacher"), ("baseline", True, "no use")])
def test_a_method_without_its_teacher_is_refused(prepare, digits, recipe, method, has, says, tmp_path):
    teacher = train.Teacher("r18", tmp_path / "t.safetensors") if has else None
    with pytest.raises(InputError, match=says):
        train.prepare(digits, "r18", teacher, method, halves(method), recipe, CANONICAL, 0, torch.device("cpu"))


def test_every_epoch_has_an_order_and_crops_of_its_own(prepare):
    seen = []

    def views(pool, ids, crops):
        seen.append((ids.tolist(), crops.top.tolist()))
        return CANONICAL.views(pool, ids, crops)

    training = prepare(procedure=dataclasses.replace(CANONICAL, views=views))
    run(training)
    first, second = seen[:4], seen[4:]
    ids = [sorted(i for batch, _ in epoch for i in batch) for epoch in (first, second)]
    assert ids[0] == ids[1] == sorted(training.split.train.tolist()) and first != second
    assert [c for _, c in first] != [c for _, c in second]


def test_train_accuracy_and_clipped_share_count_what_they_say(prepare):
    knows = dataclasses.replace(CANONICAL, combine=lambda ce, kd, a, b: ce * 0)
    (epoch, *_) = run(prepare(procedure=knows, lr=1e-6, lr_min=0.0))
    assert 0 <= epoch.train_accuracy <= 60 and epoch.train_accuracy % (100 / 64) == 0
    assert epoch.clipped_share == 0.0
    still = {"epochs": 1, "lr": 1e-9, "lr_min": 0.0}
    norms = run(prepare("feature", max_norm=1e6, **still))[0].grad_norms
    bound = norms["all"]["max"] * 0.999
    assert norms["student"]["max"] < bound, "the union is what exceeds this bound, not the student"
    assert run(prepare("feature", max_norm=bound, **still))[0].clipped_share == 1 / 4


def test_an_order_without_a_clip_still_measures(prepare):
    (epoch, *_) = run(prepare(procedure=dataclasses.replace(CANONICAL, order=lambda: ("zero", "backward", "step"))))
    assert epoch.grad_norms["all"]["max"] > 0


def test_scoring_leaves_a_frozen_batch_norm_frozen(prepare):
    training = prepare()
    training.student.train()
    training.student.bn1.eval()
    logits_of(training.student, training.batches(training.split.val), training.pool.centre)
    assert training.student.conv1.training and not training.student.bn1.training


def test_learning_rate_reaches_the_optimizer(prepare):
    training = prepare(procedure=dataclasses.replace(CANONICAL, learning_rate=lambda recipe, step, n: 0.0))
    before = [p.clone() for p in training.student.parameters()]
    run(training)
    assert all(torch.equal(a, b) for a, b in zip(before, training.student.parameters(), strict=True))


def test_distillation_ends_early_where_the_recipe_says_so(prepare):
    """Until then bit for bit as without it; then the teacher is not asked, and labels have their whole weight."""
    whole, half = prepare("logit", epochs=4), prepare("logit", epochs=4, distil_until=0.5)
    asked = []
    half.teacher.register_forward_hook(lambda *_: asked.append(1))
    full, cut = run(whole), run(half)
    assert [a.digest == b.digest for a, b in zip(full, cut, strict=True)] == [True, True, False, False]
    assert len(asked) == 2 * half.steps_per_epoch
    assert [epoch.loss["kd"] > 0 for epoch in cut] == [True, True, False, False]
    assert [epoch.loss["total"] == pytest.approx(epoch.loss["ce"]) for epoch in cut] == [False, False, True, True]
    with pytest.raises(InputError, match=r"distil_until is 0\.0; it is a share of the epochs"):
        prepare("logit", distil_until=0)


@pytest.mark.parametrize("method", every_method())
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_runs_and_stays_near_fp32(prepare, method, precision):
    full, reduced = run(prepare(method)), run(prepare(method, precision=precision))
    assert all(epoch.finite for epoch in reduced)
    assert reduced[0].loss["total"] == pytest.approx(full[0].loss["total"], rel=0.1)
    assert reduced[0].digest != full[0].digest


def test_fp16_gradients_are_unscaled_before_they_are_clipped(prepare):
    long = {"train_size": 160, "epochs": 1, "lr": 1e-6, "lr_min": 0.0}
    training = prepare(precision="fp16", **long)
    assert training.scaler.is_enabled()
    (right,), (full,) = run(training), run(prepare(**long))
    assert right.grad_norms["all"]["max"] == pytest.approx(full.grad_norms["all"]["max"], rel=0.2)
    wrong = dataclasses.replace(CANONICAL, order=lambda: ("zero", "backward", "clip", "unscale", "step"))
    (scaled,) = run(prepare(procedure=wrong, precision="fp16", **long))
    assert scaled.grad_norms["all"]["max"] > 1000 * full.grad_norms["all"]["max"]


def test_a_first_fp16_step_that_is_skipped_leaves_no_garbage_behind(prepare):
    """Memory that nobody has written to is filled with NaN here; torch's fused SGD took its momentum from there."""
    training = prepare(precision="fp16", train_size=64, epochs=1)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)  # so large that the first steps overflow
    torch.use_deterministic_algorithms(True)
    try:
        (epoch,) = run(training)
    finally:
        torch.use_deterministic_algorithms(False)
    assert epoch.overflowed_steps > 0
    momenta = [state["momentum_buffer"] for state in training.optimizer.state.values()]
    assert momenta and all(m.isfinite().all() for m in momenta)


def test_overflowed_fp16_steps_are_skipped_counted_and_in_no_norm(prepare):
    huge = dataclasses.replace(CANONICAL, combine=lambda ce, kd, a, b: ce * 1e3)
    (epoch,) = run(prepare(procedure=huge, precision="fp16", train_size=160, epochs=1))
    assert 0 < epoch.overflowed_steps < 10
    assert epoch.finite and 0 < epoch.grad_norms["all"]["max"] < float("inf")


def test_clipping_bounds_the_step(prepare):
    bound = 1e-3
    training = prepare(max_norm=bound, train_size=16, epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0)
    before = [p.detach().clone() for p in training.student.parameters()]
    (epoch,) = run(training)
    moved = nn.utils.get_total_norm([a - b for a, b in zip(before, training.student.parameters(), strict=True)])
    assert epoch.clipped_share == 1.0
    assert moved.item() == pytest.approx(bound, rel=1e-3)


def test_a_loss_that_is_no_number_is_seen(prepare):
    epochs = run(prepare(procedure=dataclasses.replace(CANONICAL, combine=lambda ce, kd, a, b: ce * float("nan"))))
    assert not epochs[0].finite
