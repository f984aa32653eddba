"""Torch's private names: all there in this version, and what is said and left alone where one is missing."""

import importlib.util
import json
from multiprocessing import get_context

import corpus
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import audits
from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.torch_internals import INTERNALS, MISSING, self_test

IDS = {audit.id for audit in CATALOGUE.values()}


def train(watched, path):
    """A distillation that all private names have a part in; return the student's weights and the watch."""
    torch.manual_seed(0)

    def network():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))

    made = network()
    torch.save(made.state_dict(), path)
    student, teacher, projector = network(), network(), nn.Linear(8, 8)
    features = {}
    for name, net in (("student", student), ("teacher", teacher)):
        net[1].register_forward_hook(lambda _, __, out, name=name: features.update({name: out}))
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    watch = audits.watch(
        student=student, teacher=teacher, projectors=projector, optimizer=optimizer, clip=audits.Clip(1.0), burn_in=5
    )
    if watched:
        watch.__enter__()
    teacher.load_state_dict(torch.load(path, weights_only=True))
    teacher.eval()
    for _ in range(6):
        x, y = torch.randn(16, 6), torch.arange(16) % 4
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(said / 4, 1), reduction="batchmean") * 16
        hint = F.mse_loss(projector(features["student"]), features["teacher"])
        optimizer.zero_grad()
        scaler.scale(0.5 * F.cross_entropy(logits, y) + 0.5 * soft + hint).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([*student.parameters(), *projector.parameters()], 1.0)
        scaler.step(optimizer)
        scaler.update()
    if watched:
        watch.__exit__(None, None, None)
    return [p.detach().clone() for p in student.parameters()], watch


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    weights, _ = train(False, path)
    _, watch = train(True, path)
    return path, weights, {f.id: (f.status, f.message) for f in watch.report.findings}


def test_this_version_of_torch_has_them_all():
    assert MISSING == {} and torch_internals.can_follow()
    assert all(torch_internals.lacking(audit) is None for audit in IDS)
    for name, one in INTERNALS.items():
        assert one.serves and hasattr(torch_internals, one.alias), name
        assert one.audits is None or one.audits <= IDS, name


def test_a_name_is_tried_on_an_example():
    found = {"there": lambda: 3, "other": lambda: 4}
    assert self_test(lambda: found["there"], lambda f: f() == 3) == (found["there"], None)
    assert self_test(lambda: found["other"], lambda f: f() == 3)[1] == "does something else"
    assert self_test(lambda: found["gone"], lambda f: f() == 3)[1] == "KeyError: 'gone'"
    assert self_test(lambda: found["there"], lambda f: f("more"))[1].startswith("TypeError")


def again():
    """Import the module anew, beside the one in use."""
    spec = importlib.util.spec_from_file_location("torch_internals_again", torch_internals.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")])
def test_they_are_found_however_the_audits_are_imported(around):
    state = torch.get_rng_state()
    with around():
        assert again().MISSING == {}
    assert torch.equal(torch.get_rng_state(), state)


def test_a_name_that_is_gone_or_changed_is_missed_at_import(monkeypatch):
    monkeypatch.delattr(torch._C._functorch, "peek_interpreter_stack")
    monkeypatch.setattr(torch, "_foreach_norm", lambda tensors: [t.sum() for t in tensors])
    module = again()
    assert module.MISSING.keys() == {"torch._C._functorch.peek_interpreter_stack", "torch._foreach_norm"}
    assert module.MISSING["torch._foreach_norm"] == "does something else"
    assert module.peek_interpreter_stack() is None and not module.can_follow()
    assert [float(n) for n in module.foreach_norm([torch.ones(4)])] == [2.0]
    assert torch.__version__ in module.lacking("KD312")


@pytest.mark.parametrize("name", INTERNALS)
def test_without_one_the_audits_that_need_it_are_not_decided_and_the_rest_is_as_before(name, intact, monkeypatch):
    path, weights, before = intact
    one, depth = INTERNALS[name], torch._C._len_torch_function_stack()  # watches that crossed may have left a mode
    monkeypatch.setattr(torch_internals, one.alias, one.stand_in)
    monkeypatch.setitem(MISSING, name, "taken away")
    trained, watch = train(True, path)
    assert watch.trace.broken is None
    assert all(torch.equal(a, b) for a, b in zip(trained, weights, strict=True))
    for finding in watch.report.findings:
        if one.audits is None or finding.id in one.audits:
            assert (finding.status, finding.reason) == ("not_triggered", "torch-version")
            assert f"torch {torch.__version__} has no {name} as this audit needs it" in finding.message
        else:
            assert (finding.status, finding.message) == before[finding.id]
    assert torch._C._len_torch_function_stack() == depth


def observe_without(names, out):
    for name in names:
        setattr(torch_internals, INTERNALS[name].alias, INTERNALS[name].stand_in)
        MISSING[name] = "taken away"
    seen = corpus.observe(str(corpus.SCRIPTS / "plain_loop.py"), {"steps": 12})
    out.write_text(json.dumps([seen["broken"], seen["error"], seen["status"], seen["reason"]]))


@pytest.mark.parametrize("name", ["Module._parameters", "Module._buffers", "torch._C._len_torch_function_stack"])
def test_a_script_runs_on_without_one(name, tmp_path):
    seen = []
    for names in ([], [name]):
        process = get_context("fork").Process(target=observe_without, args=(names, tmp_path / "seen.json"))
        process.start()
        process.join(120)
        assert process.exitcode == 0
        seen.append(json.loads((tmp_path / "seen.json").read_text()))
    (_, _, intact, _), (broken, error, status, reason) = seen
    assert (broken, error) == (None, None)
    for id in IDS:
        if INTERNALS[name].audits is None or id in INTERNALS[name].audits:
            assert (status[id], reason[id]) == ("not_triggered", "torch-version")
        else:
            assert status[id] == intact[id]
    assert intact["KD104"] == intact["KD103"] == "pass"


def test_what_is_seen_of_the_intact_training_decides(intact):
    decided = {id for id, (status, _) in intact[2].items() if status in ("pass", "fail")}
    assert decided >= {"KD101", "KD106", "KD201", "KD202", "KD203", "KD211", "KD212", "KD301", "KD312"}
