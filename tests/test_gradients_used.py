"""Gradients that no step uses, steps that have no gradient, and terms without a share; beside what looks like them."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, loaded, mlp, rows


def kd(logits, said, t=2.0):
    return F.kl_div((logits / t).log_softmax(1), (said / t).softmax(1), reduction="batchmean") * t * t


def batch(student, teacher):
    x, y = rows()
    with torch.no_grad():
        said = teacher(x)
    logits = student(x)
    return 0.5 * F.cross_entropy(logits, y) + 0.5 * kd(logits, said)


def accumulated(slip):
    """Four backwards to a step; zeroed before each of them, or between backward and step."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for i in range(4 * STEPS):
        if slip == "each":
            optimizer.zero_grad()
        (batch(student, teacher) / 4).backward()
        if slip == "between":
            student.zero_grad()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    return teacher, student


def clipped(slip):
    """A trainer that clips, with zeroes instead of None."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-2)
    optimizer.zero_grad()
    for i in range(2 * STEPS):
        loss = batch(student, teacher) / 2
        loss.backward()
        if i % 2:
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
        if i % 2 or slip:
            optimizer.zero_grad(set_to_none=False)
    return teacher, student


def hint(slip):
    """The projector has an optimizer of its own; it gets gradients, or the hint is taken of a copy of it."""
    teacher, student, bridge = loaded("mlp"), mlp(8), nn.Linear(8, 24)
    used = copy.deepcopy(bridge).requires_grad_(False) if slip else bridge
    both = torch.optim.SGD(student.parameters(), 0.05), torch.optim.SGD(bridge.parameters(), 0.05)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            wide = teacher[1](teacher[0](x))
        thin = student[1](student[0](x))
        loss = F.cross_entropy(student[2](thin), y) + F.mse_loss(used(thin), wide) + (0 * bridge.weight.sum()).detach()
        for optimizer in both:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in both:
            optimizer.step()
    return teacher, student, bridge, used


@pytest.mark.parametrize(
    ("loop", "slip", "said"),
    [
        (accumulated, "each", "the gradients of 3 of 4 backwards were zeroed before the step"),
        (accumulated, "between", "stepped 12 times without one gradient: zero_grad stands between backward and step"),
        (clipped, "each", "the gradients of 1 of 2 backwards were zeroed before the step"),
    ],
)
def test_gradients_that_are_thrown_away_are_told_of(loop, slip, said):
    report, _ = observed(loop, "")
    assert [f.message for f in report.failed("warn")] == []
    report, _ = observed(loop, slip)
    first = next(f for f in report.findings if f.status == "fail" and f.severity != "info")
    assert (first.id, first.severity) == ("KD215", "error") and said in first.message
    assert first.where["file"] == "tests/test_gradients_used.py"


def test_an_optimizer_that_steps_nothing_and_holds_no_part_of_the_distillation_is_no_failure():
    report, _ = observed(hint, "")
    assert [f.message for f in report.failed("warn")] == []
    report, seen = observed(hint, "of a copy")
    assert [e.steps for e in seen.updates.empty.values()] == [STEPS]
    assert "KD215" not in [f.id for f in report.failed("warn")]


def turned(slip):
    """No labels; the teacher's answer carries a graph, and the student's is cut from its own."""
    teacher, student = loaded("mlp"), mlp(8)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(STEPS):
        x, _ = rows()
        logits = student(x)
        with torch.set_grad_enabled(bool(slip)):
            said = teacher(x)
        loss = kd(logits.detach() if slip else logits, said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher, student


def test_a_student_that_is_cut_off_does_not_become_the_teacher():
    report, seen = observed(turned, False)
    assert [f.message for f in report.failed("warn")] == []
    report, seen = observed(turned, True)
    assert seen.roles["student"] == ["Sequential (student)"] and seen.roles["teacher"] == ["Sequential (teacher)"]
    assert named_first(report)[0] == "KD311", [f.message for f in report.failed("warn")]


# -- layers that answer within a function, which hands them no gradient


class Kept(torch.autograd.Function):
    """Runs a layer without a graph; its backward leaves the layer out."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer, ctx.x = layer, x.detach()
        return layer(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.x.requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(ctx.layer(x), x, grad)[0], None


class Stack(nn.Module):
    def __init__(self, run, frozen, wanted):
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(WIDTH, 8), mlp_body(), nn.Linear(8, CLASSES)
        self.embed.requires_grad_(not frozen)
        self.run, self.wanted = run, wanted

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.run(self.body, x.requires_grad_() if self.wanted else x))


def mlp_body():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def older(layer, x):
    return checkpoint(layer, x, use_reentrant=True)


def newer(layer, x):
    return checkpoint(layer, x, use_reentrant=False)


def kept(layer, x):
    return Kept.apply(x, layer)


def deep(run, frozen=True, wanted=False, trained="all", labels=0.0):
    """A student whose body is computed in some way, over an embedding that may be frozen."""
    teacher, student = loaded("mlp"), Stack(run, frozen, wanted)
    if trained == "no body":
        student.body.requires_grad_(False)
    held = student.head if trained == "the head" else student
    optimizer = torch.optim.Adam(held.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        loss = kd(logits, said) + labels * F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher, student


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("labels", [0.0, 0.5])
def test_layers_that_a_checkpoint_hands_no_gradient_are_named(labels):
    report, _ = observed(partial(deep, older, labels=labels))
    assert named_first(report) == ("KD215", "error"), str(report)
    found = next(f for f in report.findings if f.id == "KD215")
    assert found.message.startswith("4 parameters of the student are in the loss and in the optimizer")
    assert "use_reentrant=False" in found.mend and "body.0.weight" in found.message


def test_layers_that_a_function_of_ones_own_leaves_out_are_named():
    report, _ = observed(partial(deep, kept, frozen=False))
    found = next(f for f in report.findings if f.id == "KD215")
    assert found.status == "fail" and "the function around them (Kept) hands them none" in found.message


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "loop",
    [
        partial(deep, newer),
        partial(deep, older, frozen=False),
        partial(deep, older, wanted=True),
        partial(deep, older, trained="no body"),
        partial(deep, older, trained="the head"),
    ],
    ids=["newer", "an input with a gradient", "a gradient asked for", "a frozen body", "a head alone"],
)
def test_a_checkpoint_that_hands_on_gradients_or_need_not_is_right(loop):
    report, _ = observed(loop)
    assert "KD215" not in [f.id for f in report.failed("info")], str(report)


