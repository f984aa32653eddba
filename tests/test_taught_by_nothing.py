"""A student that nothing teaches any more, or nothing but itself; seen as a foreign script, beside right twins."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.audits.checks.all import run
from kdbench.audits.script import Options, ScriptWatch

BATCH, CLASSES, STEPS = 16, 5, 12
X = torch.randn(BATCH * 4, 6, generator=torch.Generator().manual_seed(3))
Y = torch.arange(len(X)) % CLASSES


def seen(loop, **declared):
    """Return what KD311 finds in a loop that declares nothing, or as little as a script's options do."""
    torch.manual_seed(0)
    script = ScriptWatch(Options(steps=0, **declared), lambda _: None)
    with script:
        kept = loop()
        script.conclude(whole=True)
    del kept
    return next(f for f in run(script.trace).findings if f.id == "KD311")


def a_teacher():
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = torch.optim.SGD(teacher.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(teacher(X), Y).backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


def soft(s, t):
    return F.kl_div(F.log_softmax(s / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4


def distil(target, term=soft, whole=lambda ce, kd, hint: ce + kd + hint):
    """Return a loop in which the student is taught by `target(teacher, rows, step)`, with a hint beside it."""

    def loop():
        teacher, body, head, projector = a_teacher(), nn.Linear(6, 8), nn.Linear(8, CLASSES), nn.Linear(8, 16)
        student = nn.Sequential(body, head)
        optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], 0.05)
        for step in range(STEPS):
            rows = torch.randperm(len(X))[:BATCH]
            with torch.no_grad():
                t = target(teacher, rows, step)
                features = teacher[1](teacher[0](X[rows]))
            hidden = body(X[rows])
            s = head(hidden)
            optimizer.zero_grad()
            whole(F.cross_entropy(s, Y[rows]), term(s, t), F.mse_loss(projector(hidden), features)).backward()
            optimizer.step()
        return teacher, student, projector

    return loop


def live(teacher, rows, step):
    return teacher(X[rows])


def store_that_ended(teacher, rows, step):
    return teacher(X[rows]) if step < 4 else torch.zeros(BATCH, CLASSES)


def outliers_beside(teacher, rows, step):
    """The last rows are taught the uniform distribution, from the first step on: they belong to no class."""
    return torch.cat([teacher(X[rows[:12]]), torch.zeros(4, CLASSES)])


def test_a_store_that_ends_is_named_beside_a_hint_that_goes_on():
    found = seen(distil(store_that_ended))
    assert (found.status, found.severity) == ("fail", "error")
    assert "one number for every class in the last 8 backwards, after 4" in found.message and found.where


@pytest.mark.parametrize("target", [live, outliers_beside])
def test_answers_that_tell_classes_apart_and_rows_of_no_class_pass(target):
    assert seen(distil(target)).status == "pass"


def from_a_store(filled):
    """Return a loop that stores what the teacher says of the first `filled` samples, and is taught by the store."""

    def loop():
        teacher, student = a_teacher(), nn.Linear(6, CLASSES)
        store = torch.zeros(len(X), CLASSES)
        with torch.no_grad():
            for rows in torch.arange(len(X)).split(BATCH):
                said = teacher(X[rows])
                store[rows[rows < filled]] = said[rows < filled]
        optimizer = torch.optim.SGD(student.parameters(), 0.05)
        for _ in range(STEPS):
            rows = torch.randperm(len(X))[:BATCH]
            s = student(X[rows])
            optimizer.zero_grad()
            (F.cross_entropy(s, Y[rows]) + soft(s, store[rows])).backward()
            optimizer.step()
        return teacher, student

    return loop


def test_samples_whose_answers_were_not_stored_are_named():
    assert seen(from_a_store(len(X))).status == "pass"
    found = seen(from_a_store(len(X) * 3 // 4))
    assert found.status == "fail" and "they were not stored" in found.message


def from_a_file():
    """Return answers that nobody was seen to give."""
    file = io.BytesIO()
    torch.save(torch.randn(len(X), CLASSES, generator=torch.Generator().manual_seed(5)) * 3, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize(("whole", "status"), [(lambda ce, kd: ce, "fail"), (lambda ce, kd: ce + kd, "pass")])
def test_a_stored_term_that_is_in_no_loss_is_named(whole, status):
    def loop():
        student, store = nn.Linear(6, CLASSES), from_a_file()
        optimizer = torch.optim.SGD(student.parameters(), 0.05)
        for _ in range(STEPS):
            rows = torch.randperm(len(X))[:BATCH]
            s = student(X[rows])
            optimizer.zero_grad()
            whole(F.cross_entropy(s, Y[rows]), soft(s, store[rows])).backward()
            optimizer.step()
        return student

    found = seen(loop)
    assert found.status == status and (found.severity == "warn" or status == "pass"), found.message


class Balancer(nn.Module):
    """Weighs losses, and is a module: what it is handed is not all in what it answers."""

    def __init__(self, heeds):
        super().__init__()
        self.heeds = heeds

    def forward(self, losses):
        return losses["labels"] + losses["soft"] if self.heeds else 1.0 * losses["labels"]


@pytest.mark.parametrize(("heeds", "status"), [(False, "fail"), (True, "pass")])
def test_a_term_that_a_balancer_is_handed_and_leaves_out_is_in_no_loss(heeds, status):
    balancer = Balancer(heeds)
    whole = seen(distil(live, whole=lambda ce, kd, hint: balancer({"labels": ce, "soft": kd})))
    assert whole.status == status, whole.message


def itself(s, t):
    return soft(s, s.detach())


def by_another_pass(s, t):
    """Two passes with dropout draw each other together (R-Drop): they never say the same."""
    return soft(F.dropout(s, 0.3), F.dropout(s.detach(), 0.3)) + soft(s, t)


def scores_alone(target):
    """Return a loop whose loss is a divergence of similarities, as between texts: nobody answers them as logits."""

    def loop():
        said, student = from_a_file(), nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        optimizer = torch.optim.SGD(student.parameters(), 0.05)
        for _ in range(STEPS):
            rows = torch.randperm(len(X))[:BATCH]
            own = student(X[rows])
            s = torch.stack([(own * student(X[rows].roll(n + 1, 0))).sum(1) for n in range(CLASSES)], 1)
            optimizer.zero_grad()
            soft(s, target(s, said[rows])).backward()
            optimizer.step()
        return student

    return loop


def test_an_answer_that_is_held_against_itself_number_by_number_is_named():
    found = seen(distil(live, term=itself))
    assert found.status == "fail" and "its own answer" in found.message
    assert seen(distil(live, term=by_another_pass)).status == "pass"
    found = seen(scores_alone(lambda s, said: s.detach()))
    assert found.status == "fail" and "number by number" in found.message
    assert seen(scores_alone(lambda s, said: said)).status == "not_triggered"


def distilled_head(cut):
    """Return a loop in which a head of its own learns from the teacher, as a distillation token's does."""

    def loop():
        teacher, body, head, token_head = a_teacher(), nn.Linear(6, 8), nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters(), *token_head.parameters()], 0.05)
        for _ in range(STEPS):
            rows = torch.randperm(len(X))[:BATCH]
            with torch.no_grad():
                t = teacher(X[rows])
            hidden = body(X[rows])
            optimizer.zero_grad()
            taught = token_head(hidden.detach() if cut else hidden)
            (F.cross_entropy(head(hidden), Y[rows]) + soft(taught, t)).backward()
            optimizer.step()
        return teacher, body, head, token_head

    return loop


@pytest.mark.parametrize(("cut", "status"), [(True, "fail"), (False, "pass")])
def test_a_term_that_trains_a_head_of_its_own_alone_is_named(cut, status):
    found = seen(distilled_head(cut))
    assert found.status == status, found.message
    assert not cut or "trains a projector alone" in found.message


CLOSING = {True: "fail", False: "pass"}


@pytest.mark.parametrize("zeroes", CLOSING)
def test_gradients_that_a_closure_zeroes_itself_are_named(zeroes):
    torch.manual_seed(0)
    script = ScriptWatch(Options(steps=0), lambda _: None)
    with script:
        teacher, student = a_teacher(), nn.Linear(6, CLASSES)
        optimizer = torch.optim.SGD(student.parameters(), 0.05)
        for _ in range(STEPS):
            rows = torch.randperm(len(X))[:BATCH]

            def closure(rows=rows):
                optimizer.zero_grad()
                with torch.no_grad():
                    t = teacher(X[rows])
                s = student(X[rows])
                loss = 0.5 * F.cross_entropy(s, Y[rows]) + 0.5 * soft(s, t)
                loss.backward()
                if zeroes:
                    optimizer.zero_grad()
                return loss

            optimizer.step(closure)
        script.conclude(whole=True)
    found = next(f for f in run(script.trace).findings if f.id == "KD215")
    assert found.status == CLOSING[zeroes], found.message


def test_margins_of_scores_are_stored_answers_where_that_is_declared():
    def loop():
        margins, student = from_a_file()[:, :1], nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        optimizer = torch.optim.SGD(student.parameters(), 0.05)
        for _ in range(STEPS):
            rows = torch.randperm(len(X))[:BATCH]
            own = student(X[rows])
            more, less = ((own * student(X[rows].roll(n, 0))).sum(1, keepdim=True) for n in (1, 2))
            optimizer.zero_grad()
            F.mse_loss(more - less, margins[rows]).backward()
            optimizer.step()
        return student

    assert seen(loop, teacher="stored-answers").status == "pass"
    assert seen(loop).reason == "no-teacher-seen"  # as well a number that somebody measured
