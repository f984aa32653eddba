"""Losses with a backward of their own, as the chunked ones of language models have: seen as one call, and a gradient
counts where it arrives."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, rows


class ChunkedDivergence(torch.autograd.Function):
    """KL(teacher || student) from hidden states and heads, in pieces; the teacher's side gets no gradient."""

    @staticmethod
    def forward(ctx, hidden, weight, their_hidden, their_weight, temperature, also_theirs):
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in (hidden, weight, their_hidden, their_weight)]
            h, w, th, tw = inputs
            total = 0.0
            for a, b in zip(h.chunk(3), th.chunk(3), strict=True):
                ours, theirs = (a @ w.T / temperature).log_softmax(1), (b @ tw.T / temperature).softmax(1)
                total = total + F.kl_div(ours, theirs, reduction="sum")
            loss = total * temperature**2 / len(h)
            ctx.gradients = torch.autograd.grad(loss, inputs)
        ctx.also_theirs = also_theirs
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):
        ours = [g.mul_(grad) for g in ctx.gradients]  # in place, as fused losses do: it may run but once
        theirs = ours[2:] if ctx.also_theirs else (None, None)
        return ours[0], ours[1], *theirs, None, None


class Split(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, width), nn.Tanh())
        self.head = nn.Linear(width, CLASSES, bias=False)


def chunked(slip):
    teacher, student = Split(24), Split(8)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(40):
        x, y = rows()
        step(adam, F.cross_entropy(teacher.head(teacher.body(x)), y))
    teacher.eval()  # and its head's weight still asks for a gradient
    held = [*student.parameters(), *(teacher.parameters() if slip == "trained along" else [])]
    adam = torch.optim.Adam(student.head.parameters() if slip == "half" else held, 1e-2)
    for _ in range(STEPS):
        x, y = rows()
        with torch.set_grad_enabled(slip == "trained along"):
            said = teacher.body(x)
        own = student.body(x)
        args = (own, student.head.weight, said, teacher.head.weight, 2.0, slip == "trained along")
        loss = ChunkedDivergence.apply(*args)
        step(adam, loss if slip == "no labels" else loss + F.cross_entropy(student.head(own), y))
    return teacher, student


CAUSES = {"": None, "no labels": None, "trained along": "KD102", "half": "KD101"}


@pytest.mark.parametrize("slip", CAUSES)
def test_a_chunked_divergence_is_seen_with_both_its_sides(slip):
    report, trace = observed(chunked, slip)
    assert (named_first(report) or (None,))[0] == CAUSES[slip]
    if CAUSES[slip] is None:
        assert trace.losses.sights
        assert any(t.name == "ChunkedDivergence" and t.reaches_student for s in trace.losses.sights for t in s.terms)
        assert all(not s.teacher_leaves and not s.student_frozen for s in trace.losses.sights)


def test_a_backward_of_the_users_own_runs_once_for_each_backward():
    calls = []
    plain = ChunkedDivergence.backward

    def counted(ctx, grad):
        calls.append(1)
        return plain(ctx, grad)

    ChunkedDivergence.backward = staticmethod(counted)
    try:
        observed(chunked, "")
    finally:
        ChunkedDivergence.backward = staticmethod(plain)
    assert len(calls) == STEPS
