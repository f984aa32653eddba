"""How two things are timed: in turn, A B B A, and only their ratio is claimed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]

NOISE = 0.03
"A ratio of a thing to itself that is further from 1 than this leaves nothing to claim."

PATIENCE = 10
"So many times its rounds a ratio is given, as long as the machine is too restless for it."


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
    "Median of one call of what was timed between the two as the machine's best."

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


def ab(a: Call, b: Call, rounds: int, device: torch.device, roof: Call | None = None) -> Ratio:
    """Time `a` and `b` in turn, each round A B B A, after warming both; `roof` once a round, in the middle.

    A restless machine gets more rounds, and all of them count: when to stop is decided by `a` against itself alone.
    """
    for call in (a, b, roof):
        if call is not None:
            clock(call, device)
    firsts, lasts, ratios, roofs = [], [], [], []

    def itself() -> float:
        return statistics.median(firsts) / statistics.median(lasts)

    for done in range(PATIENCE * rounds):
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
