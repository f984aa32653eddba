"""What a plan will cost, before it starts: floating-point operations counted, time guessed from the machine's speed."""

import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdbench.harness import faults
from kdbench.harness.plan.outline import in_words
from kdbench.harness.plan.plan import Plan
from kdbench.harness.records.spec import Spec
from kdbench.harness.run.kept_answers import shared_by
from kdbench.kd.data import SIZE
from kdbench.kd.models import Stem, make
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.train import OWN_STEPS

# Share of the matrix-multiplication speed that a training step reaches on a CPU: vector units want 16 channels.
_EFFICIENCY_NARROW, _EFFICIENCY = 0.5, 0.8
# On a GPU memory binds; published trainings of such networks reach about a third of the peak.
_EFFICIENCY_CUDA = 0.3
_START_SECONDS = 0.7


@dataclass(frozen=True)
class Cost:
    """An estimate for the trials that are still to run."""

    pflop: float
    seconds: float
    trials: Mapping[str, float] = field(default_factory=dict)
    "Seconds of each trial by key, as if it ran alone."

    def __str__(self) -> str:
        return f"about {in_words(self.seconds)}, {self.pflop:.3g} PFLOP"


@cache
def forward_flop(arch: str, stem: Stem, width: int, classes: int = 10, size: int = SIZE) -> int:
    """Return the floating-point operations of one image's forward, two a multiply-add, counted without running it."""
    with torch.device("meta"):
        net = make(arch, stem, classes, width, size).eval()
        image = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return counter.get_total_flops()


def trial_flop(spec: Spec, test_images: int, size: int = SIZE, *, reads: bool = False) -> int:
    """Return the floating-point operations of a trial: a backward costs two forwards, scoring one.

    If it `reads` the answers that its teacher gave another trial, the teacher is asked in the first steps, and then
    about one batch an epoch.
    """
    fault = faults.get(spec.fault) if spec.fault else None
    stem = (fault.inject(CANONICAL, lambda: None) if fault else CANONICAL).stem(size)
    recipe = spec.recipe
    student = forward_flop(spec.arch, stem, recipe.base_width, size=size)
    teacher = forward_flop(spec.teacher.arch, stem, recipe.base_width, size=size) if spec.teacher else 0
    images = recipe.epochs * (recipe.train_size // recipe.batch_size) * recipe.batch_size
    trained = images * spec.settings.crops()
    scored = recipe.epochs * recipe.val_size + test_images // recipe.test_stride
    taught = min(trained, (OWN_STEPS + recipe.epochs) * recipe.batch_size) if reads else trained
    scored_teacher = test_images // recipe.test_stride
    return (3 * trained + scored) * student + (taught + scored_teacher) * teacher


def _readers(plan: Plan, keys: Collection[str]) -> frozenset[str]:
    """Return the trials whose teacher gave its answers to another one before; a repeat under another name asks it."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for key in keys:
        if (shared := shared_by(plan.trials[key])) is not None and plan.trials[key].key == key:
            groups[shared].append(key)
    return frozenset(key for group in groups.values() for key in group[1:])


def machine_flops(device: torch.device, seconds: float = 0.3) -> float:
    """Return the speed of a matrix multiplication on one thread (or the GPU) right now, in operations a second."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = float("inf")
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            clock = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - clock)
    finally:
        torch.set_num_threads(threads)
    return 2 * n**3 / best


def bf16_speed(seconds: float = 0.05) -> float:
    """Return how fast a processor convolves in bf16 as a multiple of fp32, on one thread.

    Some list the instructions and are slower with them. Without them a convolution of one image takes hundreds of times
    as long, so each format is timed once, and then again only for so many seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _convolution(torch.float32, seconds) / _convolution(torch.bfloat16, seconds)
    finally:
        torch.set_num_threads(threads)


def _convolution(dtype: torch.dtype, seconds: float) -> float:
    """Return the seconds of the fastest of several convolutions of one image."""
    kernels = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    few, image = (torch.ones(1, 64, n, n, dtype=dtype).contiguous(memory_format=torch.channels_last) for n in (4, 16))
    torch.nn.functional.conv2d(few, kernels)  # a first call sets the library up
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        clock = time.perf_counter()
        torch.nn.functional.conv2d(image, kernels, padding=1)
        best = min(best, time.perf_counter() - clock)
    return best


def estimate(
    plan: Plan,
    keys: Collection[str],
    test_images: int,
    workers: int,
    device: torch.device,
    size: int = SIZE,
    *,
    kept_answers: bool = False,
) -> Cost:
    """Estimate the trials in `keys`: the work shared by the workers, but never less than a teacher and its student."""
    if not keys:
        return Cost(0.0, 0.0)
    speed = machine_flops(device)
    reads = _readers(plan, keys) if kept_answers else frozenset()
    flop = {key: trial_flop(plan.trials[key], test_images, size, reads=key in reads) for key in keys}

    def seconds(key: str) -> float:
        efficiency = _EFFICIENCY if plan.trials[key].recipe.base_width >= 16 else _EFFICIENCY_NARROW
        if device.type == "cuda":
            efficiency = _EFFICIENCY_CUDA
        return flop[key] / (speed * efficiency * plan.trials[key].threads) + _START_SECONDS

    times = {key: seconds(key) for key in keys}
    chains = [times[key] + sum(times.get(need, 0.0) for need in plan.needs_all(key)) for key in keys]
    return Cost(sum(flop.values()) / 1e15, max(sum(times.values()) / workers, *chains), times)
