"""A method over several pairs of networks: its mean gain, how probable a gain is, and which methods are among the best.

Agarwal, Schwarzer, Castro, Courville, Bellemare: Deep RL at the Edge of the Statistical Precipice, NeurIPS 2021
(2108.13264): seeds are drawn again within each pair (a stratified bootstrap), and intervals are percentiles. What is
said holds for these pairs of networks; it does not tell how a method does on others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kdbench.harness.analysis.rows import ComparisonRow

DRAWS = 4000
"Of the bootstrap; an end of an interval then moves by about 2 % of its width from one set of draws to another."
MANY = 20
"Scores of a pair above which means and shares are drawn from their normal distributions, so that the cost is bounded."
Scores = Mapping[str, Sequence[float]]
"A method's scores by pair, in percent."


OVER_PAIRS = (
    "probability of a gain: how often a seed of the method is above one of the baseline, ties half; mean over the "
    "pairs",
    "intervals: seeds drawn again within each pair (stratified bootstrap); with few seeds they are too short. They "
    "hold for these pairs and tell nothing of others",
    "among the best: no other method is above it by more than these seeds can vary, for all methods at once (95%)",
)
"What a table of them must say."


@dataclass(frozen=True)
class OverPairs:
    """One method over all pairs that it and the baseline have scores of, as an entry of kdbench.compare/1."""

    method: str
    against: str
    pairs: list[str]
    seeds: int
    "Scores of the method, over all pairs."
    gain_pp: float
    "Mean over the pairs of the difference of means, in percentage points."
    gain_ci95_pp: list[float]
    p_gain: float
    "Probability that a seed of the method beats one of the baseline, ties half; mean over the pairs."
    p_gain_ci95: list[float]
    among_best: bool
    "Whether no other method's gain is larger by more than these seeds can vary."


def over_pairs(gains: Sequence[ComparisonRow]) -> list[OverPairs]:
    """Return each method of these comparisons with the baseline over all pairs, the largest gain first.

    Nothing is returned for fewer than two pairs, and no method that lacks a pair, two seeds of one, or a defined
    comparison: means over different pairs cannot be compared.
    """
    usable = [row for row in gains if row.difference_pp is not None and min(row.n) > 1]
    base = {row.pair: row.values[0] for row in usable}
    if len(base) < 2 or len({row.a for row in usable}) > 1:
        return []
    by_method: dict[str, dict[str, list[float]]] = {}
    for row in usable:
        by_method.setdefault(row.b, {})[row.pair] = row.values[1]
    whole = {method: found for method, found in by_method.items() if found.keys() == base.keys()}
    return aggregated(whole, base, usable[0].a)


def aggregated(methods: Mapping[str, Scores], base: Scores, against: str) -> list[OverPairs]:
    """Return what scores by method and pair say together, against those of the baseline by pair."""
    if not methods:
        return []
    rng = np.random.default_rng(0)
    of_base = {pair: np.asarray(values) for pair, values in base.items()}
    drawn_base = np.mean([_means(of_base[pair], rng) for pair in base], axis=0)
    gains, means, found = {}, {}, {}
    for method, by_pair in methods.items():
        values = {pair: np.asarray(by_pair[pair]) for pair in base}
        gains[method] = float(np.mean([values[pair].mean() - of_base[pair].mean() for pair in base]))
        means[method] = np.mean([_means(values[pair], rng) for pair in base], axis=0)
        chances = [_chances(values[pair], of_base[pair], rng) for pair in base]
        found[method] = float(np.mean([seen for seen, _ in chances])), np.mean([drawn for _, drawn in chances], axis=0)
    best = among_best(gains, means)
    rows = [
        OverPairs(
            method=method,
            against=against,
            pairs=list(base),
            seeds=sum(len(by_pair[pair]) for pair in base),
            gain_pp=gains[method],
            gain_ci95_pp=_interval(means[method] - drawn_base),
            p_gain=found[method][0],
            p_gain_ci95=[min(1.0, max(0.0, end)) for end in _interval(found[method][1])],
            among_best=best[method],
        )
        for method, by_pair in methods.items()
    ]
    return sorted(rows, key=lambda row: -row.gain_pp)


def among_best(gains: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, bool]:
    """Say of each method whether none is above it by more than chance, for all pairs of methods at once (95 %).

    The largest of the studentised differences bounds them all, so that ten methods of one worth are rarely told apart.
    """
    pairs = list(combinations(gains, 2))
    if not pairs:
        return dict.fromkeys(gains, True)
    seen = np.array([gains[a] - gains[b] for a, b in pairs])
    moved = np.array([draws[a] - draws[b] for a, b in pairs])
    moved -= moved.mean(1, keepdims=True)
    error = np.maximum(moved.std(1), 1e-12)  # two methods of constant scores differ whatever is drawn
    bound = np.quantile((np.abs(moved) / error[:, None]).max(0), 0.95)
    best = dict.fromkeys(gains, True)
    for (a, b), difference, its_error in zip(pairs, seen, error, strict=True):
        if abs(difference) > bound * its_error:
            best[b if difference > 0 else a] = False
    return best


def _means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return draws of a mean: of the values drawn again, or of many values by its normal distribution."""
    n = len(values)
    if n > MANY:
        return rng.normal(values.mean(), values.std(ddof=1) / n**0.5, DRAWS)
    return np.asarray(values[rng.integers(0, n, (DRAWS, n))].mean(1))


def _chances(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Return how often a value of a is above one of b, ties half, and draws of it, likewise."""
    n, m = len(a), len(b)
    if n <= MANY and m <= MANY:
        drawn = _beats(a[rng.integers(0, n, (DRAWS, n))], b[rng.integers(0, m, (DRAWS, m))])
        return float(_beats(a[None], b[None])[0]), drawn
    from scipy import stats  # slow to import, and needed by large tables alone

    both, in_a, in_b = stats.rankdata([*a, *b]), stats.rankdata(a), stats.rankdata(b)
    seen = (both[:n].mean() - (n + 1) / 2) / m
    # Brunner and Munzel 2000: of each value's placement among the other group's.
    placed_a, placed_b = (both[:n] - in_a) / m, (both[n:] - in_b) / n
    return float(seen), rng.normal(seen, (placed_a.var(ddof=1) / n + placed_b.var(ddof=1) / m) ** 0.5, DRAWS)


def _beats(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return for each draw the share of pairs of seeds in which a is above b, ties half: (draws, n) and (draws, m)."""
    difference = a[:, :, None] - b[:, None, :]
    return np.asarray(((difference > 0) + 0.5 * (difference == 0)).mean((1, 2)))


def _interval(draws: np.ndarray) -> list[float]:
    return [float(end) for end in np.quantile(draws, (0.025, 0.975))]
