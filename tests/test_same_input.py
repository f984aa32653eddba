"""What the networks themselves are shown: inside wrappers, all inputs of a call, in their own words."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, loaded, mlp, rows


def kd(logits, said):
    return F.kl_div(logits.log_softmax(1), said.softmax(1), reduction="batchmean")


class Matcher(nn.Module):
    """Says how well two descriptions of a thing go together."""

    def __init__(self, width):
        super().__init__()
        self.one, self.both = nn.Linear(WIDTH, width), nn.Linear(2 * width, 3)

    def forward(self, left, right):
        return self.both(torch.cat([self.one(left), self.one(right)], 1).relu())


def pairs(n=32):
    left, y = rows(n)
    right = left.flip(0) * 0.5 + torch.randn(n, WIDTH)
    return left, right, y % 3


def teach(net):
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        left, right, y = pairs()
        step(optimizer, F.cross_entropy(net(left, right), y))
    return net.eval()


class Distiller(nn.Module):
    """Holds both, and perturbs what the student is shown."""

    def __init__(self, slip):
        super().__init__()
        self.big, self.small, self.slip = teach(Matcher(24)), Matcher(8), slip
        self.big.requires_grad_(False)

    def perturbed(self, x):
        return x * (0.8 + 0.4 * torch.rand(len(x), 1)) + 0.1 * torch.randn_like(x)

    def forward(self, left, right):
        with torch.no_grad():
            said = self.big(left, right)
        mine = self.perturbed(left), self.perturbed(left if self.slip else right)
        return self.small(*mine), said


def in_a_wrapper(slip):
    both = Distiller(slip)
    optimizer = torch.optim.Adam(both.small.parameters(), 1e-2)
    for _ in range(STEPS):
        left, right, y = pairs()
        logits, said = both(left, right)
        step(optimizer, F.cross_entropy(logits, y) + kd(logits, said))
    return both


def in_the_loop(slip):
    """The same by keyword, with nothing done to the inputs."""
    big, small = teach(Matcher(24)), Matcher(8)
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        left, right, y = pairs()
        with torch.no_grad():
            said = big(left=left, right=right)
        logits = small(left=left, right=left if slip else right)
        step(optimizer, F.cross_entropy(logits, y) + kd(logits, said))
    return big, small


@pytest.mark.parametrize("loop", [in_a_wrapper, in_the_loop], ids=lambda loop: loop.__name__)
def test_an_input_that_the_student_never_sees_is_told_of(loop):
    report, _ = observed(loop, False)
    assert [f.message for f in report.failed("warn")] == []
    report, _ = observed(loop, True)
    first = next(f for f in report.findings if f.status == "fail" and f.severity != "info")
    assert (first.id, first.severity) == ("KD304", "error")
    assert "its input 2 is made of the teacher's input 1, and it never sees the teacher's input 2" in first.message


def views(change):
    """The student is shown what `change` makes of the batch, the teacher the batch."""
    teacher, student = loaded("mlp"), mlp(8)
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        logits = student(change(x))
        step(optimizer, F.cross_entropy(logits, y) + kd(logits, said))
    return teacher, student


VIEWS = {
    "noisy": lambda x: x + 0.3 * torch.randn_like(x),
    "masked": lambda x: x.masked_fill(torch.rand(x.shape) < 0.2, 0.0),
    "scaled": lambda x: 2 * x + 1,
    "another batch": lambda x: rows()[0],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_one_batch_is_no_other_batch(name):
    report, _ = observed(views, VIEWS[name])
    found = next(f for f in report.findings if f.id == "KD304")
    if name in ("noisy", "masked"):
        assert (found.status, found.reason) == (
            "not_triggered",
            "out-of-scope",
        ) and "views of one batch" in found.message
    else:
        assert (found.status, found.severity) == ("fail", "warn"), found.message


class Reader(nn.Module):
    def __init__(self, words, width):
        super().__init__()
        self.words, self.head = nn.Embedding(words, width), nn.Linear(width, CLASSES)

    def forward(self, ids):
        return self.head(self.words(ids).mean(1))


def texts(slip, of_teacher=60, of_student=40):
    """Each network reads its own ids of a text, or the teacher is handed the student's."""
    teacher, student = Reader(of_teacher, 24), Reader(of_student, 8)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
    table = torch.randperm(of_teacher)[:of_student]

    def draw():
        ids = torch.randint(of_student, (32, 9))
        return ids, table[ids], ids[:, 0] % CLASSES

    for _ in range(30):
        _, theirs, y = draw()
        step(optimizer, F.cross_entropy(teacher(theirs), y))
    teacher.requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        ids, theirs, y = draw()
        logits = student(ids)
        step(optimizer, F.cross_entropy(logits, y) + kd(logits, teacher(ids if slip else theirs)))
    return teacher, student


def test_a_teacher_that_is_handed_the_students_words_is_told_of():
    report, _ = observed(texts, False)
    found = next(f for f in report.findings if f.id == "KD304")
    assert found.status == "not_triggered" and "words of vocabularies of 60 and 40" in found.message
    report, _ = observed(texts, True)
    found = next(f for f in report.findings if f.id == "KD304")
    assert found.status == "fail" and "of the 60 words that it knows and the 40 of the student" in found.message


def test_tables_that_are_padded_are_of_one_vocabulary():
    report, _ = observed(texts, True, 1024, 1010)
    assert next(f for f in report.findings if f.id == "KD304").status == "pass"
