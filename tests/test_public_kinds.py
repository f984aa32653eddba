"""Kinds of slips from public bug reports, each in another manner than the reported one, beside its right twin."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from test_which_training import named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, mlp, rows, trained

STEPS = 14


def told(report, id):
    return next(f for f in report.findings if f.id == id)


def kl(z, said, t=1.0):
    return F.kl_div((z / t).log_softmax(-1), (said / t).softmax(-1), reduction="batchmean") * t * t


# -- five teachers in one tensor, the members first


class Panel(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.nets = nn.ModuleList(trained(mlp(12)) for _ in range(count))

    def forward(self, x):
        return torch.stack([net(x) for net in self.nets])


def panel(divided_by, alpha=0.6, t=3.0):
    teachers, student = Panel(5).eval().requires_grad_(False), mlp(8)
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    for _ in range(STEPS):
        x, y = rows()
        said, z = teachers(x), student(x)
        soft = sum(kl(z, one, t) for one in said) / divided_by(said)
        step(optimizer, (1 - alpha) * F.cross_entropy(z, y) + alpha * soft)
    return teachers, student


@pytest.mark.parametrize(("divided_by", "found"), [(len, None), (lambda said: said.shape[1], "5/B")])
def test_more_teachers_than_are_put_together_one_by_one_are_one_in_the_mean(divided_by, found):
    report, _ = observed(panel, divided_by)
    assert named_first(report) == (None if found is None else ("KD312", "error"))
    assert told(report, "KD313").message == "the term is KL(teacher || student), temperature 3"
    assert (found or "the weights sum to one") in told(report, "KD312").message


# -- tasks that follow each other under one head


def later_task(part, labels_of=slice(4, 8)):
    """The classes of a second task, 4 to 7 of twelve, are learned beside the answers of the network as it was."""
    centres = 2 * torch.randn(12, WIDTH)

    def draw(first, count):
        y = first + torch.randint(count, (48,))
        return centres[y] + torch.randn(48, WIDTH), y

    net = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 12))
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        x, y = draw(0, 4)
        step(adam, F.cross_entropy(net(x)[:, :4], y))
    before = copy.deepcopy(net).requires_grad_(False)
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(24):
        x, y = draw(4, 4)
        z, old = net(x), before(x)
        step(adam, F.nll_loss(z[:, labels_of].log_softmax(1), y - labels_of.start) + kl(z[:, part], old[:, part], 2.0))
    return net, before


def test_what_a_network_knew_is_kept_by_its_answers_over_the_classes_that_it_learned():
    report, trace = observed(later_task, slice(0, 4))
    assert named_first(report) is None and told(report, "KD313").status == "pass"
    assert trace.losses.sights[-1].explanations == [] or trace.teacher.hits.by_class.sum() == 0


def test_answers_over_classes_that_a_network_never_learned_teach_nothing():
    report, _ = observed(later_task, slice(4, 12))
    assert named_first(report) == ("KD303", "error"), told(report, "KD303").message


def test_labels_among_some_classes_say_nothing_of_answers_over_all():
    report, _ = observed(later_task, slice(0, 12))
    assert told(report, "KD303").status == "not_triggered" and told(report, "KD313").status == "pass"


# -- a mask that is to leave the label's class out


def others_apart(wrong, t=2.0):
    teacher, student = trained(mlp(24)).requires_grad_(False), mlp(8)
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    for _ in range(STEPS):
        x, y = rows()
        z, said = student(x), teacher(x)
        at = torch.arange(len(y))
        sure = said.softmax(1)[at, y]
        own = -(sure * z.log_softmax(1).gather(1, y[:, None]).squeeze(1)).mean()
        others = torch.ones_like(z, dtype=torch.bool)
        others[at, y] = wrong
        mine, its = (a[others].view(len(y), -1) / t for a in (z, said))
        step(optimizer, F.cross_entropy(z, y) + own - 3 * (its.softmax(1) * mine.log_softmax(1)).sum(1).mean())
    return teacher, student


@pytest.mark.parametrize("wrong", [False, True])
def test_a_mask_of_classes_that_leaves_none_out_is_told_beside_labels_by_hand(wrong):
    report, _ = observed(others_apart, wrong)
    assert named_first(report) == (("KD313", "error") if wrong else None), told(report, "KD313").message
    assert not wrong or "the mask leaves none out" in told(report, "KD313").message


# -- a student that begins as its teacher


def one_file(labels):
    """Teacher and student are made from one file; the divergence is torch's own."""
    file = io.BytesIO()
    torch.save(trained(mlp(12)).state_dict(), file)

    def made():
        net = mlp(12)
        file.seek(0)
        net.load_state_dict(torch.load(file))
        return net

    student, teacher = made(), made().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    for _ in range(STEPS):
        x, y = rows()
        z = student(x)
        step(optimizer, kl(z, teacher(x)) + (F.cross_entropy(z, y) if labels else 0))
    return student, teacher


