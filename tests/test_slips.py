"""Slips that a blind set of scripts held and the audits missed, each beside the right way, seen as a foreign script."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import SEED
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, ConvNet, images, loaded, mlp, normed, rows, trained
from kdbench.harness.zoo.clean.run import observe

STEPS, T = 12, 4.0


def kd(student, teacher, t=T):
    return F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t


def sgd(*modules):
    return torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.05, momentum=0.9)


def descend(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def average(watch, wrong):
    """A teacher that averages the student: its batch norms' buffers as well, or left as they were made."""
    student = normed(dropout=0.0)
    teacher, optimizer = copy.deepcopy(student).eval().requires_grad_(False), sgd(student)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                said = teacher(x)
            student.train()
            descend(optimizer, F.cross_entropy(student(x), y) + kd(student(x), said))
            with torch.no_grad():
                for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
                    mine.lerp_(its, 0.1)
                for mine, its in zip(teacher.buffers(), student.buffers(), strict=True):
                    if not wrong:
                        mine.copy_(its)
    return student


def layers_handed_over(watch, wrong):
    """A student that begins with the teacher's first layer: a copy, or the very same one."""
    teacher = loaded("mlp")
    first = teacher[0] if wrong else copy.deepcopy(teacher[0])
    student = nn.Sequential(first, nn.ReLU(), nn.Linear(24, CLASSES))
    optimizer = sgd(student)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                said = teacher(x)
            logits = student(x)
            descend(optimizer, F.cross_entropy(logits, y) + kd(logits, said))
    return student


def tags(watch, wrong):
    """Labels that are yes or no, one by one: the student's logits into the soft term, or their sigmoid."""
    student, teacher = mlp(), loaded("mlp")
    optimizer = sgd(student)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                said = torch.sigmoid(teacher(x) / T)
            logits = student(x)
            hard = F.binary_cross_entropy_with_logits(logits, F.one_hot(y, CLASSES).float())
            soft = torch.sigmoid(logits / T) if wrong else logits / T
            descend(optimizer, hard + F.binary_cross_entropy_with_logits(soft, said))
    return student


