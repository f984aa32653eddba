"""Aggregation: mean and deviation over seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdbench.audits.checks.catalogue import Verdict, failed, passed
from kdbench.audits.laws.answers import OddAnswerError, close, number, short
from kdbench.audits.laws.registry import law

MISSING = object()
"What a result has no part for."


def _part(result: Any, names: Sequence[str], position: int | None = None) -> Any:
    """Return one part of a result by key, attribute or position, a bare number being its own first; else MISSING."""
    if hasattr(result, "tolist"):  # the attributes of an array are methods, and no part of it
        result = result.tolist()
    for name in names:
        value = result.get(name, MISSING) if isinstance(result, Mapping) else getattr(result, name, MISSING)
        if value is not MISSING:
            return value
    if isinstance(result, list | tuple) and position is not None and position < len(result):
        return result[position]
    if position == 0 and (result is None or isinstance(result, int | float)):
        return result
    return MISSING


def _statistic(result: Any, names: Sequence[str], position: int) -> float:
    """Return mean or deviation from what an aggregate returned, nan for None; raise OddAnswerError if it has none."""
    value = _part(result, names, position)
    if value is MISSING:
        raise OddAnswerError(f"aggregate returned {short(result)}, which has no {names[0]}")
    return math.nan if value is None else number(value, f"the {names[0]}")


MEAN, DEVIATION = ("mean",), ("sd", "std", "stdev")


@law(
    "KD345",
    "sample-spread",
    mend="statistics.stdev(values) or numpy.std(values, ddof=1), and None for one value",
)
def check_spread(aggregate: Callable[[list[float]], Any]) -> Verdict:
    """The spread over seeds is the sample standard deviation (ddof = 1), and one seed has none.

    ``aggregate(values)`` gets a list of floats and returns mean and deviation: the first two of a tuple, or what is
    called mean and sd (std, stdev) in a dict or an object. Fails when either is off by more than 2 in a thousand, or
    when one value has a deviation other than None or nan; to refuse one value with a ValueError is as good.
    """
    for values in ([80.0, 91.0, 85.5, 99.0, 94.5], [91.5, 88.0, 97.25], [90.0, 94.0]):
        result = aggregate(list(values))
        mean, spread = _statistic(result, MEAN, 0), _statistic(result, DEVIATION, 1)
        n, true_mean = len(values), math.fsum(values) / len(values)
        true = math.sqrt(math.fsum((value - true_mean) ** 2 for value in values) / (n - 1))
        observed = {"values": values, "mean": mean, "sd": spread, "expected": [true_mean, true]}
        if not math.isclose(mean, true_mean, rel_tol=2e-3):
            return failed(f"the mean of {values} is given as {mean:.6g}, and is {true_mean:.6g}", observed)
        if math.isclose(spread, true, rel_tol=2e-3):
            continue
        slips = {
            math.sqrt((n - 1) / n): "ddof = 0, the deviation of a whole population",
            1 / math.sqrt(n): "the standard error of the mean",
            true: "the variance",
            math.sqrt((n - 1) / n) / math.sqrt(n): "the standard error, with ddof = 0",
        }
        slip = next((f": {name}" for ratio, name in slips.items() if close(spread / true, ratio, 2e-3)), "")
        return failed(
            f"the deviation of {values} is given as {spread:.6g}, with ddof = 1 it is {true:.6g}{slip}", observed
        )
    try:
        spread = _statistic(aggregate([92.0]), DEVIATION, 1)
    except ValueError:
        return passed("the deviation has ddof = 1, and one value is refused")
    if not math.isnan(spread):
        return failed(f"one value is given a deviation of {spread:.6g}: it has none", {"values": [92.0], "sd": spread})
    return passed("the deviation has ddof = 1, and one value has none")


@law(
    "KD346",
    "all-seeds-counted",
    mend="raise ValueError when a seed is missing or nan, or report how many are missing; no nanmean",
)
def check_aggregation(aggregate: Callable[[list[float | None]], Any]) -> Verdict:
    """A seed that diverged or is missing does not vanish from the mean.

    ``aggregate(values)`` gets five values, one of them nan and then None. It may raise ValueError or TypeError, return
    a mean (alone or with more) of nan or None, or say so: `n`, of all five, or `missing`, 1 (by key or attribute; n
    also as third of a tuple).
    Fails on any other number for a mean, since a method that diverges one time in five looks as good as the other four.
    """
    healthy = [91.0, 92.5, 94.0, 90.0, 96.0]
    _statistic(aggregate(list(healthy)), MEAN, 0)  # what fails on these is broken, and refuses nothing
    for lost, word in ((math.nan, "diverged (nan)"), (None, "is missing (None)")):
        for position in (0, 2, 4):
            values: list[float | None] = [*healthy]
            values[position] = lost
            try:
                result = aggregate(list(values))
            except (ValueError, TypeError):
                continue
            mean = _statistic(result, MEAN, 0)
            n, missing = _part(result, ("n",), 2), _part(result, ("missing",))
            if math.isnan(mean) or n == len(values) or missing == 1:
                continue
            rest = [value for i, value in enumerate(healthy) if i != position]
            slip = ""
            if close(mean, math.fsum(rest) / len(rest)):
                slip = ": the mean of the other four, as if it had never been run"
            elif close(mean, math.fsum(rest) / len(values)):
                slip = ": it counts as 0"
            return failed(
                f"number {position + 1} of 5 seeds {word}, and the mean is given as {mean:.6g}{slip}",
                {"values": values, "mean": mean, "n": None if n is MISSING else short(n)},
            )
    return passed("a seed that diverged or is missing shows")
