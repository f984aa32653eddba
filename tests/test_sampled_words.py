"""On-policy distillation by a policy gradient: words that the student sampled, weighed by what the teacher finds."""

import pytest
import torch
import torch.nn.functional as F
from test_forms_by_hand import verdict_of
from test_which_training import named_first, observed, step
from torch import nn

WORDS, LENGTH = 12, 6


class Words(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(WORDS, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


@torch.no_grad()
def sampled(net, n=16):
    ids = torch.zeros(n, 1, dtype=torch.long)
    for _ in range(LENGTH):
        ids = torch.cat([ids, torch.multinomial(net(ids)[:, -1].softmax(-1), 1)], 1)
    return ids


def of_words(net, ids):
    return net(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def on_policy(way):
    """Distil by samples; each way is a weight of the words, or the lack of one."""
    teacher, student = Words(20), Words(10)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    following = torch.randint(0, WORDS, (WORDS,))
    for _ in range(30):
        ids = torch.randint(0, WORDS, (16, LENGTH))
        step(adam, F.cross_entropy(teacher(ids).flatten(0, 1), following[ids].flatten()))
    teacher.requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(6):
        ids = sampled(student)
        mine, its = of_words(student, ids), of_words(teacher, ids)
        weight = its - mine.detach()
        weight = weight - weight.mean() if way == "less the mean" else weight
        kept = (ids[:, 1:] != 3).float()
        loss = -(weight * mine * kept).sum() / kept.sum()
        if way == "wrong way":
            loss = -loss
        elif way == "unused":
            loss = F.cross_entropy(student(ids)[:, :-1].flatten(0, 1), torch.randint(WORDS, (96,))) + weight.mean()
        step(adam, loss)
    return teacher, student


@pytest.mark.parametrize("way", ["plain", "less the mean"])
def test_words_are_made_likelier_by_how_much_likelier_the_teacher_finds_them(way):
    report, trace = observed(on_policy, way)
    assert named_first(report) is None
    assert (trace.roles["student"], trace.roles["teacher"]) == (["Words (student)"], ["Words (teacher)"])
    form = verdict_of(report, "KD313")
    assert (
        form.status == "pass"
        and "is weighed by how much likelier the teacher finds it than the student" in form.message
    )


def test_a_weight_of_the_wrong_sign_is_named():
    report, _ = observed(on_policy, "wrong way")
    assert named_first(report) == ("KD313", "error") and "the sign is wrong" in verdict_of(report, "KD313").message


def test_a_weight_that_weighs_nothing_is_a_term_that_teaches_nothing():
    report, _ = observed(on_policy, "unused")
    assert named_first(report) == ("KD311", "error")
