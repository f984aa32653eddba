"""Which of a script's trainings is the distillation: what comes before it, what its targets are, and whom one names."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from conftest import SEED
from torch import nn

from kdbench.audits.checks.all import run
from kdbench.audits.script import Options, ScriptWatch
from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, loaded, mlp, rows, tokens

STEPS = 12


def observed(loop, *args, **options):
    """Watch a loop as a script is watched that ends by itself, and return its report and what was seen."""
    gc.collect()  # a network of another test would have the same name
    torch.manual_seed(SEED)
    watch = ScriptWatch(Options(**{"steps": 0, **options}), lambda _: None)
    with watch:
        kept = loop(*args)
        watch.conclude(whole=True)
    del kept
    assert watch.trace.broken is None
    return run(watch.trace), watch.trace


def named_first(report):
    return next(((f.id, f.severity) for f in report.findings if f.status == "fail" and f.severity != "info"), None)


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# -- what comes before: trainings that are none


class DepthNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU())
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, 1, 3, 1, 1))

    def forward(self, image):
        return self.up(self.down(image)).squeeze(1)


def scenes(n=16):
    near = torch.rand(n, 1, 1) + torch.linspace(0, 1, 12).view(1, 12, 1)
    depth = near.expand(n, 12, 12).contiguous()
    return depth.unsqueeze(1).sin() + 0.1 * torch.randn(n, 1, 12, 12), depth


def depth_maps(wrong):
    """A depth network is trained on depths, then teaches a narrow one what it says of the same pictures."""
    big, small = DepthNet(12), DepthNet(4)
    adam = torch.optim.Adam(big.parameters(), 1e-2)
    for _ in range(70):
        image, depth = scenes()
        step(adam, F.smooth_l1_loss(big(image), depth))
    big.train(wrong)
    adam = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        image, depth = scenes()
        with torch.no_grad():
            said = big(image)
        guess = small(image)
        step(adam, F.smooth_l1_loss(guess, depth) + 0.5 * F.l1_loss(guess, said))
    return big, small


class Detector(nn.Module):
    """Four kinds of things, and a box of four numbers around the one that is there."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, width), nn.BatchNorm1d(width), nn.ReLU())
        self.kind, self.box = nn.Linear(width, 4), nn.Linear(width, 4)

    def forward(self, x):
        hidden = self.body(x)
        return self.kind(hidden), self.box(hidden).sigmoid(), hidden


def boxes(wrong):
    """A detector's boxes are as wide as its classes, and are labels all the same; then its hidden layer teaches."""
    big, small, bridge = Detector(20), Detector(8), nn.Linear(8, 20)

    def losses(net, x):
        kind, box, hidden = net(x)
        there = (x[:, :4] > 0).float()
        place = x[:, 4:8].sigmoid()
        return F.binary_cross_entropy_with_logits(kind, there) + F.l1_loss(box, place), hidden

    optimizer = torch.optim.SGD(big.parameters(), 0.05)
    for _ in range(40):
        step(optimizer, losses(big, rows()[0])[0])
    big.eval()
    optimizer = torch.optim.SGD([*small.parameters(), *([] if wrong else bridge.parameters())], 0.05)
    for _ in range(STEPS):
        x, _ = rows()
        with torch.no_grad():
            _, _, hint = big(x)
        loss, hidden = losses(small, x)
        step(optimizer, loss + F.mse_loss(bridge(hidden), hint))
    return big, small, bridge


def noise(wrong):
    """A denoiser learns what was added, and teaches a smaller one."""

    def net(width):
        return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, WIDTH))

    big, small = net(32), net(12)
    optimizer = torch.optim.Adam(big.parameters(), 1e-2)
    for _ in range(30):
        x, _ = rows()
        added = torch.randn_like(x)
        step(optimizer, F.mse_loss(big(x + added), added))
    big.requires_grad_(False)
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        x, _ = rows()
        noisy = x + torch.randn_like(x)
        mine = small(noisy).detach() if wrong else small(noisy)
        loss = F.mse_loss(mine, big(noisy)) + F.mse_loss(small(x), torch.zeros_like(x))
        step(optimizer, loss)
    return big, small


