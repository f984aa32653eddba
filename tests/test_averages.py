"""Teachers that average their student: the law that they obey, and each way to break it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import ConvNet, images, mlp, rows, trained


class Ema:
    """An average as many trainers keep one; each slip is a way to lose it."""

    def __init__(self, net, decay, slip):
        self.decay, self.slip = 1 - decay if slip == "inverted" else decay, slip
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        if slip == "half":
            self.net = self.net.to(torch.bfloat16)
        if slip == "no copy":
            for mine, its in zip(self.net.parameters(), net.parameters(), strict=True):
                mine.data = its.data

    @torch.no_grad()
    def update(self, net):
        pairs = list(zip(self.net.named_parameters(), net.parameters(), strict=True))
        for (name, mine), its in pairs:
            if self.slip == "head" and name.startswith(("head", "2.")):
                continue
            if self.slip != "no copy":
                mine.mul_(self.decay).add_(its.to(mine.dtype), alpha=1 - self.decay)
        for mine, its in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(its)

    @torch.no_grad()
    def __call__(self, x):
        dtype = next(self.net.parameters()).dtype
        return self.net(x.to(dtype)).float()


def mean_teacher(slip, net=mlp, draw=rows, decay=0.98, steps=2 * STEPS):
    """Consistency with the averaged network, beside labels."""
    student = trained(net(), draw).train()
    other = trained(net(), draw)
    average = Ema(student, decay, slip)
    optimizer = torch.optim.SGD(student.parameters(), 0.02)
    for _ in range(steps):
        x, y = draw()
        said = average(x)
        logits = student(x)
        step(optimizer, F.cross_entropy(logits, y) + 2 * F.mse_loss(logits.softmax(1), said.softmax(1)))
        average.update(other if slip == "other" else student)
    return student, average, other


def of_images(slip):
    return mean_teacher(slip, lambda: ConvNet(6), images)


def slow(slip):
    """A decay as large as it is in practice."""
    return mean_teacher(slip, lambda: mlp(32), decay=0.999)


def lerped(slip):
    """Momentum teacher by state dicts, whose decay is warmed up, as diffusion trainers do."""
    student = mlp(20)
    average = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    for n in range(2 * STEPS):
        x, y = rows()
        with torch.no_grad():
            said = average(x)
        logits = student(x)
        step(optimizer, F.cross_entropy(logits, y) + F.mse_loss(logits, said))
        decay = min(0.99, (1 + n) / (10 + n))
        decay = 1 - 0.99 if slip == "inverted" else decay
        state = average.state_dict()
        for k, v in student.state_dict().items():
            if slip != "head" or not k.startswith("2."):
                state[k] = state[k] * decay + v * (1 - decay)
        average.load_state_dict(state)
    return student, average


def follows_the_bn(slip):
    """All of a normalised network is averaged; a student that answers in training mode, its average in evaluation."""
    return mean_teacher(slip, lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)))


SAID = {
    "inverted": "the decay is inverted",
    "half": "of its numbers stood still",
    "head": "but for 2 of its parameters, which stand still",
    "other": "does not move towards the student",
    "no copy": "are the student's own, and trained",
}
CASES = [
    (loop, slip)
    for loop, slips in (
        (mean_teacher, ("inverted", "head", "other", "no copy")),
        (of_images, ("inverted", "head", "no copy")),
        (slow, ("half", "other", "inverted")),
        (lerped, ("inverted", "head")),
        (follows_the_bn, ("other", "no copy")),
    )
    for slip in slips
]


@pytest.mark.parametrize(
    "loop", [mean_teacher, of_images, slow, lerped, follows_the_bn], ids=lambda loop: loop.__name__
)
def test_an_average_that_follows_is_left_in_peace(loop):
    report, seen = observed(loop, "")
    assert [f.message for f in report.failed("warn")] == []
    change = seen.teacher.change
    assert change.follows and change.updates > STEPS and change.astray == 0 and not change.still
    assert len(change.rates) > change.updates / 2
    if loop is not lerped:
        assert change.average_rate == pytest.approx(0.001 if loop is slow else 0.02, rel=5e-2)


@pytest.mark.parametrize(("loop", "slip"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_an_average_that_breaks_the_law_is_told_how(loop, slip):
    report, _ = observed(loop, slip)
    first = next(f for f in report.findings if f.status == "fail")
    expected = "KD102" if slip == "no copy" else "KD302"
    assert named_first(report) == (expected, "error"), [f.message for f in report.failed("warn")]
    assert SAID[slip] in first.message


def test_a_copy_of_an_untrained_student_that_nothing_updates_is_told_as_such():
    def loop():
        student = mlp(16)
        average = copy.deepcopy(student).requires_grad_(False)
        optimizer = torch.optim.SGD(student.parameters(), 0.02)
        for _ in range(STEPS):
            x, y = rows()
            logits = student(x)
            step(optimizer, F.cross_entropy(logits, y) + F.mse_loss(logits, average(x)))
        return student, average

    report, _ = observed(loop)
    first = next(f for f in report.findings if f.status == "fail")
    assert (
        first.id == "KD104" and "a copy of the student as it was made, and nothing has moved it since" in first.message
    )


def centred(whole):
    """Self-distillation without labels: the answers of an average, less their centre, teach the other view."""
    student = trained(mlp()).train()
    student[2].bias.data += 5
    average, centre = copy.deepcopy(student).requires_grad_(False), torch.zeros(1, 5)
    optimizer = torch.optim.SGD(student.parameters(), 0.02)
    for _ in range(STEPS):
        x, _ = rows()
        one, other = (x + 0.1 * torch.randn_like(x) for _ in range(2))
        said, mine = average(one), student(other)
        goal = ((said - centre) / 0.5).softmax(1)
        step(optimizer, -(goal * (mine / 0.8).log_softmax(1)).sum(1).mean())
        of_batch = said.sum(0, keepdim=True) / (1 if whole else len(said))
        centre = 0.9 * centre + 0.1 * of_batch
        with torch.no_grad():
            for its, own in zip(average.parameters(), student.parameters(), strict=True):
                its.lerp_(own, 0.05)
    return student, average


@pytest.mark.parametrize("whole", [False, True])
def test_a_centre_is_a_mean_of_what_it_is_taken_from(whole):
    report, _ = observed(centred, whole)
    assert named_first(report) == (("KD313", "error") if whole else None)
    told = next(f for f in report.findings if f.id == "KD313")
    assert told.status == ("fail" if whole else "pass"), told.message


def accumulated(every_backward):
    """Two backwards to a step; the average is taken after each of them, or after the step."""
    student = trained(mlp(20), rows).train()
    average = Ema(student, 0.98, "")
    optimizer = torch.optim.SGD(student.parameters(), 0.02)
    optimizer.zero_grad()
    for n in range(5 * STEPS):
        x, y = rows()
        said = average(x)
        logits = student(x)
        (F.cross_entropy(logits, y) + F.mse_loss(logits.softmax(1), said.softmax(1))).div(2).backward()
        if n % 2:
            optimizer.step()
            optimizer.zero_grad()
        if n % 2 or every_backward:
            average.update(student)
    return student, average


@pytest.mark.parametrize("every_backward", [True, False])
def test_an_average_is_taken_once_a_step(every_backward):
    report, trace = observed(accumulated, every_backward)
    assert named_first(report) == (("KD302", "warn") if every_backward else None)
    assert bool(trace.teacher.change.unstepped) is every_backward
