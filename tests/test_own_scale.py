"""The cap and the factor that a language model's configuration sets for its logits, and a loss by the head alone."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import audits

WORDS = 24


class Body(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.config, self.table, self.mix = config, nn.Embedding(WORDS, width), nn.Linear(width, width)

    def forward(self, ids):
        return self.mix(self.table(ids)).tanh()


class Model(nn.Module):
    """As Transformers' models are made: a body and a head, and what the configuration says of the logits."""

    def __init__(self, width, **config):
        super().__init__()
        torch.manual_seed(width)
        self.config = SimpleNamespace(vocab_size=WORDS, **config)
        self.body, self.head = Body(self.config, width), nn.Linear(width, WORDS)

    def scaled(self, z):
        cap, divisor = (getattr(self.config, name, None) for name in ("final_logit_softcapping", "logits_scaling"))
        z = z / (divisor or 1)
        return z if cap is None else torch.tanh(z / cap) * cap

    def forward(self, ids):
        return self.scaled(self.head(self.body(ids)))


def judged(logits_of, times=4.0, **config):
    student, teacher = Model(12, **config), Model(16, **config)
    with torch.no_grad():
        student.head.weight.mul_(times)
        teacher.head.weight.mul_(4)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    torch.manual_seed(0)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as watch:
        for _ in range(2):
            ids = torch.randint(0, WORDS, (6, 10))
            with torch.no_grad():
                t = teacher(ids)
            s = logits_of(student, ids)
            kd = F.kl_div(s.log_softmax(-1).flatten(0, 1), t.softmax(-1).flatten(0, 1), reduction="batchmean")
            optimizer.zero_grad()
            kd.backward()
            optimizer.step()
    assert watch.trace.broken is None
    return next(f for f in watch.report.findings if f.id == "KD313")


def by_head(student, ids):
    return student.head(student.body(ids))


def by_hand(student, ids):
    return student.scaled(by_head(student, ids))


@pytest.mark.parametrize(
    ("name", "value", "severity"),
    [
        ("final_logit_softcapping", 3.0, "error"),
        ("final_logit_softcapping", 12.0, "warn"),
        ("logits_scaling", 4.0, "error"),
    ],
)
def test_a_scale_that_is_set_and_skipped(name, value, severity):
    found = judged(by_head, **{name: value})
    assert found.status == "fail" and found.severity == severity and name in found.message
    for right in (by_hand, lambda student, ids: student(ids)):
        assert judged(right, **{name: value}).status != "fail"


def test_a_cap_far_above_the_logits_is_not_told_from_none():
    assert judged(by_head, times=0.01, final_logit_softcapping=3000.0).status == "pass"
    assert judged(by_hand, times=0.01, final_logit_softcapping=3000.0).status == "pass"


def test_what_a_configuration_sets_to_nothing_is_no_scale():
    assert judged(by_head, final_logit_softcapping=None, logits_scaling=1.0).status == "pass"
