"""Losses with a backward of their own, from hidden states and heads: the form is read where their gradient arrives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import audits

WORDS, TEXTS, LENGTH = 30, 4, 9


class Fused(torch.autograd.Function):
    """A divergence by token, of which no logits are kept; its backward writes to what it kept, so it runs once."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, their_hidden, their_weight, their_bias, divergence):
        with torch.enable_grad():
            own = [None if x is None else x.detach().requires_grad_() for x in (hidden, weight, bias)]
            z, t = F.linear(*own), F.linear(their_hidden, their_weight, their_bias)
            each = divergence(z, t)
            found = iter(torch.autograd.grad(each.sum(), [x for x in own if x is not None]))
            ctx.kept = [None if x is None else next(found) for x in own]
        return each.detach()

    @staticmethod
    def backward(ctx, grad):
        assert bool((grad == grad[0]).all()), "the tests weigh all tokens alike"
        return *(None if kept is None else kept.mul_(grad[0]) for kept in ctx.kept), None, None, None, None


class Body(nn.Module):
    """A language model that is asked for its hidden states."""

    def __init__(self, width, bias=True):
        super().__init__()
        self.words, self.mix = nn.Embedding(WORDS, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, WORDS, bias=bias)

    def forward(self, ids):
        return self.mix(self.words(ids))[0]


def softened(z, t, ts=1.0, tt=1.0):
    return (z / ts).log_softmax(1), (t / tt).log_softmax(1)


def forward(z, t, ts=2.0, tt=2.0):
    p, q = softened(z, t, ts, tt)
    return F.kl_div(p, q, reduction="none", log_target=True).sum(1) * ts * ts


def reverse(z, t):
    p, q = softened(z, t)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def jsd(z, t, beta=0.3):
    p, q = softened(z, t)
    mixture = ((1 - beta) * p.exp() + beta * q.exp()).log()
    of_t, of_s = ((x.exp() * (x - mixture)).sum(1) for x in (q, p))
    return beta * of_t + (1 - beta) * of_s


def trained(divergence, change=lambda said: said, dtype=torch.float32, bias=False, **declared):
    """Train for a few steps under a watch, and return it; `change` is done to the teacher's hidden states (B, L, H)."""
    torch.manual_seed(0)
    student, teacher = Body(12, bias).to(dtype), Body(20, bias).to(dtype)
    teacher.eval().requires_grad_(False)
    for network in (student, teacher):
        network.head.weight.data.mul_(8)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    heads = [(m.head.weight, m.head.bias) for m in (student, teacher)]
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer, **declared) as watch:
        for _ in range(4):
            ids = torch.randint(0, WORDS, (TEXTS, LENGTH))
            with torch.no_grad():
                said = change(teacher(ids))
            own = student(ids)
            loss = Fused.apply(own.flatten(0, 1), *heads[0], said.flatten(0, 1), *heads[1], divergence).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert watch.trace.broken is None
    return watch


def status(watch, audit):
    return next(f.status for f in watch.report.findings if f.id == audit)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("divergence, form", [(forward, "forward"), (reverse, "reversed"), (jsd, "jsd")])
def test_the_form_is_read_at_the_hidden_states(divergence, form, bias):
    watch = trained(divergence, bias=bias)
    (e,) = watch.trace.losses.sights[0].explanations
    assert (e.form, e.looked_at) == (form, TEXTS * LENGTH)
    assert e.temperature == ((2.0, 2.0) if form == "forward" else (1.0, 1.0))
    assert (status(watch, "KD305"), status(watch, "KD313")) == ("pass", "pass")
    assert not watch.report.failed("warn")


def test_half_precision_is_read_as_well():
    watch = trained(reverse, dtype=torch.bfloat16)
    assert (status(watch, "KD305"), status(watch, "KD313")) == ("pass", "pass")


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("divergence", [forward, reverse, jsd])
def test_a_teacher_that_is_a_position_off_is_named(divergence, by):
    watch = trained(divergence, lambda said: said.roll(-by, 1))
    assert [f.id for f in watch.report.failed("error")][:1] == ["KD305"]


