"""Answers that are one and taken for several, terms that are mere numbers, heads that no loss hears, constants."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_which_training import named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH

DIFFERENCE = {"relation": "repeated", "how": "difference"}
MIXTURE = {"relation": "repeated", "how": "mixture"}


def rows(n=32):
    x = torch.randn(n, WIDTH)
    return x, x[:, :CLASSES].argmax(1)


def mlp(width):
    return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, CLASSES))


def trained(width=24, steps=40, net=mlp):
    net = net(width)
    learn = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 2e-2)
    for _ in range(steps):
        x, y = rows()
        step(learn, F.cross_entropy(net(x), y))
    return net


def distil(teachers, student, term, steps=12):
    for teacher in teachers:
        teacher.eval().requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        x, y = rows()
        step(optimizer, term(x, y, student))
    return teachers, student, optimizer


def soft(mine, its):
    return F.kl_div((mine / 2).log_softmax(1), (its / 2).softmax(1), reduction="batchmean") * 4


def found(report, name):
    return next(f for f in report.findings if f.id == name)


# -- one question, asked twice


def guided(teacher, x, other, scale=2.0):
    with torch.no_grad():
        with_it, without = teacher(x), teacher(other)
        return without + scale * (with_it - without)


@pytest.mark.parametrize("blank", [True, False])
def test_a_difference_of_one_answer_with_itself_is_told(blank):
    def loop():
        teacher = trained()
        return distil(
            [teacher], mlp(8), lambda x, y, s: F.mse_loss(s(x), guided(teacher, x, torch.zeros_like(x) if blank else x))
        )

    report, _ = observed(loop)
    assert named_first(report) == (None if blank else ("KD304", "error"))
    assert blank or found(report, "KD304").observed == DIFFERENCE


def late(nets):
    return [lambda x: net(x) for net in nets]  # noqa: B023 - the slip


def bound(nets):
    return [lambda x, net=net: net(x) for net in nets]


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("asks", [late, bound])
def test_teachers_that_are_all_the_last_one_are_told(asks, stacked):
    def mixed(ask, x):
        with torch.no_grad():
            said = [f(x) for f in ask]
            return torch.stack(said).mean(0) if stacked else 0.5 * said[0] + 0.5 * said[1]

    def loop():
        nets = [trained(), trained(16)]
        ask = asks(nets)
        return distil(nets, mlp(8), lambda x, y, s: soft(s(x), mixed(ask, x)))

    report, _ = observed(loop)
    assert named_first(report) == (("KD304", "warn") if asks is late else None)
    assert asks is bound or found(report, "KD304").observed == MIXTURE


def test_a_teacher_that_is_asked_once_for_each_term_is_not():
    def loop():
        teacher = trained()

        def term(x, y, student):
            with torch.no_grad():
                one, other = teacher(x), teacher(x)
            said = student(x)
            return soft(said, one) + F.mse_loss(said, other)

        return distil([teacher], mlp(8), term)

    report, _ = observed(loop)
    assert named_first(report) is None


class Parts(nn.Module):
    """One body, and a head for each thing that is told of a row."""

    def __init__(self, heads):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(12, CLASSES) for _ in range(heads))

    def forward(self, x):
        h = self.body(x)
        return [head(h) for head in self.heads]


@pytest.mark.parametrize("width", [24, 16], ids=["one shape", "other widths"])
@pytest.mark.parametrize("asks", [late, bound])
def test_a_teacher_asked_in_the_place_of_others_is_told(asks, width):
    def loop():
        nets = [trained(), trained(width), trained()]
        ask = asks(nets)

        def term(x, y, student):
            said, total = student(x), 0.0
            for mine, its in zip(said, ask, strict=True):
                with torch.no_grad():
                    target = its(x)
                total = total + soft(mine, target)
            return total

        return distil(nets, Parts(3), term)

    report, _ = observed(loop)
    assert named_first(report) == (("KD304", "warn") if asks is late else None)
    assert asks is bound or found(report, "KD304").observed == {"relation": "repeated", "how": "each", "times": 3}


@pytest.mark.parametrize("beside", [0, 1, 3], ids=["alone", "and one more", "and more than that"])
def test_one_teacher_of_several_exits_is_not(beside):
    def loop():
        teacher, others = trained(), [trained().eval().requires_grad_(False) for _ in range(beside)]

        def term(x, y, student):
            total = F.cross_entropy(student(x)[0], y)
            for mine in student(x):
                with torch.no_grad():
                    its = teacher(x)
                total = total + soft(mine, its)
            return total

        return *distil([teacher], Parts(3), term), others

    report, _ = observed(loop)
    assert named_first(report) is None


# -- a term that is a number


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda t: torch.tensor(t.item(), requires_grad=True), ("KD311", "error")),
        (lambda t: t.data.clone().requires_grad_(), ("KD311", "error")),
        (lambda t: t, None),
    ],
    ids=["tensor", "data", "as it is"],
)
def test_a_term_that_is_made_anew_is_told(made, named):
    def loop():
        teacher = trained()

        def term(x, y, student):
            with torch.no_grad():
                its = teacher(x)
            said = student(x)
            return F.cross_entropy(said, y) + 0.5 * made(soft(said, its))

        return distil([teacher], mlp(8), term)

    report, _ = observed(loop)
    assert named_first(report) == named


@pytest.mark.parametrize("start", [0.0, 0.5], ids=["zero", "a constant"])
def test_a_number_that_a_sum_begins_with_is_no_term(start):
    def loop():
        teacher = trained()

        def term(x, y, student):
            total = torch.tensor(start, requires_grad=True)
            with torch.no_grad():
                its = teacher(x)
            total = total + F.cross_entropy(student(x), y)
            return total + soft(student(x), its)

        return distil([teacher], mlp(8), term)

    report, _ = observed(loop)
    assert named_first(report) is None


@pytest.mark.parametrize("anew", [True, False])
def test_a_number_that_scales_the_logits_or_is_learned_is_no_such_term(anew):
    def loop():
        teacher = trained()
        kept = torch.tensor(2.0, requires_grad=True)

        def term(x, y, student):
            with torch.no_grad():
                its = teacher(x)
            scale = torch.tensor(2.0, requires_grad=True) if anew else kept
            mine = (student(x) / scale).log_softmax(1)
            extra = 0.0 if anew else 1e-3 * kept
            return F.kl_div(mine, (its / 2).softmax(1), reduction="batchmean") * 4 + extra

        return distil([teacher], mlp(8), term)

    report, trace = observed(loop)
    assert found(report, "KD311").status != "fail"
    assert trace.losses.remade is None or trace.losses.remade.windows == 1


# -- a head that no loss hears


class TwoHeads(nn.Module):
    def __init__(self, width, second=CLASSES):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU())
        self.head, self.head_dist = nn.Linear(width, CLASSES), nn.Linear(width, second)

    def forward(self, x):
        h = self.body(x)
        return self.head(h), self.head_dist(h)


@pytest.mark.parametrize(
    ("second", "used", "named"),
    [(CLASSES, False, ("KD215", "warn")), (CLASSES, True, None), (WIDTH, False, None)],
    ids=["beside", "in the loss", "of another width"],
)
def test_a_head_beside_another_that_no_loss_hears_is_told(second, used, named):
    def loop():
        teacher, student = trained(), TwoHeads(16, second)

        def term(x, y, student):
            with torch.no_grad():
                its = teacher(x)
            one, other = student(x)
            return F.cross_entropy(one, y) + soft(other if used else one, its)

        return distil([teacher], student, term)

    report, _ = observed(loop)
    assert named_first(report) == named
    if named:
        assert found(report, "KD215").observed == {"layers": ["student.head_dist"]}


class Wrapped(nn.Module):
    """An adapter as libraries build it: the layer, and what is learned beside it in a dictionary."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.down = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.up = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})
        nn.init.zeros_(self.up["default"].weight)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.up["default"](self.down["default"](x))


