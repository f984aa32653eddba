"""Sides of a term that are not what they are taken for, and correct ones beside them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_taken_for_several import distil, found, mlp, rows, soft, trained
from test_which_training import named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH

# -- members of an ensemble


@pytest.mark.parametrize("cloned", [True, False])
def test_members_that_hold_the_same_numbers_are_told(cloned):
    def loop():
        worker, states = mlp(16), []
        start = copy.deepcopy(worker.state_dict())
        for _ in range(3):
            worker.load_state_dict(start)
            learn = torch.optim.Adam(worker.parameters(), 2e-2)
            for _ in range(15):
                x, y = rows()
                step(learn, F.cross_entropy(worker(x), y))
            states.append({k: v.detach().clone() if cloned else v.detach() for k, v in worker.state_dict().items()})
        members = [mlp(16) for _ in states]
        for member, state in zip(members, states, strict=True):
            member.load_state_dict(state)

        def term(x, y, student):
            with torch.no_grad():
                said = torch.stack([m(x).softmax(1) for m in members]).mean(0)
            return F.kl_div(student(x).log_softmax(1), said, reduction="batchmean")

        return distil(members, mlp(8), term)

    report, _ = observed(loop)
    assert named_first(report) == (None if cloned else ("KD304", "warn"))
    assert cloned or found(report, "KD304").observed == {"relation": "repeated", "how": "twins"}


class Committee:
    """A frozen expert and an average of the student, which has a last layer of the expert's shape."""

    def __init__(self, expert, student):
        self.expert, self.average = expert, copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x):
        p = torch.stack([self.expert(x).softmax(1), self.average(x).softmax(1)])
        sure = p.max(2, keepdim=True).values
        return (sure * p).sum(0) / sure.sum(0)

    @torch.no_grad()
    def follow(self, student, left_out=()):
        for (name, a), s in zip(self.average.named_parameters(), student.parameters(), strict=True):
            if name not in left_out:
                a.mul_(0.9).add_(s, alpha=0.1)


@pytest.mark.parametrize("left_out", [(), ("2.bias",)], ids=["all", "but a bias"])
def test_an_expert_beside_an_average_is_none_of_it(left_out):
    def loop():
        expert, student = trained(24).eval().requires_grad_(False), mlp(8)
        committee = Committee(expert, student)
        optimizer = torch.optim.Adam(student.parameters(), 1e-2)
        for _ in range(20):
            x, y = rows()
            said = student(x)
            step(optimizer, 0.6 * F.cross_entropy(said, committee(x)) + 0.4 * F.cross_entropy(said, y))
            committee.follow(student, left_out)
        return committee, student

    report, _ = observed(loop)
    assert named_first(report) == (("KD302", "error") if left_out else None)
    assert found(report, "KD313").status == "pass"  # a mean by weights of each row's own


# -- what is stored and shown


@pytest.mark.parametrize("copied", [True, False])
def test_a_batch_that_is_one_row_is_told(copied):
    def loop():
        teacher, buffer, store = trained().eval().requires_grad_(False), torch.zeros(WIDTH), []
        for _ in range(200):
            buffer.copy_(torch.randn(WIDTH))
            with torch.no_grad():
                store.append((buffer.clone() if copied else buffer, teacher(buffer[None])[0].softmax(0)))

        def term(x, y, student):
            picked = [store[int(i)] for i in torch.randint(0, len(store), (32,))]
            x, p = (torch.stack(side) for side in zip(*picked, strict=True))
            return F.kl_div(student(x).log_softmax(1), p, reduction="batchmean")

        return *distil([], mlp(8), term), store

    report, _ = observed(loop)
    assert named_first(report) == (None if copied else ("KD305", "error"))
    assert copied or found(report, "KD305").observed == {"rows": 32}


def test_one_sample_that_is_shown_again_with_one_answer_is_no_mistake():
    def loop():
        teacher = trained()

        def term(x, y, student):
            x = x[:1].expand(len(x), -1)
            with torch.no_grad():
                its = teacher(x)
            return soft(student(x), its)

        return distil([teacher], mlp(8), term)

    report, _ = observed(loop)
    assert found(report, "KD305").status == "pass"


# -- scores


class Scorer(nn.Module):
    """Answers scores in evaluation, and logits while it learns, as detectors do."""

    def __init__(self, width):
        super().__init__()
        self.net = mlp(width)

    def forward(self, x):
        z = self.net(x)
        return z if self.training else z.sigmoid()


@pytest.mark.parametrize("again", [True, False])
def test_a_sigmoid_of_a_sigmoid_is_told(again):
    def loop():
        teacher, student = Scorer(24), Scorer(8)
        learn = torch.optim.Adam(teacher.parameters(), 2e-2)
        for _ in range(40):
            x, y = rows()
            step(learn, F.binary_cross_entropy_with_logits(teacher(x), F.one_hot(y, CLASSES).float()))

        def term(x, y, student):
            with torch.no_grad():
                its = teacher(x)
            target = its.unsqueeze(2).sigmoid().squeeze(2) if again else its
            return F.binary_cross_entropy_with_logits(student(x), target)

        return distil([teacher], student, term)

    report, _ = observed(loop)
    assert named_first(report) == (("KD313", "error") if again else None)
    assert ("a sigmoid is taken of them again" in found(report, "KD313").message) == again


