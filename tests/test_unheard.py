"""A divergence that is computed with its graph, and is in no loss: beside a term of features, or alone."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from test_taken_for_several import TwoHeads, distil, rows, trained
from test_which_training import named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import WIDTH


def by_torch(mine, its):
    return F.kl_div((mine / 2).log_softmax(1), (its / 2).softmax(1), reduction="batchmean") * 4


def log_p(z):
    return z - z.logsumexp(1, keepdim=True)


def by_hand(mine, its):
    lt, ls = log_p(its / 2), log_p(mine / 2)
    return (lt.exp() * (lt - ls)).sum(1).mean() * 4


def by_entropy(mine, its):
    return -(log_p(its / 2).exp() * log_p(mine / 2)).sum(1).mean() * 4


class Told(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU()), nn.Linear(width, 5)

    def forward(self, x):
        h = self.body(x)
        return self.head(h), h


def loop(divergence, use):
    """`use` is what becomes of the divergence: it is learned from, left out, or computed for a log."""
    teacher, student = TwoHeads(16), Told(16)
    learn = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(40):
        x, y = rows()
        step(learn, sum(F.cross_entropy(z, y) for z in teacher(x)))

    def term(x, y, student):
        with torch.no_grad():
            its, h = teacher(x)[0], teacher.body(x)
        mine, own = student(x)
        with torch.no_grad() if use == "logged" else nullcontext():
            soft = divergence(mine, its)
        return F.cross_entropy(mine, y) + 0.1 * (own - h).pow(2).mean() + (soft if use == "learned" else 0.0)

    return distil([teacher], student, term, steps=25)


@pytest.mark.parametrize("use", ["learned", "left out", "logged"])
@pytest.mark.parametrize("divergence", [by_torch, by_hand, by_entropy])
def test_a_divergence_beside_features_that_no_loss_holds_is_told(divergence, use):
    report, _ = observed(loop, divergence, use)
    assert named_first(report) == (("KD311", "warn") if use == "left out" else None)


def test_a_difference_of_logits_that_is_printed_is_no_divergence():
    def term(x, y, student):
        with torch.no_grad():
            its = teacher(x)
        mine, _ = student(x)
        gap.append((mine - its).abs().mean().item())
        return F.cross_entropy(mine, y) + F.mse_loss(log_p(mine), log_p(its))

    def run():
        return distil([teacher], Told(16), term, steps=25)

    gap, teacher = [], trained()
    report, _ = observed(run)
    assert len(gap) == 25 and named_first(report) is None
