"""Whole numbers that a network chose: what it writes is data for whoever is shown it, and its answer where they are
labels."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.audits.observe.recorder import Recorder
from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, mlp, rows

WORDS, PROMPT, WRITTEN = 11, 3, 40


class Writer(nn.Module):
    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, WORDS)

    def forward(self, ids):
        return self.out(self.drop(self.mix(self.words(ids))[0]))


def texts(n=16, length=12):
    first = torch.randint(WORDS, (n, 1))
    return (first + 3 * torch.arange(length)) % WORDS


@torch.no_grad()
def write(net, ids, length=WRITTEN):
    for _ in range(length):
        following = torch.multinomial(net(ids)[:, -1].softmax(-1), 1)
        ids = torch.cat([ids, following], 1)
    return ids


def of_its_own_words(slip):
    """The student writes, and the teacher says of each word what it would have said."""
    teacher, student = Writer(16, 0.2), Writer(8)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(40):
        ids = texts()
        step(adam, F.cross_entropy(teacher(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    teacher.train(slip == "mode").requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        ids = write(student, texts()[:, :PROMPT])
        with torch.no_grad():
            said = teacher(ids)[:, PROMPT - 1 : -1]
        own = student(ids)[:, PROMPT - 1 : -1]
        step(
            adam, F.kl_div(own.log_softmax(-1), said.log_softmax(-1), reduction="none", log_target=True).sum(-1).mean()
        )
    return teacher, student


@pytest.mark.parametrize(("slip", "named"), [("", None), ("mode", "KD301")])
def test_a_student_that_is_taught_on_what_it_wrote_is_the_student(slip, named):
    report, trace = observed(of_its_own_words, slip)
    assert trace.roles["student"] == ["Writer (student)"] and trace.roles["teacher"] == ["Writer (teacher)"]
    assert (named_first(report) or (None,))[0] == named


def test_little_is_looked_at_while_a_network_writes(monkeypatch):
    """Without the pause, what is told of grows with every word."""
    told = []
    plain = Recorder._function
    monkeypatch.setattr(Recorder, "_function", lambda self, *args: (told.append(1), plain(self, *args))[1])

    def looked_at(length):
        told.clear()

        def loop():
            net = Writer(8)
            adam = torch.optim.Adam(net.parameters(), 1e-2)
            ids = write(net, texts()[:, :PROMPT], length)
            step(adam, F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))

        observed(loop)
        return len(told)

    assert looked_at(200) <= looked_at(30) * 1.2


def answers_kept(slip):
    """A loop at one line that asks a teacher for stored answers is none of a network that writes: all are recorded."""
    teacher, student = mlp(24), mlp()
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(40):
        x, y = rows()
        step(adam, F.cross_entropy(teacher(x), y))
    batches = [rows() for _ in range(STEPS)]
    with torch.no_grad():
        said = [teacher(x) for x, _ in batches]
    said = said[1:] + said[:1] if slip else said
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for (x, y), t in zip(batches, said, strict=True):
        s = student(x)
        kd = F.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean") * 4
        step(adam, 0.5 * F.cross_entropy(s, y) + 0.5 * kd)
    return teacher, student


@pytest.mark.parametrize(("slip", "named"), [(False, None), (True, "KD305")])
def test_answers_that_are_stored_in_a_loop_are_kept(slip, named):
    report, trace = observed(answers_kept, slip)
    assert trace.roles["teacher"] == ["Sequential (teacher)"]
    assert (named_first(report) or (None,))[0] == named


HARD = {
    "argmax": lambda s, t: F.cross_entropy(s, t.argmax(1)),
    "one_hot": lambda s, t: -(F.one_hot(t.argmax(1), CLASSES).float() * s.log_softmax(1)).sum(1).mean(),
    "scatter": lambda s, t: (
        -(torch.zeros_like(t).scatter_(1, t.argmax(1, keepdim=True), 1.0) * s.log_softmax(1)).sum(1).mean()
    ),
    "gather": lambda s, t: -s.log_softmax(1).gather(1, t.argmax(1, keepdim=True)).mean(),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", HARD)
def test_classes_that_the_teacher_named_are_its_answer(kind, training):
    def loop():
        teacher, student = (
            nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, CLASSES)),
            mlp(),
        )
        adam = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(60):
            x, y = rows()
            step(adam, F.cross_entropy(teacher(x), y))
        teacher.train(training)
        adam = torch.optim.Adam(student.parameters(), 1e-2)
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                t = teacher(x)
            s = student(x)
            step(adam, 0.5 * F.cross_entropy(s, y) + 0.5 * HARD[kind](s, t))
        return teacher, student

    report, trace = observed(loop)
    assert trace.roles["teacher"] == ["Sequential (teacher)"]
    assert (named_first(report) or (None,))[0] == ("KD301" if training else None)


def test_the_places_of_the_students_largest_answers_make_the_teachers_no_answer_of_its():
    """The teacher's probabilities at places that the student chose are the teacher's."""

    def loop():
        teacher, student = mlp(24), mlp()
        adam = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(40):
            x, y = rows()
            step(adam, F.cross_entropy(teacher(x), y))
        adam = torch.optim.Adam(student.parameters(), 1e-2)
        for _ in range(STEPS):
            x, y = rows()
            s = student(x)
            places = s.topk(3).indices
            with torch.no_grad():
                t = teacher(x).log_softmax(1).gather(1, places)
            kd = F.kl_div(s.log_softmax(1).gather(1, places), t, log_target=True, reduction="batchmean")
            step(adam, F.cross_entropy(s, y) + kd)
        return teacher, student

    _, trace = observed(loop)
    assert trace.roles["teacher"] == ["Sequential (teacher)"]
    assert not any(t.against_itself for sight in trace.losses.sights for t in sight.terms)
