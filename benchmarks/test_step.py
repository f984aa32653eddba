"""A training step of each method against the textbook's, and the whole of an epoch with its loader.

R34 -> R18, width 16, batch 128, fp32, one thread: a 2-core machine's honest size.
"""

import copy

import pytest
import textbook
import torch

from kd import train
from kd.data import statistics
from kd.methods import MethodSettings
from kd.procedure import CANONICAL
from kd.recipe import Recipe
from kd.teacher import save_checkpoint

METHODS = ("baseline", "logit", "feature")
STEPS = 2


@pytest.fixture(scope="session")
def teacher(images, folder):
    return make_teacher(images, folder, 16)


def make_teacher(images, folder, width):
    recipe = Recipe(base_width=width, train_size=128, val_size=8)
    net = train.prepare(images, "r34", None, "baseline", MethodSettings(), recipe, CANONICAL, 0, torch.device("cpu"))
    path = folder / f"teacher-{width}.safetensors"
    save_checkpoint(net.student, path)
    return train.Teacher("r34", path)


def prepare(images, teacher, method, steps=STEPS, width=16):
    recipe = Recipe(epochs=10**6, base_width=width, train_size=128 * steps, val_size=1, lr_min=0.1)
    settings = MethodSettings() if method == "baseline" else MethodSettings(0.5, 0.5)
    its = None if method == "baseline" else teacher
    return train.prepare(images, "r18", its, method, settings, recipe, CANONICAL, 0, torch.device("cpu"))


def plain(training):
    """Return copies of a training's networks, laid out as the textbook has them."""
    nets = [training.student, training.teacher, getattr(training.method, "projectors", None)]
    return [None if net is None else copy.deepcopy(net).to(memory_format=torch.contiguous_format) for net in nets]


@pytest.mark.parametrize("method", METHODS)
def test_textbook_and_ours_are_the_same_training(images, teacher, method, benchmark):
    """Same weights, same batch: the same loss at the first step. Without this the ratios would compare two things."""
    ours = prepare(images, teacher, method, steps=1)
    nets = plain(ours)
    ids = ours.split.train[torch.randperm(128, generator=CANONICAL.stream(0, "order/0"))]
    crops = train.draw_crops(128, 4, True, CANONICAL.stream(0, "crops/0"))
    batch = (ours.pool.crop(ids, crops).contiguous(), ours.pool.labels[ids])
    epoch = next(train.epochs(ours))
    (loss,) = benchmark.pedantic(lambda: textbook.train([batch], *copy.deepcopy(nets)), rounds=1)
    assert epoch.loss["total"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_step(images, teacher, method, measure):
    """The textbook gets its batches for nothing; ours draws and crops them."""
    ours = prepare(images, teacher, method)
    nets = plain(ours)
    epochs = train.epochs(ours)
    batch = (ours.pool.centre(torch.arange(128)).contiguous(), ours.pool.labels[:128])
    measure(lambda: next(epochs), lambda: textbook.train([batch] * STEPS, *nets), images=128 * STEPS)


@pytest.mark.parametrize("method", METHODS)
def test_epoch_end_to_end(images, teacher, method, measure):
    """Both fetch, augment and train on every image."""
    ours = prepare(images, teacher, method)
    nets = plain(ours)
    epochs = train.epochs(ours)
    mean, std = statistics(images.pixels[ours.split.train])
    batches = textbook.loader(images, ours.split.train, mean, std, 128)
    measure(lambda: next(epochs), lambda: textbook.train(batches, *nets), images=128 * STEPS)
