"""Probabilities of which probabilities are made again, over the words of a text too."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import named_first, observed, step
from torch import nn

WORDS, LENGTH = 11, 9


def texts(n=16):
    first = torch.randint(0, WORDS, (n, 1))
    return (first + torch.arange(LENGTH) * (1 + first % 2)) % WORDS  # the next word is told by the first ones


class Reader(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.words, self.gru = nn.Embedding(WORDS, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids):
        return self.head(self.gru(self.words(ids))[0])


def next_words(logits, ids):
    return F.cross_entropy(logits[:, :-1].reshape(-1, WORDS), ids[:, 1:].reshape(-1))


def loop(again, labels, flat):
    teacher, student = Reader(16), Reader(8)
    for net, steps in ((teacher, 40), (student, 10)):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(steps):
            ids = texts()
            if net is teacher:
                step(optimizer, next_words(net(ids), ids))
                continue
            with torch.no_grad():
                its = teacher(ids)[:, :-1]
            its = its.softmax(-1) if again else its
            mine = net(ids)
            target, log_q = (its / 2).softmax(-1), (mine[:, :-1] / 2).log_softmax(-1)
            if flat:
                target, log_q = target.flatten(0, 1), log_q.flatten(0, 1)
            soft = F.kl_div(log_q, target, reduction="batchmean") * 4 / (1 if flat else LENGTH - 1)
            step(optimizer, soft + (next_words(mine, ids) if labels else 0.0))
        net.eval().requires_grad_(False)
    return teacher, student


@pytest.mark.parametrize("flat", [True, False], ids=["rows", "as they are"])
@pytest.mark.parametrize("labels", [True, False], ids=["with labels", "without"])
@pytest.mark.parametrize("again", [True, False])
def test_probabilities_of_words_that_are_softened_again_are_told(again, labels, flat):
    report, _ = observed(lambda: loop(again, labels, flat))
    assert named_first(report) == (("KD313", "error") if again else None)
    said = {f.id: f.message for f in report.findings}["KD313"]
    assert ("the teacher's answers are probabilities already, and a softmax is taken" in said) == again
