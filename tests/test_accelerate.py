"""Faster stand-ins: the same answers but for rounding, only where the recipe asks, never before a watch has looked."""

import dataclasses
import io

import pytest
import torch
from conftest import TINY
from rich.console import Console
from test_cli import kdbench
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdbench.harness import faults, study
from kdbench.harness.cli import run_command
from kdbench.harness.plan.graphs import eager, why_eager, with_graphs
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.spec import Spec, TeacherRef
from kdbench.harness.run.cost import bf16_speed
from kdbench.harness.run.trial import watched
from kdbench.harness.study import share_cores
from kdbench.kd import train
from kdbench.kd.accelerate import check_folded, folded
from kdbench.kd.errors import InputError
from kdbench.kd.methods import read_settings
from kdbench.kd.models import build
from kdbench.kd.recipe import Recipe


def trained(arch, stem="cifar"):
    """A network whose batch norms are not what they were at first."""
    rng = torch.Generator().manual_seed(0)
    net = build(arch, stem, 10, 4, rng).train()
    for _ in range(3):
        net(torch.randn(8, 3, 32, 32, generator=rng))
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=rng)
            module.bias.data.uniform_(-0.5, 0.5, generator=rng)
    return net.eval()


@pytest.mark.parametrize("arch", ["r18", "r34", "r50"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_folded_network_gives_the_same_answers_without_batch_norms(arch, stem):
    net = trained(arch, stem)
    before = train.weight_digest(net)
    copy = folded(net)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, its = copy(images), net(images)
    assert not any(isinstance(m, _BatchNorm) for m in copy.modules())
    assert train.weight_digest(net) == before and any(isinstance(m, _BatchNorm) for m in net.modules())
    assert torch.equal(mine.logits.argmax(1), its.logits.argmax(1))
    for a, b in zip((mine.logits, *mine.features), (its.logits, *its.features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    check_folded(mine.logits, its.logits, "fp32")


def test_what_is_not_the_same_network_is_refused():
    net = trained("r18")
    with torch.no_grad():
        images = torch.randn(8, 3, 32, 32)
        own = net(images).logits
        with pytest.raises(InputError, match=r"logits differ from its own by .* of the largest logit"):
            check_folded(folded(net.train())(images).logits, net(images).logits, "fp32")  # statistics of the batch
        with pytest.raises(InputError, match="more than rounding in bf16"):
            check_folded(own.roll(1, 0), own, "bf16")
        with pytest.raises(InputError, match="differ"):
            check_folded(own * float("nan"), own, "fp32")


def test_a_batch_norm_without_its_convolution_is_refused():
    with pytest.raises(InputError, match="the batch norm '0' follows no convolution"):
        folded(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)))


def digests(prepare, **changes):
    training = prepare("feature", train_size=192, epochs=3, **changes)
    seen = [epoch.digest for epoch in train.epochs(training)]
    return training.steps_per_epoch, seen


def test_a_folded_teacher_answers_after_the_steps_that_a_watch_sees(prepare):
    steps, plain = digests(prepare)
    _, mine = digests(prepare, fold_teacher=True)
    assert steps < train.OWN_STEPS < 2 * steps
    assert mine[0] == plain[0] and mine[1] != plain[1], "it stands in within the second epoch"
    assert digests(prepare, fold_teacher=True)[1] == mine


def test_what_is_watched_is_the_teacher_itself(prepare):
    """The audits say of a training with a folded teacher what they say of it without."""
    seen = []
    for fold in (False, True):
        training = prepare("logit", train_size=192, epochs=3, fold_teacher=fold)
        with watched(training, "logit", None) as watch:
            list(train.epochs(training, watch.labels))
        seen.append({f.id: f.status for f in watch.report.findings})
    assert seen[0] == seen[1] and "pass" in seen[0].values()


def test_a_compiled_training_is_the_same_but_for_rounding(prepare, monkeypatch):
    """torch's eager backend shows where compiled networks stand in; kernels are measured in benchmarks/."""
    calls = []

    def compiled(module):
        calls.append(module)
        return torch.compile(module, backend="eager", dynamic=False)

    monkeypatch.setattr(train, "compiled", compiled)
    _, plain = digests(prepare)
    _, mine = digests(prepare, compile=True)
    assert len(calls) == 2 and mine == plain


def test_a_fault_that_a_folded_teacher_would_hide_is_refused(recipe):
    preset = load_preset("quick")
    ground = Ground("digits", "d" * 64, "cpu")
    preset = type(preset)(**{**preset.__dict__, "recipe": Recipe(**{**preset.recipe.__dict__, "fold_teacher": True})})
    for name in ("teacher-train-mode", "teacher-in-graph", "teacher-in-optimizer"):
        with pytest.raises(InputError, match="a folded copy of the teacher would hide it; leave --fold-teacher out"):
            make_plan(preset, [None, name], ground, named_fault=True)
    plan = make_plan(preset, [None, "random-teacher"], ground, named_fault=True, controls=True)
    assert plan.controls.positive is not None
    assert not faults.get("teacher-train-mode").recipe(preset.recipe).fold_teacher


def test_a_fault_that_captured_kernels_would_hide_is_refused():
    preset = load_preset("quick")
    ground = Ground("digits", "d" * 64, "cuda")
    preset = dataclasses.replace(preset, recipe=dataclasses.replace(preset.recipe, graphs=True))
    refused = [f.name for f in faults.FAULTS.values() if not f.recipe(preset.recipe).graphs]
    assert {"teacher-in-graph", "no-zero-grad"} <= set(refused) < set(faults.FAULTS)
    for name in refused:
        with pytest.raises(InputError, match="captured kernels would hide it; leave --graphs out"):
            make_plan(preset, [None, name], ground, named_fault=True)
    make_plan(preset, [None, "projector-unclipped", "student-eval-mode"], ground, named_fault=True)


def test_graphs_are_of_a_gpu_and_of_the_networks_own_kernels(prepare):
    with pytest.raises(InputError, match="graphs needs a CUDA device, and the training is for cpu"):
        prepare("logit", graphs=True)
    with pytest.raises(InputError, match="precision tf32 needs a CUDA device, and the training is for cpu"):
        prepare("logit", precision="tf32")
    with pytest.raises(InputError, match="choose one of them"):
        Recipe(graphs=True, compile=True)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_are_rounded_in_the_steps_of_a_training_that_says_so_and_nowhere_else(prepare, precision):
    """Torch lets convolutions round by default, so an fp32 training must see to it too; on a processor both are one."""

    def allowed():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    training, before, within, between = prepare("logit"), allowed(), [], []
    training.recipe = dataclasses.replace(training.recipe, precision=precision)
    for _ in train.epochs(training, lambda _: within.append(allowed())):
        between.append(allowed())
    assert within and set(within) == {(precision == "tf32",) * 2}
    assert set(between) == {before} == {(True, False)}


def test_what_changes_no_bit_changes_no_trial():
    """The same trial, with graphs and without, is one trial: it has one name, and a record of it serves both."""
    preset, ground = load_preset("quick"), Ground("digits", "d" * 64, "cuda")
    plain, captured = (make_plan(asking(preset, graphs=asked), [None], ground) for asked in (False, True))
    assert list(plain.trials) == list(captured.trials) and plain.study == captured.study
    key, spec = next(iter(captured.trials.items()))
    assert spec.recipe.graphs and Spec.from_json(spec.to_json()) == spec, "the trial hears of it"
    assert "graphs" not in plain.trials[key].to_json() and not spec.differences(plain.trials[key])


def asking(preset, **changes):
    return dataclasses.replace(preset, recipe=dataclasses.replace(preset.recipe, **changes))


def test_on_a_gpu_kernels_are_captured_where_no_fault_hides():
    preset, arms = load_preset("quick"), [None, "no-zero-grad", "projector-unclipped"]

    def captured(device, **changes):
        plan = make_plan(asking(preset, **changes), arms, Ground("digits", "d" * 64, device))
        return {spec.fault: spec.recipe.graphs for spec in plan.trials.values()}, plan

    found, plan = captured("cuda")
    assert found == {None: True, "no-zero-grad": None, "projector-unclipped": True}
    assert eager(plan.trials.values()) == {"they would hide the fault": ["no-zero-grad"]}
    assert {*captured("cuda", graphs=False)[0].values()} == {*captured("cpu")[0].values()} == {None}
    compiled = captured("cuda", compile=True)[0]
    assert {*compiled.values()} == {None}


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda", ["precision is tf32, as paper has it for a GPU", "no CUDA graphs: no-zero-grad (they would"]),
        ("cpu", []),
    ],
)
def test_what_is_otherwise_on_a_gpu_is_said(device, says):
    preset = load_preset("paper").on(device)
    plan = make_plan(preset, [None, "no-zero-grad"], Ground("cifar10", "d" * 64, device))
    notes = io.StringIO()
    run_command._announce_gpu(plan, Console(file=notes, width=200))
    lines = notes.getvalue().splitlines()
    assert len(lines) == len(says) and all(said in line for said, line in zip(says, lines, strict=True))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"arch": "torchvision:resnet18"}, "torchvision:resnet18 is no network of kdbench's"),
        ({"teacher": TeacherRef("torchvision:resnet18", "t")}, "torchvision:resnet18 is no network of kdbench's"),
        ({"method_digest": "d"}, "logit is a method of yours"),
        ({"settings": read_settings("mlkd", {"views": 2}), "method": "mlkd"}, "mlkd learns from several crops of an"),
        ({"fault": "missing-t-squared+no-zero-grad"}, "they would hide the fault"),
        ({"fault": "mine"}, "the fault is yours"),
    ],
)
def test_what_was_never_seen_captured_is_not_unless_asked(changes, why, monkeypatch):
    def mine():
        pass

    monkeypatch.setitem(faults.FAULTS, "mine", dataclasses.replace(faults.get("missing-t-squared"), function=mine))
    plan = make_plan(load_preset("quick"), [None], Ground("digits", "d" * 64, "cuda"))
    student = next(spec for spec in plan.trials.values() if spec.method == "logit")
    spec = dataclasses.replace(student, recipe=dataclasses.replace(student.recipe, graphs=None), **changes)
    found = why_eager(spec)
    assert found is why is None or found.startswith(why)
    assert with_graphs(spec).recipe.graphs == (True if why is None else None)
    assert eager([with_graphs(spec)]) == ({} if why is None else {found: [spec.fault or spec.method]})
    asked = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, graphs=True))
    assert with_graphs(asked) == asked


