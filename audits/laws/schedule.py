"""Schedule: the learning rate by step and by parameter group."""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kdbench.audits.checks.catalogue import Verdict, failed, passed, undecided
from kdbench.audits.laws.answers import number
from kdbench.audits.laws.registry import law


def _rate_at(source: Any) -> Callable[[int], float]:
    """Return what gives the rate at a step, to be asked for steps 0, 1, 2, ... in this order."""
    if callable(source):
        return lambda step: number(source(step), f"the rate at step {step}")
    optimizer, scheduler = source
    # Copies, to leave the user's where they are; but not of the weights and their state, which are large and not read.
    shared = [optimizer.state, *(p for group in optimizer.param_groups for p in group["params"])]
    optimizer, scheduler = copy.deepcopy((optimizer, scheduler), {id(value): value for value in shared})

    def rate(step: int) -> float:
        if step:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch misses the optimizer's steps, of which there are none here
                scheduler.step()
        return number(optimizer.param_groups[0]["lr"], f"the rate at step {step}")

    return rate


@law(
    "KD343",
    "schedule-endpoints",
    mend="count the period in what the schedule is stepped by: T_max=epochs * steps_per_epoch and one scheduler.step() "
    "after each optimizer.step(), or T_max=epochs and one an epoch",
)
def check_schedule(
    learning_rate: Any,
    steps: int,
    *,
    first: float | None = None,
    middle: float | None = None,
    last: float | None = None,
    steps_per_epoch: int | None = None,
    tolerance: float = 1e-6,
) -> Verdict:
    """The learning rate is the declared one at the first, the middle and the last step.

    ``learning_rate(step)`` returns the rate at a step, from 0 to `steps` - 1; or ``(optimizer, scheduler)``, of which
    copies are stepped from where they stand, one ``scheduler.step()`` a step, and the first group's rate is read.
    `first`, `middle` and `last` are the declared rates at steps 0, ``steps // 2`` and ``steps - 1``; None declares
    nothing. Fails when a rate is off by more than `tolerance` times the largest declared one, and names the likely
    slip; `steps_per_epoch` lets it name those that mix up steps and epochs.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if steps == 1:
        return undecided(
            "not-in-these-steps", "the schedule has one step, and so no course from first to last", "steps="
        )
    points = (("first", 0, first), ("middle", steps // 2, middle), ("last", steps - 1, last))
    declared = {name: (step, rate) for name, step, rate in points if rate is not None}
    if not declared:
        return undecided("intent-unknown", "no rate was declared", "first=, middle= or last=")
    rate_at = _rate_at(learning_rate)
    rates = [rate_at(step) for step in range(steps)]
    after = math.nan
    with contextlib.suppress(Exception):  # there need be no rate after the last
        after = rate_at(steps)
    slack = tolerance * max(abs(rate) for _, rate in declared.values())

    def near(a: float, b: float) -> bool:
        return abs(a - b) <= slack

    observed = {
        "steps": steps,
        "declared": {name: rate for name, (_, rate) in declared.items()},
        "found": {name: rates[step] for name, step, _ in points},
    }
    missed = {name: (step, rate) for name, (step, rate) in declared.items() if not near(rates[step], rate)}
    if not missed:
        said = ", ".join(f"{rate:.6g} at the {name} step" for name, (_, rate) in declared.items())
        return passed(f"the rates are the declared ones: {said}", observed)
    said = ", ".join(
        f"{rates[step]:.6g} at the {name} step ({step}), declared {rate:.6g}" for name, (step, rate) in missed.items()
    )
    slip = _schedule_slip(rates, after, {name: rate for name, (_, rate) in missed.items()}, near, last, steps_per_epoch)
    return failed(f"the rate is {said}" + (f": it {slip}" if slip else ""), observed)


@law(
    "KD344",
    "group-schedule",
    mend="set the rate of every group, or build the scheduler after the last group was added",
)
def check_group_schedule(set_rates: Callable[[torch.optim.Optimizer, int], Any], steps: int) -> Verdict:
    """A schedule moves the learning rate of every parameter group.

    ``set_rates(optimizer, step)`` sets the rates of a step, from 0 to `steps` - 1, in ``optimizer.param_groups``; it is
    handed an optimizer of three groups with one rate. Fails when one group's rate moves and another's never does.
    """
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0)
    seen: list[list[float]] = [[] for _ in weights]
    for step in range(steps):
        set_rates(optimizer, step)
        for rates, group in zip(seen, optimizer.param_groups, strict=True):
            rates.append(float(group["lr"]))
    moved = [rates for rates in seen if len({1.0, *rates}) > 1]
    observed = {"groups": len(seen), "moved": len(moved), "steps": steps}
    if not moved:
        return undecided("not-in-these-steps", "no learning rate changed", "steps=")
    if len(moved) < len(seen):
        return failed(f"the schedule moves {len(moved)} of {len(seen)} parameter groups", observed)
    return passed(f"the schedule moves all {len(seen)} parameter groups", observed)


def _schedule_slip(
    rates: list[float],
    after: float,
    missed: Mapping[str, float],
    near: Callable[[float, float], bool],
    last: float | None,
    steps_per_epoch: int | None,
) -> str | None:
    """Name the likeliest reason why rates by step miss the declared ones; None if none fits."""
    steps = len(rates)
    moves = [step for step in range(1, steps) if rates[step] != rates[step - 1]]
    if not moves:
        return f"never moves from {rates[0]:.6g}"
    if "first" in missed and near(rates[1], missed["first"]):
        return "is one step late: the declared first rate comes at step 1"
    if "first" in missed and near(2 * rates[0] - rates[1], missed["first"]):
        return "is one step early: the warm-up has moved before the first step"
    if "last" in missed and near(after, missed["last"]):
        return f"comes to the declared last rate only at step {steps}, after the last one"
    if (
        "last" in missed
        and steps_per_epoch
        and all(step % steps_per_epoch == 0 for step in moves)
        and abs(rates[-1] - missed["last"]) > abs(rates[0] - missed["last"]) / 2
    ):
        return (
            f"moves once in {steps_per_epoch} steps, {len(moves)} times in all, on a schedule that is counted in steps"
        )
    peak = rates.index(max(rates))
    rise = next((step for step in moves if step > peak and rates[step] > rates[step - 1]), None)
    if rise is not None:
        in_epochs = steps_per_epoch and abs(rise - 1 - peak - steps / steps_per_epoch) <= 1
        slip = "counted in epochs, and each step moves it" if in_epochs else "too short"
        return f"is at its lowest at step {rise - 1} and rises again: its period is {slip}"
    if last is not None and near(rates[steps // 2], last):
        end = next(step for step in range(steps) if near(rates[step], last))
        return f"is at its last rate already at step {end} of {steps}: its period is too short"
    return None
