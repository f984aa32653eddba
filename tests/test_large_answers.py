"""Answers over a real vocabulary: what is decided of them, and that nothing of their size is held over a backward."""

import gc
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import audits
from kdbench.audits.observe.frames import locals_of

T = 2.0


class Words(nn.Module):
    """As little of a language model as has a head over its words."""

    def __init__(self, words, width):
        super().__init__()
        self.table, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)

    def forward(self, ids):
        return self.head(F.silu(self.table(ids)))


def trained(words, shape, loss_of, dtype=torch.float32, after=None, steps=2):
    """Train for some steps under a watch, and return its report."""
    torch.manual_seed(0)
    student, teacher = Words(words, 8).to(dtype), Words(words, 12).to(dtype)
    teacher.eval().requires_grad_(False)
    teacher.head.weight.mul_(20)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as watch:
        for _ in range(steps):
            ids = torch.randint(0, words, shape)
            with torch.no_grad():
                said = teacher(ids)
            loss = loss_of(student(ids), said, ids)
            optimizer.zero_grad()
            loss.backward()
            if after is not None:
                del loss, said
                after()
            optimizer.step()
    assert watch.trace.broken is None
    return watch.report


def loss_of(logits, said, ids, by=0, held=None):
    """Forward KL beside the labels, on copies as scripts make them; `by` positions off."""
    z, t = logits[:, : -1 - by], said[:, by : said.shape[1] - 1]
    rows = z.flatten(0, 1)
    label = F.cross_entropy(rows, ids[:, 1 : ids.shape[1] - by].flatten())
    p, q = F.log_softmax(z / T, -1), F.softmax(t / T, -1)
    soft = F.kl_div(p, q, reduction="none").sum(-1).mean() * T * T
    if held is not None:
        held.append([weakref.ref(one) for one in (rows, logits, said, p, q)])
    return 0.5 * label + 0.5 * soft


def test_a_vocabulary_of_151936_words_is_decided():
    def of(by):
        report = trained(151_936, (2, 16), lambda z, t, ids: loss_of(z, t, ids, by), torch.bfloat16, steps=1)
        return {f.id: f for f in report.findings}

    right, shifted = of(0), of(1)
    assert [right[id].status for id in ("KD305", "KD312", "KD313")] == ["pass"] * 3
    assert shifted["KD305"].status == "fail" and "i + 1" in shifted["KD305"].message


def test_nothing_of_an_answers_size_is_held_over_a_backward(monkeypatch):
    from kdbench.audits.observe import recorder

    monkeypatch.setattr(recorder, "SMALL", 100)
    held, copies = [], []

    def compute(logits, said, ids):
        loss = loss_of(logits, said, ids, held=held)
        copies.append(logits)
        return loss

    def after():
        copies.clear()
        left = [n for n, one in zip(("rows", "logits", "said", "p", "q"), held[-1], strict=True) if one() is not None]
        assert left == [], "this would stand in memory while the next step computes"

    gc.disable()  # what only a collection frees is there until it comes
    try:
        report = trained(40, (2, 12), compute, after=after)
    finally:
        gc.enable()
    assert {f.id: f.status for f in report.findings}["KD313"] == "pass"


def test_the_copy_that_a_labels_loss_is_given_is_not_held_even_before_the_backward(monkeypatch):
    from kdbench.audits.observe import recorder, windows

    monkeypatch.setattr(recorder, "SMALL", 100)
    monkeypatch.setattr(windows, "SMALL", 100)
    held = []

    def compute(logits, said, ids):
        loss = loss_of(logits, said, ids, held=held)
        assert held[-1][0]() is None
        return loss

    trained(40, (2, 12), compute)


def test_to_read_a_functions_variables_keeps_none_of_them_alive():
    class Large:
        pass

    def step():
        value, number = Large(), 3
        gone = weakref.ref(value)
        assert locals_of(sys._getframe())["number"] == number
        value = None
        assert gone() is None and value is None and number == 3

    step()


def test_variables_that_a_call_of_locals_handed_on_stay():
    def step(number):
        mine = locals()
        locals_of(sys._getframe())
        assert mine["number"] == number

    step(3)
    assert locals_of(sys._getframe())["step"] is step


@pytest.mark.parametrize("by_hand", [False, True])
def test_no_backward_runs_through_the_labels_where_the_rest_is_asked_for(by_hand):
    """Their part of the gradient is asked for once, and that of the other branches without it."""
    seen = []

    def compute(logits, said, ids):
        rows = logits.flatten(0, 1) * 1
        if by_hand:
            label = -F.log_softmax(rows, -1).gather(-1, ids.flatten()[:, None]).mean()
        else:
            label = F.cross_entropy(rows, ids.flatten())
        rows.register_hook(lambda grad: seen.append(float(grad.abs().max())))
        p, q = F.log_softmax(logits / T, -1), F.softmax(said / T, -1)
        return 0.5 * label + 0.5 * F.kl_div(p, q, reduction="none").sum(-1).mean() * T * T

    report = trained(40, (2, 12), compute, steps=1)
    assert {f.id: f.status for f in report.findings}["KD313"] == "pass"
    assert all(size > 0 for size in seen), "of a gradient that is nothing but zero nobody learns anything"
