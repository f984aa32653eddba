"""One network that is its own teacher by its parts: adapters that are switched off, or a second set of them."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, rows


class Adapted(nn.Module):
    """A frozen network with small trained parts beside each layer, by name."""

    def __init__(self, *names):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 24), nn.Linear(24, CLASSES)
        self.requires_grad_(False)
        self.low = nn.ModuleDict({n: nn.Linear(WIDTH, 24, bias=False) for n in names})
        self.high = nn.ModuleDict({n: nn.Linear(24, CLASSES, bias=False) for n in names})
        for part in self.high.values():
            nn.init.zeros_(part.weight)
        self.active = names[0]

    @contextlib.contextmanager
    def plain(self):
        before, self.active = self.active, None
        yield
        self.active = before

    def forward(self, x):
        hidden = self.first(x)
        if self.active is not None:
            hidden = hidden + self.low[self.active](x)
        hidden = hidden.relu()
        return self.last(hidden) + (self.high[self.active](hidden) if self.active is not None else 0)


def ask(net, name, x):
    net.active = name
    return net(x)


def pretrained(*names):
    net = Adapted(*names)
    base = nn.Sequential(net.first, nn.ReLU(), net.last).requires_grad_(True)
    optimizer = torch.optim.Adam(base.parameters(), 1e-2)
    for _ in range(40):
        x, y = rows()
        optimizer.zero_grad()
        F.cross_entropy(base(x), y).backward()
        optimizer.step()
    base.requires_grad_(False)
    return net


def kd(logits, said):
    return F.kl_div(logits.log_softmax(1), said.softmax(1), reduction="batchmean")


def switched_off(slip):
    """The bare network teaches the adapted one, with a graph that leads nowhere or without one."""
    net = pretrained("mine")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(3 * STEPS):
        x, y = rows()
        with contextlib.nullcontext() if slip == "left on" else net.plain():
            said = net(x).detach() if slip == "left on" else net(x)
        logits = net(x)
        loss = F.cross_entropy(logits, y) + kd(logits, said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def averaged(slip):
    """The second set is an average of the first. Wrong: it is trained too, or it averages nothing but a part."""
    net = pretrained("pupil", "mean")
    for table in (net.low, net.high):
        table["mean"].load_state_dict(table["pupil"].state_dict())
        table["mean"].requires_grad_(slip == "trained")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(3 * STEPS):
        x, y = rows()
        said = ask(net, "mean", x + 0.1 * torch.randn_like(x))
        logits = ask(net, "pupil", x)
        optimizer.zero_grad()
        (F.cross_entropy(logits, y) + kd(logits, said)).backward()
        optimizer.step()
        with torch.no_grad():
            for table in (net.low,) if slip == "in part" else (net.low, net.high):
                table["mean"].weight.lerp_(table["pupil"].weight, 0.1)
    return net


@pytest.mark.parametrize("loop", [switched_off, averaged], ids=lambda loop: loop.__name__)
def test_a_network_that_is_its_own_teacher_by_its_parts_is_not_accused(loop):
    report, seen = observed(loop, "")
    assert [f.message for f in report.failed("warn")] == []
    assert seen.roles["teacher"][0].startswith("Adapted (net), with")
    assert next(f.status for f in report.findings if f.id == "KD313") == "pass"


def test_the_average_of_an_adapter_is_followed():
    _, seen = observed(averaged, "")
    assert seen.teacher.change.average_rate == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("loop", "slip", "id"),
    [(switched_off, "left on", "KD311"), (averaged, "trained", "KD102"), (averaged, "in part", "KD302")],
)
def test_its_slips_are_named(loop, slip, id):
    report, _ = observed(loop, slip)
    assert named_first(report) == (id, "error"), [f.message for f in report.failed("warn")]
