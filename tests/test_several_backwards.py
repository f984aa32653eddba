"""One forward and several backwards: a graph that is kept for another loss, gradients that are taken term by term."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from test_taken_for_several import mlp, rows, soft, trained
from test_which_training import named_first, observed

from kdbench.audits.observe.arguments import keeps_graph
from kdbench.audits.observe.recorder import Recorder


def terms(student, teacher, moved=0):
    """Yield the label loss and the distillation term of a batch, the second computed when it is asked for."""
    x, y = rows()
    with torch.no_grad():
        its = teacher(x)
    said = student(x)
    yield F.cross_entropy(said, y)
    yield soft(said, its.roll(moved, 0))


def one_by_one(student, teacher, optimizer, zeroed=False, **slip):
    optimizer.zero_grad()
    for i, term in enumerate(terms(student, teacher, **slip)):
        if zeroed:
            optimizer.zero_grad()
        term.backward(retain_graph=i == 0)
    optimizer.step()


def the_teachers_first(student, teacher, optimizer, **slip):
    optimizer.zero_grad()
    labels, told = terms(student, teacher, **slip)
    told.backward(retain_graph=True)
    labels.backward()
    optimizer.step()


def put_together(student, teacher, optimizer, **slip):
    """Add the gradients of both terms, as those who turn one of them where they disagree do."""
    params = list(student.parameters())
    labels = terms(student, teacher, **slip)
    one = torch.autograd.grad(next(labels), params, retain_graph=True)
    other = torch.autograd.grad(next(labels), params)
    for p, g, h in zip(params, one, other, strict=True):
        p.grad = g + h
    optimizer.step()


def loop(way, steps=12, **slip):
    teacher, student = trained().eval().requires_grad_(False), mlp(8)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        way(student, teacher, optimizer, **slip)
    return teacher, student, optimizer


@pytest.mark.parametrize("way", [one_by_one, the_teachers_first, put_together])
def test_terms_that_are_driven_one_by_one_are_a_distillation(way):
    report, trace = observed(loop, way)
    assert named_first(report) is None
    assert (trace.roles["student"], trace.roles["teacher"]) == (["Sequential (student)"], ["Sequential (teacher)"])
    assert {f.id: f.status for f in report.findings}["KD305"] == "pass"


@pytest.mark.parametrize("way", [one_by_one, the_teachers_first, put_together])
def test_rows_that_are_moved_are_told_in_a_term_of_its_own(way):
    report, _ = observed(lambda: loop(way, moved=1))
    assert named_first(report) == ("KD305", "error")


def test_gradients_of_the_first_term_that_are_zeroed_are_told():
    report, _ = observed(lambda: loop(one_by_one, zeroed=True))
    assert named_first(report) == ("KD215", "error")


def test_what_is_kept_for_a_graph_is_let_go_at_the_step(monkeypatch):
    held = []
    stepped = Recorder.stepped

    def noting(self):
        stepped(self)
        held.append(len(self.raw.calls))

    monkeypatch.setattr(Recorder, "stepped", noting)

    def always(student, teacher, optimizer):
        optimizer.zero_grad()
        sum(terms(student, teacher)).backward(retain_graph=True)
        optimizer.step()

    report, _ = observed(loop, always)
    assert named_first(report) is None
    assert held and max(held) == 0


@pytest.mark.parametrize(
    ("args", "kwargs", "kept"),
    [
        ((), {}, False),
        ((None, True, False), {}, True),
        ((None, None, True), {}, True),
        ((None,), {"create_graph": True}, True),
        ((None,), {"create_graph": True, "retain_graph": False}, False),
        ((), {"retain_graph": True}, True),
    ],
)
def test_whether_a_graph_is_kept_is_read_as_torch_reads_it(args, kwargs, kept):
    x = torch.ones(1, requires_grad=True)
    loss = (x * x).sum()
    assert keeps_graph(args, kwargs) is kept
    torch.autograd.backward(loss, *args, **kwargs)
    again = nullcontext() if kept else pytest.raises(RuntimeError)
    with again:
        torch.autograd.backward(loss)
