"""Experiments whose truth is known, decided by the functions that decide kdbench's: how often are they right?

Every number is in standard deviations of the first arm over its seeds.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
from scipy import special
from scipy.stats import binomtest

from kdbench.harness.analysis import stats

ALPHA, WANTED = 0.05, 0.8
"What the functions of kdbench.harness.analysis.stats take for alpha and for the wanted power unless told otherwise."
SEEDS = (3, 5, 10)
CONFIDENCE = 0.99
"Of the bounds on a rate. Of a hundred rates that are just as promised, one lies outside by chance."
FAMILY = 12
PEEKS = tuple(range(3, 11))
MARGINS = (1.25, 2.5, 5.0)
CORRELATIONS = (0.0, 0.3, 0.6, 0.9)

Test = Callable[[np.ndarray, np.ndarray, float], stats.Tested]
Interval = Callable[[np.ndarray, np.ndarray], tuple[float, tuple[float, float]]]
Mark = Literal["within", "below", "above"]


@dataclass(frozen=True)
class Row:
    """One simulated rate beside what was promised."""

    table: str
    case: str
    n: int
    "Seeds per arm."
    hits: int
    of: int
    nominal: float | None = None
    "The promised rate; None where nothing is promised."
    effect: float | None = None
    "The true difference, where it is not 0."

    @property
    def rate(self) -> float:
        """The share of hits."""
        return self.hits / self.of

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Clopper-Pearson's, of both sides."""
        found = binomtest(self.hits, self.of).proportion_ci(CONFIDENCE, "exact")
        return float(found.low), float(found.high)

    @property
    def mark(self) -> Mark | None:
        """Whether the promise lies within the bounds, or the rate below or above it."""
        if self.nominal is None:
            return None
        low, high = self.bounds
        return "below" if high < self.nominal else "above" if low > self.nominal else "within"

    @property
    def kept(self) -> bool | None:
        """Whether the promise is kept, if with room: errors may be rarer than alpha, coverage and power higher."""
        if self.nominal is None:
            return None
        return self.mark != ("above" if self.nominal == ALPHA else "below")

    def record(self) -> dict[str, Any]:
        """Return the row as an entry of kdbench.statistics/1."""
        return {
            "table": self.table,
            "case": self.case,
            "n": self.n,
            "effect_sd": self.effect,
            "hits": self.hits,
            "of": self.of,
            "rate": self.rate,
            "bounds": list(self.bounds),
            "nominal": self.nominal,
            "mark": self.mark,
            "kept": self.kept,
        }


