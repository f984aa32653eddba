"""A distillation loss of one's own: what must be found right, and what must be caught."""

import pytest
import torch
import torch.nn.functional as F
from law_specimens import holds

from kdbench.audits import laws


def kd(s, t, temperature=1.0):
    soft = F.kl_div((s / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="batchmean")
    return soft * temperature**2


def renyi(s, t, a=0.5):
    """A divergence that no audit knows."""
    return ((a * t.log_softmax(1) + (1 - a) * s.log_softmax(1)).logsumexp(1) / (a - 1)).mean()


def standardised(s, t):
    def z(x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)

    return kd(z(s), z(t))


RIGHT = {
    "Hinton's": (kd, {}),
    "at a temperature": (kd, {"temperature": True}),
    "soft cross-entropy": (lambda s, t: -(t.softmax(1) * s.log_softmax(1)).sum(1).mean(), {}),
    "reversed": (lambda s, t: kd(t, s), {}),
    "Rényi's": (renyi, {}),
    "standardised": (standardised, {}),
    "a distance of logits": (lambda s, t: F.mse_loss(s, t), {"shift": False}),
}
WRONG = {
    "sign": (lambda s, t: -kd(s, t), {}, "its sign is wrong"),
    "two temperatures": (
        lambda s, t: F.kl_div((s / 4).log_softmax(1), t.softmax(1), reduction="batchmean"),
        {},
        "equal",
    ),
    "summed": (lambda s, t: F.kl_div(s.log_softmax(1), t.softmax(1), reduction="sum"), {}, "2 times", "not divided"),
    "twice": (lambda s, t: kd(s, t) / len(s), {}, "0.5 times", "divided by the batch twice"),
    "over the batch": (lambda s, t: F.mse_loss(s.softmax(0), t.softmax(0)), {}, "a constant added to a row"),
    "no T^2": (lambda s, t, a: kd(s, t, a) / a**2, {"temperature": True}, "T * T is missing"),
    "T for T^2": (lambda s, t, a: kd(s, t, a) / a, {"temperature": True}, "multiplied by T instead"),
    "of the first class": (lambda s, t: (s.softmax(1)[:, 0] - t.softmax(1)[:, 0]).pow(2).mean(), {}, "order of the cl"),
    "neighbours": (
        lambda s, t: kd(s, t) + 0 * s.sum() + (kd(s, t.roll(1, 0)) - kd(t, t.roll(1, 0))),
        {},
        "equal answers",
    ),
    "constant": (lambda s, t: 0 * s.sum(), {}, "no gradient"),
    "logits kept": (lambda s, t: F.mse_loss(s, t), {}, "a constant added to a row of the student's"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_loss_that_is_right(name):
    loss, options = RIGHT[name]
    holds(laws.check_soft_loss(loss, **options), "pass", "least at equal answers")


@pytest.mark.parametrize("name", WRONG)
def test_a_loss_that_is_wrong(name):
    loss, options, *words = WRONG[name]
    holds(laws.check_soft_loss(loss, **options), "fail", *words)


@pytest.mark.parametrize(
    "loss", [lambda s, t: (s - t).pow(2), lambda s, t: 1.0, lambda s: s.sum(), lambda s, t: t.sum()]
)
def test_what_is_no_loss_is_an_error(loss):
    holds(laws.check_soft_loss(loss), "error")


def test_a_module_is_a_loss_too():
    class Own(torch.nn.Module):
        def forward(self, s, t):
            return renyi(s, t, 0.3)

    before = len(laws.soft_loss.CHECKED)
    holds(laws.check_soft_loss(Own()), "pass")
    name, file, (first, last) = laws.soft_loss.CHECKED[before]
    assert name == "forward" and file == __file__ and last == first + 1
