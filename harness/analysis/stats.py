"""The statistics of two groups of seeds, on scipy; every difference is b - a.

Five verdicts and never "no effect": `different` (the adjusted Welch p is below alpha), `equivalent` (two one-sided
tests at the declared margin), `both` (real, and smaller than the margin), `undecided`, `undefined`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, special

from kdbench.harness.analysis import permutation

Verdict = Literal["different", "equivalent", "both", "undecided", "undefined"]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Everything that is said of two groups; None where it is not defined."""

    mean: tuple[float | None, float | None]
    std: tuple[float | None, float | None]
    "Sample standard deviations, ddof = 1."
    difference: float | None = None
    ci95: Pair | None = None
    "Of the difference, Welch."
    welch_p: float | None = None
    permutation_p: float | None = None
    least_permutation_p: float | None = None
    "The smallest p that this design could give, whatever the data."
    hedges_g: float | None = None
    hedges_g_ci95: Pair | None = None
    "Of the true standardised effect."
    p_b_greater: float | None = None
    "Probability that a seed of b beats a seed of a, ties counted half."
    tost_p: float | None = None
    mde: float | None = None
    "Smallest difference that a pooled t test of this size and spread finds with power .8: at least so much."
    paired: bool = False
    "Whether the seeds were compared one by one; `welch_p` is then the paired t test's."
    correlation: float | None = None
    "Between the two groups over their shared seeds, where there are at least three: how much pairing could gain."
    constant: Literal["a", "b"] | None = None
    "The group that does not vary, where only one does not."
    seeds_for_power: int | None = None
    "Seeds per arm that find a difference of the margin's size with power .8 at the observed spread."
    warnings: list[str] = field(default_factory=list)


def _upper_tail(t: float, df: float, shift: float) -> float:
    """Return P(T > t) of the noncentral t; far out scipy may give nan where the answer is 0 or 1."""
    p = 1 - float(special.nctdtr(df, shift, t))
    return p if math.isfinite(p) else float(shift > t)


def power(effect: float, n: int | tuple[int, int], alpha: float = 0.05, paired: bool = False) -> float:
    """Return the power of the two-sided t test at a standardised effect, both tails.

    Of the pooled test with n per group, or so many in the one and so many in the other, the effect in units of their
    spread; or of the paired one with n pairs, in units of the spread of their differences.
    """
    n_a, n_b = n if isinstance(n, tuple) else (n, n)
    df, size = (n_a - 1, n_a) if paired else (n_a + n_b - 2, n_a * n_b / (n_a + n_b))
    shift = abs(effect) * math.sqrt(size)
    limit = -float(special.stdtrit(df, alpha / 2))
    return _upper_tail(limit, df, shift) + _upper_tail(limit, df, -shift)


@cache
def smallest_effect(n: int | tuple[int, int], alpha: float = 0.05, wanted: float = 0.8, paired: bool = False) -> float:
    """Return the standardised effect that groups of these sizes (see :func:`power`) find with the wanted power."""
    if wanted <= alpha:  # what the test has without any effect
        return 0.0
    enough = next(high for high in (2.0**k for k in range(200)) if power(high, n, alpha, paired) >= wanted)
    return float(optimize.brentq(lambda d: power(d, n, alpha, paired) - wanted, 0, enough))


