"""A teacher that looks both ways and is handed no mask of the padding behind its texts."""

import pytest
import torch
import torch.nn.functional as F
from test_forms_by_hand import verdict_of
from test_which_training import STEPS, named_first, observed, step
from torch import nn

WORDS, WIDTH, LENGTH = 20, 16, 9


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.asks, self.gives = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask):
        query, key = self.asks(x).chunk(2, -1)
        scores = query @ key.transpose(1, 2) / WIDTH**0.5
        return x + self.gives((scores + mask[:, 0]).softmax(-1) @ x)


class Tagger(nn.Module):
    """Names each word; looks back alone if it is causal, else both ways."""

    def __init__(self, causal):
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(WORDS, WIDTH), Layer(), nn.Linear(WIDTH, 4)
        self.causal = causal

    def forward(self, input_ids, attention_mask=None):
        allowed = torch.ones(len(input_ids), 1, LENGTH, LENGTH, dtype=torch.bool)
        if attention_mask is not None:
            allowed &= attention_mask[:, None, None].bool()
        allowed = allowed.tril() if self.causal else allowed
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)
        return self.head(self.layer(self.words(input_ids), mask))


def texts(padded=True):
    ids = torch.randint(2, WORDS, (12, LENGTH))
    lengths = torch.randint(4, LENGTH, (12, 1)) if padded else torch.full((12, 1), LENGTH)
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = ids * mask
    return ids, mask, (ids % 4).masked_fill(mask == 0, -100)


def distils(told, causal, padded, other_class=False):
    torch.manual_seed(1)
    teacher = (type("Other", (Tagger,), {}) if other_class else Tagger)(causal)
    student = Tagger(causal)
    for net, steps in ((teacher, 20), (student, STEPS)):
        adam = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(steps):
            ids, mask, labels = texts(padded)
            logits = net(ids, attention_mask=mask)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
            if net is student:
                with torch.no_grad():
                    said = teacher(ids, attention_mask=mask) if told else teacher(ids)
                keep = labels != -100
                s, t = (x[keep] / 2 for x in (logits, said))
                loss = loss + 4 * F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")
            step(adam, loss)
        net.eval()
    return teacher, student


@pytest.mark.parametrize(
    ("told", "causal", "padded", "other"),
    [(True, False, True, False), (False, True, True, False), (False, False, False, False), (False, False, True, True)],
    ids=["told", "causal", "no padding", "another class"],
)
def test_a_mask_that_changes_nothing_or_may_be_made_within_is_not_missed(told, causal, padded, other):
    report, _ = observed(distils, told, causal, padded, other)
    assert named_first(report) is None


def test_a_teacher_that_looks_at_the_padding_ahead_is_named():
    report, _ = observed(distils, False, False, True)
    assert named_first(report) == ("KD304", "warn")
    assert "12 of 12 texts end in padding: the teacher, which is handed no mask" in verdict_of(report, "KD304").message
