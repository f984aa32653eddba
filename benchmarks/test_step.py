"""A training step of each method against the textbook's, the whole of an epoch with its loader, and the roof.

All precisions have one yardstick: the textbook in fp32, channels-first, the teacher in eval under no_grad.
"""

import copy
import ctypes
from functools import partial

import pytest
import textbook
import torch
from trainings import DISTILLING, METHODS, plain

from kdbench.kd import train
from kdbench.kd.procedure import CANONICAL

STEP_GOALS = {
    ("all-cores", "fp32", "logit"): 1.3,
    ("all-cores", "fp32", "feature"): 1.2,
    ("all-cores", "bf16"): 1.9,
    ("one-thread", "fp32"): 1.2,
    ("one-thread", "bf16"): 2.0,
}
EPOCH_GOALS = {"fp32": 1.25, "bf16": 2.0}
ROOF_GOALS = {"fp32": 0.9, "bf16": 0.6}


def step_goal(threads, precision, method):
    if method not in DISTILLING:
        return None
    return STEP_GOALS.get((threads, precision, method)) or STEP_GOALS.get((threads, precision))


@pytest.mark.parametrize("method", METHODS)
def test_textbook_and_ours_are_the_same_training(bench, method, benchmark):
    """Same weights, same batch: the same loss at the first step. Without this the ratios would compare two things."""
    ours, size = bench.prepare(method, steps=1), bench.sizes.batch
    nets = plain(ours)
    ids = ours.split.train[torch.randperm(size, generator=CANONICAL.stream(0, "order/0"))]
    crops = train.draw_crops(size, 4, True, CANONICAL.stream(0, "crops/0"))
    where = ours.pool.device
    batch = (
        ours.pool.crop(ids.to(where), type(crops)(*(c.to(where) for c in crops))).contiguous(),
        ours.pool.labels[ids.to(where)],
    )
    epoch = next(train.epochs(ours))
    (loss,) = benchmark.pedantic(lambda: textbook.train([batch], *copy.deepcopy(nets)), rounds=1)
    assert epoch.loss["total"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_step(bench, measure, threads, precision, method):
    """Training steps against the textbook's, which gets its batches for nothing while ours draws and crops them."""
    measure.ratio(bench.step, method, precision, goal=step_goal(threads, precision, method))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this system's allocator cannot be told")
@pytest.mark.parametrize("method", DISTILLING)
def test_kept_memory(cpu_only, bench, measure, method):
    """The same on one thread in fp32, where the allocator is told to give no memory back to the system."""
    measure.ratio(partial(bench.step, keep=True), method, "fp32", goal=None)


@pytest.mark.parametrize("option", ["fold_teacher", "compile"])
def test_options(cpu_only, bench, measure, option):
    """A Logit-KD step with an option of the recipe, on one thread in fp32, against the step without it."""
    if option == "compile" and bench.sizes.toy:
        pytest.skip("to compile takes longer than a toy run may")
    measure.ratio(bench.option, option, goal=None)


@pytest.mark.parametrize("method", DISTILLING)
def test_without_graphs(bench, measure, precision, method):
    """Training steps whose kernels are launched one by one, as without CUDA graphs, against the textbook's."""
    if bench.device.type != "cuda":
        pytest.skip("CUDA graphs are of CUDA")
    measure.ratio(partial(bench.step, graphs=False), method, precision, goal=None)


@pytest.mark.parametrize("method", DISTILLING)
def test_epoch_end_to_end(bench, measure, threads, precision, method):
    """Fetching, augmenting and training on every image, against the textbook with its PIL images and DataLoader."""
    measure.ratio(bench.epoch, method, precision, goal=EPOCH_GOALS.get(precision))


def test_roof(bench, measure, threads, precision):
    """Operations a second of a Logit-KD step as a fraction of a matrix multiplication's in the same precision."""
    measure.ratio(bench.against_roof, precision, goal=ROOF_GOALS.get(precision))


def test_convolutions(bench, measure, threads, precision):
    """The convolutions of that step alone, likewise: what it would reach if all beside them were free."""
    measure.ratio(bench.convolutions_against_roof, precision, goal=None)


def test_bf16_roof(bf16, bench, measure, threads):
    """A matrix multiplication in bf16 against one in fp32: where it gains nothing, neither can a bf16 training."""
    measure.ratio(bench.roofs, goal=None)