class Likeness(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net, self.scale = nn.Linear(WIDTH, width), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return F.normalize(self.net(x), dim=1)


@pytest.mark.parametrize("whose", ["student's", "detached", "teacher's"])
def test_a_target_that_is_scaled_by_what_the_student_learns_is_told(whose):
    def loop():
        teacher, student = Likeness(16), Likeness(8)
        learn = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(30):
            x, _ = rows()
            e = teacher(x)
            near = e @ F.normalize(teacher.net(x + 0.1 * torch.randn_like(x)), dim=1).T
            step(learn, F.cross_entropy(teacher.scale.exp() * near, torch.arange(len(x))))

        def term(x, y, student):
            with torch.no_grad():
                e = teacher(x)
            scale = {"student's": student.scale, "detached": student.scale.detach(), "teacher's": teacher.scale}[whose]
            mine = student(x)
            target = (scale.exp() * e @ e.T).softmax(1)
            return F.kl_div((student.scale.exp() * mine @ mine.T).log_softmax(1), target, reduction="batchmean")

        return distil([teacher], student, term)

    report, _ = observed(loop)
    assert named_first(report) == (("KD313", "warn") if whose == "student's" else None)
    assert whose != "student's" or found(report, "KD313").observed["parameters"] == ["student.scale"]


# -- adapters


class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.active = base, True
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        out = self.base(x)
        return out + self.up(self.down(x)) if self.active else out


class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        base.requires_grad_(False)
        self.net = nn.Sequential(base[0], nn.ReLU(), Adapter(base[2]), nn.ReLU(), base[4])

    def forward(self, x):
        return self.net(x)


def deep(width):
    return nn.Sequential(
        nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


@pytest.mark.parametrize("way", ["on", "off", "on beside labels"])
def test_adapters_that_are_on_where_the_target_is_made_are_told(way):
    def loop():
        base = trained(64, net=deep)
        hint = 0.5 * torch.randn(WIDTH)

        def term(x, y, student):
            adapter.active = way != "off"
            with torch.no_grad():
                its = student(x + hint)  # shown more than the student is to need
            adapter.active = True
            mine = student(x)
            return soft(mine, its) + (F.cross_entropy(mine, y) if "labels" in way else 0.0)

        student = Adapted(base)
        adapter = student.net[2]
        optimizer = torch.optim.Adam([*adapter.down.parameters(), *adapter.up.parameters()], 1e-2)
        for _ in range(12):
            x, y = rows()
            step(optimizer, term(x, y, student))
        return student, optimizer

    report, _ = observed(loop)
    assert named_first(report) == (("KD311", "error") if way == "on" else None)
    assert way != "on" or "switch the adapters off" in found(report, "KD311").mend


# -- projectors


class Staged(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU()), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.two(self.one(x)).relu())


def tapped(net, names, late):
    maps = {}
    for name in names:
        if late:
            getattr(net, name).register_forward_hook(lambda m, i, out: maps.__setitem__(name, out))  # noqa: B023 - the slip
        else:
            getattr(net, name).register_forward_hook(lambda m, i, out, name=name: maps.__setitem__(name, out))
    return maps


@pytest.mark.parametrize("way", ["late", "bound", "not optimised"])
def test_a_projector_that_is_never_called_beside_others_is_told(way):
    def loop():
        teacher, student, names = trained(24, net=Staged), Staged(8), ("one", "two")
        its, mine = (tapped(net, names, way != "bound") for net in (teacher, student))
        project = nn.ModuleDict({name: nn.Linear(8, 24) for name in names})
        teacher.eval().requires_grad_(False)
        held = project["two"] if way == "not optimised" else project
        optimizer = torch.optim.Adam([*student.parameters(), *held.parameters()], 1e-2)
        for _ in range(20):
            x, y = rows()
            with torch.no_grad():
                teacher(x)
            said = student(x)
            hints = sum(F.mse_loss(project[name](mine[name]), t) for name, t in its.items())
            step(optimizer, F.cross_entropy(said, y) + hints)
        return teacher, student, project

    report, _ = observed(loop)
    assert named_first(report) == (("KD215", "warn") if way == "late" else None)
    assert way != "late" or found(report, "KD215").observed["layers"][0].endswith(".one")


# -- peers


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("whose", [0, 1])
def test_a_layer_of_a_peer_that_no_optimizer_holds_is_told(whose, whole):
    def loop():
        peers = [mlp(12), mlp(16)]
        held = [list(p.parameters()) for p in peers]
        held[whose] = held[whose] if whole else held[whose][:2]
        optimizers = [torch.optim.SGD(params, 0.05) for params in held]
        for _ in range(12):
            x, y = rows()
            said = [p(x) for p in peers]
            losses = [F.cross_entropy(said[i], y) + soft(said[i], said[1 - i].detach()) for i in range(2)]
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return peers, optimizers

    report, trace = observed(loop)
    assert trace.peers
    assert named_first(report) == (None if whole else ("KD101", "error"))