def seeds_needed(
    effect: float, alpha: float = 0.05, wanted: float = 0.8, paired: bool = False, most: int = 10_000
) -> int | None:
    """Return the seeds per group that find a standardised effect with the wanted power; None beyond `most`."""
    if power(effect, most, alpha, paired) < wanted:
        return None
    # More seeds have more power. A look a little above and below the normal distribution's answer narrows the search.
    z = -float(special.ndtri(alpha / 2)) + float(special.ndtri(wanted))
    guess = min(most, max(2, math.ceil((1 if paired else 2) * (z / effect) ** 2)))
    low, high = 2, most
    for n in (guess + 3, guess):
        if low < n < high:
            low, high = (low, n) if power(effect, n, alpha, paired) >= wanted else (n + 1, high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, alpha, paired) >= wanted else (middle + 1, high)
    return low


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p values of a family, in the given order; a test that has no p counts, and gets none."""
    known = [(p, i) for i, p in enumerate(ps) if p is not None]
    adjusted: list[float | None] = [None] * len(ps)
    worst = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        worst = max(worst, min(1.0, (len(ps) - rank) * p))
        adjusted[i] = worst
    return adjusted


def constant(x: np.ndarray) -> bool:
    """Say whether values do not vary, but for the last bits of their sums."""
    return bool(np.ptp(x) <= 1e-9 * max(1.0, abs(float(x.mean()))))


class Tested(NamedTuple):
    """What decides on a difference; arrays, where many experiments were tested at once."""

    difference: np.ndarray
    low: np.ndarray
    "Of its 95% interval."
    high: np.ndarray
    p: np.ndarray
    tost_p: np.ndarray
    "The larger of two one-sided tests': the difference is above -margin, and below margin."


def _tested(difference: np.ndarray, error: np.ndarray, df: np.ndarray | float, margin: float) -> Tested:
    """Test a difference with this standard error by Student's t; the numbers of scipy.stats without its wrappers.

    Those take far longer than the test, which a study makes a thousand times.
    """
    if not np.isfinite(difference).all():
        raise ValueError("a value that is no number cannot be tested")
    reach = special.stdtrit(df, 0.975) * error
    p = 2 * special.stdtr(df, -np.abs(difference / error))
    lower, upper = (special.stdtr(df, -(margin + d) / error) for d in (difference, -difference))
    return Tested(difference, difference - reach, difference + reach, p, np.maximum(lower, upper))


def welch(x: np.ndarray, y: np.ndarray, margin: float) -> Tested:
    """Test y - x, unpaired, along the last axis; the axes before it are experiments of their own."""
    n_x, n_y = x.shape[-1], y.shape[-1]
    u, v = x.var(axis=-1, ddof=1) / n_x, y.var(axis=-1, ddof=1) / n_y
    with np.errstate(divide="ignore", invalid="ignore"):  # of arms that do not vary: the caller remarks on it
        df = (u + v) ** 2 / (u**2 / (n_x - 1) + v**2 / (n_y - 1))
        return _tested(y.mean(axis=-1) - x.mean(axis=-1), np.sqrt(u + v), df, margin)


def paired_t(x: np.ndarray, y: np.ndarray, margin: float) -> Tested:
    """Test y - x, seed by seed, along the last axis; the axes before it are experiments of their own."""
    d, n = y - x, x.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return _tested(d.mean(axis=-1), d.std(axis=-1, ddof=1) / math.sqrt(n), n - 1, margin)


def _pooled(x: np.ndarray, y: np.ndarray) -> float:
    squares = (len(x) - 1) * float(x.var(ddof=1)) + (len(y) - 1) * float(y.var(ddof=1))
    return math.sqrt(squares / (len(x) + len(y) - 2))


def hedges(x: np.ndarray, y: np.ndarray) -> tuple[float, Pair]:
    """Return Hedges' g of y over x with the exact small-sample factor, and a 95% interval of the true effect.

    The interval inverts the noncentral t. It is not shrunk by g's factor, which takes the bias off the estimate:
    shrunk, it would hold the true effect less often than it says.
    """
    df, scale = len(x) + len(y) - 2, math.sqrt(1 / len(x) + 1 / len(y))
    factor = math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) * math.sqrt(2 / df)
    t = float(y.mean() - x.mean()) / (_pooled(x, y) * scale)

    def shift(tail: float) -> float:
        reach = 10 + 5 * abs(t)
        return float(optimize.brentq(lambda nc: _upper_tail(t, df, nc) - tail, t - reach, t + reach))

    return factor * t * scale, (shift(0.025) * scale, shift(0.975) * scale)


def _share_greater(x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of pairs in which y's value is above x's, ties counted half, by ranks."""
    ordered = np.sort(x)
    below = int(np.searchsorted(ordered, y, "left").sum())
    not_above = int(np.searchsorted(ordered, y, "right").sum())
    pairs = len(x) * len(y)
    return ((below - (pairs - not_above)) / pairs + 1) / 2


