"""What was simulated as a page and a figure; every sentence about a result is made from the rows."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.statistics.simulation import CONFIDENCE, CORRELATIONS, FAMILY, MARGINS, PEEKS, SEEDS, WANTED, Row

Rows = Sequence[Row]

INTRODUCTION = f"""
Experiments whose truth is known are decided, many times over, by the functions that decide a study
(`harness/analysis/stats.py`). Each rate, in percent, has {CONFIDENCE:.0%} Clopper-Pearson bounds beside it, and a
mark: the promise lies *within* them, or the rate is *below* or *above* the promise by more than chance. Errors rarer
than promised, and coverage or power higher, keep the promise with room: that is caution, paid for elsewhere. A mark in
**bold** is a promise that is not kept. Where nothing is promised, there is a dash and no mark.
"""

SECTIONS: dict[str, tuple[str, str]] = {
    "size": (
        "Size: equal arms found different",
        """Two arms with the same true mean, alpha .05, one comparison. Where no arm varies it is `undefined`,
        which is not counted as different.""",
    ),
    "coverage": (
        "Coverage of the 95% intervals",
        """Arms whose difference is known. First of the mean difference (true value 1 sd; undefined comparisons
        have no interval): such an interval misses where its test would err, so these rows should mirror the
        table of size; they are of other draws. Then of the standardised effect, the interval beside Hedges' g,
        whose formula assumes equal spreads.""",
    ),
    "family": (
        f"Family-wise error: any of {FAMILY} equal comparisons found different",
        "Adjusted as a study adjusts them; and, for contrast, as if each stood alone.",
    ),
    "equivalence": (
        "Equivalence: arms called equivalent",
        """Two one-sided tests at alpha .05. At the edge the arms differ by just the margin, and `equivalent` is
        wrong. With no difference it is right; nothing is promised of how often it is said.""",
    ),
    "power": (
        "Power at the printed smallest detectable effect and number of seeds",
        f"""The wanted power is {WANTED:.0%}. First with the true spread known, as `kdbench power --sd` assumes. The
        formula is of the pooled t test, and what decides is Welch's: the true smallest effect is at least the
        printed one. Then as `kdbench compare` prints both, from the spread that the seeds at hand happen to
        have, for a new study made of it.""",
    ),
    "seeds": (
        "Power of the number of seeds that `kdbench power` prints",
        "Beside the power that the formula gives this number.",
    ),
    "pairing": (
        "Pairing by seed",
        f"""Arms that share their seeds, with correlation r between them. The difference is what the unpaired
        formula says is found in {WANTED:.0%}; the paired promise is its own formula's. A study pairs only what
        happens after training, where both arms have the same weights.""",
    ),
    "stopping": (
        "A warning: looking again after each new seed",
        f"""Equal arms, tested at {PEEKS[0]} seeds and again after each one more, until p < .05. The promise is that
        of one look: a comparison makes none for several. `kdbench signature` does, and shares its alpha among
        them.""",
    ),
}


def percent(share: float) -> str:
    """Return a share in percent with one decimal."""
    return f"{100 * share:.1f}"


def _cell(row: Row) -> str:
    low, high = row.bounds
    mark = f" **{row.mark}**" if row.kept is False else f" {row.mark}" if row.mark else ""
    return f"{percent(row.rate)} [{percent(low)}, {percent(high)}]{mark}"


def _promised(rows: Rows) -> str:
    values = [percent(row.nominal) if row.nominal is not None else "-" for row in rows]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def _table(rows: Rows) -> list[str]:
    """One line a case with a column a number of seeds where every case has the same numbers; else one line a row."""
    if {row.n for row in rows} != set(SEEDS):
        lines = ["| case | seeds per arm | promised | rate |", "|---|---|---|---|"]
        return [*lines, *(f"| {row.case} | {row.n} | {_promised([row])} | {_cell(row)} |" for row in rows)]
    columns = " | ".join(f"{n} seeds per arm" for n in SEEDS)
    lines = [f"| case | promised | {columns} |", "|---|---" + "|---" * len(SEEDS) + "|"]
    for case in dict.fromkeys(row.case for row in rows):
        cells = [row for row in rows if row.case == case]
        lines.append(f"| {case} | {_promised(cells)} | {' | '.join(map(_cell, cells))} |")
    return lines


def _furthest(rows: Rows) -> str:
    row = max(rows, key=lambda row: abs(row.rate - (row.nominal or 0)))
    return f"furthest: {percent(row.rate)} for {percent(row.nominal or 0)}; {row.case}; {row.n} seeds"


def _parted(rows: Rows) -> tuple[list[Row], list[Row], list[Row]]:
    """Part the rows of a promise into those that keep it, keep it with room, and do not keep it."""
    kept = [row for row in rows if row.kept]
    within = [row for row in kept if row.mark == "within"]
    return within, [row for row in kept if row.mark != "within"], [row for row in rows if row.kept is False]


def reading(rows: Rows) -> str:
    """Say in how many rows the promise is kept, and which are furthest from theirs."""
    within, roomy, broken = _parted(rows)
    text = f"Rates as promised: {len(within)} of {len(within) + len(roomy) + len(broken)}."
    if roomy:
        text += f" Kept with room: {len(roomy)} ({_furthest(roomy)})."
    return text + (f" Not kept: {len(broken)} ({_furthest(broken)})." if broken else " Not kept: none.")


def _overview(rows: Rows) -> list[str]:
    lines = ["| table | as promised | kept with room | not kept |", "|---|---|---|---|"]
    for table, (title, _) in SECTIONS.items():
        counts = " | ".join(str(len(part)) for part in _parted([row for row in rows if row.table == table]))
        lines.append(f"| {title} | {counts} |")
    return lines


def _holm(rows: Rows) -> str:
    raw, adjusted = ([row.rate for row in rows if word in row.case] for word in ("unadjusted", "Holm"))
    return (
        f"Unadjusted, {percent(min(raw))} to {percent(max(raw))}% of families without a difference show one; with Holm "
        f"{percent(min(adjusted))} to {percent(max(adjusted))}%."
    )


def _tost(rows: Rows) -> str:
    found = []
    for margin in MARGINS:
        reached = [r.n for r in rows if r.case == f"margin {margin:g} sd, no difference" and r.bounds[0] >= WANTED]
        found.append(f"{min(reached)} for a margin of {margin:g} sd" if reached else f"none for {margin:g} sd")
    return (
        f"Of {', '.join(map(str, SEEDS))} seeds, the fewest that call equal arms equivalent in {WANTED:.0%} of studies "
        f"(lower bound): {'; '.join(found)}."
    )


def _pairing(rows: Rows) -> str:
    rate = {(row.case, row.n): row.rate for row in rows}
    found = []
    for n in SEEDS:
        gains = [
            rate[f"r = {r:g}, paired, a difference", n] - rate[f"r = {r:g}, Welch, a difference", n]
            for r in CORRELATIONS
        ]
        found.append(f"{n} seeds {', '.join(f'{100 * gain:+.0f}' for gain in gains)}")
    listed = ", ".join(f"{r:g}" for r in CORRELATIONS)
    return f"Power that pairing adds, in percentage points, at r = {listed}: {'; '.join(found)}."


def _stopping(rows: Rows) -> str:
    last = max((row for row in rows if row.case.startswith("any")), key=lambda row: row.n)
    return (
        f"By {last.n} seeds {percent(last.rate)}% of equal pairs have been found different at some look, "
        f"{last.rate / (last.nominal or 1):.1f} times what one look promises."
    )


_MORE: dict[str, Callable[[Rows], str]] = {
    "family": _holm,
    "equivalence": _tost,
    "pairing": _pairing,
    "stopping": _stopping,
}


def page(rows: Rows, record: dict[str, Any]) -> str:
    """Return what was simulated as Markdown."""

    def filled(text: str) -> list[str]:
        return ["", *textwrap.wrap(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)]

    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    size = (
        f"{versions}. {record['repetitions']} experiments a rate; a tenth where all that `kdbench compare` prints is "
        "made, a quarter for Hedges' g."
    )
    lines = ["# Do the statistics keep what they promise?", "", f"    {record['command']}"]
    lines += [*filled(size), *filled(INTRODUCTION), "", *_overview(rows)]
    lines += ["", "![Size and coverage against the seeds](statistics.png)"]
    for table, (title, text) in SECTIONS.items():
        own = [row for row in rows if row.table == table]
        lines += ["", f"## {title}", *filled(text)]
        lines += filled(" ".join([reading(own), *([_MORE[table](own)] if table in _MORE else [])]))
        lines += ["", *_table(own)]
    return "\n".join(lines) + "\n"


def draw(rows: Rows, path: Path) -> None:
    """Draw size and coverage against the number of seeds, each rate with its bounds, beside what is promised."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts = (
        ("Equal arms found different, %", "size", ""),
        ("Coverage of the difference's 95% interval, %", "coverage", "difference"),
        ("Coverage of the 95% interval beside Hedges' g, %", "coverage", "Hedges"),
    )
    figure, axes = plt.subplots(1, len(parts), figsize=(15, 7), layout="constrained")
    for axis, (title, table, start) in zip(axes, parts, strict=True):
        own = [row for row in rows if row.table == table and row.case.startswith(start)]
        cases = list(dict.fromkeys(row.case for row in own))
        for i, case in enumerate(cases):
            cells = [row for row in own if row.case == case]
            places = [SEEDS.index(row.n) + 0.6 * (i / max(1, len(cases) - 1) - 0.5) for row in cells]
            rates = [100 * row.rate for row in cells]
            errors = [[100 * abs(row.rate - row.bounds[side]) for row in cells] for side in (0, 1)]
            look = {"fmt": "os^D"[i % 4], "color": f"C{i}" if i < 10 else "black", "ms": 5, "capsize": 2}
            axis.errorbar(places, rates, errors, label=case, **look)
        axis.axhline(100 * (own[0].nominal or 0), color="0.4", lw=1, ls="--", label="promised", zorder=0)
        axis.set_xticks(range(len(SEEDS)), map(str, SEEDS))
        axis.set_xlabel(f"seeds per arm; bars: {CONFIDENCE:.0%} bounds")
        axis.set_title(title, fontsize=11)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
