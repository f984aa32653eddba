"""Permutation tests of two groups and of pairs, at a cost in time and memory that large groups do not raise."""

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np

EXACT_LIMIT = 1_000_000
"Relabellings up to which all of them are counted."
RESAMPLES = 99_999
"Relabellings that are drawn at random where there are more."
_SHUFFLED = 1000
"Values of both groups up to which each that is drawn is a shuffle of all."
_FEW = 64
"Values of the smaller group up to which the values themselves are drawn; beyond, how many fall into each cell."
_BLOCK = 1_000_000
"Numbers that are held at a time."


def designs(n_a: int, n_b: int) -> int:
    """Return the number of relabellings, or the first number beyond the limit that counting them came to."""
    small, large = sorted((n_a, n_b))
    found = 1
    for i in range(1, small + 1):  # the whole number has as many digits as there are values
        found = found * (large + i) // i
        if found > EXACT_LIMIT:
            break
    return found


def least_p(relabellings: int) -> float:
    """Return the smallest two-sided p that so many relabellings, or as many as are drawn of them, can give."""
    return 2 / (relabellings if relabellings <= EXACT_LIMIT else RESAMPLES + 1)  # twice the smaller one-sided p


def relabelling_p(x: np.ndarray, y: np.ndarray) -> float:
    """Return twice the smaller share of relabellings that are at least as extreme: all of them, or 99,999 at random."""
    if designs(len(x), len(y)) > EXACT_LIMIT:
        if len(x) + len(y) <= _SHUFFLED:
            return _shuffled_p((y, x), "independent")
        return _drawn_p(y, x) if len(y) <= len(x) else _drawn_p(x, y)
    both = np.concatenate([x, y]) - x.mean()
    # b's sum orders relabellings as the difference of means does.
    return _two_sided(both[_relabellings(len(x), len(y))].sum(axis=1), both[len(x) :].sum(), np.abs(both).sum())


def sign_flip_p(d: np.ndarray) -> float:
    """Return twice the smaller share of the sign flips of differences that are at least as extreme."""
    if 2 ** len(d) > EXACT_LIMIT:
        return _shuffled_p((d,), "samples")
    flips = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    return _two_sided(flips @ d, d.sum(), np.abs(d).sum())


@lru_cache(maxsize=8)
def _relabellings(n_a: int, n_b: int) -> np.ndarray:
    """Return every choice of b's places among all seeds, one a row."""
    chosen = itertools.chain.from_iterable(itertools.combinations(range(n_a + n_b), n_b))
    return np.fromiter(chosen, np.int16).reshape(-1, n_b)


def _two_sided(sums: np.ndarray, seen: float, scale: float, more: int = 0) -> float:
    """Return twice the smaller share of sums at least as extreme as the one seen; last bits of `scale` are ties.

    `more` sums are as extreme as the one seen, and not among them: the one seen itself, where others are drawn.
    """
    tie = 1e-9 * max(1.0, float(scale))
    extreme = min(int((sums >= seen - tie).sum()), int((sums <= seen + tie).sum()))
    return min(1.0, 2 * (extreme + more) / (len(sums) + more))


def _shuffled_p(samples: tuple[np.ndarray, ...], kind: Literal["independent", "samples"]) -> float:
    """Return the p of scipy's permutation test of a mean, or of two means' difference; it draws the same each time."""
    from scipy import stats  # takes long to import, and few comparisons need it

    found = stats.permutation_test(
        samples,
        lambda u, *v, axis: u.mean(axis=axis) - (v[0].mean(axis=axis) if v else 0),
        permutation_type=kind,
        n_resamples=RESAMPLES,
        vectorized=True,
        batch=max(1, _BLOCK // sum(map(len, samples))),
        rng=0,
    )
    return float(found.pvalue)


def _drawn_p(small: np.ndarray, large: np.ndarray) -> float:
    """Return the test's p of large groups, from sums of the smaller one under relabellings that are drawn at random."""
    centre = (small.sum() + large.sum()) / (len(small) + len(large))
    both, seen = np.concatenate([small, large]) - centre, float((small - centre).sum())
    both.sort()
    draw = _few_of(both, len(small)) if len(small) <= _FEW else _many_of(both, len(small))
    rng, sums, found = np.random.default_rng(0), [], 0
    while found < RESAMPLES:
        sums.append(draw(rng))
        found += len(sums[-1])
    return _two_sided(np.concatenate(sums)[:RESAMPLES], seen, np.abs(both).sum(), more=1)


def _few_of(values: np.ndarray, k: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a draw of sums of k of the values, each value at most once in a sum."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        chosen = np.sort(rng.integers(len(values), size=(_BLOCK // k, k)), axis=1)
        once = (np.diff(chosen, axis=1) > 0).all(axis=1)
        return np.asarray(values[chosen[once]].sum(axis=1))

    return draw


def _many_of(values: np.ndarray, k: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a draw of sums of k of the sorted values, at a cost that their number does not raise.

    The values are cut into cells, the most extreme ones into cells of their own. How many of each cell a sum has is
    drawn as a relabelling would give it (multivariate hypergeometric). Which of a cell's nearly equal values these are
    moves the sum hardly, and is drawn from the normal distribution with the mean and variance that this has.
    """
    edges = _cells(values)
    sizes = np.diff(edges)
    means = np.add.reduceat(values, edges[:-1]) / sizes
    squares = np.add.reduceat((values - np.repeat(means, sizes)) ** 2, edges[:-1])
    variance = squares / np.maximum(sizes - 1, 1)

    def draw(rng: np.random.Generator) -> np.ndarray:
        taken = rng.multivariate_hypergeometric(sizes, k, size=_BLOCK // len(sizes), method="marginals")
        within = np.sqrt((taken * (1 - taken / sizes)) @ variance)
        return np.asarray(taken @ means + within * rng.standard_normal(len(taken)))

    return draw


def _cells(values: np.ndarray, alone: int = 8, others: int = 24) -> np.ndarray:
    """Return where cells of sorted values begin, and where the last ends; equal values share one."""
    n = len(values)
    inner = np.linspace(alone, n - alone, others + 1).astype(int)
    starts = np.unique([*range(alone), *inner, *range(n - alone, n)])
    first = np.searchsorted(values, values[starts])  # of the values that equal this one
    return np.append(np.unique(first), n)