@dataclass(frozen=True)
class Setup:
    """How much is simulated, and from which seed."""

    repetitions: int
    seed: int = 0

    def stream(self, *labels: object) -> np.random.Generator:
        """Return the random numbers of one cell: a table more, or a row less, moves no other."""
        return np.random.default_rng([self.seed, zlib.crc32(repr(labels).encode())])

    @property
    def fewer(self) -> int:
        """Repetitions of what cannot be done for many experiments at once."""
        return max(1, self.repetitions // 10)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1 - rng.standard_exponential(shape)


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_t(3, shape) / math.sqrt(3)


def _collapsing(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    lost = 10 * (rng.random(shape) < 0.1)
    return (rng.standard_normal(shape) - lost + 1) / math.sqrt(1 + 100 * 0.09)


@dataclass(frozen=True)
class Family:
    """How the scores of two arms vary over their seeds."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = _normal
    "Of mean 0 and standard deviation 1."
    ratio: float = 1.0
    "The second arm's standard deviation, in the first's."
    images: int | None = None
    "Test images to a standard deviation, where scores are shares of a test set."

    def arms(
        self, rng: np.random.Generator, shape: tuple[int, ...], difference: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw both arms; the true difference is in standard deviations of the first."""
        x, y = self.draw(rng, shape), difference + self.ratio * self.draw(rng, shape)
        if self.images is None:
            return x, y
        at = rng.random((*shape[:-1], 1))  # the true mean lies anywhere between two shares
        return tuple(np.round(values * self.images + at) / self.images for values in (x, y))  # type: ignore[return-value]

    def undefined(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Say of each experiment whether no arm varies: the harness then decides nothing."""
        if self.images is None:
            return np.zeros(len(x), bool)
        return np.array([stats.constant(a) and stats.constant(b) for a, b in zip(x, y, strict=True)])


FAMILIES = (
    Family("normal, sd 1 : 1"),
    Family("normal, sd 1 : 3", ratio=3),
    Family("normal, sd 1 : 10", ratio=10),
    Family("skewed (exponential, bad runs), sd 1 : 1", _skewed),
    Family("skewed (exponential, bad runs), sd 1 : 3", _skewed, 3),
    Family("heavy-tailed (t, 3 degrees), sd 1 : 1", _heavy),
    Family("one run in ten collapses", _collapsing),
    Family("shares of 2,500 images, sd 5 images", images=5),
    Family("shares of 2,500 images, sd 1 image", images=1),
)


def _count(table: str, case: str, n: int, seen: np.ndarray, nominal: float | None, effect: float | None = None) -> Row:
    return Row(table, case, n, int(seen.sum()), len(seen), nominal, effect)


@cache
def _compared(setup: Setup, n: int) -> list[stats.Comparison]:
    """Compare equal normal arms by all that kdbench prints of them; the margin is one standard deviation."""
    x, y = FAMILIES[0].arms(setup.stream("compare", n), (setup.fewer, n))
    return [stats.compare(list(a), list(b), 1.0, ALPHA) for a, b in zip(x, y, strict=True)]


def size(setup: Setup, test: Test = stats.welch) -> Iterator[Row]:
    """Arms of equal means: how often are they found different?"""
    for family in FAMILIES:
        for n in SEEDS:
            x, y = family.arms(setup.stream("size", family.name, n), (setup.repetitions, n))
            found = (test(x, y, 1.0).p < ALPHA) & ~family.undefined(x, y)
            yield _count("size", family.name, n, found, ALPHA)


def whole(setup: Setup) -> Iterator[Row]:
    """The same by `compare` and `verdict`, with the exact test that stands beside them."""
    for n in SEEDS:
        found = _compared(setup, n)
        verdicts = [stats.verdict(c, stats.holm([c.welch_p])[0], ALPHA) for c in found if c.welch_p is not None]
        said = np.isin(verdicts, ("different", "both"))
        yield _count("size", "normal, sd 1 : 1, the printed verdict", n, said, ALPHA)
        exact = np.array([c.permutation_p < ALPHA for c in found if c.permutation_p is not None])
        yield _count("size", "normal, sd 1 : 1, exact permutation test (decides nothing)", n, exact, ALPHA)


def coverage(
    setup: Setup,
    welch: Test = stats.welch,
    paired: Test = stats.paired_t,
    hedges: Interval = stats.hedges,
) -> Iterator[Row]:
    """Arms that differ: how often does the 95% interval hold the true difference?"""
    for family in FAMILIES:
        for n in SEEDS:
            x, y = family.arms(setup.stream("coverage", family.name, n), (setup.repetitions, n), 1.0)
            found, said = welch(x, y, 1.0), ~family.undefined(x, y)
            held = (found.low <= 1.0) & (found.high >= 1.0)
            yield _count("coverage", f"difference: {family.name}", n, held[said], 1 - ALPHA, 1.0)
    for n in SEEDS:
        x, y = _coupled(setup.stream("coverage", "paired", n), (setup.repetitions, n), 0.6)
        found = paired(x, y + 1.0, 1.0)
        held = (found.low <= 1.0) & (found.high >= 1.0)
        yield _count("coverage", "difference, paired: normal, r = 0.6", n, held, 1 - ALPHA, 1.0)
    for effect, ratio in ((0.0, 1.0), (1.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        family = Family("", ratio=ratio)
        spread = math.sqrt((1 + ratio**2) / 2)
        for n in SEEDS:
            rng = setup.stream("hedges", effect, ratio, n)
            x, y = family.arms(rng, (max(1, setup.repetitions // 4), n), effect * spread)
            bounds = np.array([hedges(a, b)[1] for a, b in zip(x, y, strict=True)])
            held = (bounds[:, 0] <= effect) & (bounds[:, 1] >= effect)
            case = f"Hedges' g: true effect {effect:g}, normal, sd 1 : {ratio:g}"
            yield _count("coverage", case, n, held, 1 - ALPHA, effect * spread)


def family_wise(
    setup: Setup, test: Test = stats.welch, adjust: Callable[[list[float]], list[float]] = stats.holm
) -> Iterator[Row]:
    """Twelve comparisons without a difference: how often is any found?"""
    for shared in (False, True):
        for n in SEEDS:
            x, y = FAMILIES[0].arms(setup.stream("holm", shared, n), (setup.repetitions, FAMILY, n))
            if shared:
                x = np.broadcast_to(x[:, :1], x.shape)
            ps = test(x, y, 1.0).p
            case = "one arm against each of twelve" if shared else "twelve pairs of arms of their own"
            adjusted = np.array([min(adjust(row)) < ALPHA for row in ps.tolist()])
            yield _count("family", f"{case}, Holm", n, adjusted, ALPHA)
            yield _count("family", f"{case}, unadjusted", n, (ps < ALPHA).any(axis=1), None)


def equivalence(setup: Setup, test: Test = stats.welch) -> Iterator[Row]:
    """A difference of just the margin, and none: how often are the arms called equivalent?"""
    for margin in MARGINS:
        for difference, nominal, word in ((margin, ALPHA, "at the margin's edge"), (0.0, None, "no difference")):
            for n in SEEDS:
                rng = setup.stream("tost", margin, difference, n)
                x, y = FAMILIES[0].arms(rng, (setup.repetitions, n), difference)
                found = test(x, y, margin).tost_p < ALPHA
                yield _count("equivalence", f"margin {margin:g} sd, {word}", n, found, nominal, difference or None)


def _coupled(rng: np.random.Generator, shape: tuple[int, int], r: float) -> tuple[np.ndarray, np.ndarray]:
    x, own = rng.standard_normal(shape), rng.standard_normal(shape)
    return x, r * x + math.sqrt(1 - r**2) * own


def pooled_t(x: np.ndarray, y: np.ndarray, margin: float) -> stats.Tested:
    """Make the test that the planning formulas assume, which decides nothing."""
    n = x.shape[-1]
    spread = np.sqrt((x.var(axis=-1, ddof=1) + y.var(axis=-1, ddof=1)) / n)
    difference = y.mean(axis=-1) - x.mean(axis=-1)
    p = 2 * special.stdtr(2 * n - 2, -np.abs(difference / spread))
    return stats.Tested(difference, difference, difference, p, p)


def planned(setup: Setup, welch: Test = stats.welch, paired: Test = stats.paired_t) -> Iterator[Row]:
    """The smallest detectable effect and the number of seeds, as printed: how often is such a difference found?"""
    normal = FAMILIES[0]
    tests = (
        ("Welch, which decides", welch, False),
        ("pooled t, which the formula assumes", pooled_t, False),
        ("paired t, in sd of the differences", paired, True),
    )
    for word, test, by_seed in tests:
        for n in SEEDS:
            effect = stats.smallest_effect(n, ALPHA, WANTED, by_seed)
            x, y = normal.arms(setup.stream("mde", word, n), (setup.repetitions, n))
            y = effect + x + y if by_seed else effect + y  # seed by seed, too, they differ with standard deviation 1
            case = f"smallest detectable effect, spread known: {word}"
            yield _count("power", case, n, test(x, y, 1.0).p < ALPHA, WANTED, effect)
    for n in SEEDS:
        printed = np.array([c.mde for c in _compared(setup, n)])
        x, y = normal.arms(setup.stream("mde printed", n), (len(printed), n))
        found = welch(x, y + printed[:, None], 1.0).p < ALPHA
        case = "smallest detectable effect as `compare` prints it, from the spread of so many seeds"
        yield _count("power", case, n, found, WANTED)
    for n in SEEDS:
        seeds = np.array([c.seeds_for_power for c in _compared(setup, n)])
        found = np.concatenate([_again(setup, n, int(k), int((seeds == k).sum()), welch) for k in np.unique(seeds)])
        case = "seeds for a difference of 1 sd as `compare` prints them, from the spread of so many seeds"
        yield _count("power", case, n, found, WANTED, 1.0)


def _again(setup: Setup, n: int, k: int, times: int, test: Test) -> np.ndarray:
    """Repeat studies whose first n seeds printed that k are needed."""
    x, y = FAMILIES[0].arms(setup.stream("seeds printed", n, k), (times, k), 1.0)
    return test(x, y, 1.0).p < ALPHA


def needed(setup: Setup, test: Test = stats.welch) -> Iterator[Row]:
    """The seeds that `kdbench power` prints for an effect, beside the power that it says these have."""
    for effect in (0.5, 1.0, 1.5, 2.0, 3.0):
        n = stats.seeds_needed(effect, ALPHA, WANTED)
        if n is None:
            continue
        x, y = FAMILIES[0].arms(setup.stream("seeds", effect), (setup.repetitions, n), effect)
        yield _count("seeds", f"{effect:g} sd", n, test(x, y, 1.0).p < ALPHA, stats.power(effect, n, ALPHA), effect)


def pairing(setup: Setup, welch: Test = stats.welch, paired: Test = stats.paired_t) -> Iterator[Row]:
    """Arms that share their seeds with correlation r: what does it gain to compare seed by seed?"""
    for r in CORRELATIONS:
        for n in SEEDS:
            effect = stats.smallest_effect(n, ALPHA, WANTED)
            x, y = _coupled(setup.stream("pairing", r, n), (setup.repetitions, n), r)
            power = stats.power(effect / math.sqrt(2 * (1 - r)), n, ALPHA, paired=True)
            for word, test, nominal in (("paired", paired, power), ("Welch", welch, None)):
                none, some = (test(x, y + d, 1.0).p < ALPHA for d in (0.0, effect))
                yield _count("pairing", f"r = {r:g}, {word}, no difference", n, none, ALPHA)
                yield _count("pairing", f"r = {r:g}, {word}, a difference", n, some, nominal, effect)


def stopping(setup: Setup, test: Test = stats.welch) -> Iterator[Row]:
    """Equal arms, looked at again after each new seed: how often did any look find them different?"""
    x, y = FAMILIES[0].arms(setup.stream("stopping"), (setup.repetitions, PEEKS[-1]))
    ever = np.zeros(setup.repetitions, bool)
    for n in PEEKS:
        now = test(x[:, :n], y[:, :n], 1.0).p < ALPHA
        ever |= now
        yield _count("stopping", "any look up to here", n, ever.copy(), ALPHA)
        yield _count("stopping", "this look alone", n, now, ALPHA)


TABLES: tuple[Callable[[Setup], Iterator[Row]], ...] = (
    size,
    whole,
    coverage,
    family_wise,
    equivalence,
    planned,
    needed,
    pairing,
    stopping,
)


def simulate(setup: Setup) -> Iterator[Row]:
    """Run every table, row by row."""
    for table in TABLES:
        yield from table(setup)
