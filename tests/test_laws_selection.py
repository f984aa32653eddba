"""Selection: what must be found right, and what must be caught."""

import random

import numpy as np
import pytest
import torch
from law_specimens import holds

from kdbench.audits import laws
from kdbench.kd.procedure import CANONICAL


def argmax(curve):
    return max(range(len(curve)), key=lambda epoch: curve[epoch])


SELECTIONS = {
    "canonical": (CANONICAL.select, "pass"),
    "first of the best": (lambda val, test: argmax(val), "pass"),
    "numpy": (lambda val, test: np.argmax(val), "pass"),
    "torch": (lambda val, test: torch.tensor(val).argmax(), "pass"),
    "any of the best": (lambda val, test: random.choice([e for e, v in enumerate(val) if v == max(val)]), "pass"),
    "best on test": (lambda val, test: argmax(test), "fail", "only test moves", "best on test"),
    "test for ties": (
        lambda val, test: max(range(len(val)), key=lambda e: (val[e], test[e])),
        *("fail", "only test moves", "equally good on validation"),
    ),
    "test for near ties": (
        lambda val, test: max(range(len(val)), key=lambda e: (round(val[e], 2), test[e])),
        *("fail", "only test moves"),
    ),
    "sum": (lambda val, test: argmax([v + t for v, t in zip(val, test, strict=True)]), "fail", "only test moves"),
    "last": (lambda val, test: len(val) - 1, "fail", "pick is 4, and best is 2", "the last epoch"),
    "first": (lambda val, test: 0, "fail", "the first epoch"),
    "lowest": (lambda val, test: argmax([-v for v in val]), "fail", "lowest on validation"),
    "from 1": (lambda val, test: argmax(val) + 1, "fail", "counts epochs from 1"),
    "from the end": (lambda val, test: -1, "fail", "pick is -1"),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selection(name):
    select, *expected = SELECTIONS[name]
    holds(laws.check_selection(select), *expected)


def test_selection_that_draws_lots_of_its_own():
    rng = random.Random(0)
    holds(laws.check_selection(lambda val, test: rng.randrange(len(val))), "fail", "same curves")
