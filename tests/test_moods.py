"""Networks that answer otherwise in training by functions, and those that never do; gradients that move nothing."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step
from torch import nn
from torch.autograd import Variable

from kdbench.audits.observe.moods import depends
from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, rows


class Attends(nn.Module):
    """Its dropout is a number that it hands to the attention, as in large language models."""

    def __init__(self, width, attention_dropout=0.0):
        super().__init__()
        self.up, self.mix, self.out = nn.Linear(1, width), nn.Linear(width, width), nn.Linear(width, CLASSES)
        self.attention_dropout = attention_dropout

    def forward(self, x):
        h = self.up(x.unsqueeze(-1))
        rate = self.attention_dropout if self.training else 0.0
        h = h + F.scaled_dot_product_attention(h, self.mix(h), h, dropout_p=rate)
        return self.out(h.tanh().mean(1))


class AttendsApart(nn.Module):
    """The same with layers of their own for queries, keys and values, as Llama has them."""

    def __init__(self, width, attention_dropout=0.0):
        super().__init__()
        self.up, self.out = nn.Linear(1, width), nn.Linear(width, CLASSES)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.attention_dropout = attention_dropout

    def forward(self, x):
        h = self.up(x.unsqueeze(-1))
        rate = self.attention_dropout if self.training else 0.0
        h = h + F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), dropout_p=rate)
        return self.out(h.tanh().mean(1))


class Drops(nn.Module):
    def __init__(self, width, rate=0.0):
        super().__init__()
        self.up, self.out = nn.Linear(WIDTH, width), nn.Linear(width, CLASSES)
        self.rate_of_drop = rate

    def forward(self, x):
        return self.out(F.dropout(self.up(x).tanh(), self.rate_of_drop, training=self.training))


class Recurrent(nn.Module):
    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.cell = nn.LSTM(1, width, num_layers=2, dropout=dropout, batch_first=True)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.out(self.cell(x.unsqueeze(-1))[0].mean(1))


def learn(net, steps=40):
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        x, y = rows()
        step(adam, F.cross_entropy(net(x), y))


def taught(teacher, student, *, grad=False, held=None, answer=None):
    adam = torch.optim.Adam([*student.parameters(), *(held or [])], 1e-2)
    for _ in range(STEPS):
        x, y = rows()
        with torch.set_grad_enabled(grad):
            said = teacher(x)
        said = answer(said) if answer else said
        own = student(x)
        kd = F.kl_div((own / 2).log_softmax(1), (said / 2).softmax(1), reduction="batchmean") * 4
        step(adam, 0.5 * F.cross_entropy(own, y) + 0.5 * kd)
    return teacher, student


@pytest.mark.parametrize("kind", [Attends, AttendsApart, Drops, Recurrent])
@pytest.mark.parametrize(
    ("rate", "training", "said"), [(0.2, True, "fail"), (0.2, False, "pass"), (0.0, True, "cannot")]
)
def test_a_teacher_that_drops_by_a_function_is_found_in_training_mode(kind, rate, training, said):
    def loop():
        teacher, student = kind(16, rate), kind(8)
        learn(teacher)
        return taught(teacher.train(training), student)

    report, _ = observed(loop)
    found = next(f for f in report.findings if f.id == "KD301")
    if said == "cannot":
        assert (found.status, found.reason) == (
            "not_triggered",
            "mode-independent",
        ) and "cannot differ" in found.message
        assert named_first(report) is None
    else:
        assert found.status == said and named_first(report) == (("KD301", "error") if said == "fail" else None)


@pytest.mark.parametrize("kind", [Attends, Drops, Recurrent])
@pytest.mark.parametrize(
    ("rate", "training", "said"), [(0.2, False, "fail"), (0.2, True, "pass"), (0.0, False, "not_triggered")]
)
def test_a_student_that_drops_by_a_function_is_found_in_evaluation_mode(kind, rate, training, said):
    def loop():
        teacher, student = kind(16), kind(8, rate)
        learn(teacher)
        return taught(teacher.eval(), student.train(training))

    report, _ = observed(loop)
    assert next(f.status for f in report.findings if f.id == "KD321") == said


def test_each_function_is_read_by_its_own_arguments():
    t = torch.zeros(2, 2)
    many = (t, t, t, 2, 1, None, None, None, None, False)
    cases = [
        ("scaled_dot_product_attention", (t, t, t, None, 0.1), {}, True),
        ("scaled_dot_product_attention", (t, t, t), {"dropout_p": 0.0}, False),
        ("multi_head_attention_forward", (*many, 0.1, t, t), {"training": True}, True),
        ("multi_head_attention_forward", (*many, 0.1, t, t), {"training": False}, False),
        ("dropout", (t, 0.5, True), {}, True),
        ("dropout", (t,), {"p": 0.0, "training": True}, False),
        ("batch_norm", (t, t, t, t, t, True), {}, True),
        ("batch_norm", (t, t, t), {}, False),
        ("gru", (t, t, [t], True, 2, 0.3, True, False, False), {}, True),
        ("gru", (t, t, [t], True, 2, 0.3, False, False, False), {}, False),
    ]
    for name, args, kwargs, wanted in cases:
        assert depends(name, args, kwargs, True) is wanted, (name, kwargs)
    assert depends("bernoulli_", (t,), {}, True) and not depends("bernoulli_", (t,), {}, False)


def through_its_classifier(teacher, student, *, moved=False):
    """The student's features go through the teacher's own classifier, as in SRRL and SimKD."""
    adam = torch.optim.Adam([*student.parameters(), *(teacher.out.parameters() if moved else [])], 1e-2)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        own = student.up(x).tanh()
        again = teacher.out(own)
        step(adam, F.cross_entropy(student.out(own), y) + F.mse_loss(again, said))
    return teacher, student


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("no_grad forgotten", ("KD301", "warn")),
        ("no_grad forgotten, and stepped", ("KD102", "error")),
        ("its classifier is gone through", None),
        ("its classifier is gone through, and stepped", ("KD102", "error")),
    ],
)
def test_a_gradient_is_an_error_where_something_moves_by_it(how, named):
    def loop():
        teacher, student = Drops(16), Drops(16)
        learn(teacher)
        teacher.eval()
        if "classifier" in how:
            return through_its_classifier(teacher, student, moved="stepped" in how)
        return taught(teacher, student, grad=True, held=list(teacher.parameters()) if "stepped" in how else None)

    assert named_first(observed(loop)[0]) == named


@pytest.mark.parametrize("training", [False, True])
def test_an_answer_wrapped_in_a_variable_stays_the_teachers(training):
    def loop():
        teacher, student = Drops(16, 0.2), Drops(8)
        learn(teacher)
        return taught(teacher.train(training), student, answer=Variable)

    report, trace = observed(loop)
    assert trace.roles["teacher"] == ["Drops (teacher)"] and not trace.losses.sights[0].cached
    assert named_first(report) == (("KD301", "error") if training else None)
    assert "__call__" not in vars(type(Variable)), "the name was put back"


@pytest.mark.parametrize("training", [False, True])
def test_statistics_of_a_whole_network_that_was_read_drift_by_its_mode(training, tmp_path):
    net = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))
    learn(net)
    torch.save(net, tmp_path / "whole.pt")
    del net

    def loop():
        teacher = torch.load(tmp_path / "whole.pt", weights_only=False)
        return taught(teacher.train(training), Drops(8))

    report, _ = observed(loop)
    assert named_first(report) == (("KD301", "error") if training else None)
    assert next(f.status for f in report.findings if f.id == "KD104") == "pass"


@pytest.mark.parametrize("whole", [False, True])
def test_statistics_that_were_left_behind_beside_loaded_weights_are_missed(whole, tmp_path):
    net = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))

    def loop():
        learn(net)  # in this very process, so that its values are known as trained ones
        kept = net.state_dict() if whole else dict(net.named_parameters())
        teacher = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))
        teacher.load_state_dict({name: value.detach().clone() for name, value in kept.items()}, strict=False)
        return taught(teacher.eval(), Drops(8))

    report, _ = observed(loop)
    assert named_first(report) == (None if whole else ("KD104", "warn"))
