"""Networks that teach themselves: an exit by a deeper one, a layer by the last, with the target's graph and without."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, observed, step
from torch import nn


class Exits(nn.Module):
    """Three layers, each with a classifier of its own, or none."""

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(12, classes) for _ in range(3)) if classes else None

    def forward(self, x):
        answers = []
        for i, layer in enumerate(self.layers):
            x = layer(x).tanh()
            answers.append(self.heads[i](x) if self.heads else (x * torch.arange(1, 13)).cumsum(1))
        return answers


def soft(z, t):
    return F.kl_div(F.log_softmax(z / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4


def last(answers, cut):
    return sum(soft(z, answers[-1].detach() if cut else answers[-1]) for z in answers[:-1])


def mean_of_all(answers, cut):
    return sum(soft(z, sum(answers) / 3) for z in answers)


def both_ways(answers, cut):
    return soft(answers[0], answers[1]) + soft(answers[1], answers[0])


def exits(way, cut, classes=5):
    """An image classifier with labels at each exit, or layers that are held together by where a sample lies."""
    network = Exits(classes)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(STEPS):
        x = torch.randn(16, 12)
        answers = network(x)
        if classes:
            y = torch.randint(0, classes, (16,))
            own = sum(F.cross_entropy(z, y) for z in answers)
        else:
            units = [F.normalize(z, dim=1) for z in answers]
            own = sum(F.cross_entropy(5 * a @ F.normalize(x, dim=1).T, torch.arange(16)) for a in units)
        step(optimizer, 0.5 * own + 0.5 * way(answers, cut))
    return network


def verdict(*args):
    report, trace = observed(exits, *args)
    assert all(s.self_taught for s in trace.losses.sights)
    return next(f for f in report.findings if f.id == "KD313")


@pytest.mark.parametrize("classes", [5, 0])
def test_a_layer_that_is_taught_by_the_last_is_understood_and_the_targets_graph_is_seen(classes):
    right, wrong = verdict(last, True, classes), verdict(last, False, classes)
    assert right.status == "pass" and "KL(teacher || student)" in right.message
    assert (wrong.status, wrong.severity) == ("fail", "warn") and "the target carries a gradient" in wrong.message


@pytest.mark.parametrize("way", [mean_of_all, both_ways])
def test_answers_that_are_meant_to_meet_half_way_are_not_warned_of(way):
    assert verdict(way, False).status != "fail"