def hooked(watch, wrong):
    """Features before a ReLU that works in place, taken by a hook: cloned, or kept as they are handed over."""
    teacher, student, projector = trained(ConvNet(10), images), ConvNet(6), nn.Conv2d(6, 10, 1)
    kept = {}
    for name, net in (("teacher", teacher), ("student", student)):
        net.features[1].register_forward_hook(
            lambda module, args, out, name=name: kept.__setitem__(name, out if wrong else out.clone())
        )
    optimizer = sgd(student, projector)
    with watch(student=student, teacher=teacher, projectors=projector, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = images()
            with torch.no_grad():
                teacher(x)
            logits = student(x)
            descend(optimizer, F.cross_entropy(logits, y) + F.mse_loss(projector(kept["student"]), kept["teacher"]))
    return student


def one_store(watch, wrong):
    """Features of both by hooks: into a store of each, or into one, where the teacher's overwrite the student's."""
    teacher, student = loaded("mlp"), mlp(24)
    mine = {}
    its = mine if wrong else {}
    teacher[1].register_forward_hook(lambda module, args, out: its.__setitem__("hidden", out))
    student[1].register_forward_hook(lambda module, args, out: mine.__setitem__("hidden", out))
    optimizer = sgd(student)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            logits = student(x)
            with torch.no_grad():
                said = teacher(x)
            likeness = F.cosine_similarity(mine["hidden"], its["hidden"].detach(), dim=-1).mean()
            descend(optimizer, F.cross_entropy(logits, y) + kd(logits, said) + 1 - likeness)
    return student


def several_teachers(watch, wrong):
    """The mean of two teachers' probabilities, at the student's temperature or as they are."""
    teachers, student = (loaded("mlp"), trained(mlp(20))), mlp()
    optimizer = sgd(student)
    with watch(student=student, teacher=nn.ModuleList(teachers), optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            with torch.no_grad():
                said = torch.stack([F.softmax(t(x) / (1.0 if wrong else T), 1) for t in teachers]).mean(0)
            logits = student(x)
            soft = F.kl_div(F.log_softmax(logits / T, 1), said, reduction="batchmean") * T * T
            descend(optimizer, 0.5 * F.cross_entropy(logits, y) + 0.5 * soft)
    return student


def copied_while_frozen(watch, wrong):
    """A student copied from a teacher that is frozen by then: set to train again, or not."""
    teacher = trained(mlp(16)).requires_grad_(False)
    student = copy.deepcopy(teacher).train()
    student[2] = nn.Linear(16, CLASSES)
    if not wrong:
        student.requires_grad_(True)
    optimizer = sgd(student)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            logits = student(x)
            descend(optimizer, F.cross_entropy(logits, y) + kd(logits, teacher(x)))
    return student


def normalised_otherwise(watch, wrong):
    """A teacher from a file, shown what it learned on, or that at a quarter of its size: its batch norm knows."""
    teacher, student = loaded("normed"), mlp()
    optimizer = sgd(student)
    with watch(student=student, teacher=teacher, optimizer=optimizer):
        for _ in range(STEPS):
            x, y = rows()
            x = x / 4 if wrong else x
            with torch.no_grad():
                said = teacher(x)
            logits = student(x)
            descend(optimizer, F.cross_entropy(logits, y) + kd(logits, said))
    return student


def squares(answer):
    """Return a loop on the squared distance of probabilities, whose teacher's side `answer` makes, or rightly."""

    def loop(watch, wrong):
        teacher, student = loaded("mlp"), mlp()
        optimizer = sgd(student)
        with watch(student=student, teacher=teacher, optimizer=optimizer):
            for _ in range(STEPS):
                x, y = rows()
                with torch.no_grad():
                    said = teacher(x)
                logits = student(x)
                target = answer(said) if wrong else (said / T).softmax(1)
                soft = F.mse_loss(target, (logits / T).softmax(1))
                descend(optimizer, F.cross_entropy(logits, y) + T * T * soft)
        return student

    loop.__name__ = f"squares_{answer.__name__}"
    return loop


def logits(said):
    return said / T


def unsoftened(said):
    return said.softmax(1)


SLIPS = {
    squares(logits): ("KD313", "error", "mse_loss holds the student's probabilities against what are none"),
    squares(unsoftened): ("KD313", "error", "only the student's side is softened: temperature 4 for the student, 1"),
    average: ("KD302", "error", "and 2 of its running statistics, with which it answers, stand still"),
    layers_handed_over: ("KD102", "error", "2 parameters of the teacher (Sequential (teacher)) are the student's own"),
    tags: ("KD313", "error", "the student's answers are probabilities already, and a sigmoid is taken of them again"),
    hooked: ("KD106", "warn", "a hook on features.1 (BatchNorm2d) is handed what ReLU overwrites in place"),
    one_store: ("KD311", "error", "a term (cosine_similarity) holds the teacher's answer against itself"),
    several_teachers: ("KD313", "error", "only the student's side is softened: temperature 4 for the student, 1 for"),
    copied_while_frozen: ("KD213", "info", "the optimizer holds 2 parameters of the student that are set to get no"),
    normalised_otherwise: ("KD304", "warn", "its first batch norm, 1 (BatchNorm1d), is given 0."),
}


@pytest.mark.parametrize("loop", SLIPS, ids=lambda loop: loop.__name__)
def test_a_slip_is_named_first_and_the_right_way_left_in_peace(loop):
    wrong = observe(lambda watch: loop(watch, True), SEED, "foreign")
    first = next(f for f in wrong.report.findings if f.status == "fail")
    assert wrong.trace.broken is None and (first.id, first.severity) == SLIPS[loop][:2], first.message
    assert SLIPS[loop][2] in first.message
    right = observe(lambda watch: loop(watch, False), SEED, "foreign")
    assert right.trace.broken is None and right.trace.losses.sights
    assert [(f.id, f.message) for f in right.report.failed("info") if f.id != "KD205"] == []


def test_a_temperature_that_is_learned_is_no_teacher():
    class Temperature(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(1))

        def forward(self):
            return 1 + 4 * torch.sigmoid(self.raw)

    def loop(watch):
        student, teacher, temperature = mlp(), loaded("mlp"), Temperature()
        optimizer = sgd(student, temperature)
        with watch(student=student, teacher=teacher, projectors=temperature, optimizer=optimizer):
            for _ in range(STEPS):
                x, y = rows()
                with torch.no_grad():
                    said = teacher(x)
                logits, t = student(x), temperature()
                soft = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(said / t, 1), reduction="batchmean")
                descend(optimizer, F.cross_entropy(logits, y) + soft * t.pow(2).squeeze())
        return student

    seen = observe(loop, SEED, "foreign")
    assert seen.trace.roles["teacher"] == ["Sequential (teacher)"]
    assert [(f.id, f.message) for f in seen.report.failed("warn")] == []