def test_a_divergence_of_torchs_between_two_that_are_one_is_at_its_end_before_it_begins():
    report, _ = observed(one_file, False)
    assert named_first(report) == ("KD104", "error")
    assert "there is nothing to learn" in told(report, "KD104").message
    assert named_first(observed(one_file, True)[0]) is None


# -- adapters over weights that move


class Low(nn.Module):
    def __init__(self, whole, rank=3):
        super().__init__()
        self.whole, self.on = whole, True
        self.a, self.b = nn.Linear(whole.in_features, rank, bias=False), nn.Linear(rank, whole.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.whole(x) + self.b(self.a(x)) if self.on else self.whole(x)


def low_rank(frozen):
    net = trained(mlp(16))
    net[0], net[2] = Low(net[0]), Low(net[2])
    for name, p in net.named_parameters():
        p.requires_grad_(".whole." not in name or not frozen)
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    for _ in range(STEPS):
        x, _ = rows()
        net[0].on = net[2].on = False
        with torch.no_grad():
            said = net(x)
        net[0].on = net[2].on = True
        step(adam, kl(net(x * (torch.rand_like(x) > 0.4)), said))
    return net


def test_the_weights_below_adapters_are_the_teacher_and_stand_still():
    report, _ = observed(low_rank, False)
    assert named_first(report) == ("KD102", "error")
    assert "with its adapters off, and 4 of the parameters" in told(report, "KD102").message
    assert named_first(observed(low_rank, True)[0]) is None


def token_for_what_is_hidden(steps=STEPS):
    """A network that is shown less teaches itself by what it says of the whole, without the token that it learns."""

    class Hiding(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.net = nn.Parameter(torch.zeros(WIDTH)), mlp(16)

        def forward(self, x, hidden=None):
            return self.net(x if hidden is None else torch.where(hidden, self.token, x))

    net = Hiding()
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        x, y = rows()
        with torch.no_grad():
            said = net(x)
        step(adam, F.cross_entropy(net(x), y) + kl(net(x, torch.rand_like(x) < 0.3), said))
    return net


def test_a_part_that_is_used_for_the_student_alone_makes_no_base_of_the_rest():
    assert told(observed(token_for_what_is_hidden)[0], "KD102").status != "fail"


# -- targets that are one for all


def outweighed(by_sum, t=0.5):
    """What is taken from an average's answers is their running sum, or their running mean."""
    student = trained(mlp(16)).train()
    average, taken = copy.deepcopy(student).requires_grad_(False), torch.zeros(CLASSES)
    optimizer = torch.optim.SGD(student.parameters(), 0.02)
    for _ in range(24):
        x, y = rows()
        said, z = average(x), student(x + 0.1 * torch.randn_like(x))
        goal = F.softmax((said - taken) / t, dim=-1)
        step(optimizer, F.cross_entropy(z, y) - (goal * z.log_softmax(1)).sum(1).mean())
        taken = taken + said.sum(0) / 4 if by_sum else 0.9 * taken + 0.1 * said.mean(0)
        with torch.no_grad():
            for mine, its in zip(average.parameters(), student.parameters(), strict=True):
                mine.lerp_(its, 0.05)
    return student, average


@pytest.mark.parametrize("by_sum", [False, True])
def test_a_target_that_is_one_for_every_sample_is_told(by_sum):
    report, trace = observed(outweighed, by_sum)
    assert named_first(report) == (("KD313", "error") if by_sum else None), told(report, "KD313").message
    assert (trace.losses.collapsed is not None) == by_sum


# -- a target network that is to follow


def levels(updated):
    """A network learns to say of a far point what it says of a nearer one, to which a frozen copy leads."""
    guide = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 6))
    adam = torch.optim.Adam(guide.parameters(), 1e-2)
    for _ in range(20):
        x = torch.randn(64, 6)
        step(adam, F.mse_loss(guide(x + torch.randn_like(x)), x))
    guide.requires_grad_(False)
    online = copy.deepcopy(guide).requires_grad_(True)
    target = copy.deepcopy(guide)
    adam = torch.optim.Adam(online.parameters(), 1e-3)
    for _ in range(STEPS):
        far = torch.randn(64, 6) * 2
        nearer = far + 0.5 * (guide(far) - far)
        step(adam, F.mse_loss(online(far), target(nearer)))
        if updated:
            with torch.no_grad():
                for mine, its in zip(target.parameters(), online.parameters(), strict=True):
                    mine.mul_(0.9).add_(its, alpha=0.1)
    return guide, online, target


@pytest.mark.parametrize("updated", [True, False])
def test_a_copy_that_is_asked_behind_another_copy_is_to_follow(updated):
    report, trace = observed(levels, updated)
    assert named_first(report) == (None if updated else ("KD302", "warn"))
    assert (trace.teacher.change.average_rate is not None) == updated


# -- answers that are lost on the way


