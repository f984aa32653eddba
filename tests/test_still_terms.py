"""Distances of features that do not move with what the student answers, beside those that do."""

import pytest
import torch
import torch.nn.functional as F
from test_explain_watched import finding, watched
from torch import nn


class Depths(nn.Module):
    """A number for each pixel (B, 1, H, W), and the features below."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 1, 1)

    def forward(self, x):
        features = self.inner(x).relu()
        return self.out(features), features


def scenes():
    return torch.randn(4, 3, 6, 6), torch.randn(4, 1, 6, 6)


def of_depths(soft, weight=0.5, start=None, hard=F.l1_loss):
    torch.manual_seed(0)
    student, teacher = Depths(8), Depths(8)
    if start == "copy":
        student.load_state_dict(teacher.state_dict())

    def loss(z, t, y):
        return hard(z[0], y) + weight * soft(z, t)

    return finding(watched(student, teacher, scenes, loss), "KD311")


def standardised(x, dims):
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-4)


def mean_of(dims):
    return lambda z, t: (standardised(z[1], dims).mean((2, 3)) - standardised(t[1], dims).mean((2, 3))).pow(2).sum()


def over_one_channel(z, t):
    p, q = (x.permute(0, 2, 3, 1).reshape(-1, 1) for x in (t[0], z[0]))
    return -(F.softmax(p, 1) * F.log_softmax(q, 1)).mean()


def over_the_pixels(z, t):
    p, q = (x.flatten(1) for x in (t[0], z[0]))
    return -(F.softmax(p, 1) * F.log_softmax(q, 1)).sum(1).mean()


def mixture(z, t):
    """The Jensen-Shannon divergence over the pixels, by hand: of its steps some hand nothing on, and others all."""
    p, q = (x.flatten(1).log_softmax(1) for x in (t[0], z[0]))
    m = ((p.exp() + q.exp()) / 2).log()
    return ((p.exp() * (p - m)).sum(1) + (q.exp() * (q - m)).sum(1)).mean()


def tiny(z, t):
    return (
        1e6 * (1e-4 * z[1].flatten(2) @ z[1].flatten(2).mT - 1e-4 * t[1].flatten(2) @ t[1].flatten(2).mT).pow(2).mean()
    )


STILL = {
    "a mean of what has none": mean_of((2, 3)),
    "a softmax over one channel": over_one_channel,
}
MOVING = {
    "a mean of what has none over the batch": mean_of((0, 2, 3)),
    "a softmax over the pixels": over_the_pixels,
    "a product that is small": tiny,
    "a mixture": mixture,
}


@pytest.mark.parametrize("way", STILL)
def test_a_term_that_does_not_depend_on_the_answer_is_named(way):
    found = of_depths(STILL[way])
    assert found.status == "fail" and "does not depend on the student's answer" in found.message


@pytest.mark.parametrize("way", STILL)
def test_it_is_named_beside_labels_that_are_compared_by_hand(way):
    found = of_depths(STILL[way], hard=lambda z, y: (z - y).abs().mean())
    assert found.status == "fail" and "does not depend on the student's answer" in found.message


@pytest.mark.parametrize("way", MOVING)
def test_a_term_that_moves_with_the_answer_is_not(way):
    assert of_depths(MOVING[way]).status == "pass"


def test_a_term_that_is_switched_off_or_begins_at_nothing_is_not():
    assert of_depths(mean_of((2, 3)), weight=0.0).status != "fail"
    assert of_depths(lambda z, t: F.mse_loss(z[1], t[1]), start="copy").status == "pass"
