"""What the benchmarks share: where and at what size they run, and how what they measure is written down."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sizes as all_sizes
import torch
from sizes import Sizes
from timing import Call, Ratio, Sides, compare, compare_anew, in_new_process
from trainings import Bench

from kdbench.harness.records.environment import device_name, usable_cores, versions

_LOAD = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kdbench's benchmarks")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the trainings run")
    group.addoption("--toy", action="store_true", help="run each benchmark once, tiny: shows that it runs, no more")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LOAD] = os.getloadavg()[0]  # before the benchmarks themselves are the load


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    device = torch.device(config.getoption("--device"))
    here = device.type == "cpu" or torch.cuda.is_available()
    machine_info["kdbench"] = {
        "toy": config.getoption("--toy"),
        "device": device.type,
        "device_name": device_name(device) if here else None,
        "cores": usable_cores(),
        "load_average_before": round(config.stash[_LOAD], 2),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **versions("torch", "torchvision", "numpy"),
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Threads: one, and on a processor all cores. Precision: fp32, bf16, and on a GPU TF32, which the textbook has."""
    if "threads" in metafunc.fixturenames:
        several = metafunc.config.getoption("--device") == "cpu" and usable_cores() > 1
        metafunc.parametrize("threads", ["one-thread", *(["all-cores"] if several else [])], indirect=True)
    if "precision" in metafunc.fixturenames:
        rounded = ["tf32"] if metafunc.config.getoption("--device") == "cuda" else []
        metafunc.parametrize("precision", ["fp32", *rounded, "bf16"], indirect=True)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    kind = request.config.getoption("--device")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return torch.device(kind)


@pytest.fixture
def cpu_only(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("no work of the device's; measured without --device cuda")


@pytest.fixture(scope="session")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    if request.config.getoption("--toy"):
        return all_sizes.TOY
    return all_sizes.CUDA if request.config.getoption("--device") == "cuda" else all_sizes.CPU


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def threads(request: pytest.FixtureRequest, sizes: Sizes, _one_thread: None) -> str:
    """Which threads torch works with: one-thread, or all-cores (but in a toy run, which shares the machine)."""
    if request.param == "all-cores" and not sizes.toy:
        torch.set_num_threads(usable_cores())
    return request.param


@pytest.fixture
def precision(request: pytest.FixtureRequest, device: torch.device) -> str:
    if request.param == "bf16":
        request.getfixturevalue("bf16")
    return request.param


@pytest.fixture
def bf16(device: torch.device) -> None:
    if not has_bf16(device):
        pytest.skip("this device has no bf16 arithmetic (a processor needs avx512_bf16 or amx_bf16)")


def has_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bf16 numbers as such."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch cannot be asked, and then nothing is claimed.
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="session")
def bench(sizes: Sizes, device: torch.device) -> Bench:
    return Bench(sizes, device)


class Measure:
    """Times one benchmark and writes down what it may claim, and on what, in the benchmark's record."""

    def __init__(
        self, benchmark: Any, say: Callable[[str], None], what: str, device: torch.device, sizes: Sizes
    ) -> None:
        self.benchmark, self.say, self.device, self.sizes = benchmark, say, device, sizes
        benchmark.extra_info.update(
            what=what,
            device=device.type,
            device_name=device_name(device),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            load_average=round(os.getloadavg()[0], 2),
        )

    def ratio(self, sides: Callable[..., Sides], *args: object, goal: float | None) -> None:
        """Compare what `sides(*args)` returns, in a process of its own; pytest-benchmark times the whole of that.

        With a roof, the floor (seconds that a call would take at that speed) and the fraction reached are noted.
        """
        how = torch.get_num_threads(), self.sizes.rounds, self.sizes.patience, self.device
        job = partial(in_new_process, compare_anew, *how, sides, *args)
        ratio, more = self.benchmark.pedantic(job, rounds=1, iterations=1)
        self.claim(ratio, goal, **more)

    def ratio_here(self, sides: Sides, *, goal: float | None, rounds: int, patience: int | None = None) -> Ratio:
        """Compare two sides in this process, where they start processes themselves."""
        job = partial(compare, sides, rounds, min(patience or self.sizes.patience, self.sizes.patience), self.device)
        ratio, more = self.benchmark.pedantic(job, rounds=1, iterations=1)
        self.claim(ratio, goal, **more)
        return ratio

    def note(self, **more: object) -> None:
        """Write down something else of interest."""
        self.benchmark.extra_info.update(more)

    def claim(self, ratio: Ratio, goal: float | None, **more: object) -> None:
        """Write down a ratio: the higher, the better."""
        claim = "too noisy to claim anything" if ratio.noisy else f"{ratio.value:.2f} times"
        self._value(
            "ratio",
            ratio.value,
            ratio.lowest,
            ratio.highest,
            goal,
            **more,
            noisy=ratio.noisy,
            a_over_a=round(ratio.a_over_a, 3),
        )
        self.say(f"{claim} ({ratio.lowest:.2f} to {ratio.highest:.2f}; A/A {ratio.a_over_a:.3f}){_listed(more)}")

    def seconds(
        self, call: Call, *, goal: float | None, rounds: int, setup: Callable[[], Any] | None = None, **more: object
    ) -> None:
        """Time a call by itself: the lower, the better."""
        self.benchmark.pedantic(call, setup=setup, rounds=1 if self.sizes.toy else rounds, iterations=1)
        stats = self.benchmark.stats.stats
        self._value("seconds", stats.median, stats.min, stats.max, goal, **more)
        self.say(f"{stats.median:.4f} s ({stats.min:.4f} to {stats.max:.4f}){_listed(more)}")

    def share(self, value: float, goal: float | None, **more: object) -> None:
        """Write down a share of a time: the lower, the better."""
        self._value("share", value, value, value, goal, **more)
        self.say(f"{value:.2%}{_listed(more)}")

    def _value(
        self, kind: str, value: float, lowest: float, highest: float, goal: float | None, **more: object
    ) -> None:
        meant = not self.sizes.toy and self.device.type == "cpu"  # the goals were set for a processor
        self.note(
            kind=kind,
            value=round(value, 5),
            range=[round(lowest, 5), round(highest, 5)],
            goal=goal if meant else None,
            **more,
        )


def _listed(more: dict[str, Any]) -> str:
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in more.items() if value is not None)


@pytest.fixture
def measure(
    request: pytest.FixtureRequest,
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    device: torch.device,
    sizes: Sizes,
) -> Measure:
    if "threads" in request.fixturenames:
        request.getfixturevalue("threads")  # first, since their number is noted

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {benchmark.name}: {text}")

    what = (request.function.__doc__ or "").strip().splitlines()[0]
    return Measure(benchmark, say, what, device, sizes)