def test_a_network_that_cannot_be_captured_says_how_it_can_be_trained(prepare, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(train, "captured", refused)
    training = prepare("logit")
    training.recipe = dataclasses.replace(training.recipe, graphs=True)
    with pytest.raises(RuntimeError, match=r"use --no-graphs \(operation not permitted when stream is capturing\)"):
        train._stand_ins(training, torch.zeros(2, 3, 32, 32), torch.autocast("cpu", enabled=False))


def test_the_paper_is_run_as_its_device_ran_it():
    """On a GPU torch rounds products of convolutions unless told otherwise, and the paper told nothing."""
    paper = load_preset("paper")
    assert (paper.on("cuda").recipe.precision, paper.on("cpu").recipe.precision) == ("tf32", "fp32")
    assert paper.on("cuda").teacher_recipe.precision == "tf32"


@pytest.mark.parametrize(
    ("workers", "threads", "cores", "found"),
    [(None, 1, 4, 4), (None, 2, 4, 2), (None, 8, 4, 1), (3, 1, 4, 3), (1, 8, 4, 1)],
)
def test_cores_are_shared_out(workers, threads, cores, found):
    assert share_cores(workers, threads, cores) == found


def test_more_threads_than_cores_are_refused():
    with pytest.raises(InputError, match=r"--threads 2 is more than the 2 cores here.*--workers 1 fits"):
        share_cores(2, 2, 2)


def test_a_processor_that_is_slower_in_bf16_is_told_of_before_anything_is_trained(monkeypatch, tmp_path):
    assert bf16_speed(seconds=0) > 0
    words = ["run", TINY, "--dry-run", "--runs", str(tmp_path), "--precision"]
    for precision, speed, said in (("bf16", 0.55, True), ("bf16", 1.8, False), ("fp32", 0.55, False)):
        monkeypatch.setattr(study, "bf16_speed", lambda speed=speed: speed)
        code, _, err = kdbench(*words, precision)
        assert code == 0 and ("a convolution runs at 0.55 times the speed of fp32" in " ".join(err.split())) == said
