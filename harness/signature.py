"""Does a bug lower the accuracy by more than a margin? A sequential test over seeds, and its calibration.

The null hypothesis is that the drop (mean of the corrected arm minus mean of the bugged one) is at most the margin, in
percentage points, declared beforehand. It is looked at a few times only, each look with its own share of alpha, so
that stopping early costs nothing (Bonferroni). Both claims are held to that alpha: that the drop exceeds the margin
(one-sided Welch test), and that the accuracy is equivalent at the margin (two one-sided tests).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from kdbench.harness.analysis.arms import summary
from kdbench.harness.analysis.stats import constant
from kdbench.harness.analysis.study_table import Trials, order
from kdbench.harness.plan.plan import POSITIVE_CONTROL, Arm
from kdbench.harness.study import Request
from kdbench.kd.errors import InputError

State = Literal["killed", "survived", "latent", "invalid", "no verdict"]
"""What became of a bug.

killed: its accuracy is lower by more than the margin. latent: an audit revealed it, and the accuracy is equivalent at
the margin. survived: no audit did, and it is equivalent; or, of either, a drop beyond what this design looks for is
excluded (futility). invalid: its decision was never asked for. no verdict: the last look decided nothing, or scores are
missing.
"""


@dataclass(frozen=True)
class Design:
    """What is declared before the first seed."""

    margin_pp: float = 0.5
    looks: tuple[int, ...] = (3, 5, 8, 12)
    "Seeds per arm at which the test is made."
    alphas: tuple[float, ...] = (0.004, 0.012, 0.017, 0.017)
    "One-sided, of each look; their sum bounds the size of the whole."
    futility_sd: float = 2.0
    "Drops of this many standard deviations beyond the margin are looked for; once excluded, the search ends."

    def __post_init__(self) -> None:
        if len(self.looks) != len(self.alphas) or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 2:
            raise InputError("signature: looks rise from at least 2 seeds, and each has its own alpha")
        if not self.margin_pp > 0 or not self.futility_sd > 0 or min(self.alphas) <= 0 or sum(self.alphas) >= 1:
            raise InputError("signature: margin and futility are positive, and the alphas sum to less than 1")


@dataclass(frozen=True)
class Look:
    """One look at n seeds per arm; p values are one-sided. None where an arm does not vary at all."""

    n: int
    drop_pp: float
    p_exceeds: float | None
    "Of a drop as large if the true one were the margin."
    p_equivalent: float | None
    upper_pp: float | None
    "Upper 95% bound of the drop, one-sided."
    futile: bool


def look(corrected: Sequence[float], bugged: Sequence[float], design: Design) -> Look:
    """Look at the same number of seeds of both arms."""
    x, y = np.asarray(corrected, float), np.asarray(bugged, float)
    drop = float(x.mean() - y.mean())
    if constant(x) and constant(y):
        return Look(len(x), drop, None, None, None, False)
    exceeds, equivalent, upper, futile = _tests(x[None], y[None], design)
    return Look(len(x), drop, float(exceeds[0]), float(equivalent[0]), float(upper[0]), bool(futile[0]))


def _tests(x: np.ndarray, y: np.ndarray, design: Design) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make the tests of one look for many experiments at once, a row each."""
    margin = design.margin_pp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an arm that does not vary: a ruined one stays at chance
        welch = stats.ttest_ind(x - margin, y, axis=1, equal_var=False, alternative="greater")
        below = stats.ttest_ind(x - margin, y, axis=1, equal_var=False, alternative="less")
        above = stats.ttest_ind(x + margin, y, axis=1, equal_var=False, alternative="greater")
    upper = below.confidence_interval(0.95).high + margin
    spread = np.sqrt((x.var(axis=1, ddof=1) + y.var(axis=1, ddof=1)) / 2)
    return welch.pvalue, np.maximum(below.pvalue, above.pvalue), upper, upper < margin + design.futility_sd * spread


def decide(seen: Look, design: Design, revealed: bool) -> State | None:
    """Return what a look decides; None if nothing yet."""
    alpha = design.alphas[design.looks.index(seen.n)]
    if seen.p_exceeds is None or seen.p_equivalent is None:  # no spread: the difference is what it is
        if seen.drop_pp > design.margin_pp:
            return "killed"
        return ("latent" if revealed else "survived") if abs(seen.drop_pp) < design.margin_pp else "no verdict"
    if seen.p_exceeds < alpha:
        return "killed"
    if seen.p_equivalent < alpha:
        return "latent" if revealed else "survived"
    if seen.futile:
        return "survived"
    return "no verdict" if seen.n == design.looks[-1] else None


