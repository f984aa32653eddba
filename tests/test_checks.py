"""Each check beside a specimen that it must catch and one that it must pass."""

import pytest
import torch
import torchvision
from scipy import stats
from torch import nn

from kdbench import audits
from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.checks.teacher import at_least, at_most
from kdbench.kd.models.resnet import ResNet


def watch_once(student, images, teacher=None, labels=None, **declared):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    with audits.watch(student=student, teacher=teacher, optimizer=optimizer, **declared) as w:
        if teacher is not None:
            with torch.no_grad():
                teacher(images)
            if labels is not None:
                w.labels(labels)
        answer = student(images)
        (answer if isinstance(answer, torch.Tensor) else answer[0]).sum().backward()
        optimizer.step()
    return {f.name: f for f in w.report.findings}


def conv(k, s, channels=8):
    return nn.Conv2d(3, channels, k, s, k // 2)


def net(*stem, width=8):
    return nn.Sequential(*stem, nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Beside(nn.Module):
    """ENet's first block: convolution and pool side by side."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = conv(3, 2), nn.MaxPool2d(2)

    def forward(self, x):
        return torch.cat([self.conv(x), self.pool(x)], 1).mean((2, 3))


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(7, 2), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.conv2(input=self.conv1(input=x)).mean((2, 3))


STEMS = {
    "torchvision on 32x32": (lambda: torchvision.models.resnet18(num_classes=10), 32, "fail"),
    "torchvision on 64x64": (lambda: torchvision.models.resnet18(num_classes=10), 64, "fail"),
    "torchvision on 96x96": (lambda: torchvision.models.resnet18(num_classes=10), 96, "not_triggered"),
    "ours, imagenet": (lambda: ResNet("r18", "imagenet", 10, 4), 32, "fail"),
    "ours, cifar": (lambda: ResNet("r18", "cifar", 10, 4), 32, "pass"),
    "7x7 stride 2 without a pool": (lambda: net(conv(7, 2)), 32, "fail"),
    "3x3 stride 2 and a pool": (lambda: net(conv(3, 2), nn.ReLU(), nn.MaxPool2d(2)), 32, "fail"),
    "3x3 stride 1 and a pool": (lambda: net(conv(3, 1), nn.ReLU(), nn.MaxPool2d(2)), 32, "pass"),
    "3x3 stride 2 alone": (lambda: net(conv(3, 2)), 32, "pass"),
    "7x7 stride 1": (lambda: net(conv(7, 1)), 32, "pass"),
    "patches of 4": (lambda: net(nn.Conv2d(3, 8, 4, 4)), 32, "pass"),
    "patches of 8": (lambda: net(nn.Conv2d(3, 8, 8, 8)), 64, "pass"),
    "a pool beside the convolution": (lambda: Beside(), 32, "pass"),
    "called by keyword": (lambda: ByKeyword(), 32, "fail"),
    "no image": (lambda: nn.Linear(32, 4), 32, "not_triggered"),
}


@pytest.mark.parametrize("name", STEMS)
def test_stem_resolution(name):
    build, size, wanted = STEMS[name]
    images = torch.randn(4, 3, size, size) if name != "no image" else torch.randn(4, 32)
    found = watch_once(build(), images)["stem-resolution"]
    assert found.status == wanted
    if wanted == "fail":
        assert found.observed["student"]["input"] == [size, size] and "conv1" in found.mend


def test_the_teachers_stem_counts_too():
    good, bad = ResNet("r18", "cifar", 10, 4), ResNet("r18", "imagenet", 10, 4)
    found = watch_once(good, torch.randn(4, 3, 32, 32), teacher=bad)["stem-resolution"]
    assert found.status == "fail" and set(found.observed) == {"teacher"}


class Enlarged(nn.Module):
    """Feeds an ImageNet network what it is made for."""

    def __init__(self):
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=4)

    def forward(self, pixel_values):
        return self.net(nn.functional.interpolate(pixel_values, size=128))


def test_what_counts_is_the_size_that_the_first_convolution_sees():
    optimizer_of = lambda net: torch.optim.SGD(net.parameters(), lr=0.01)  # noqa: E731
    enlarged = Enlarged()
    with audits.watch(student=enlarged, optimizer=optimizer_of(enlarged)) as w:
        enlarged(pixel_values=torch.randn(2, 3, 32, 32))
    assert next(f for f in w.report.findings if f.id == "KD105").status == "not_triggered"
    plain = torchvision.models.resnet18(num_classes=4)
    for call in (lambda x: plain.forward(x), lambda x: plain.maxpool(plain.relu(plain.bn1(plain.conv1(x))))):
        with audits.watch(student=plain, optimizer=optimizer_of(plain)) as w:
            call(torch.randn(2, 3, 32, 32))
        assert next(f for f in w.report.findings if f.id == "KD105").status == "fail"


def test_a_stem_that_student_and_teacher_share_counts_for_both():
    stem = nn.Sequential(conv(7, 2), nn.ReLU(), nn.MaxPool2d(2))
    student, teacher = (nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2))
    found = watch_once(student, torch.randn(4, 3, 32, 32), teacher=teacher)["stem-resolution"]
    assert set(found.observed) == {"student", "teacher"}


def partly(state):
    return {name: value for name, value in state.items() if not name.startswith("layer4")}


def wrapped(state):
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("declare", "wanted"),
    [
        (lambda state: None, "not_triggered"),
        (lambda state: state, "pass"),
        (wrapped, "pass"),
        (partly, "fail"),
        (lambda state: ResNet("r18", "cifar", 10, 4).state_dict(), "fail"),
        (lambda state: {**state, "fc.bias": state["fc.bias"] + 1e-7}, "fail"),
        (lambda state: {}, "fail"),
        (lambda state: {k: v for k, v in state.items() if "num_batches" not in k}, "pass"),
        (lambda state: {**state, "head.weight": torch.zeros(2)}, "fail"),
        (lambda state: {k: v.double() for k, v in state.items()}, "pass"),
    ],
)
def test_teacher_provenance(declare, wanted):
    student, teacher = ResNet("r18", "cifar", 10, 4), ResNet("r18", "cifar", 10, 4)
    weights = declare({k: v.clone() for k, v in teacher.state_dict().items()})
    found = watch_once(student, torch.randn(2, 3, 32, 32), teacher, teacher_weights=weights)["teacher-provenance"]
    assert found.status == wanted
    if wanted == "fail":
        assert found.observed["differing_count"] + found.observed["unexpected_count"] > 0
        assert (found.observed["loaded_fraction"] < 1) == (found.observed["differing_count"] > 0)


def test_a_teachers_own_tensors_prove_nothing():
    teacher = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    found = watch_once(nn.Linear(3, 2), torch.randn(2, 3), teacher, teacher_weights=teacher.state_dict())
    assert found["teacher-provenance"].reason == "intent-unknown"
    merged = teacher.state_dict()
    merged.update({"0.weight": torch.randn(3, 3)})
    teacher.load_state_dict(merged)
    found = watch_once(nn.Linear(3, 2), torch.randn(2, 3), teacher, teacher_weights=merged)["teacher-provenance"]
    assert found.status == "fail" and found.observed["aliases"] == ["0.bias", "1.weight", "1.bias"]


def test_tied_tensors_and_counters_may_stand_once_or_not_at_all():
    teacher = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    teacher[1].weight = teacher[0].weight
    weights = {"0.weight": teacher[0].weight.detach().clone()}
    found = watch_once(nn.Linear(3, 2), torch.randn(2, 3), teacher, teacher_weights=weights)
    assert found["teacher-provenance"].status == "pass"

    class Notes(nn.Linear):
        def get_extra_state(self):
            return {"note": 1}

    teacher = Notes(3, 2)
    weights = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in teacher.state_dict().items()}
    found = watch_once(nn.Linear(3, 2), torch.randn(2, 3), teacher, teacher_weights=weights)
    assert found["teacher-provenance"].status == "pass"


def test_a_teacher_of_another_width_answers_another_question():
    x = torch.randint(0, 10, (640, 3)).float()
    student = nn.Linear(3, 10)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with audits.watch(student=student, teacher=nn.Linear(3, 32), optimizer=optimizer) as w:
        student(x)
        w.trace.declared.teacher(x)
        w.labels(x[:, 0].long())
    assert next(f for f in w.report.findings if f.id == "KD303").reason == "form-not-recognised"


def test_labels_that_are_all_ignored_decide_nothing():
    found = watch_once(nn.Linear(3, 10), torch.rand(8, 3), Oracle(1.0), labels=torch.full((8,), -100))
    assert found["teacher-above-chance"].reason == "too-few-labels"


def test_a_wrapped_teacher_is_the_network_in_it():
    teacher = nn.Linear(3, 2)
    weights = {k: v.clone() for k, v in teacher.state_dict().items()}
    for wrapped_teacher in (nn.DataParallel(teacher), torch.compile(teacher, backend="eager")):
        found = watch_once(nn.Linear(3, 2), torch.randn(2, 3), wrapped_teacher, teacher_weights=weights)
        assert found["teacher-provenance"].status == "pass"


def test_something_else_than_a_state_dict_is_refused_with_the_mend():
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"perhaps pass teacher_weights\['model'\]"):
        audits.watch(
            student=student, teacher=teacher, optimizer=optimizer, teacher_weights={"model": teacher.state_dict()}
        )


def test_provenance_without_a_teacher_says_so():
    found = watch_once(nn.Linear(3, 2), torch.randn(2, 3))
    for name in ("teacher-provenance", "teacher-above-chance"):
        assert (found[name].status, found[name].reason) == ("not_triggered", "no-teacher-seen")


class Oracle(nn.Module):
    """Knows a share of the answers: the label is the input."""

    def __init__(self, share, classes=10, seed=0):
        super().__init__()
        self.share, self.classes = share, classes
        self.rng = torch.Generator().manual_seed(seed)

    def forward(self, x):
        known = torch.rand(len(x), generator=self.rng) < self.share
        guess = torch.randint(0, self.classes, (len(x),), generator=self.rng)
        return nn.functional.one_hot(torch.where(known, x[:, 0].long(), guess), self.classes).float()


@pytest.mark.parametrize(
    ("share", "n", "wanted"),
    [
        (0.0, 640, "fail"),
        (0.9, 640, "pass"),
        (0.3, 640, "pass"),
        (0.0, 16, "not_triggered"),
        (0.1, 640, "not_triggered"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_teacher_above_chance(share, n, wanted, seed):
    x = torch.randint(0, 10, (n, 3), generator=torch.Generator().manual_seed(seed)).float()
    found = watch_once(nn.Linear(3, 10), x, Oracle(share, seed=seed), labels=x[:, 0].long())["teacher-above-chance"]
    assert found.status == wanted
    if wanted == "not_triggered":
        assert found.reason == "too-few-labels" and found.observed["labels"] == n


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        (lambda logits: logits, "pass"),
        (lambda logits: {"logits": logits, "hidden": torch.zeros(len(logits), 64)}, "pass"),
        (lambda logits: (logits, torch.zeros(len(logits), 8, 4, 4)), "pass"),
        (lambda logits: (torch.zeros(len(logits), 64), logits), "not_triggered"),
        (lambda logits: {"out": logits}, "not_triggered"),
    ],
)
def test_which_tensor_the_logits_are_is_never_guessed(form, wanted):
    class Formed(Oracle):
        def forward(self, x):
            return form(super().forward(x))

    x = torch.randint(0, 10, (640, 3)).float()
    found = watch_once(nn.Linear(3, 10), x, Formed(1.0), labels=x[:, 0].long())["teacher-above-chance"]
    assert found.status == wanted
    assert found.reason == (None if wanted == "pass" else "form-not-recognised")


def test_unbalanced_labels_raise_the_bar():
    """Saying the commonest class always is right on 80% of these labels, and no knowledge."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.where(torch.rand(2000, generator=rng) < 0.8, 0, torch.randint(1, 10, (2000,), generator=rng))

    class Constant(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()

    found = watch_once(nn.Linear(3, 10), torch.randn(2000, 3), Constant(), labels=labels)["teacher-above-chance"]
    assert found.status == "not_triggered" and 0.8 < found.observed["chance"] < found.observed["threshold"] < 0.85


@pytest.mark.parametrize(("k", "n", "rate"), [(0, 10, 0.2), (30, 640, 0.19), (200, 640, 0.19), (640, 640, 0.5)])
def test_binomial_tails_agree_with_scipy(k, n, rate):
    assert at_most(k, n, rate) == pytest.approx(stats.binom.cdf(k, n, rate), rel=1e-9)
    assert at_least(k, n, rate) == pytest.approx(stats.binom.sf(k - 1, n, rate), rel=1e-9)


def test_catalogue_ids_and_names_are_unique_and_told():
    ids = [audit.id for audit in CATALOGUE.values()]
    assert len(set(ids)) == len(ids)
    for name, audit in CATALOGUE.items():
        assert audit.name == name and audit.story and audit.mend
        assert set(audit.follows) <= set(ids)


def test_an_id_cannot_be_taken_twice():
    from kdbench.audits.checks import audit

    with pytest.raises(ValueError, match="in the catalogue already"):

        @audit("KD201", severity="error", phase="first", mend="")
        def another_name(trace):
            """Nothing."""
