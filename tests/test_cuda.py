"""What must hold on a GPU as well: the audits' exactness, equal bits from equal seeds, no step that waits.

KDBENCH_TEST_DEVICE=cpu runs the same tests on a processor, to try the tests themselves.
"""

import dataclasses
import os
from typing import get_args

import pytest
import torch
from conftest import halves

from kdbench.harness.faults import FAULTS
from kdbench.harness.run.trial import prepare_device, watched
from kdbench.harness.zoo import gallery
from kdbench.harness.zoo.selfcheck import audit_once
from kdbench.kd import data, train
from kdbench.kd.methods import METHODS
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Precision, Recipe
from kdbench.kd.teacher import save_checkpoint

DEVICE = os.environ.get("KDBENCH_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device")


PRECISIONS = [p for p in get_args(Precision) if p != "tf32" or DEVICE == "cuda"]


def silent(_):
    pass


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_canonical_procedure_is_clean(method, precision):
    run = audit_once(method, None, 0, silent, precision, DEVICE)
    assert run.as_declared, {f.name: f.message for f in run.report.failed("error")}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_fault_is_caught_by_exactly_its_audits(name):
    run = audit_once(gallery.method_for(FAULTS[name]), FAULTS[name], 0, silent, device=DEVICE)
    assert run.calls > 0 and run.as_declared, {f.name: f.message for f in run.report.failed("error")}


@pytest.fixture(scope="module")
def training(digits, recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    base = train.prepare(
        digits, "r18", None, "baseline", halves("baseline"), recipe, CANONICAL, 99, torch.device("cpu")
    )
    save_checkpoint(base.student, path)

    def make(method, procedure=CANONICAL, **changes):
        place = prepare_device(DEVICE, 1)
        teacher = None if not METHODS[method].needs_teacher else train.Teacher("r18", path)
        settings = halves(method)
        changed = dataclasses.replace(recipe, **changes)
        return train.prepare(digits, "r18", teacher, method, settings, changed, procedure, 0, place)

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_bitwise_the_same_weights(training, method, precision):
    """A/A: where this holds, the first epoch at which two trainings differ means something on this device too."""
    first, second = (digests(training(method, precision=precision)) for _ in range(2))
    assert first == second


def test_an_imagenet_stem_gives_the_same_weights_too():
    """Its max-pool has a backward of its own."""
    fault = FAULTS["imagenet-stem"]
    first, second = (audit_once("baseline", fault, 0, silent, device=DEVICE).epochs for _ in range(2))
    assert [e.digest for e in first] == [e.digest for e in second]


def test_a_clip_by_hand_raises_the_versions_of_gradients_whatever_unscaling_does(record_property):
    """The audits tell clips by version counters; whether unscaling raises them is the device's affair, and is noted."""
    place = prepare_device(DEVICE, 1)
    weight = torch.nn.Parameter(torch.ones(8, device=place))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler(place.type, init_scale=8.0)
    scaler.scale(weight.square().sum()).backward()
    versions = [weight.grad._version]
    scaler.unscale_(optimizer)
    versions.append(weight.grad._version)
    weight.grad.mul_(0.5)
    versions.append(weight.grad._version)
    record_property("unscale_raises_the_version", versions[1] > versions[0])
    assert torch.equal(weight.grad, torch.ones_like(weight)) and versions[2] == versions[1] + 1


def test_a_watch_sees_every_step_of_a_scaled_training(training):
    made = training("logit", precision="fp16", train_size=192)
    with watched(made, "logit", None) as watch:
        list(train.epochs(made, watch.labels))
    found = {f.name: f.status for f in watch.report.findings}
    assert found["clip-after-unscale"] == found["one-step-per-backward"] == "pass"
    assert [f.name for f in watch.report.failed("error")] == ["teacher-above-chance"], "its weights are random"


@pytest.mark.skipif(DEVICE != "cuda", reason="nothing waits for a processor")
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(training, method):
    made = training(method, epochs=2)
    seen = 0

    def on_batch(_):
        nonlocal seen
        seen += 1
        within = seen % made.steps_per_epoch
        # From an epoch's first batch to its last, in which the sums of the epoch are read.
        torch.cuda.set_sync_debug_mode("error" if within else "default")

    try:
        list(train.epochs(made, on_batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == 2 * made.steps_per_epoch


def digests(training):
    return [epoch.digest for epoch in train.epochs(training)]


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs are of CUDA")
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_captured_kernels_give_the_same_bits(training, method, precision, fold):
    size = {"precision": precision, "fold_teacher": fold and method != "baseline", "epochs": 8}
    made = training(method, **size, graphs=True)
    steps = made.steps_per_epoch
    assert digests(made) == digests(training(method, **size)) and steps < train.OWN_STEPS < 7 * steps


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs are of CUDA")
@pytest.mark.parametrize("name", [name for name, f in FAULTS.items() if f.recipe(Recipe(graphs=True)).graphs])
def test_captured_kernels_hide_no_fault(training, name):
    """Whatever a fault does after the capture, it does so bit for bit as without; what would not is refused."""
    fault = FAULTS[name]
    method, seen = gallery.method_for(fault), []
    for graphs in (False, True):
        recipe = fault.recipe(Recipe(precision="fp32", graphs=graphs))
        made = training(
            method, fault.inject(CANONICAL, lambda: None), epochs=8, precision=recipe.precision, graphs=graphs
        )
        made.scores_test = fault.needs_test_scores
        seen.append(digests(made))
    assert seen[0] == seen[1]


def test_images_are_cropped_on_the_device_as_on_the_processor(digits):
    ids, crops = digits.train_ids[:32], data.draw_crops(32, 2, True, CANONICAL.stream(0, "crops"))
    views = []
    for place in (torch.device("cpu"), prepare_device(DEVICE, 1)):
        moved = type(crops)(*(draw.to(place) for draw in crops))
        views.append(data.Pool(digits, 2, place, data.statistics(digits.pixels)).crop(ids.to(place), moved).cpu())
    assert torch.equal(*views)
