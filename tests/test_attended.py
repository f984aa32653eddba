"""What each place of a text may look at: a mask of padding or of texts in one row, given to one network alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import audits

WORDS, LENGTH = 24, 12


class Reader(nn.Module):
    """One layer of attention over the words before, with a mask of padding, or of place against place."""

    def __init__(self, width, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.layer = nn.Embedding(WORDS, width), Layer(width)
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids, mask=None, window=None):
        square = torch.ones(ids.shape[1], ids.shape[1]).tril().bool().expand(len(ids), 1, -1, -1)
        if window is not None:
            square = square & torch.ones_like(square).triu(1 - window)
        if mask is not None and mask.ndim == 2:
            square = square & mask[:, None, None].bool()
        elif mask is not None:
            square = square & (mask > -1)
        return self.head(self.layer(self.table(ids), None if mask is None and window is None else square))


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x, mask):
        scores = self.mix(x) @ x.transpose(1, 2)
        seen = torch.ones_like(scores).tril().bool() if mask is None else mask[:, 0]
        return x + scores.masked_fill(~seen, -1e9).softmax(-1) @ x


def padded(side):
    """Texts of different lengths, and which words of them are no padding."""
    mask = torch.ones(6, LENGTH, dtype=torch.long)
    for i in range(6):
        mask[i, : i + 1 if side == "left" else 0] = 0
        mask[i, LENGTH - i - 1 if side == "right" else LENGTH :] = 0
    return torch.randint(2, WORDS, (6, LENGTH)).masked_fill(mask == 0, 0), mask


def packed():
    """Three texts in each row, and what is added to the score of a place in another text."""
    text = torch.arange(LENGTH) // 4
    apart = (text[:, None] != text[None]).float() * torch.finfo(torch.float32).min
    return torch.randint(2, WORDS, (6, LENGTH)), apart.expand(6, 1, -1, -1)


def judged(batch, teachers, students=lambda mask: (mask,)):
    student, teacher = Reader(12, 1), Reader(16, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    torch.manual_seed(0)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as watch:
        for _ in range(2):
            ids, mask = batch()
            with torch.no_grad():
                t = teacher(ids, *teachers(mask))
            s = student(ids, *students(mask))
            on = ids[:, 1:] != 0
            kd = F.kl_div(s[:, :-1][on].log_softmax(-1), t[:, :-1][on].softmax(-1), reduction="batchmean")
            optimizer.zero_grad()
            kd.backward()
            optimizer.step()
    assert watch.trace.broken is None
    return next(f for f in watch.report.findings if f.id == "KD304")


@pytest.mark.parametrize(
    ("batch", "of"), [(lambda: padded("left"), "padding on the left"), (packed, "texts in one row")], ids=lambda x: ""
)
def test_a_mask_that_the_teacher_lacks(batch, of):
    found = judged(batch, lambda mask: ())
    assert found.status == "fail" and found.severity == "warn", of
    assert "the teacher looks at padding or at other texts" in found.message
    assert judged(batch, lambda mask: (mask,)).status == "pass", of


def test_a_mask_that_the_student_lacks():
    found = judged(packed, lambda mask: (mask,), lambda mask: ())
    assert found.status == "fail" and "the student looks at padding or at other texts" in found.message


def test_a_mask_that_changes_nothing_may_be_left_out():
    """Of words that look back alone, none sees padding on the right."""
    assert judged(lambda: padded("right"), lambda mask: ()).status == "pass"


def test_a_teacher_that_looks_a_fixed_number_of_words_back_is_made_that_way():
    assert judged(packed, lambda mask: (None, 3), lambda mask: (None, 12)).status == "pass"