def ages(wrong):
    """The labels are spread out over neighbouring classes, which is no teacher's answer; the teacher comes after."""
    big, small = mlp(24), mlp(12)
    near = (-(torch.arange(CLASSES)[:, None] - torch.arange(CLASSES)[None]).double().pow(2)).float().softmax(1)
    optimizer = torch.optim.Adam(big.parameters(), 1e-2)
    for _ in range(40):
        x, y = rows()
        step(optimizer, F.kl_div(big(x).log_softmax(1), near[y], reduction="batchmean"))
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = (big(x) / 3).softmax(1)
        logits = small(x)
        soft = F.kl_div((logits / 3).log_softmax(1), said, reduction="mean" if wrong else "batchmean") * 9
        step(optimizer, 0.3 * F.cross_entropy(logits, y) + 0.7 * soft)
    return big, small


BEFORE = {
    depth_maps: ("KD301", "error"),
    boxes: ("KD101", "error"),
    noise: ("KD311", "error"),
    ages: ("KD312", "error"),
}


@pytest.mark.parametrize("loop", BEFORE, ids=lambda loop: loop.__name__)
def test_a_training_before_is_not_taken_for_the_distillation(loop):
    report, seen = observed(loop, False)
    assert [f.message for f in report.failed("warn")] == []
    assert seen.roles["student"][0].endswith("(small)") and seen.roles["teacher"][0].endswith("(big)"), seen.roles
    assert len(seen.losses.sights) == STEPS
    report, seen = observed(loop, True)
    assert named_first(report) == BEFORE[loop], [f.message for f in report.failed("warn")]


# -- stored answers need evidence


def bank(giver):
    """A student is taught by a table of answers, and by no labels: those of a network of this script, or of nobody."""
    x, _ = rows(64)
    with torch.no_grad():
        table = torch.from_numpy(giver(x).numpy().copy())
    small = mlp(8)
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        which = torch.randperm(64)[:32]
        step(optimizer, F.mse_loss(small(x[which]), table[which]))
    return small


def test_stored_answers_are_known_by_the_network_that_gave_them():
    teacher = loaded("mlp")
    _, seen = observed(bank, teacher)
    assert len(seen.losses.sights) == STEPS and seen.losses.sights[0].cached_rows == (32, 0)
    assert seen.roles["teacher"][0].startswith("Sequential")


def test_numbers_that_no_network_gave_are_labels_unless_they_are_declared():
    def nobody(x):
        return x @ torch.ones(WIDTH, CLASSES) / 9

    report, seen = observed(bank, nobody)
    assert not seen.losses.sights and not report.failed("warn")
    _, seen = observed(bank, nobody, teacher="stored-answers")
    assert len(seen.losses.sights) == STEPS and seen.losses.sights[0].cached


# -- names


class Pair(nn.Module):
    """A wrapper that holds both."""

    def __init__(self, student, teacher):
        super().__init__()
        self.small_bert, self.teacher_bert = student, teacher
        self.teacher_bert.requires_grad_(False)

    def forward(self, x, y):
        with torch.no_grad():
            said = self.teacher_bert(x)
        logits = self.small_bert(x)
        return F.cross_entropy(logits, y) + F.kl_div(logits.log_softmax(1), said.softmax(1), reduction="batchmean")


def wrapped():
    both = nn.DataParallel(Pair(mlp(8), loaded("mlp")))
    optimizer = torch.optim.SGD([p for p in both.parameters() if p.requires_grad], 0.05)
    for _ in range(STEPS):
        step(optimizer, both(*rows()))
    return both


