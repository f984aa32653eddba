"""Comparisons that were decided on together: one family, whose p values are adjusted for all of it."""

from collections.abc import Sequence
from typing import NamedTuple

from kdbench.harness.analysis import stats
from kdbench.harness.analysis.rows import ComparisonRow, Missing


class Judged(NamedTuple):
    """Two groups and what their values say, before the family that they belong to is counted."""

    a: str
    b: str
    pair: str
    method: str
    values: list[list[float]]
    missing: list[Missing]
    comparison: stats.Comparison


def as_family(judged: Sequence[Judged], alpha: float) -> list[ComparisonRow]:
    """Return comparisons as entries of kdbench.compare/1, their p adjusted (Holm) for all of them together."""
    adjusted = stats.holm([one.comparison.welch_p for one in judged])
    return [_row(one, p, len(judged), alpha) for one, p in zip(judged, adjusted, strict=True)]


def _row(judged: Judged, holm_p: float | None, family: int, alpha: float) -> ComparisonRow:
    c = judged.comparison
    warnings = list(c.warnings)
    if c.least_permutation_p is not None and c.least_permutation_p < alpha <= c.least_permutation_p * family:
        warnings.append(f"in a family of {family} no exact test of this design could pass Holm's correction")
    return ComparisonRow(
        a=judged.a,
        b=judged.b,
        pair=judged.pair,
        method=judged.method,
        n=[len(v) for v in judged.values],
        values=judged.values,
        missing=judged.missing,
        mean=list(c.mean),
        std=list(c.std),
        difference_pp=c.difference,
        ci95_pp=list(c.ci95) if c.ci95 else None,
        welch_p=c.welch_p,
        permutation_p=c.permutation_p,
        least_permutation_p=c.least_permutation_p,
        holm_p=holm_p,
        hedges_g=c.hedges_g,
        hedges_g_ci95=list(c.hedges_g_ci95) if c.hedges_g_ci95 else None,
        p_b_greater=c.p_b_greater,
        tost_p=c.tost_p,
        mde_pp=c.mde,
        seeds_for_power_80=c.seeds_for_power,
        verdict=stats.verdict(c, holm_p, alpha),
        paired=c.paired,
        seed_correlation=c.correlation,
        warnings=warnings,
    )