def test_texts_that_are_exchanged_are_named():
    watch = trained(reverse, lambda said: said.flip(0))
    assert [f.id for f in watch.report.failed("error")][:1] == ["KD305"]


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda z, t: forward(z, t, 4.0, 1.0), "only the student's side is softened"),
        (lambda z, t: -reverse(z, t), "the wrong form"),
    ],
)
def test_a_wrong_form_is_named(wrong, words):
    found = next(f for f in trained(wrong).report.findings if f.id == "KD313")
    assert found.status == "fail" and words in found.message


class Labelled(torch.autograd.Function):
    """A divergence in pieces that is handed labels: places without one are left out, by the labels of each piece."""

    @staticmethod
    def forward(ctx, hidden, weight, their_hidden, their_weight, labels, first_for_all):
        kept = torch.zeros(len(labels), dtype=torch.bool)
        size = len(labels) // 3
        for start in range(0, len(labels), size):
            at = 0 if first_for_all else start
            kept[start : start + size] = labels[at : at + size] >= 0
        with torch.enable_grad():
            h = hidden.detach().requires_grad_()
            z, t = h @ weight.T, their_hidden @ their_weight.T
            loss = forward(z, t)[kept].sum() / kept.sum()
            (ctx.kept,) = torch.autograd.grad(loss, h)
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.kept, None, None, None, None, None


@pytest.mark.parametrize("first_for_all", [False, True])
def test_a_loss_that_is_handed_labels_teaches_where_they_are(first_for_all):
    torch.manual_seed(0)
    student, teacher = Body(12, False), Body(20, False)
    teacher.eval().requires_grad_(False)
    for network in (student, teacher):
        network.head.weight.data.mul_(8)
    optimizer = torch.optim.SGD(student.words.parameters(), lr=0.05)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as watch:
        for _ in range(4):
            ids = torch.randint(0, WORDS, (TEXTS, LENGTH))
            labels = ids.masked_fill(torch.rand(TEXTS, LENGTH) < 0.4, -100).flatten()
            with torch.no_grad():
                said = teacher(ids)
            own = student(ids)
            loss = Labelled.apply(
                own.flatten(0, 1), student.head.weight, said.flatten(0, 1), teacher.head.weight, labels, first_for_all
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = next(f for f in watch.report.findings if f.id == "KD352")
    assert (found.status, found.severity) == ("fail" if first_for_all else "pass", "error")
    assert "labelled places get no gradient" in found.message or not first_for_all


def test_a_loss_that_is_a_form_of_its_own_stays_undecided():
    watch = trained(lambda z, t: ((z.softmax(1) - t.softmax(1)) ** 4).sum(1))
    assert status(watch, "KD313") == "not_triggered" and not watch.report.failed("error")


class Direct(torch.autograd.Function):
    """Reverse KL of logits, with its gradient written out."""

    @staticmethod
    def forward(ctx, z, t):
        with torch.enable_grad():
            own = z.detach().requires_grad_()
            loss = reverse(own.flatten(0, 1), t.flatten(0, 1)).mean()
            ctx.kept = torch.autograd.grad(loss, own)
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):
        return ctx.kept[0] * grad, None


def test_a_loss_of_logits_is_explained_and_the_weights_end_alike():
    ends = []

    class Words(Body):
        def forward(self, ids):
            return self.head(super().forward(ids))

    for watched in (True, False):
        torch.manual_seed(0)
        student, teacher = Words(12), Words(20).eval().requires_grad_(False)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
        declared = {"student": student, "teacher": teacher, "optimizer": optimizer}
        with audits.watch(**declared) if watched else torch.enable_grad():
            for _ in range(4):
                ids = torch.randint(0, WORDS, (TEXTS, LENGTH))
                with torch.no_grad():
                    said = teacher(ids)
                optimizer.zero_grad()
                Direct.apply(student(ids), said).backward()
                optimizer.step()
        ends.append([p.detach().clone() for p in student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
