"""The two sides of a divergence are probabilities over one dimension, or the term is none."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import loaded, mlp, rows

FRAMES, BATCH, SYMBOLS = 10, 6, 5


class Listener(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.rnn, self.out = nn.GRU(4, width), nn.Linear(width, SYMBOLS)

    def forward(self, frames):
        return self.out(self.rnn(frames)[0])


def speech():
    texts = torch.randint(1, SYMBOLS, (BATCH, 2))
    return torch.randn(FRAMES, BATCH, 4) + texts.repeat_interleave(FRAMES // 2, 1).T[..., None], texts


def heard(net, frames, texts):
    lengths = torch.full((BATCH,), FRAMES), torch.full((BATCH,), 2)
    said = net(frames)
    return said, F.ctc_loss(said.log_softmax(-1), texts, *lengths)


def frames_taught(dim, student_dim=-1):
    """A listener learns from labels by CTC, and frame by frame from a teacher, whose softmax runs over `dim`."""
    teacher, student = Listener(16), Listener(6)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(20):
        step(adam, heard(teacher, *speech())[1])
    teacher.eval().requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        frames, texts = speech()
        with torch.no_grad():
            target = (teacher(frames) / 2).softmax(dim)
        said, loss = heard(student, frames, texts)
        term = F.kl_div((said / 2).log_softmax(student_dim), target, reduction="none").sum(-1).mean() * 4
        step(adam, 0.5 * loss + 0.5 * term)
    return teacher, student


def rows_taught(dim):
    """The same of single samples."""
    teacher, student = loaded("mlp"), mlp(8)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            target = (teacher(x) / 2).softmax(dim)
        logits = student(x)
        term = F.kl_div((logits / 2).log_softmax(1), target, reduction="batchmean") * 4
        step(adam, 0.5 * F.cross_entropy(logits, y) + 0.5 * term)
    return teacher, student


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        (partial(frames_taught, 1), "its input sums to one over dimension 2, its target over dimension 1"),
        (partial(frames_taught, 0), "its input sums to one over dimension 2, its target over dimension 0"),
        (partial(rows_taught, 0), "its input sums to one over dimension 1, its target over dimension 0"),
    ],
)
def test_a_teacher_whose_softmax_runs_over_something_else_is_named(loop, said):
    report, _ = observed(loop)
    assert named_first(report) == ("KD313", "error"), str(report)
    assert said in next(f.message for f in report.findings if f.id == "KD313")


@pytest.mark.parametrize("loop", [partial(frames_taught, -1), partial(rows_taught, 1)])
def test_both_over_the_classes_is_right(loop):
    report, _ = observed(loop)
    assert named_first(report) is None, str(report)
    assert next(f for f in report.findings if f.id == "KD313").status == "pass"