def simulate(
    design: Design, drops_sd: Sequence[float], sd_pp: float, repetitions: int = 20_000, seed: int = 0
) -> list[dict[str, Any]]:
    """Simulate the whole test for normal scores of one spread; each row is a true drop beyond the margin, in sd.

    A drop of 0 sd beyond the margin is the edge of the null hypothesis: its share killed is the size. Negative ones lie
    below the margin; the row of ``-margin / sd`` has no drop at all.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for beyond in drops_sd:
        drop = design.margin_pp + beyond * sd_pp
        x = rng.normal(0.0, sd_pp, (repetitions, design.looks[-1]))
        y = rng.normal(-drop, sd_pp, (repetitions, design.looks[-1]))
        open_, state = np.ones(repetitions, bool), np.full(repetitions, "no verdict", dtype="U10")
        seeds = np.full(repetitions, design.looks[-1])
        for n, alpha in zip(design.looks, design.alphas, strict=True):
            exceeds, equivalent, _, futile = _tests(x[:, :n], y[:, :n], design)
            killed, same = exceeds < alpha, equivalent < alpha
            state[open_ & futile] = "futile"
            state[open_ & same] = "equivalent"
            state[open_ & killed] = "killed"
            stopped = open_ & (killed | same | futile)
            seeds[stopped] = n
            open_ &= ~stopped
        shares = {word: float((state == word).mean()) for word in ("killed", "equivalent", "futile", "no verdict")}
        rows.append({"beyond_margin_sd": beyond, "drop_pp": drop, **shares, "mean_seeds": float(seeds.mean())})
    return rows


@dataclass(frozen=True)
class Outcome:
    """What became of one bug in one method."""

    arm: Arm
    state: State
    looks: tuple[Look, ...]
    revealed_by: tuple[str, ...]
    reason: str | None = None

    def as_object(self) -> dict[str, Any]:
        """Return it as an entry of kdbench.signature/1."""
        return {
            "fault": self.arm.fault,
            "pair": self.arm.pair,
            "method": self.arm.method,
            "control": self.arm.fault == POSITIVE_CONTROL,
            "state": self.state,
            "seeds": self.looks[-1].n if self.looks else 0,
            "revealed_by": list(self.revealed_by),
            "reason": self.reason,
            "looks": [asdict(look) for look in self.looks],
        }


def run(
    request: Request, design: Design, train: Callable[[Request], Trials], told: Callable[[Outcome], None]
) -> tuple[list[Outcome], Trials]:
    """Train as many seeds as the next look needs, of those arms that are not decided yet, until all are.

    `train` carries out a request and returns the study; `told` hears of each bug that is decided.
    """
    outcomes: dict[Arm, Outcome] = {}
    looks: dict[Arm, list[Look]] = {}
    names, methods = list(request.faults), request.preset.methods
    for n in design.looks:
        preset = replace(request.preset, seeds=tuple(range(n)), methods=methods)
        study = train(replace(request, preset=preset, faults=[None, *names], controls=n == design.looks[0]))
        rows = {Arm(row.fault, row.pair, row.method): row for row in summary(study)}
        for arm in sorted(study.arms, key=order):
            if arm.fault not in names or arm.method not in methods or arm in outcomes:
                continue
            scores = [_scores(study, a, n) for a in (replace(arm, fault=None), arm)]
            revealed = tuple(rows[arm].failed_findings)
            state: State | None
            reason = None
            if rows[arm].reached is False:
                state, reason = "invalid", "its decision was never asked for"
            elif len(scores[0]) < n or len(scores[1]) < n:
                state, reason = "no verdict", "a trial has no score: a crash or a divergence is no kill"
            else:
                seen = look(scores[0], scores[1], design)
                looks.setdefault(arm, []).append(seen)
                state = decide(seen, design, bool(revealed))
            if state is not None:
                outcomes[arm] = Outcome(arm, state, tuple(looks.get(arm, ())), revealed, reason)
                told(outcomes[arm])
        open_ = [arm for arm in study.arms if arm.fault in names and arm not in outcomes]
        names = [name for name in names if any(arm.fault == name for arm in open_)]
        methods = tuple(method for method in methods if any(arm.method == method for arm in open_))
        if not names:
            break
    return [outcomes[arm] for arm in sorted(outcomes, key=order)], study


def _scores(study: Trials, arm: Arm, n: int) -> list[float]:
    trials = study.arms.get(arm, {})
    results = [trials[seed][1] for seed in range(n) if seed in trials]
    return [r.metrics.test_accuracy for r in results if r is not None and r.metrics is not None]
