"""How two things are timed: in turn, A B B A, and only their ratio is claimed."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from kdbench.harness.run.processes import start_server

Call = Callable[[], object]
T = TypeVar("T")

NOISE = 0.03
"A ratio of a thing to itself that is further from 1 than this leaves nothing to claim."


@dataclass(frozen=True)
class Sides:
    """What is compared: how much more `theirs` takes than `ours`; without it, the roof and ours by the operation."""

    ours: Call
    theirs: Call | None
    images: int | None = None
    "Images in one call of ours."
    flop: int | None = None
    "Operations in it."
    roof: tuple[Call, int] | None = None
    "What is timed beside the two as the machine's best, and its operations."


@dataclass(frozen=True)
class Ratio:
    """How much more `b` takes than `a`; above 1, `a` is the better one."""

    value: float
    lowest: float
    highest: float
    a_over_a: float
    "The same of `a` against itself; it says what this machine's noise can make of nothing."
    seconds: float
    "Median of one call of `a`."
    roof_seconds: float | None = None
    "Median of one call of the roof."

    @property
    def noisy(self) -> bool:
        """Whether the machine was too restless for the ratio to mean anything."""
        return abs(self.a_over_a - 1) > NOISE


def clock(call: Call, device: torch.device) -> float:
    """Return the seconds of one call, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ab(a: Call, b: Call, rounds: int, device: torch.device, roof: Call | None = None, patience: int = 1) -> Ratio:
    """Time `a` and `b` in turn, each round A B B A, after warming both; `roof` once a round, in the middle.

    A restless machine gets up to `patience` times the rounds, and all of them count: when to stop is decided by `a`
    against itself alone.
    """
    for call in (a, b, roof):
        if call is not None:
            clock(call, device)
    firsts, lasts, ratios, roofs = [], [], [], []

    def itself() -> float:
        return statistics.median(firsts) / statistics.median(lasts)

    for done in range(patience * rounds):
        if done and done % rounds == 0 and abs(itself() - 1) <= NOISE:
            break
        a1, b1 = clock(a, device), clock(b, device)
        if roof is not None:
            roofs.append(clock(roof, device))
        b2, a2 = clock(b, device), clock(a, device)
        firsts.append(a1)
        lasts.append(a2)
        ratios.append((b1 + b2) / (a1 + a2))
    return Ratio(
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        itself(),
        statistics.median(firsts + lasts),
        statistics.median(roofs) if roofs else None,
    )


def in_new_process(job: Callable[..., T], *args: object) -> T:
    """Call a function in a process of its own, started as a trial's is.

    In a process that has done much else, freed memory lies about that a step finds again; in a new one it goes back to
    the system and is fetched anew at each step, and the textbook pays more for it than ours (`test_kept_memory`).
    """
    with ProcessPoolExecutor(1, mp_context=start_server({1})) as pool:
        return pool.submit(job, *args).result()


def compare(sides: Sides, rounds: int, patience: int, device: torch.device) -> tuple[Ratio, dict[str, float]]:
    """Return the ratio of two sides, and what else can be said of our side's speed.

    With a roof, that is the floor (seconds that a call would take at that speed) and the fraction reached.
    """
    roof, flop = sides.roof, sides.flop
    theirs = sides.theirs or (roof and roof[0])
    if theirs is None:
        raise ValueError("there is nothing to compare with: neither their side nor a roof")
    ratio = ab(sides.ours, theirs, rounds, device, roof[0] if roof else None, patience)
    more: dict[str, float] = {}
    if sides.images is not None:
        more["images_per_second"] = round(sides.images / ratio.seconds, 1)
    if flop is not None and roof is not None and ratio.roof_seconds is not None:
        floor = flop / (roof[1] / ratio.roof_seconds)
        more.update(
            gflop_per_second=round(flop / ratio.seconds / 1e9, 1),
            floor_seconds=round(floor, 4),
            roof_fraction=round(floor / ratio.seconds, 3),
        )
        if sides.theirs is None:
            each = flop / roof[1]
            ratio = replace(ratio, value=ratio.value * each, lowest=ratio.lowest * each, highest=ratio.highest * each)
    return ratio, more


def compare_anew(
    threads: int, rounds: int, patience: int, device: torch.device, sides: Callable[..., Sides], *args: object
) -> tuple[Ratio, dict[str, float]]:
    """Compare what `sides(*args)` returns; the whole job of a process of its own."""
    torch.set_num_threads(threads)
    return compare(sides(*args), rounds, patience, device)
