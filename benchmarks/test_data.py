"""The data path alone."""

import itertools

import torch
from timing import Sides

from kdbench.kd import train
from kdbench.kd.procedure import CANONICAL


def resident_and_loaded(bench):
    steps, size = (1 if bench.sizes.toy else 8), bench.sizes.batch
    training = bench.prepare("baseline", steps=steps)
    pool, ids, loader = training.pool, training.split.train[: steps * size], bench.loader(training)
    turn = itertools.count()

    def ours():
        draws = train.draw_crops(len(ids), 4, True, CANONICAL.stream(0, f"crops/{next(turn)}"))
        crops = type(draws)(*(draw.to(pool.device) for draw in draws))
        order = ids[torch.randperm(len(ids))].to(pool.device)
        for step in range(steps):
            rows = slice(step * size, (step + 1) * size)
            pool.crop(order[rows], crops.batch(rows))

    def theirs():
        for images, labels in loader:
            images.to(pool.device), labels.to(pool.device)

    return Sides(ours, theirs, len(ids))


def test_loader(bench, measure):
    """Random crops from the images resident as uint8, against a DataLoader over PIL images."""
    measure.ratio(resident_and_loaded, bench, goal=8.0)
