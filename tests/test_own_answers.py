"""A network that learns from its own answers: deeper exits, other views; with the target cut from the graph, or not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, rows


def kd(logits, said, t=2.0):
    return F.kl_div((logits / t).log_softmax(1), (said / t).softmax(1), reduction="batchmean") * t * t


class Exits(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(WIDTH, 16), nn.Linear(16, 16)])
        self.exits = nn.ModuleList([nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)])

    def forward(self, x):
        said = []
        for part, leave in zip(self.parts, self.exits, strict=True):
            x = part(x).tanh()
            said.append(leave(x))
        return said


def train(net, loss):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(STEPS):
        x, y = rows()
        optimizer.zero_grad()
        loss(net, x, y).backward()
        optimizer.step()
    return net


def exits(cut):
    def loss(net, x, y):
        early, late = net(x)
        return F.cross_entropy(late, y) + 0.5 * F.cross_entropy(early, y) + kd(early, late.detach() if cut else late)

    return train(Exits(), loss)


class Attending(nn.Module):
    """Tokens through a transformer that drops; a hint in front of the input is shown to it as its own teacher."""

    def __init__(self):
        super().__init__()
        self.up, self.out = nn.Linear(1, 16), nn.Linear(16, CLASSES)
        layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x):
        return self.out(self.body(self.up(x.unsqueeze(-1))).mean(1))


def hinted(restored):
    def loss(net, x, y):
        net.eval()
        with torch.no_grad():
            said = net(torch.cat([F.one_hot(y, CLASSES).float(), x], 1))
        net.train(restored)
        logits = net(x)
        return F.cross_entropy(logits, y) + kd(logits, said, 1.0)

    return train(Attending(), loss)


def dropped_twice(_):
    """Two answers of one network that drops draw each other together, both with their graphs."""

    def loss(net, x, y):
        one, other = net(x), net(x)
        return F.cross_entropy(one, y) + F.cross_entropy(other, y) + kd(one, other, 1.0) + kd(other, one, 1.0)

    return train(nn.Sequential(nn.Linear(WIDTH, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, CLASSES)), loss)


class Middle(nn.Module):
    """The divergence of two views from the middle of both."""

    def forward(self, one, other):
        p, q = one.softmax(1), other.softmax(1)
        middle = ((p + q) / 2).log()
        return (F.kl_div(middle, p, reduction="batchmean") + F.kl_div(middle, q, reduction="batchmean")) / 2


def views(_):
    def loss(net, x, y):
        logits = net(x)
        return F.cross_entropy(logits, y) + Middle()(logits, net(x + 0.1 * torch.randn_like(x)))

    return train(nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, CLASSES)), loss)


@pytest.mark.parametrize("loop", [exits, hinted], ids=lambda loop: loop.__name__)
def test_a_target_of_ones_own_that_is_cut_from_the_graph_is_understood(loop):
    report, _ = observed(loop, True)
    assert [f.message for f in report.failed("warn")] == []
    assert next(f.status for f in report.findings if f.id == "KD313") == "pass"


def test_a_target_of_ones_own_that_gives_way_is_told_of():
    report, _ = observed(exits, False)
    assert named_first(report) == ("KD313", "warn"), [f.message for f in report.failed("warn")]
    found = next(f for f in report.findings if f.id == "KD313")
    assert "carries a gradient" in found.message and found.where["file"] == "tests/test_own_answers.py"


def test_a_transformer_that_learns_in_evaluation_mode_is_told_of_first():
    report, _ = observed(hinted, False)
    assert [f.id for f in report.failed("warn")] == ["KD321"], [f.message for f in report.failed("warn")]


@pytest.mark.parametrize("loop", [dropped_twice, views], ids=lambda loop: loop.__name__)
def test_answers_that_draw_each_other_together_are_no_targets(loop):
    report, seen = observed(loop, None)
    assert "KD313" not in [f.id for f in report.failed("warn")]
    assert any(s.self_taught for s in seen.losses.sights)


class Heads(nn.Module):
    """A head per task over one body."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)])

    def forward(self, x):
        said = self.body(x)
        return [head(said) for head in self.heads]


def forgetful(copied):
    """Learning without forgetting: the old head's answer is held against that of the network as it was, or as it is."""
    net = train(Heads(), lambda net, x, y: F.cross_entropy(net(x)[0], y))
    before = copy.deepcopy(net).eval() if copied else net

    def loss(net, x, y):
        old, new = net(x)
        with torch.no_grad():
            said = before(x)[0]
        return F.cross_entropy(new, y) + kd(old, said)

    return train(net, loss), before


def remembered(old):
    """The network's answers were kept before it went on to new classes; the old classes learn from them."""
    net = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 2 * CLASSES))
    train(net, lambda net, x, y: F.cross_entropy(net(x)[:, :CLASSES], y))
    x, y = rows(96)
    with torch.no_grad():
        kept = torch.cat([net(part) for part in x.split(32)])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for i in [part for _ in range(STEPS // 3) for part in torch.randperm(96).split(32)]:
        logits = net(x[i])
        said = kept[i] if old else net(x[i]).detach()
        optimizer.zero_grad()
        (F.cross_entropy(logits[:, CLASSES:], y[i]) + kd(logits[:, :CLASSES], said[:, :CLASSES])).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("loop", [forgetful, remembered], ids=lambda loop: loop.__name__)
def test_ones_own_answers_of_before_teach_and_those_of_now_do_not(loop):
    report, _ = observed(loop, True)
    assert [f.message for f in report.failed("error")] == []
    report, _ = observed(loop, False)
    assert named_first(report) == ("KD311", "error"), [f.message for f in report.failed("warn")]
    found = next(f for f in report.findings if f.id == "KD311")
    assert found.message.startswith("the student is held against its own answer")
