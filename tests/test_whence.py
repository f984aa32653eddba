"""Where a teacher comes from: copies, casts, averages of checkpoints, a start that both share; and from nowhere."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CENTRES, CLASSES, WIDTH, loaded, mlp, rows


def distilled(student, teacher, optimizer, steps=STEPS, draw=rows):
    for _ in range(steps):
        x, y = draw()
        with torch.no_grad():
            said = teacher(x.to(next(teacher.parameters()).dtype)).float()
        logits = student(x)
        soft = F.kl_div((logits / 2).log_softmax(1), (said / 2).softmax(1), reduction="batchmean") * 4
        step(optimizer, 0.5 * F.cross_entropy(logits, y) + 0.5 * soft)


def learn(net, optimizer, steps=40, draw=rows):
    for _ in range(steps):
        x, y = draw()
        step(optimizer, F.cross_entropy(net(x), y))


def fresh(net):
    for part in net.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


def file_of(net):
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    return file


def cast_copy(wrong):
    """The best model so far is copied in half precision while the training goes on; it teaches the next generation."""
    first = mlp(20)
    adam = torch.optim.Adam(first.parameters(), 1e-2)
    learn(first, adam)
    best = copy.deepcopy(first).to(torch.bfloat16).requires_grad_(False)
    learn(first, adam, 5)
    if wrong:
        fresh(best)
    second = mlp(8)
    distilled(second, best, torch.optim.Adam(second.parameters(), 1e-2))
    return first, best, second


def new_classes(wrong):
    """A continual learner: the old model knows three classes, the new task has the other two."""

    def task(classes):
        def draw(n=48):
            y = torch.tensor(classes)[torch.randint(len(classes), (n,))]
            return CENTRES[y] + torch.randn(n, WIDTH), y

        return draw

    model = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    learn(model, optimizer, 60, task([0, 1, 2]))
    previous = mlp(24) if wrong else copy.deepcopy(model)
    previous.eval().requires_grad_(False)
    for _ in range(STEPS):
        x, y = task([3, 4])()
        out = model(x)
        with torch.no_grad():
            old = previous(x)
        keep = F.kl_div((out[:, :3] / 2).log_softmax(1), (old[:, :3] / 2).softmax(1), reduction="batchmean") * 4
        step(optimizer, F.cross_entropy(out, y) + keep)
    return model, previous


def frozen_start(wrong):
    """The student's own start stays beside it as an anchor: a checkpoint's, or one that nothing trained."""
    student = mlp(24) if wrong else loaded("mlp")
    anchor = copy.deepcopy(student).requires_grad_(False)
    learn(student.train(), torch.optim.SGD(student.parameters(), 0.01), 2)
    distilled(student, anchor, torch.optim.SGD(student.parameters(), 0.01))
    return student, anchor


def one_file(wrong):
    """Student and teacher start from one file: a trained network's, or one that was saved as it was made."""
    net = mlp(16)
    if not wrong:
        learn(net, torch.optim.Adam(net.parameters(), 1e-2))
    file = file_of(net)
    student, teacher = mlp(16), mlp(16)
    student.load_state_dict(torch.load(file))
    file.seek(0)
    teacher.load_state_dict(torch.load(file))
    teacher.requires_grad_(False)
    distilled(student, teacher, torch.optim.SGD(student.parameters(), 0.05))
    return student, teacher


def soup(wrong):
    """The teacher's weights are the mean of two checkpoints; or of none, where the keys were spelled otherwise."""
    nets = [mlp(16), mlp(16)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        learn(net, torch.optim.Adam(net.parameters(), 1e-2))
    one, other = (torch.load(file_of(net)) for net in nets)
    mean = {("net." if wrong else "") + k: (one[k] + other[k]) / 2 for k in one}
    teacher, student = mlp(16), mlp(8)
    teacher.load_state_dict(mean, strict=not wrong)
    teacher.requires_grad_(False)
    distilled(student, teacher, torch.optim.SGD(student.parameters(), 0.05))
    return teacher, student


def changed_after_training(wrong):
    """A trained teacher gets the mean of its last weights, and its least ones are cut; or it is initialised again."""
    teacher, student = mlp(16), mlp(8)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    learn(teacher, adam, 130)
    before = [p.detach().clone() for p in teacher.parameters()]
    learn(teacher, adam, 17)
    with torch.no_grad():
        for p, old in zip(teacher.parameters(), before, strict=True):
            p.copy_((p + old) / 2)
            p[p.abs() < p.abs().quantile(0.3)] = 0
    if wrong:
        fresh(teacher)
    teacher.requires_grad_(False)
    distilled(student, teacher, torch.optim.SGD(student.parameters(), 0.05))
    return teacher, student


LOOPS = [cast_copy, new_classes, frozen_start, one_file, soup, changed_after_training]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_teacher_is_known_by_where_its_weights_come_from(loop):
    report, _ = observed(loop, False)
    assert [f.message for f in report.failed("warn")] == []
    verdict = next(f for f in report.findings if f.id == "KD104")
    assert verdict.status == "pass", verdict.message
    report, _ = observed(loop, True)
    assert named_first(report) == ("KD104", "error"), [f.message for f in report.failed("warn")]


def test_a_model_of_other_classes_is_not_called_worse_than_chance():
    """The term is read over the old classes alone, so that no label of the new task goes with it."""
    report, seen = observed(new_classes, False)
    verdict = next(f for f in report.findings if f.id == "KD303")
    hits = seen.teacher.hits
    assert verdict.status == "not_triggered" and (hits is None or not hits.by_class.sum()), "no label was counted"
    assert next(f for f in report.findings if f.id == "KD313").status == "pass"


def test_a_copy_is_called_a_copy():
    report, _ = observed(cast_copy, False)
    verdict = next(f for f in report.findings if f.id == "KD104")
    assert verdict.message == "all of the teacher was copied from what was trained in this process"