def compare_paired(a: Sequence[float], b: Sequence[float], margin: float, alpha: float = 0.05) -> Comparison:
    """Compare two groups seed by seed: for what happens after training, when both share their weights.

    `a` and `b` hold the same seeds in the same order. The spread is that of the differences.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values are no pairs")
    d, n = y - x, len(x)
    if n < 2:
        return undefined(a, b, f"{n} pairs of seeds: with fewer than two nothing can be said of the spread")
    if constant(d):
        return undefined(a, b, "every seed differs by the same: the difference is deterministic, and no test applies")
    found, spread = paired_t(x, y, margin), float(d.std(ddof=1))
    flips, least = permutation.sign_flip_p(d), permutation.least_p(2 ** min(n, 63))
    mde = smallest_effect(n, alpha, paired=True)
    remarks = []
    if n < 8:
        remarks.append(
            f"{n} pairs of seeds: no exact test can give p < {least:.2g}; differences under about {mde:.1f} sd of the "
            "differences are easily missed"
        )
    if least < alpha and (flips < alpha) != (found.p < alpha):
        remarks.append("the paired t and the exact sign-flip test fall on different sides of alpha")
    plain = None if constant(x) and constant(y) else compare(a, b, margin, alpha)
    return Comparison(
        (float(x.mean()), float(y.mean())),
        (float(x.std(ddof=1)), float(y.std(ddof=1))),
        float(found.difference),
        (float(found.low), float(found.high)),
        float(found.p),
        flips,
        least,
        plain.hedges_g if plain else None,
        plain.hedges_g_ci95 if plain else None,
        _share_greater(x, y),
        float(found.tost_p),
        mde * spread,
        True,
        correlation(x, y),
        "a" if constant(x) else "b" if constant(y) else None,
        seeds_needed(margin / spread, alpha, paired=True),
        warnings=remarks,
    )


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return Pearson's r of two groups over their seeds; None where a group does not vary or has under three seeds."""
    if len(x) != len(y) or len(x) < 3 or constant(x) or constant(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def undefined(a: Sequence[float], b: Sequence[float], why: str) -> Comparison:
    """Return means and deviations, and why no more is said."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    mean = (float(x.mean()) if len(x) else None, float(y.mean()) if len(y) else None)
    std = (float(x.std(ddof=1)) if len(x) > 1 else None, float(y.std(ddof=1)) if len(y) > 1 else None)
    difference = None if mean[0] is None or mean[1] is None else mean[1] - mean[0]
    return Comparison(mean, std, difference, warnings=[why])


def compare(a: Sequence[float], b: Sequence[float], margin: float, alpha: float = 0.05) -> Comparison:
    """Compare two groups of seeds, unpaired: training diverges chaotically, so a shared seed couples little."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    n_a, n_b = len(x), len(y)
    if min(n_a, n_b) < 2:
        return undefined(a, b, f"{n_a} v {n_b} seeds: with fewer than two in an arm nothing can be said of the spread")
    if constant(x) and constant(y):
        return undefined(
            a, b, "neither arm varies over its seeds: the difference is deterministic, and no test applies"
        )
    remarks: list[str] = []
    found, pooled = welch(x, y, margin), _pooled(x, y)
    relabelled, least = permutation.relabelling_p(x, y), permutation.least_p(permutation.designs(n_a, n_b))
    g, g_interval = hedges(x, y)
    smaller = min(n_a, n_b)
    mde = smallest_effect((n_a, n_b), alpha)
    if smaller < 6:
        remarks.append(
            f"{n_a} v {n_b} seeds: no exact test can give p < {least:.2g}; differences under about {mde:.1f} sd "
            "are easily missed"
        )
    if least < alpha and (relabelled < alpha) != (found.p < alpha):
        remarks.append("the Welch and the exact permutation test fall on different sides of alpha")
    return Comparison(
        (float(x.mean()), float(y.mean())),
        (float(x.std(ddof=1)), float(y.std(ddof=1))),
        float(found.difference),
        (float(found.low), float(found.high)),
        float(found.p),
        relabelled,
        least,
        g,
        g_interval,
        _share_greater(x, y),
        float(found.tost_p),
        mde * pooled,
        constant="a" if constant(x) else "b" if constant(y) else None,
        seeds_for_power=seeds_needed(margin / pooled, alpha),
        warnings=remarks,
    )


def verdict(comparison: Comparison, adjusted_p: float | None, alpha: float = 0.05) -> Verdict:
    """Return what the adjusted p and the equivalence test say together."""
    if adjusted_p is None or comparison.tost_p is None:
        return "undefined"
    real, small = adjusted_p < alpha, comparison.tost_p < alpha
    if real:
        return "both" if small else "different"
    return "equivalent" if small else "undecided"
