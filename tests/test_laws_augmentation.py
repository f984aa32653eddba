"""Augmentation: what must be found right, and what must be caught."""

import random

import numpy as np
import pytest
import torch
from law_specimens import Drawn, holds
from PIL import Image

from kdbench.audits import laws

IMAGE = torch.arange(48.0).reshape(3, 4, 4)
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def flipped(image):
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def frozen():
    return flipped_by(torch.Generator().manual_seed(1))


def flipped_by(generator):
    return IMAGE + torch.rand((), generator=generator)


AUGMENTATIONS = {
    "flip": (lambda: flipped(IMAGE), "pass"),
    "with label": (lambda: (flipped(IMAGE), 3), "pass"),
    "label first": (lambda: {"label": np.int64(3), "image": flipped(IMAGE)}, "pass"),
    "bfloat16": (lambda: flipped(IMAGE.bfloat16()), "pass"),
    "numpy view": (lambda: PIXELS[:, :: random.choice((1, -1))], "pass"),
    "PIL": (lambda: Image.fromarray(np.roll(PIXELS, random.randrange(4), 0)), "pass"),
    "none": (lambda: IMAGE.clone(), "fail", "16 draws of one training image are all the same"),
    "only the label moves": (lambda: (IMAGE, random.random()), "fail"),
    "same generator each time": (frozen, "fail"),
    "PIL, none": (lambda: (Image.fromarray(PIXELS), 3), "fail"),
    "numpy, none": (lambda: PIXELS.copy(), "fail"),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation(name):
    draw, *expected = AUGMENTATIONS[name]
    random.seed(0)
    holds(laws.check_augmentation(draw), *expected)


class Own(Drawn):
    """A data set with a generator of its own, which every worker gets a copy of."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __getitem__(self, index):
        return np.roll(PIXELS, self.rng.integers(4), 0), index


def seed_alike(worker):
    np.random.seed(0)


def seed_own(worker):
    torch.utils.data.get_worker_info().dataset.rng = np.random.default_rng(torch.initial_seed())


def by_numpy():
    return PIXELS + np.random.randint(100)


def plain():
    return IMAGE


def coin():
    return IMAGE * float(torch.rand(()) < 0.5)


WORKERS = {
    "global numpy": (Drawn(by_numpy), None, "pass"),
    "flips alone": (Drawn(coin), None, "pass"),
    "own generator, seeded by worker": (Own(), seed_own, "pass"),
    "own generator": (Own(), None, "fail", "two workers see the same 16 augmentations of sample 0"),
    "one seed for all": (Drawn(by_numpy), seed_alike, "fail"),
    "not augmented": (Drawn(plain), None, "not_triggered", "not augmented"),
}


@pytest.mark.parametrize("name", WORKERS)
def test_workers(name):
    dataset, init, *expected = WORKERS[name]
    finding = laws.check_workers(dataset, init)
    holds(finding, *expected)
    assert finding.severity == "warn"
