"""Of the methods on one pair of networks: which one has the highest mean, and which these seeds cannot tell from it.

Games and Howell: Pairwise multiple comparison procedures with unequal N's and/or variances, Journal of Educational
Statistics 1 (1976). It holds for all pairs of methods at once, and no equal spread is assumed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdbench.harness.analysis.rows import ComparisonRow

_LEVEL = 0.05
_FEWEST, _MOST = 3, 100
"Groups from which there is an order to speak of, and up to which it is told: each costs a millisecond or two."


@dataclass(frozen=True)
class BestOfPair:
    """The group of the highest mean on one pair, as an entry of kdbench.run/1 and kdbench.compare/1."""

    pair: str
    best: str
    not_told_apart: list[str]
    "Groups whose mean is lower by no more than these seeds can vary (95 %, all groups at once), the nearest first."
    groups: int
    "The baseline among them."

    def in_words(self, titles: Mapping[str, str]) -> str:
        """Return it as a sentence; `titles` are what groups are called."""
        near = ", ".join(titles.get(name, name) for name in self.not_told_apart)
        other = f"these seeds do not tell {near} from it" if near else "these seeds tell every other from it"
        return (
            f"{self.pair}: the highest mean is that of {titles.get(self.best, self.best)}; {other} (Games-Howell, 95%, "
            f"all {self.groups} at once)"
        )


def best_of_pairs(gains: Sequence[ComparisonRow]) -> list[BestOfPair]:
    """Return the best of each pair, from comparisons of methods with one baseline; none of a pair of two groups."""
    by_pair: dict[str, dict[str, Sequence[float]]] = {}
    for row in gains:
        if row.difference_pp is not None and min(row.n) > 1:
            of_baseline, of_method = row.values
            by_pair.setdefault(str(row.pair), {row.a: of_baseline})[row.b] = of_method
    return [_best(pair, groups) for pair, groups in by_pair.items() if _FEWEST <= len(groups) <= _MOST]


def _best(pair: str, groups: dict[str, Sequence[float]]) -> BestOfPair:
    values = {name: np.asarray(of_it, dtype=float) for name, of_it in groups.items()}
    best, *others = sorted(values, key=lambda name: -values[name].mean())
    near = [name for name in others if not _are_apart(values[best], values[name], len(values))]
    return BestOfPair(pair, best, near, len(groups))


def _are_apart(a: np.ndarray, b: np.ndarray, groups: int) -> bool:
    """Say whether two of so many groups differ: the range of means, with Welch's degrees of freedom."""
    from scipy.stats import studentized_range  # takes most of a second, and a table of two groups has no use for it

    (of_a, of_b), difference = (x.var(ddof=1) / len(x) for x in (a, b)), abs(a.mean() - b.mean())
    both = of_a + of_b
    if not both:
        return bool(difference > 0)
    freedom = both**2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return bool(studentized_range.sf(difference / np.sqrt(both / 2), groups, freedom) < _LEVEL)
