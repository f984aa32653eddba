"""A student that finds its teacher's view of each place among those of the same sample: the targets are places."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

PLACES, KINDS = 6, 5


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.drop, self.out = nn.Linear(4, 16), nn.Dropout(0.2), nn.Linear(16, KINDS)

    def forward(self, x):
        hidden = self.drop(self.up(x).tanh())
        return hidden, self.out(hidden)


def batch(n=8):
    x = torch.randn(n, PLACES, 4)
    return x, (x.sum(-1).clamp(-2, 1.9) + 2).long()


def found_again(training):
    teacher = Reader()
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(30):
        x, y = batch()
        step(adam, F.cross_entropy(teacher(x)[1].flatten(0, 1), y.flatten()))
    student = copy.deepcopy(teacher)
    teacher.train(training).requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y = batch()
        own, scores = student(x + 0.1 * torch.randn_like(x))
        with torch.no_grad():
            said, _ = teacher(x)
        score = F.normalize(own, dim=-1) @ F.normalize(said, dim=-1).transpose(1, 2) / 0.1
        places = torch.arange(PLACES).expand(len(x), PLACES)
        found = F.cross_entropy(score.flatten(0, 1), places.flatten())
        step(adam, F.cross_entropy(scores.flatten(0, 1), y.flatten()) + found)
    return teacher, student


@pytest.mark.parametrize("training", [False, True])
def test_places_of_several_squares_of_scores_are_no_labels(training):
    report, trace = observed(found_again, training)
    assert trace.roles["student"] == ["Reader (student)"] and trace.roles["teacher"] == ["Reader (teacher)"]
    assert named_first(report) == (("KD301", "error") if training else None)
