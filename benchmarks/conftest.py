"""How the benchmarks measure: two things in turn, A B B A, and only their ratio is claimed."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from harness.environment import device_name
from kd import data
from kd.data import Dataset


@dataclass(frozen=True)
class Ratio:
    """How much longer `b` takes than `a`."""

    value: float
    lowest: float
    highest: float
    a_over_a: float
    "The same of `a` against itself; it says what this machine's noise can make of nothing."
    seconds: float
    "Median of one call of `a`."

    @property
    def noisy(self) -> bool:
        """Whether the machine was too restless for the ratio to mean anything."""
        return not 0.97 <= self.a_over_a <= 1.03


def ab(a: Callable[[], object], b: Callable[[], object], rounds: int) -> Ratio:
    """Time `a` and `b` in turn, each round A B B A, after warming both."""
    a(), b()

    def clock(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    firsts, lasts, ratios = [], [], []
    for _ in range(rounds):
        a1, b1, b2, a2 = clock(a), clock(b), clock(b), clock(a)
        firsts.append(a1)
        lasts.append(a2)
        ratios.append((b1 + b2) / (a1 + a2))
    return Ratio(
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(firsts) / statistics.median(lasts),
        statistics.median(firsts + lasts),
    )


@pytest.fixture
def measure(benchmark, capsys) -> Callable[..., Ratio]:
    """Compare `ours` with `theirs` and put the ratio, and what it was measured on, into the benchmark's record."""

    def run(ours, theirs, images: int, rounds: int = 4) -> Ratio:
        ratio = ab(ours, theirs, rounds)
        benchmark.pedantic(ours, rounds=2, iterations=1)
        benchmark.extra_info.update(
            ratio=round(ratio.value, 3),
            ratio_range=[round(ratio.lowest, 3), round(ratio.highest, 3)],
            a_over_a=round(ratio.a_over_a, 3),
            noisy=ratio.noisy,
            images_per_second=round(images / ratio.seconds, 1),
            device=device_name(torch.device("cpu")),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            load_average=round(os.getloadavg()[0], 2),
        )
        with capsys.disabled():
            claim = "too noisy to claim anything" if ratio.noisy else f"{ratio.value:.2f} times"
            print(
                f"\n  {benchmark.name}: {claim} ({ratio.lowest:.2f} to {ratio.highest:.2f}; A/A {ratio.a_over_a:.3f}), "
                f"{images / ratio.seconds:.0f} images/s on {torch.get_num_threads()} thread"
            )
        return ratio

    return run


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images() -> Dataset:
    """Images of noise: their content costs nothing, and no download is needed."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1024, 32, 32, 3), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, 10, (1024,), generator=rng)
    return data._dataset("noise", pixels, labels, 1000, [str(i) for i in range(10)])


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bench")
