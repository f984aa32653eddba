"""Compiled networks: seen from outside with their modes, and from within where torch.compile is left out."""

import textwrap

import corpus
import pytest
import torch
from torch import nn

from kdbench.audits.observe.compiled import watching
from kdbench.harness.declarations import spelled

SCRIPT = """
    import torch, torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    X = torch.randn(640, 8)
    Y = X[:, :4].argmax(1)

    def net(width):
        return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))

    teacher, student = net(32), net(16)
    adam = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(40):
        adam.zero_grad()
        F.cross_entropy(teacher(X), Y).backward()
        adam.step()
    teacher.train(MODE)
    fast_teacher, fast_student = (torch.compile(n, backend="aot_eager") for n in (teacher, student))
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for i in range(20):
        x, y = X[i * 32 : i * 32 + 32], Y[i * 32 : i * 32 + 32]
        with torch.no_grad():
            t = fast_teacher(x)
        s = fast_student(x)
        kd = F.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean") * SQUARE
        adam.zero_grad()
        (0.5 * F.cross_entropy(s, y) + 0.5 * kd).backward()
        adam.step()
"""
SLIPS = {"correct": ("False", "4"), "mode": ("True", "4"), "scale": ("False", "1")}
NAMED = {"correct": None, "mode": "KD301", "scale": "KD312"}


@pytest.fixture(scope="module", params=[True, False], ids=["compiled", "left as it is"])
def seen(request, tmp_path_factory):
    paths = []
    for slip, (mode, square) in SLIPS.items():
        paths.append(tmp_path_factory.mktemp("compiled") / f"{slip}.py")
        paths[-1].write_text(textwrap.dedent(SCRIPT).replace("MODE", mode).replace("SQUARE", square))
    return request.param, dict(zip(SLIPS, corpus.observe_all(paths, compiles=request.param), strict=True))


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_around_compiled_networks_are_named(seen, slip):
    compiles, results = seen
    one = results[slip]
    assert one["error"] is None and one["broken"] is None
    assert one["roles"]["student"] == [f"Sequential ({'fast_student' if compiles else 'student'})"]
    assert ([f for f in one["failed"] if f[1] == "error"] or [(None,)])[0][0] == NAMED[slip]


def test_what_compilation_hides_is_decided_without_it():
    from kdbench.audits.checks.all import run
    from kdbench.audits.trace import Trace

    for compiled in (True, False):
        trace = Trace(script=True, compiled=compiled)
        found = next(f for f in spelled(run(trace)).findings if f.id == "KD104")
        assert found.reason == "no-teacher-seen"
        assert ("compiled" in found.message) is compiled


def test_left_as_it_is_nothing_is_compiled_and_torch_is_put_back():
    plain, told = (torch.compile, nn.Module.compile), []
    net = nn.Linear(2, 2)
    with watching(lambda: told.append(1), compiles=False):
        assert torch.compile(net) is net and torch.compile(dynamic=True)(net) is net
        net.compile()
        assert not told
    with watching(lambda: told.append(1), compiles=True):
        assert torch.compile(net) is not net and told == [1]
    assert (torch.compile, nn.Module.compile) == plain
