"""What a frozen backbone under two heads, encoders before two denoisers or a generator of samples answer is data."""

import pytest
import torch
import torch.nn.functional as F
from test_forms_by_hand import verdict_of
from test_which_training import STEPS, named_first, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, mlp, rows, trained


def learner(*modules):
    return torch.optim.Adam([p for m in modules for p in m.parameters()], 1e-2)


def fit(module, asked, steps=40):
    """Train a network on what `asked` gives: an input, and labels or numbers."""
    adam = learner(module)
    for _ in range(steps):
        given, y = asked()
        out = module(given)
        step(adam, F.cross_entropy(out, y) if y.dtype == torch.long else F.mse_loss(out, y))
    return module.eval().requires_grad_(False)


def soft(s, t, scale=9.0):
    return F.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean") * scale


def on_one_backbone(slip):
    """Two heads on one frozen network; the student's label loss is beside the divergence."""
    backbone = trained(mlp(24))[:2].requires_grad_(False)

    def seen():
        x, y = rows()
        with torch.no_grad():
            return backbone(x), y

    teacher = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    teacher = teacher.eval().requires_grad_(False) if slip == "fresh" else fit(teacher, seen)
    student = nn.Linear(24, CLASSES)
    adam = learner(student)
    for _ in range(STEPS):
        features, y = seen()
        with torch.no_grad():
            taught = teacher(features)
        taught = taught.flip(0) if slip == "flipped" else taught
        loss = soft(student(features), taught, 1.0 if slip == "unscaled" else 9.0)
        step(adam, F.cross_entropy(student(features), y) + loss)
    return backbone, teacher, student


@pytest.mark.parametrize(
    ("slip", "audit"), [("", None), ("fresh", "KD104"), ("flipped", "KD305"), ("unscaled", "KD312")]
)
def test_heads_on_one_frozen_backbone_are_teacher_and_student(slip, audit):
    report, trace = observed(on_one_backbone, slip)
    assert trace.roles["teacher"] == ["Sequential (teacher)"] and trace.roles["student"] == ["Linear (student)"]
    assert (named_first(report) or (None,))[0] == audit


class Denoiser(nn.Module):
    """Is shown a noisy code, a time and what it is to show."""

    def __init__(self, width):
        super().__init__()
        self.clock = nn.Linear(1, 4)
        self.body = nn.Sequential(nn.Linear(8 + 6 + 4, width), nn.SiLU(), nn.Linear(width, 8))

    def forward(self, noisy, time, words):
        return self.body(torch.cat([noisy, words, self.clock(time)], 1))


def behind_encoders(slip):
    """An encoder of pictures and one of words, both frozen, before a teacher and a student."""
    pictures, words = nn.Linear(WIDTH, 8).requires_grad_(False), nn.Embedding(CLASSES, 6).requires_grad_(False)
    teacher, student = Denoiser(32), Denoiser(12)

    def noised():
        x, y = rows()
        with torch.no_grad():
            code, said = pictures(x), words(y)
        time, noise = torch.rand(len(x), 1), torch.randn(len(x), 8)
        return ((1 - time) * code + time * noise, time, said), noise - code

    adam = learner(teacher)
    for _ in range(0 if slip == "fresh" else 40):
        given, velocity = noised()
        step(adam, F.mse_loss(teacher(*given), velocity))
    teacher.requires_grad_(False)
    adam = learner(student)
    for _ in range(STEPS):
        (noisy, time, said), _ = noised()
        with torch.no_grad():
            taught = teacher(noisy.flip(0) if slip == "flipped" else noisy, time, said)
        step(adam, F.mse_loss(student(noisy, time, said), taught))
    return pictures, words, teacher, student


@pytest.mark.parametrize("slip", ["", "fresh"])
def test_frozen_encoders_before_both_are_no_teachers(slip):
    report, trace = observed(behind_encoders, slip)
    assert trace.roles["teacher"] == ["Denoiser (teacher)"] and trace.roles["student"] == ["Denoiser (student)"]
    assert named_first(report) == (("KD104", "error") if slip else None)
    if not slip:
        assert verdict_of(report, "KD305").status == "pass"


def from_a_generator(_):
    """A generator looks for samples on which the two disagree, and the student learns from the teacher on them."""
    teacher, student = trained(mlp(24)).requires_grad_(False), mlp(12)
    generator = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, WIDTH))
    of_generator, of_student = learner(generator), learner(student)
    for _ in range(STEPS):
        made = generator(torch.randn(32, 6))
        step(of_generator, -soft(student(made), teacher(made)))
        made = generator(torch.randn(32, 6)).detach()
        step(of_student, soft(student(made), teacher(made).detach()))
    return teacher, student, generator


def test_a_generator_makes_data_and_its_samples_are_not_held_against_the_teachers_own():
    report, trace = observed(from_a_generator, None)
    assert trace.roles["teacher"] == ["Sequential (teacher)"] and trace.roles["student"] == ["Sequential (student)"]
    assert named_first(report) is None and verdict_of(report, "KD304").status == "pass"