@pytest.mark.parametrize("past", [True, False])
def test_an_adapter_whose_layer_is_used_past_it_is_told(past):
    def loop():
        teacher, body, head = trained(), nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh()), Wrapped(nn.Linear(8, CLASSES))

        class Student(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = body, head

        def term(x, y, student):
            with torch.no_grad():
                its = teacher(x)
            h = student.body(x)
            return soft(F.linear(h, student.head.weight) if past else student.head(h), its)

        return distil([teacher], Student(), term)

    report, _ = observed(loop)
    assert named_first(report) == (("KD215", "error") if past else None)


# -- what is no weight, and what came before


class Waves(nn.Module):
    """Frequencies that are parameters and fixed; or a whole layer of them."""

    def __init__(self, width, fixed=3):
        super().__init__()
        self.waves = nn.Parameter(2.0 ** torch.arange(fixed), requires_grad=False)
        self.net = nn.Sequential(nn.Linear(WIDTH + fixed, width), nn.ReLU(), nn.Linear(width, CLASSES))

    def forward(self, x):
        return self.net(torch.cat([x, (x[:, :1] * self.waves).sin()], 1))


def test_frequencies_that_nobody_trains_are_no_weights_that_nobody_loaded():
    def loop():
        teacher = trained(net=Waves)
        student = copy.deepcopy(teacher)
        noisy = lambda x: x + 0.1 * torch.randn_like(x)  # noqa: E731

        def term(x, y, student):
            with torch.no_grad():
                its = teacher(x)
            return soft(student(noisy(x)), its)

        return distil([teacher], student, term)

    report, _ = observed(loop)
    assert found(report, "KD104").status == "pass"


class HalfFixed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, width).requires_grad_(False), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.first(x).relu())