@pytest.mark.parametrize("name", ["teacher_bert", "self.teacher_bert", "module.teacher_bert", "both.teacher_bert"])
def test_a_network_is_named_by_attribute_and_through_wrappers(name):
    report, seen = observed(wrapped, teacher=name, student=name.replace("teacher", "small"))
    assert len(seen.losses.sights) == STEPS and not seen.not_found
    assert [len(seen.roles[role]) for role in ("student", "teacher")] == [1, 1]
    assert [f.message for f in report.failed("warn")] == []


def test_a_name_that_nobody_has_is_no_distillation_and_the_others_are_told():
    _, seen = observed(wrapped, teacher="techer_bert")
    assert seen.not_found == {"teacher": "techer_bert"} and not seen.losses.sights
    assert {"both"} <= set(seen.names_there)


def test_a_declared_teacher_binds_from_the_start():
    """The momentum pair before it is a distillation too; what was declared is the one after it."""

    def loop():
        first = mlp(16)
        anchor = copy.deepcopy(first).requires_grad_(False)
        optimizer = torch.optim.SGD(first.parameters(), 0.05)
        for _ in range(STEPS):
            x, y = rows()
            logits = first(x)
            step(optimizer, F.cross_entropy(logits, y) + F.mse_loss(logits, anchor(x)))
        oracle, pupil = loaded("mlp"), mlp(8)
        optimizer = torch.optim.SGD(pupil.parameters(), 0.05)
        for _ in range(STEPS + 1):
            x, y = rows()
            logits = pupil(x)
            step(optimizer, F.cross_entropy(logits, y) + F.mse_loss(logits, oracle(x).detach()))
        return first, anchor, oracle, pupil

    _, seen = observed(loop, teacher="oracle")
    assert seen.roles["student"] == ["Sequential (pupil)"] and seen.roles["teacher"] == ["Sequential (oracle)"]
    assert len(seen.losses.sights) == STEPS + 1


# -- a network that is its own base


