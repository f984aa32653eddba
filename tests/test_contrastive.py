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


class Queue:
    """Answers of the teacher to samples before, for others."""

    def __init__(self, size, width):
        self.rows, self.at = F.normalize(torch.randn(size, width), dim=1), 0

    def push(self, rows):
        places = (self.at + torch.arange(len(rows))) % len(self.rows)
        self.rows[places] = rows
        self.at = int((self.at + len(rows)) % len(self.rows))


def queued(mine, others):
    """The positive's score and those of a queue, put together by hand; each is multiplied by a number of its own."""
    teacher, student = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)), nn.Linear(4, 8)
    teacher.requires_grad_(False)
    queue = Queue(64, 8)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x = torch.randn(16, 4)
        key, query = F.normalize(teacher(x), dim=1), F.normalize(student(x), dim=1)
        positive, negatives = mine * (query * key).sum(1), others * query @ queue.rows.T
        step(adam, (torch.logaddexp(positive, negatives.logsumexp(1)) - positive).mean())
        queue.push(key)
    return teacher, student


def decoupled(weight):
    """The pull on positives and the push from others are terms of their own, and may be weighed as one likes."""
    teacher, student = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)), nn.Linear(4, 8)
    teacher.requires_grad_(False)
    queue = Queue(64, 8)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x = torch.randn(16, 4)
        key, query = F.normalize(teacher(x), dim=1), F.normalize(student(x), dim=1)
        step(adam, (query @ queue.rows.T).logsumexp(1).mean() - weight * (query * key).sum(1).mean())
        queue.push(key)
    return teacher, student


def in_the_batch(scale):
    """Each sample's positive is on the diagonal of the batch's scores, by log_softmax and no labels."""
    teacher, student = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)), nn.Linear(4, 8)
    teacher.requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x = torch.randn(16, 4)
        scores = scale * F.normalize(student(x), dim=1) @ F.normalize(teacher(x), dim=1).T
        step(adam, -scores.log_softmax(1).diagonal().mean())
    return teacher, student


@pytest.mark.parametrize(("mine", "others"), [(10.0, 10.0), (1.0, 10.0), (20.0, 5.0)])
def test_scores_of_two_temperatures_are_told(mine, others):
    report, _ = observed(queued, mine, others)
    told = next(f for f in report.findings if f.id == "KD313")
    if mine == others:
        assert told.reason == "out-of-scope", told.message
    else:
        assert told.status == "fail" and f"is {others / mine:.3g} times" in told.message


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_pull_and_push_may_have_weights_of_their_own(weight):
    report, _ = observed(decoupled, weight)
    assert next(f for f in report.findings if f.id == "KD313").status != "fail"


def test_a_contrast_within_the_batch_is_understood():
    report, _ = observed(in_the_batch, 10.0)
    assert next(f for f in report.findings if f.id == "KD313").reason == "out-of-scope"


def test_a_contrast_by_cross_entropy_is_understood():
    report, _ = observed(found_again, False)
    assert next(f for f in report.findings if f.id == "KD313").reason == "out-of-scope"