def test_a_layer_that_nobody_trained_or_loaded_is_told_though_it_is_frozen():
    def loop():
        teacher = trained(net=HalfFixed)
        return distil([teacher], mlp(8), lambda x, y, s: soft(s(x), teacher(x)))

    report, _ = observed(loop)
    assert found(report, "KD104").status == "fail"


class Towers(nn.Module):
    """Two inputs, each with an entrance of its own, one trunk; it is called by its parts alone."""

    def __init__(self, width):
        super().__init__()
        self.ask, self.answer = nn.Linear(WIDTH, width), nn.Linear(WIDTH, width)
        self.trunk = nn.Sequential(nn.Tanh(), nn.Linear(width, width))

    def scores(self, q, d):
        a, b = (F.normalize(self.trunk(x), dim=1) for x in (self.ask(q), self.answer(d)))
        return a @ b.T / 0.2


def test_a_network_of_parts_that_learned_from_soft_labels_before_is_the_teacher():
    def pairs(n=24):
        topic = torch.randint(0, 6, (n,))
        q, d = (torch.randn(n, WIDTH) + 3 * F.one_hot(topic, WIDTH) for _ in range(2))
        return q, d, topic

    def loop():
        teacher, student = Towers(16), Towers(8)
        learn = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(30):
            q, d, topic = pairs()
            alike = (topic[:, None] == topic[None]).float()
            step(learn, -(alike / alike.sum(1, keepdim=True) * teacher.scores(q, d).log_softmax(1)).sum(1).mean())
        teacher.requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), 1e-2)
        for _ in range(12):
            q, d, _ = pairs()
            with torch.no_grad():
                target = teacher.scores(q, d).softmax(1)
            step(optimizer, (target * (target.log() - student.scores(q, d).log_softmax(1))).sum(1).mean())
        return teacher, student

    report, trace = observed(loop)
    assert [f.message for f in report.failed("warn")] == []
    assert trace.roles["student"] == ["Towers (student)"]


# -- a world that the student acts in


@pytest.mark.parametrize("acts", [True, False])
def test_a_teacher_that_is_shown_what_the_student_led_to_is_shown_no_unfamiliar_batch(acts):
    def loop():
        teacher, student = trained(), mlp(8)
        turn = torch.randn(CLASSES, WIDTH) * 0.05

        def term(x, y, student):
            total = 0.0
            state = 0.3 * x
            for _ in range(3):
                with torch.no_grad():
                    its = teacher(state)
                said = student(state)
                total = total + F.mse_loss(said, its)
                state = (state + said.detach() @ turn) if acts else 0.3 * torch.randn_like(x)
            return total

        return distil([teacher], student, term)

    report, _ = observed(loop)
    assert (found(report, "KD304").status == "fail") != acts


# -- maps of another size


class Maps(nn.Module):
    """Answers (B, C, H, W) at a half or a quarter of the picture's size."""

    def __init__(self, width, stride):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, width, 3, stride, 1), nn.ReLU(), nn.Conv2d(width, CLASSES, 3, 1, 1))

    def forward(self, x):
        return self.net(x)


class PixelKL(nn.Module):
    def __init__(self, moved):
        super().__init__()
        self.moved = moved

    def rows(self, z):
        return z.permute(0, 2, 3, 1).reshape(-1, CLASSES) if self.moved else z.reshape(-1, CLASSES)

    def forward(self, mine, its):
        its = F.interpolate(its, size=mine.shape[-2:], mode="bilinear", align_corners=False)
        return soft(self.rows(mine), self.rows(its))


@pytest.mark.parametrize("moved", [True, False])
def test_a_teachers_map_is_followed_to_the_students_size(moved):
    def pictures(n=8):
        x = torch.randn(n, 1, 16, 16)
        return x, (x[:, 0] * 2).long().clamp(0, CLASSES - 1)

    def up(z):
        return F.interpolate(z, size=(16, 16), mode="bilinear", align_corners=False)

    def loop():
        teacher, student, term = Maps(16, 2), Maps(8, 4), PixelKL(moved)
        learn = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(20):
            x, y = pictures()
            step(learn, F.cross_entropy(up(teacher(x)), y))
        teacher.eval().requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters(), 1e-2)
        for _ in range(10):
            x, y = pictures()
            with torch.no_grad():
                its = teacher(x)
            mine = student(x)
            step(optimizer, F.cross_entropy(up(mine), y) + term(mine, its))
        return teacher, student

    report, _ = observed(loop)
    assert named_first(report) == (None if moved else ("KD313", "error"))
    assert {f.id: f.status for f in report.findings}["KD313"] == ("pass" if moved else "fail")
