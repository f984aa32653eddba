"""Seeds: what must be found right, and what must be caught."""

import random

import numpy as np
import pytest
import torch
from law_specimens import holds, seeded

from kdbench.audits import laws
from kdbench.kd.procedure import CANONICAL

SHARED = torch.Generator()


def code(name):
    return sum(name.encode())


STREAMS = {
    "canonical": (CANONICAL.stream, "pass"),
    "numpy": (lambda seed, name: np.random.default_rng([seed, code(name)]), "pass"),
    "random": (lambda seed, name: random.Random(f"{seed}/{name}"), "pass"),
    "seed ignored": (lambda seed, name: seeded(code(name)), "fail", "order of seed 1", "the seed is ignored"),
    "name ignored": (lambda seed, name: seeded(seed), "fail", "crops of seed 0", "the name is ignored"),
    "added up": (
        lambda seed, name: seeded(seed + ("order", "crops", "init").index(name)),
        "fail",
        "run into each other",
    ),
    "from the clock": (lambda seed, name: seeded(random.getrandbits(32)), "fail", "different the second time"),
    "from the global seed": (
        lambda seed, name: seeded(torch.initial_seed() + seed * 1000 + code(name)),
        "fail",
        "second",
    ),
    "one for all": (
        lambda seed, name: SHARED.manual_seed(seed * 1000 + code(name)),
        "fail",
        "one and the same generator",
    ),
    "torch's own": (lambda seed, name: torch.manual_seed(seed), "fail", "one and the same generator"),
}
RUNS = {
    "seeded": (lambda seed: torch.rand(3, generator=seeded(seed)), "pass"),
    "state": (lambda seed: {"weight": torch.rand(3, generator=seeded(seed)), "epochs": [2, 3]}, "pass"),
    "digest": (lambda seed: f"digest {seed}", "pass"),
    "not seeded": (lambda seed: torch.rand(3), "fail", "different the second time"),
    "in part": (lambda seed: [torch.rand(3, generator=seeded(seed)), torch.rand(3)], "fail", "second time"),
    "constant": (lambda seed: torch.rand(3, generator=seeded(0)), "fail", "the seed is ignored"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_seeds(name):
    stream, *expected = STREAMS[name]
    holds(laws.check_seeds(stream), *expected)


@pytest.mark.parametrize("name", RUNS)
def test_seeds_of_a_run(name):
    run, *expected = RUNS[name]
    holds(laws.check_seeds(run=run), *expected)


@pytest.mark.parametrize("set_already", [0, 1, 2**63])
def test_a_run_that_is_not_seeded_is_seen_whatever_the_global_seed_is(set_already):
    torch.manual_seed(set_already)
    run, *expected = RUNS["not seeded"]
    holds(laws.check_seeds(run=run), *expected)