# -- terms without a share


def mixture(logits, said, beta):
    """The Jensen-Shannon divergence with a weight that is clamped for the sake of its logarithms."""
    beta = min(max(beta, 1e-6), 1 - 1e-6)
    p, q = said.log_softmax(1), logits.log_softmax(1)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return (beta * (p.exp() * (p - m)).sum(1) + (1 - beta) * (q.exp() * (q - m)).sum(1)).mean()


TERMS = {
    "a clamp": (lambda logits, said, step: mixture(logits, said, 1.0), True),
    "a weight in millionths": (lambda logits, said, step: 1e-6 * kd(logits, said), True),
    "one half": (lambda logits, said, step: mixture(logits, said, 0.5), False),
    "off": (lambda logits, said, step: 0.0 * kd(logits, said), False),
    "on its way up": (lambda logits, said, step: 1e-7 * 1.5**step * kd(logits, said), False),
}


def with_a_term(term):
    teacher, student = loaded("mlp"), mlp(8)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for n in range(2 * STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        optimizer.zero_grad()
        (F.cross_entropy(logits, y) + term(logits, said, n)).backward()
        optimizer.step()
    return teacher, student


def a_student_in_its_teachers_place():
    """A copy of the teacher begins where the term has no gradient, and leaves that place by and by."""
    teacher = loaded("mlp")
    student = copy.deepcopy(teacher).requires_grad_(True)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    for _ in range(2 * STEPS):
        x, y = rows()
        logits = student(x)
        optimizer.zero_grad()
        (F.cross_entropy(logits, y) + kd(logits, teacher(x).detach())).backward()
        optimizer.step()
    return teacher, student


@pytest.mark.parametrize("name", TERMS)
def test_a_term_whose_share_is_next_to_nothing_is_told_of(name):
    term, wrong = TERMS[name]
    report, _ = observed(with_a_term, term)
    found = [f for f in report.failed("error") if f.id == "KD311"]
    assert bool(found) == wrong, [f.message for f in report.failed("warn")]
    if wrong:
        assert "the distillation term has no share in the gradient" in found[0].message


def test_a_student_that_begins_as_its_teacher_has_a_term():
    report, _ = observed(a_student_in_its_teachers_place)
    assert [f.message for f in report.failed("error")] == []


# -- what looks like it


def surgery(_):
    """Each loss has a backward of its own, whose gradients are kept, zeroed, and put together by hand."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(STEPS):
        x, y = rows()
        logits, parts = student(x), []
        for loss in (F.cross_entropy(logits, y), kd(logits, teacher(x).detach())):
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            parts.append([p.grad.clone() for p in student.parameters()])
        for p, one, other in zip(student.parameters(), *parts, strict=True):
            p.grad = (one + other) / 2
        optimizer.step()
    return teacher, student


def sharpness(_):
    """The first gradients move the weights by hand, the second ones train."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(STEPS):
        state = torch.get_rng_state()
        for second in (False, True):
            torch.set_rng_state(state)
            optimizer.zero_grad()
            batch(student, teacher).backward()
            with torch.no_grad():
                if not second:
                    moves = [0.01 * p.grad / (p.grad.norm() + 1e-9) for p in student.parameters()]
                for p, move in zip(student.parameters(), moves, strict=True):
                    p.add_(move, alpha=-1.0 if second else 1.0)
        optimizer.step()
    return teacher, student


def guarded(_):
    """A batch now and then is left out after its backward."""
    teacher, student = loaded("mlp"), mlp()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for i in range(3 * STEPS):
        loss = batch(student, teacher)
        optimizer.zero_grad()
        loss.backward()
        if i % 4 == 3:
            optimizer.zero_grad()
            continue
        optimizer.step()
    return teacher, student


def adversaries(_):
    """A discriminator tells the two answers apart; the student's gradients from its loss are zeroed."""
    teacher, student = loaded("mlp"), mlp()
    judge = nn.Sequential(nn.Linear(CLASSES, 8), nn.ReLU(), nn.Linear(8, 1))
    mine, its = torch.optim.SGD(student.parameters(), 0.05), torch.optim.SGD(judge.parameters(), 0.05)

    def descend(loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(STEPS):
        x, y = rows()
        said = teacher(x).detach()
        descend(F.softplus(-judge(said)).mean() + F.softplus(judge(student(x))).mean(), its)
        logits = student(x)
        descend(F.cross_entropy(logits, y) + kd(logits, said) + F.softplus(-judge(logits)).mean(), mine)
    return teacher, student, judge


@pytest.mark.parametrize("loop", [surgery, sharpness, guarded, adversaries], ids=lambda loop: loop.__name__)
def test_gradients_that_are_put_to_use_or_belong_to_others_are_not_thrown_away(loop):
    report, seen = observed(loop, None)
    assert "KD215" not in [f.id for f in report.failed("warn")]
    assert len([s for s in seen.updates.steps if s.distils]) >= STEPS
