"""What a comparison says, in one sentence that needs no table beside it."""

import math
from collections.abc import Sequence

from kdbench.harness.analysis.rows import ComparisonRow


def excludes_zero(row: ComparisonRow) -> bool:
    """Say whether the interval of the difference leaves 0 out."""
    return row.ci95_pp is not None and (row.ci95_pp[0] > 0 or row.ci95_pp[1] < 0)


def adjusted(row: ComparisonRow, family: int) -> str | None:
    """Return why a comparison is undecided though its interval excludes 0; None where that is not so."""
    if row.verdict != "undecided" or not excludes_zero(row) or row.welch_p is None or row.holm_p is None:
        return None
    return (
        f"the interval excludes 0, yet p is adjusted for a family of {family} comparisons: {row.welch_p:.2g} alone, "
        f"{row.holm_p:.2g} adjusted"
    )


def number_format(rows: Sequence[ComparisonRow], unit: str) -> str:
    """Return the format of the comparisons' means and differences, without a sign.

    Percentage points have two places. A metric of the user's has as many as show two figures of the smallest spread.
    """
    spreads = [std for row in rows for std in row.std if std]
    if unit or not spreads:
        return ".2f" if unit else ".4g"
    return f".{min(8, max(0, 1 - math.floor(math.log10(min(spreads)))))}f"


def in_words(row: ComparisonRow, margin: float, family: int, unit: str = "pp", form: str = ".2f") -> str:
    """Return "A vs B: VERDICT", the difference B - A with its interval, and what follows from it.

    `margin` and the difference are in `unit`, which is empty for a metric of the user's; `form` is as
    :func:`number_format` has it.
    """
    head = f"{row.a} vs {row.b}: {row.verdict}"
    if row.verdict == "undefined" or row.difference_pp is None or row.ci95_pp is None:
        return f"{head}; {row.warnings[0] if row.warnings else 'nothing can be said'}."
    behind = f" {unit}" if unit else ""
    size = f"{margin:g}{behind}"
    low, high = (format(value, f"+{form}") for value in row.ci95_pp)
    interval = f"(95% interval {low} to {high})"
    which = "higher" if row.difference_pp > 0 else "lower"
    if row.verdict in ("different", "both"):
        told = f"{row.b} is {which} by {format(abs(row.difference_pp), form)}{behind} {interval}"
        nearest = min(map(abs, row.ci95_pp))
        beyond = "" if nearest > margin else f"; that it differs by more than {size} is not shown"
        return f"{head}; {told}{', within the margin of ' + size if row.verdict == 'both' else beyond}."
    told = f"{row.b} minus {row.a} is {format(row.difference_pp, f'+{form}')}{behind} {interval}"
    if row.verdict == "equivalent":
        return f"{head}; {told}, within the margin of {size}."
    why = adjusted(row, family) or f"neither a difference nor equality within {size} is shown"
    need = row.seeds_for_power_80
    more = (
        f" About {need} seeds each would show a difference of {size} with power 0.8"
        if need and need > min(row.n)
        else ""
    )
    more += " in this comparison alone; a family takes more." if more and family > 1 else "." if more else ""
    return f"{head}; {told}; {why}.{more}"