def beside_the_teachers_own_head(_):
    """A teacher whose parts are called one by one, and a projector on its features: these are a hint, and no data."""
    body, head = (part.requires_grad_(False) for part in (trained(mlp(24))[:2], nn.Linear(24, CLASSES)))
    student = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, CLASSES))
    narrow = nn.Linear(24, 12)
    adam = learner(student, narrow)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            features = body(x)
            taught = head(features)
        mine = student[:2](x)
        logits = student[2](mine)
        step(adam, F.cross_entropy(logits, y) + soft(logits, taught) + F.mse_loss(mine, narrow(features)))
    return body, head, student, narrow


def test_features_that_a_projector_and_the_teachers_head_are_given_are_the_teachers():
    _, trace = observed(beside_the_teachers_own_head, None)
    assert "Linear (narrow)" in trace.roles["projectors"] and "narrow" not in str(trace.roles["student"])
    assert any("body" in name for name in trace.roles["teacher"])


class Both(nn.Module):
    """Holds a frozen backbone, a frozen head that was trained on it, and the student's head."""

    def __init__(self, backbone, teacher, student):
        super().__init__()
        self.backbone, self.teacher, self.student = backbone, teacher, student

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
            taught = self.teacher(features)
        return self.student(features), taught


def in_one_module(_):
    net = trained(mlp(24)).requires_grad_(False)
    both = Both(net[:2], net[2:], nn.Linear(24, CLASSES))
    adam = learner(both.student)
    for _ in range(STEPS):
        x, y = rows()
        logits, taught = both(x)
        step(adam, F.cross_entropy(logits, y) + soft(logits, taught))
    return net, both


def test_one_module_may_hold_backbone_teacher_and_student():
    report, trace = observed(in_one_module, None)
    (student,), (teacher,) = trace.roles["student"], trace.roles["teacher"]
    assert student.startswith("Linear") and teacher.startswith("Sequential")
    assert named_first(report) is None


class Adapted(nn.Module):
    """A frozen layer with an adapter beside it, as LoRA has them."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down, self.up = (
            layer,
            nn.Linear(24, 4, bias=False),
            nn.Linear(4, layer.out_features, bias=False),
        )
        self.is_on = True

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x)) if self.is_on else self.layer(x)


def with_an_adapter(_):
    """A network whose adapter learns from another network; it lies behind frozen layers."""
    teacher, net = trained(mlp(24)).requires_grad_(False), trained(mlp(24)).requires_grad_(False)
    layers = [*net]
    at = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    student = nn.Sequential(*(Adapted(layer) if i == at else layer for i, layer in enumerate(layers)))
    adam = learner(student[at])
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            taught = teacher(x)
        logits = student(x)
        step(adam, F.cross_entropy(logits, y) + soft(logits, taught))
    return teacher, net, student


def test_a_frozen_layer_beside_its_adapter_is_no_teacher():
    report, trace = observed(with_an_adapter, None)
    assert trace.roles["teacher"] == ["Sequential (teacher)"] and trace.roles["student"] == ["Sequential (student)"]
    assert named_first(report) is None


class Attends(nn.Module):
    """Frozen layers, of which the queries have an adapter that can be switched off."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.asks = nn.Embedding(20, 24), nn.LayerNorm(24), nn.Linear(24, 24)
        self.keys, self.gives, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 20)

    def forward(self, ids):
        x = self.norm(self.words(ids))
        scores = self.asks(x) @ self.keys(x).transpose(1, 2) / 5
        return self.head(x + self.gives(scores.softmax(-1) @ x))


def teaches_itself_with_more_context(_):
    """A network whose adapter is off teaches it with a hint before the text, without labels."""
    net = Attends()
    learn = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(STEPS):
        ids = torch.randint(0, 20, (16, 6))
        step(learn, F.cross_entropy(net(ids).flatten(0, 1), ids.flatten()))
    net.requires_grad_(False)
    net.asks = Adapted(net.asks)
    for part in (net.asks.down, net.asks.up):
        part.requires_grad_(True)
    nn.init.zeros_(net.asks.up.weight)
    adam = torch.optim.Adam([*net.asks.down.parameters(), *net.asks.up.parameters()], 1e-2)
    for _ in range(STEPS):
        ids = torch.randint(0, 20, (16, 6))
        with torch.no_grad():
            net.asks.is_on = False
            taught = net(torch.cat([torch.full((16, 1), 3), ids], 1))[:, 1:]
            net.asks.is_on = True
        step(adam, soft(net(ids).flatten(0, 1), taught.flatten(0, 1)))
    return net


def test_layers_beside_an_adapted_one_are_no_teachers():
    report, trace = observed(teaches_itself_with_more_context, None)
    assert trace.roles["student"] == ["Attends (net)"] and not trace.roles["projectors"]
    assert not any("Linear" in name for name in trace.roles["teacher"]) and named_first(report) is None
