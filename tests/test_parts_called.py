"""Networks of which only parts are called, teachers that are told more, and words numbered in two ways."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_which_training import named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH


class LowRank(nn.Linear):
    """A frozen layer and what is learned beside it."""

    def __init__(self, dense, rank=2):
        super().__init__(dense.in_features, dense.out_features, bias=False)
        self.weight = nn.Parameter(dense.weight.detach().clone(), requires_grad=False)
        self.down = nn.Parameter(torch.randn(rank, dense.in_features))
        self.up = nn.Parameter(torch.zeros(dense.out_features, rank))

    def forward(self, x):
        return F.linear(x, self.weight) + F.linear(F.linear(x, self.down), self.up)


class Stages(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.body = nn.Linear(WIDTH, width), nn.Sequential(nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, CLASSES, bias=False)

    def hidden(self, x):
        return self.body(self.first(x))

    def forward(self, x):
        return self.head(self.hidden(x))


def soft(mine, its):
    return F.kl_div(mine.log_softmax(-1), its.softmax(-1), reduction="batchmean")


@pytest.mark.parametrize("past", [False, True])
def test_a_weight_that_is_used_past_its_module_leaves_the_others_without_a_gradient(past):
    def loop():
        teacher, student = Stages(16), Stages(8)
        optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
        for _ in range(5):
            x = torch.randn(32, WIDTH)
            step(optimizer, F.cross_entropy(teacher(x), x[:, :CLASSES].argmax(1)))
        teacher.requires_grad_(False)
        student.head = LowRank(student.head)
        student.first.requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(8):
            x = torch.randn(32, WIDTH)
            with torch.no_grad():
                its = F.linear(teacher.hidden(x), teacher.head.weight)
            hidden = student.hidden(x)
            step(optimizer, soft(F.linear(hidden, student.head.weight) if past else student.head(hidden), its))

    report, trace = observed(loop)
    assert trace.losses.sights
    assert named_first(report) == (("KD215", "error") if past else None)


class Hinted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH + CLASSES, 16), nn.Tanh(), nn.Linear(16, CLASSES))

    def forward(self, x, hint=None):
        return self.net(torch.cat([x, x.new_zeros(len(x), CLASSES) if hint is None else hint], 1))


@pytest.mark.parametrize("hinted", [False, True])
def test_a_network_that_is_told_more_is_a_teacher_of_itself(hinted):
    def loop():
        network = Hinted()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for i in range(12):
            x = torch.randn(32, WIDTH)
            y = x[:, :CLASSES].argmax(1)
            hint = F.one_hot(y, CLASSES).float()
            loss = 0.5 * F.cross_entropy(network(x, hint), y)
            if i >= 4:
                with torch.no_grad():
                    its = network(x, hint) if hinted else network(x)
                loss = loss + soft(network(x), its)
            step(optimizer, loss)

    report, _ = observed(loop)
    assert named_first(report) == (None if hinted else ("KD311", "error"))


@pytest.mark.parametrize("numbered", ["one to one", "another text"])
def test_two_tokenizers_may_number_the_same_words_in_their_own_way(numbered):
    class Bag(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.words, self.out = nn.Embedding(10, width), nn.Linear(width, 3)

        def forward(self, ids):
            return self.out(self.words(ids).mean(1))

    def loop():
        teacher, student, other = Bag(12), Bag(6), torch.randperm(10)
        optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
        for one in (teacher, student):
            optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
            for _ in range(5):
                ids = torch.randint(0, 10, (16, 9))
                loss = F.cross_entropy(one(other[ids] if one is teacher else ids), ids[:, 0] % 3)
                if one is student:
                    with torch.no_grad():
                        its = teacher(other[ids] if numbered == "one to one" else torch.randint(0, 10, (16, 9)))
                    loss = loss + soft(one(ids), its)
                step(optimizer, loss)
            one.requires_grad_(one is student)

    report, _ = observed(loop)
    verdict = next(f for f in report.findings if f.id == "KD304")
    assert verdict.status == ("not_triggered" if numbered == "one to one" else "fail")


def test_an_average_beside_a_frozen_teacher_is_one_and_two_numbers_a_row_make_no_order():
    def loop():
        frozen = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 2))
        student, average = (nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 2)) for _ in range(2))
        optimizer = torch.optim.Adam(frozen.parameters(), lr=1e-2)
        for _ in range(5):
            x = torch.randn(64, WIDTH)
            step(optimizer, (frozen(x) - x[:, :2]).square().mean())
        for other in (student, average):
            other.load_state_dict(frozen.state_dict())
        frozen.requires_grad_(False)
        average.requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        for _ in range(12):
            x = torch.randn(64, WIDTH)
            with torch.no_grad():
                goal = average(x + 0.1 * torch.nn.functional.pad(frozen(x), (0, WIDTH - 2)))
            step(optimizer, (student(x) - goal).square().mean())
            with torch.no_grad():
                for mine, its in zip(average.parameters(), student.parameters(), strict=True):
                    mine.lerp_(its, 0.1)

    report, _ = observed(loop)
    assert named_first(report) is None


@pytest.mark.parametrize("right", [True, False])
def test_an_average_that_is_called_in_two_parts_is_one(right):
    """Body and head are modules of their own, as in self-distillation; the wrong one averages the other way round."""

    def loop():
        torch.manual_seed(0)
        body, head = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh()), nn.Linear(16, 8)
        mean_body, mean_head = copy.deepcopy(body).requires_grad_(False), copy.deepcopy(head).requires_grad_(False)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
        for _ in range(12):
            x = torch.randn(64, WIDTH)
            with torch.no_grad():
                goal = (mean_head(mean_body(x)) / 0.05).softmax(1)
            step(optimizer, -(goal * (head(body(x + 0.1)) / 0.1).log_softmax(1)).sum(1).mean())
            with torch.no_grad():
                for student, mean in ((body, mean_body), (head, mean_head)):
                    for own, its in zip(student.parameters(), mean.parameters(), strict=True):
                        its.mul_(0.9 if right else 0.1).add_(own if right else torch.randn_like(own), alpha=0.1)

    report, _ = observed(loop)
    accused = {finding.id for finding in report.findings if finding.status == "fail" and finding.severity == "error"}
    assert ("KD302" in accused) != right, accused
