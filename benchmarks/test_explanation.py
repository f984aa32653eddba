"""What it costs to explain the gradient: fifty watched steps against fifty that are not, by what is distilled."""

import pytest
import torch
import torch.nn.functional as F
from timing import Sides
from torch import nn

from kdbench import audits

STEPS, T = 50, 3.0
AT_MOST = 1 / 3
"Of a watched training's pace to one that is not: what an audit may cost."


class Words(nn.Module):
    """A small language model: hidden states, and logits over its words."""

    def __init__(self, words, width):
        super().__init__()
        self.table, self.mix = nn.Embedding(words, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, x):
        hidden = self.mix(self.table(x))[0]
        return hidden, self.head(hidden)


class Pictures(nn.Module):
    """A small classifier, with the same interface."""

    def __init__(self, classes, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        hidden = self.body(x).mean((2, 3))
        return hidden, self.head(hidden)


def soft(s, t):
    return F.kl_div(F.log_softmax(s[1] / T, -1), F.softmax(t[1] / T, -1), reduction="none").sum(-1).mean() * T * T


def by_hand(s, t):
    p = (t[1] / T).softmax(-1)
    return -(p * (s[1] / T - (s[1] / T).logsumexp(-1, keepdim=True))).sum(-1).mean() * T * T


def states(s, t):
    return F.mse_loss(s[0], t[0])


STYLES = {
    "image": (Pictures, 100, soft),
    "token": (Words, 4096, soft),
    "token-by-hand": (Words, 4096, by_hand),
    "hidden-state": (Words, 4096, states),
}


def steps_of(style, sizes, watched):
    """Return a call of fifty steps."""
    kind, classes, distil = STYLES[style]
    classes = 64 if sizes.toy else classes
    torch.manual_seed(0)
    student, teacher = kind(classes, 4 * sizes.width), kind(classes, 4 * sizes.width)
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    length = 4 if sizes.toy else 32
    x = torch.randint(0, classes, (8, length)) if kind is Words else torch.randn(sizes.batch, 3, 32, 32)
    y = torch.randint(0, classes, (8, length) if kind is Words else (sizes.batch,))

    def run():
        for _ in range(2 if sizes.toy else STEPS):
            with torch.no_grad():
                said = teacher(x)
            answer = student(x)
            label = F.cross_entropy(answer[1].flatten(0, -2), y.flatten())
            optimizer.zero_grad()
            (0.5 * label + 0.5 * distil(answer, said)).backward()
            optimizer.step()

    def run_watched():
        with audits.watch(student=student, teacher=teacher, optimizer=optimizer):
            run()

    return run_watched if watched else run


def watched_and_not(style, sizes):
    return Sides(steps_of(style, sizes, True), steps_of(style, sizes, False))


@pytest.mark.parametrize("style", STYLES)
def test_explanation(cpu_only, sizes, measure, style):
    """The pace of fifty watched steps against fifty that are not: what is distilled decides what is explained."""
    measure.ratio(watched_and_not, style, sizes, goal=AT_MOST)
