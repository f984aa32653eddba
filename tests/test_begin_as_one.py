"""A teacher that is the student's own start: there is nothing to learn of it, unless something else is learned too."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, rows


class Rounded(torch.autograd.Function):
    """Rounds weights; a gradient goes straight through."""

    @staticmethod
    def forward(ctx, w):
        scale = w.abs().amax(1, keepdim=True) / 3
        return (w / scale).round() * scale

    @staticmethod
    def backward(ctx, grad):
        return grad


class RoundedLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, Rounded.apply(self.weight), self.bias)


def verdict(report):
    return next(f for f in report.findings if f.id == "KD104")


def network(kind):
    return nn.Sequential(kind(WIDTH, 24), nn.ReLU(), kind(24, CLASSES))


def trained(kind=nn.Linear):
    net = network(nn.Linear)
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        x, y = rows()
        step(adam, F.cross_entropy(net(x), y))
    made = network(kind)
    made.load_state_dict(net.state_dict())
    return net, made


def rounding(copied="after", labels=0.0, shrunk=0.0, cut=False, follows=False):
    """A network is trained, its weights are rounded, and it learns from a copy of itself."""
    net, student = trained(RoundedLinear)
    teacher = (copy.deepcopy(student) if copied == "after" else net).eval().requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-3)
    for i in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x).log_softmax(1)
        logits = student(x)
        loss = F.kl_div(logits.log_softmax(1), said, reduction="batchmean", log_target=True)
        if labels:
            loss = loss + labels * F.cross_entropy(logits, y)
        if shrunk:
            loss = loss + shrunk * sum(p.abs().mean() for p in student.parameters())
        step(adam, loss)
        with torch.no_grad():
            if cut:
                w = student[0].weight
                w[w.abs() <= w.abs().flatten().kthvalue(1 + (i + 1) * w.numel() // (2 * STEPS)).values] = 0
            for mine, its in zip(student.parameters(), teacher.parameters(), strict=True) if follows else ():
                its.lerp_(mine, 0.1)
    return net, student, teacher


def plain(cut=False):
    """The same without a function of one's own."""
    _, student = trained()
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    sgd = torch.optim.SGD(student.parameters(), 0.1)
    for i in range(STEPS):
        x, _ = rows()
        with torch.no_grad():
            said = teacher(x)
        step(sgd, F.kl_div(student(x).log_softmax(1), said.softmax(1), reduction="batchmean"))
        if cut:
            with torch.no_grad():
                w = student[0].weight
                w[w.abs() <= w.abs().flatten().kthvalue(1 + (i + 1) * w.numel() // (2 * STEPS)).values] = 0
    return student, teacher


@pytest.mark.parametrize("loop", [rounding, plain])
def test_a_copy_of_the_start_teaches_nothing(loop):
    report, _ = observed(loop)
    assert named_first(report) == ("KD104", "error"), str(report)
    assert "teacher and student begin as one" in verdict(report).message


@pytest.mark.parametrize(
    "beside",
    [{"copied": "before"}, {"labels": 0.5}, {"shrunk": 0.1}, {"cut": True}, {"follows": True}],
    ids=lambda beside: next(iter(beside)),
)
def test_a_copy_may_teach_beside_what_else_is_learned(beside):
    report, _ = observed(partial(rounding, **beside))
    assert verdict(report).status != "fail", str(report)


def test_a_copy_may_teach_what_is_pruned_step_by_step():
    report, _ = observed(partial(plain, cut=True))
    assert verdict(report).status != "fail", str(report)
