"""Hooks for features that never see one: names that miss, modules that are never called; and searches that may miss."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, observed, step
from torch import nn

from kdbench.harness.zoo.clean.material import CLASSES, WIDTH, rows, trained


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU())
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head, self.auxiliary = nn.Linear(width, CLASSES), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


def taught(student, teacher, mine, its, bridge, logits_too):
    """Distil what the hooks took, and the logits beside it if asked for."""
    optimizer = torch.optim.SGD([*student.parameters(), *bridge.parameters()], 0.05)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        loss = F.cross_entropy(logits, y)
        if logits_too:
            loss = loss + 4 * F.kl_div((logits / 2).log_softmax(1), (said / 2).softmax(1), reduction="batchmean")
        for a, b in zip(mine, its, strict=True):
            loss = loss + F.mse_loss(bridge(a), b)
        mine.clear()
        its.clear()
        step(optimizer, loss)


def by_list(slip, logits_too=False):
    """A list of names, held against those of the networks; one of them is wrapped."""
    teacher, student, bridge = trained(Net(20)), nn.DataParallel(Net(8)), nn.Linear(8, 20)
    mine, its = [], []

    def hook(net, kept):
        for name, module in net.named_modules():
            if name in ("body", "neck"):
                module.register_forward_hook(lambda module, args, out: kept.append(out))

    hook(teacher if not slip else nn.DataParallel(teacher), its)
    hook(student if slip else student.module, mine)
    taught(student, teacher, mine, its, bridge, logits_too)
    return student, teacher, bridge


def by_table(slip, logits_too=False):
    """A table of modules, asked for names that may not be there."""
    teacher, student, bridge = trained(Net(20)), Net(8), nn.Linear(8, 20)
    mine, its = [], []
    for net, kept in ((teacher, its), (student, mine)):
        modules = dict(net.named_modules())
        for name in ["layer1" if slip else "body"]:
            if name in modules:
                modules[name].register_forward_hook(lambda module, args, out, kept=kept: kept.append(out))
    taught(student, teacher, mine, its, bridge, logits_too)
    return student, teacher, bridge


@pytest.mark.parametrize("logits_too", [False, True])
@pytest.mark.parametrize("loop", [by_list, by_table], ids=lambda loop: loop.__name__)
def test_names_that_no_module_has_are_told_of_where_they_are_looked_for(loop, logits_too):
    report, seen = observed(loop, False, logits_too)
    assert [f.message for f in report.failed("warn")] == [] and len(seen.losses.sights) == STEPS
    report, _ = observed(loop, True, logits_too)
    first = next(f for f in report.findings if f.status == "fail" and f.severity != "info")
    assert (first.id, first.severity) == ("KD311", "error"), [f.message for f in report.failed("warn")]
    said = "no module of" if logits_too else "the search for modules to hook found none in"
    assert said in first.message and first.where["file"] == "tests/test_hookups.py"
    assert "named_modules()" in Path(__file__).read_text().splitlines()[first.where["line"] - 1]


def test_a_hook_on_a_module_that_is_never_called_is_told_of():
    def loop(part):
        teacher, student, bridge = trained(Net(20)), Net(8), nn.Linear(8, 20)
        kept = []
        student.get_submodule(part).register_forward_hook(lambda module, args, out: kept.append(out))
        taught(student, teacher, [], [], bridge, True)
        return student, teacher, bridge

    report, _ = observed(loop, "body")
    assert [f.message for f in report.failed("warn")] == []
    report, _ = observed(loop, "auxiliary")
    assert [(f.id, f.severity) for f in report.failed("warn")] == [("KD311", "warn")]
    assert "the hook on auxiliary of Net (student) is never called" in report.failed("warn")[0].message


def test_a_search_by_class_that_finds_none_is_no_slip():
    def loop():
        teacher, student, bridge = trained(Net(20)), Net(8), nn.Linear(8, 20)
        for _, module in student.named_modules():
            if isinstance(module, nn.BatchNorm1d):
                module.register_forward_hook(lambda module, args, out: None)
        handles = [m.register_forward_hook(lambda *_: None) for n, m in student.named_modules() if n == "auxiliary"]
        for handle in handles:
            handle.remove()
        taught(student, teacher, [], [], bridge, True)
        return student, teacher, bridge

    report, seen = observed(loop)
    assert [f.message for f in report.failed("warn")] == [] and not seen.losses.missed_hooks