class Adapted(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net.requires_grad_(False)
        self.down, self.up, self.on = nn.Linear(WIDTH, 3), nn.Linear(3, CLASSES), True
        self.drop = nn.Dropout(0.2)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        base = self.net(x)
        return base + self.up(self.drop(self.down(x))) if self.on else base


def adapters(wrong):
    """A frozen network teaches the adapter beside it, which is shown less of the input; adapters off is the teacher."""
    model = Adapted(loaded("mlp"))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(STEPS):
        x, _ = rows()
        model.eval()
        model.on = False
        with torch.no_grad():
            said = model(x)
        model.on = True
        if not wrong:
            model.train()
        less = x * (torch.rand_like(x) > 0.3)
        step(optimizer, F.kl_div(model(less).log_softmax(1), said.softmax(1), reduction="batchmean"))
    return model


def test_a_network_whose_adapters_are_off_teaches_the_adapters():
    report, seen = observed(adapters, False)
    assert seen.roles["student"] == ["Adapted (model)"]
    assert seen.roles["teacher"] == ["Adapted (model), without what is trained"]
    assert [f.id for f in report.failed("error")] == []
    report, _ = observed(adapters, True)
    assert named_first(report) == ("KD321", "error")


# -- steps are those of the distillation


def warmed_up(slip):
    """One optimizer for warm-up epochs and for the distillation after them, in which a line is lost."""
    teacher, student = loaded("encoder"), loaded("encoder").train()
    for p in student.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    for _ in range(90):
        x, y = tokens()
        step(optimizer, F.cross_entropy(student(x), y))
    for _ in range(STEPS):
        x, y = tokens()
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        loss = F.cross_entropy(logits, y) + F.kl_div(logits.log_softmax(1), said.softmax(1), reduction="batchmean")
        if slip != "not zeroed":
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if slip == "twice":
            optimizer.step()
    return teacher, student


@pytest.mark.parametrize(("slip", "found"), [("", None), ("not zeroed", "KD211"), ("twice", "KD212")])
def test_steps_are_counted_from_the_distillation_on(slip, found):
    report, seen = observed(warmed_up, slip)
    assert len([s for s in seen.updates.steps if s.distils]) >= STEPS
    assert [f.id for f in report.failed("error")] == ([found] if found else []), [f.message for f in report.failed()]


class Tagger(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.words, self.out = nn.Embedding(20, width), nn.Linear(width, 7)

    def forward(self, ids):
        return self.out(self.words(ids).cumsum(1))


def stored_states(slip):
    """What a tagger says of each word is stored, and regressed by a narrower one: rows of matrices, in their order."""
    teacher, small = Tagger(16), Tagger(4)
    ids = torch.randint(20, (64, 12))
    with torch.no_grad():
        table = torch.from_numpy(teacher(ids).numpy().copy())
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        which = torch.randperm(64)[:16]
        step(optimizer, F.l1_loss(small(ids[which]), table[which.roll(1) if slip else which]))
    return teacher, small


def test_stored_answers_of_sequences_are_known_too():
    _, seen = observed(stored_states, False)
    assert len(seen.losses.sights) == STEPS and seen.losses.sights[0].cached_rows == (16, 0)
    report, _ = observed(stored_states, True)
    assert "KD305" in [f.id for f in report.failed("error")]


def test_stored_answers_are_no_network_that_could_be_missed():
    from types import SimpleNamespace

    from kdbench.harness.cli.audit_script import _lost_names
    from kdbench.harness.contract import Contract

    seen = SimpleNamespace(trace=SimpleNamespace(roles={"student": ["Linear (student)"]}))
    assert _lost_names(Contract(teacher="stored-answers"), seen) == []
    assert len(_lost_names(Contract(teacher="big"), seen)) == 1


def uneven(shown):
    """Batches of one source that differ much from each other: a factor of their own scales each.

    `shown` scales what the networks are shown in the distillation.
    """
    teacher, student = mlp(24), mlp(8)

    def scene():
        x, y = rows()
        return x * float(torch.empty(()).uniform_(0.3, 3.0)), y

    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(40):
        x, y = scene()
        step(adam, F.cross_entropy(teacher(x), y))
    teacher.eval()
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y = scene()
        x = x * shown
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        step(adam, F.cross_entropy(logits, y) + F.mse_loss(logits, said))
    return teacher, student


@pytest.mark.parametrize(("shown", "warned"), [(1.0, False), (30.0, True)])
def test_a_teacher_is_held_against_many_batches_of_its_training(shown, warned):
    report, _ = observed(uneven, shown)
    assert ("KD304" in [f.id for f in report.failed("warn")]) == warned, [f.message for f in report.failed("warn")]


def digits(soft):
    """A classifier learns labels beside what should be a trained one's answers."""
    big, small = mlp(24), mlp(8)
    adam = torch.optim.Adam(big.parameters(), 1e-2)
    for _ in range(30):
        x, y = rows(16)
        step(adam, F.cross_entropy(big(x), y))
    big.eval()
    adam = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y = rows(16)
        with torch.no_grad():
            said = big(x)
        z = small(x)
        step(adam, 0.5 * F.cross_entropy(z, y) + 0.5 * soft(z, said))


def kl_of(a, b, log_target):
    p, q = (x.div(2).log_softmax(1) for x in (a, b))
    return 4 * F.kl_div(p, q if log_target else q.exp(), reduction="batchmean", log_target=log_target)


@pytest.mark.parametrize("log_target", [True, False])
def test_a_divergence_of_the_teacher_from_itself_is_named_although_the_student_is_in_none(log_target):
    report, _ = observed(digits, lambda z, t: kl_of(t, t, log_target))
    found = next(f for f in report.findings if f.id == "KD311")
    assert found.status == "fail" and "holds the teacher's answer against itself" in found.message
    assert named_first(observed(digits, lambda z, t: kl_of(z, t, log_target))[0]) is None