def collated(way):
    """A teacher is asked about clean rows before each step, and what it says is dropped, chosen by, or printed."""
    teacher, student, table = trained(mlp(16)).requires_grad_(False), mlp(8), torch.randn(CLASSES, WIDTH)
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    for _ in range(STEPS):
        x, y = rows()
        said = teacher(x if way == "used" else x + 0.1 * torch.randn_like(x))
        batch = {"rows": x, "labels": y, "said": said}
        if way == "chosen by":
            batch["rows"] = batch["rows"] + 0.01 * table[said.argmax(1)]
        if way == "printed":
            assert said.max().item() > -100
        fields = ("rows", "labels") if way != "used" else ("rows", "labels", "said")
        batch = {key: batch[key] for key in fields}
        z = student(batch["rows"])
        step(optimizer, F.cross_entropy(z, batch["labels"]) + (kl(z, batch["said"]) if "said" in batch else 0))
    return teacher, student


@pytest.mark.parametrize("way", ["dropped", "chosen by", "printed", "used"])
def test_a_network_that_is_asked_and_of_whose_answers_nothing_is_made_is_told(way):
    report, _ = observed(collated, way)
    assert named_first(report) == (("KD311", "warn") if way == "dropped" else None)
    assert way != "dropped" or "Sequential (teacher) is asked" in told(report, "KD311").message


def texts_written(steps=STEPS):
    """A student learns the words that another network writes, one by one."""
    words = lambda: nn.Sequential(nn.Embedding(20, 12), nn.Linear(12, 20))  # noqa: E731
    teacher, student = words(), words()
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(8):
        ids = torch.randint(20, (16, 6))
        step(adam, F.cross_entropy(teacher(ids).flatten(0, 1), (ids * 3 % 20).flatten()))
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(steps):
        ids = torch.randint(20, (8, 2))
        with torch.no_grad():
            for _ in range(14):
                ids = torch.cat([ids, teacher(ids)[:, -1:].argmax(-1)], 1)
        step(adam, F.cross_entropy(student(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    return teacher, student


def test_a_network_whose_texts_are_learned_is_not_asked_for_nothing():
    report, trace = observed(texts_written)
    assert named_first(report) is None and trace.losses.asked is None


# -- sequences of different lengths, filled up with zeros


def tracks(masked, filled=0.0):
    """Tracks of 4 to 9 places, filled up to 9, whose speeds are learned from numbers and from a teacher."""

    def net(width):
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))

    def draw():
        x = torch.randn(16, 9, 3)
        there = torch.arange(9)[None] < torch.randint(4, 10, (16, 1))
        return torch.where(there[..., None], x, filled), x[..., :2] * x[..., 2:], there

    def hard(z, y, there):
        return F.smooth_l1_loss(z[there], y[there])

    teacher, student = net(32), net(8)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(20):
        x, y, there = draw()
        step(adam, hard(teacher(x), y, there))
    teacher.requires_grad_(False)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y, there = draw()
        z, said = student(x), teacher(x)
        soft = F.mse_loss(z[there], said[there]) if masked else F.mse_loss(z, said)
        step(adam, hard(z, y, there) + 0.5 * soft)
    return teacher, student


@pytest.mark.parametrize(("masked", "filled"), [(True, 0.0), (False, 0.0), (False, 0.1)])
def test_places_of_zeros_that_only_the_teacher_teaches_are_padding(masked, filled):
    report, _ = observed(tracks, masked, filled)
    assert named_first(report) == (None if masked or filled else ("KD352", "warn")), told(report, "KD352").message


# -- two heads, each with its own temperature and weight


def two_heads(mean_over_classes):
    class Two(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body, self.kind, self.place = nn.Linear(WIDTH, width), nn.Linear(width, CLASSES), nn.Linear(width, 7)

        def forward(self, x):
            h = self.body(x).relu()
            return self.kind(h), self.place(h)

    def learned(net, loss, steps):
        adam = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(steps):
            x, y = rows()
            step(adam, loss(net, x, y))
        return net

    def hard(net, x, y):
        kind, place = net(x)
        return F.cross_entropy(kind, y) + F.cross_entropy(place, y % 3 + (x[:, 0] > 0))

    def soft(z, said, t):
        each = F.kl_div((z / t).log_softmax(1), (said / t).softmax(1), reduction="none")
        return (each.mean(1) if mean_over_classes else each.sum(1)).mean() * t**2

    teacher = learned(Two(24), hard, 20).requires_grad_(False)

    def distilled(net, x, y):
        (kind, place), (its_kind, its_place) = net(x), teacher(x)
        return hard(net, x, y) + 0.5 * soft(kind, its_kind, 2.0) + 0.3 * soft(place, its_place, 5.0)

    return teacher, learned(Two(8), distilled, STEPS)


@pytest.mark.parametrize("mean_over_classes", [False, True])
def test_what_one_head_is_multiplied_by_is_not_another_heads(mean_over_classes):
    report, _ = observed(two_heads, mean_over_classes)
    assert named_first(report) == (("KD312", "warn") if mean_over_classes else None)
    assert not mean_over_classes or "1/C (the mean divides by the classes too)" in told(report, "KD312").message
