"""Losses that hold the label's class and the others apart, and one whose mask leaves out nothing."""

import pytest
import torch
import torch.nn.functional as F
from test_explain_watched import finding, watched
from torch import nn

CLASSES = 7


def network(width):
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, CLASSES))


def samples():
    return torch.randn(24, 6), torch.randint(0, CLASSES, (24,))


def decoupled(z, t, y, tau=4.0):
    """The class against the rest, and the others by logits that are pushed down at the class."""
    hot = F.one_hot(y, CLASSES)

    def two(x):
        p = ((x / tau).softmax(1) * hot).sum(1)
        return torch.stack([p, 1 - p], 1)

    target = F.kl_div(two(z).log(), two(t), reduction="batchmean")
    q, p = (x / tau - 1000.0 * hot for x in (z, t))
    return tau**2 * (target + 6 * F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean"))


def normalised(z, t, y, keep=0, tau=2.0):
    """The class weighed by what the teacher gives it, and the others without it; `keep` is what the mask has there."""
    at = y[:, None]
    own = -(t.softmax(1).gather(1, at) * z.softmax(1).gather(1, at).log()).mean()
    mask = torch.ones_like(z).scatter_(1, at, keep).bool()
    q, p = (x[mask].reshape(len(x), -1) / tau for x in (z, t))
    return own + 1.5 * tau**2 * -(p.softmax(1) * q.log_softmax(1)).sum(1).mean()


def both(z, t, y):
    """The plain divergence beside labels that are weighed by the teacher: nothing should be left out."""
    at = y[:, None]
    own = -(t.softmax(1).gather(1, at) * z.softmax(1).gather(1, at).log()).mean()
    return own + F.kl_div((z / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean") * 4


def verdict(soft):
    torch.manual_seed(0)
    loss = lambda z, t, y: F.cross_entropy(z, y) + 0.5 * soft(z, t, y)  # noqa: E731
    return finding(watched(network(8), network(16), samples, loss), "KD313")


RIGHT = {decoupled: "(decoupled)", normalised: "(normalised)", both: "weighed by the teacher's confidence"}


@pytest.mark.parametrize("soft", RIGHT)
def test_parts_of_the_label_and_of_the_other_classes_are_told(soft):
    found = verdict(soft)
    assert found.status == "pass" and RIGHT[soft] in found.message


def test_a_mask_that_leaves_the_label_in_is_named():
    found = verdict(lambda z, t, y: normalised(z, t, y, keep=1))
    assert found.status == "fail" and "the mask leaves none out" in found.message


def test_parts_of_the_wrong_sign_are_no_such_term():
    assert verdict(lambda z, t, y: -normalised(z, t, y)).status != "pass"
