"""The report's figures: SVG that follows the reader's light or dark page, as data addresses.

Each is drawn twice, for a wide page and for a telephone, since letters that shrink with a picture cannot be read.
"""

import base64
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from statistics import fmean, stdev
from typing import Any, NamedTuple

from kdbench.harness.analysis.rows import ComparisonRow, GridRow
from kdbench.harness.analysis.study_table import Trials, grid_rows, order, scores
from kdbench.harness.plan.plan import Arm
from kdbench.kd.methods import METHODS

# Each colour on a light page, and what takes its place on a dark one; matplotlib draws the first.
_INK, _SOFT = "#24292f", "#8b949e"
_DARK = {
    _INK: "#e6edf3",
    _SOFT: "#768390",
    "#57606a": "#adbac7",
    "#1d4ed8": "#79a8ff",
    "#b45309": "#f0a35e",
    "#6d28d9": "#b794f6",
    "#0f766e": "#4fd1c5",
    "#be185d": "#f687b3",
    "#4d7c0f": "#a3d65c",
    "#b91c1c": "#fc8181",
}
_LINES = tuple(light for light in _DARK if light not in (_INK, _SOFT))
"Colours of lines, and of a study's methods in the order of their tables."
_STROKES = ("-", "--", ":")
"Of the lines of more methods than there are colours."
FIGURES = ("gains", "accuracy", "curves", "norms", "grid")
_FAR = 15.0
"Percentage points below the best arm from which on an arm is told in words: the axis is for the others."


class Picture(NamedTuple):
    """A figure as two data addresses."""

    wide: str
    narrow: str
    "For pages of fewer than about 700 pixels."


_WIDTHS = {False: 9.4, True: 3.75}
"In inches of 96 pixels: of a wide figure, and of a narrow one, which fits a telephone of 390 pixels."


def draw(study: Trials, gains: Sequence[ComparisonRow], claimed_norm: float | None) -> dict[str, Picture]:
    """Return the figures by name; one that has nothing to show is left out."""
    import matplotlib

    matplotlib.use("Agg")
    style = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
        "grid.color": _SOFT,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "font.size": 9.5,
        "axes.titlesize": 10,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "svg.fonttype": "none",  # letters stay letters: they can be searched and read aloud, and the page stays small
        "svg.hashsalt": "kdbench",
        "text.parse_math": False,  # a name with dollars is a name
    }
    colours = colours_of({arm.method for arm in study.arms})
    curves_of = cache(partial(_finished_curves, study))  # each is drawn twice, and read once
    pictures: dict[str, Callable[[bool], str]] = {
        "gains": lambda narrow: _gains(gains, study.decision.margin_pp, narrow, colours),
        "accuracy": lambda narrow: _accuracy(study, narrow, colours),
        "curves": lambda narrow: _curves(study, narrow, colours, curves_of),
        "norms": lambda narrow: _norms(study, claimed_norm, narrow),
        "grid": lambda narrow: _grid(study, narrow),
    }
    with matplotlib.rc_context(style):
        drawn = {name: Picture(picture(False), picture(True)) for name, picture in pictures.items()}
    return {name: picture for name, picture in drawn.items() if picture.wide}


_MOST_LINES = 20
"Seeds of an arm that have a line of their own."
_MOST_ROWS, _MOST_PANELS = 100, 24
"Arms, and pairs, that a figure shows: more cannot be read, and take minutes to draw. The tables have all."


class Stroke(NamedTuple):
    """How a method's line is drawn."""

    colour: str
    line: str


def colours_of(methods: Collection[str]) -> dict[str, Stroke]:
    """Return how each method of a study is drawn: no two alike, up to three times as many as there are colours."""
    drawn = sorted({"baseline", *methods}, key=METHODS.rank)
    strokes = [Stroke(colour, line) for line in _STROKES for colour in _LINES]
    return {method: strokes[at % len(strokes)] for at, method in enumerate(drawn)}


def _svg(figure: Any) -> str:
    """Close a figure and return it; its colours change with the page that it stands on."""
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark} !important}}'
        for light, dark in _DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media screen and (prefers-color-scheme: dark){{{rules}}}</style>"
    # Of matplotlib's list of eleven fonts the one that it measured, and one as wide that other systems have.
    svg = re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", buffer.getvalue())
    head, defs, rest = svg.partition("<defs>")
    return "data:image/svg+xml;base64," + base64.b64encode(f"{head}{style}{defs}{rest}".encode()).decode()


class Rows(NamedTuple):
    """Axes with a line a label, the first on top."""

    axes: Any
    narrow: bool

    def word(self, y: int, text: str, colour: str) -> None:
        """Say something of a line: beside the axes, or where they fill the page at the right of its label."""
        if self.narrow:
            self.axes.annotate(text, (1.0, y - 0.46), xycoords=("axes fraction", "data"), va="center", ha="right",
                               color=colour, fontsize=9.5, fontweight="bold")  # fmt: skip
        else:
            self.axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", color=colour)


def _rows(labels: Sequence[str], title: str, narrow: bool) -> Rows:
    """Return axes with a line a label: at the left, or where there is no room for it, above the line's own values."""
    from matplotlib import pyplot as plt

    size = (_WIDTHS[narrow], (0.75 + 0.56 * len(labels)) if narrow else (0.8 + 0.38 * len(labels)))
    _, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set_yticks(range(len(labels)), [] if narrow else labels)
    axes.set_ylim(len(labels) - 0.4, -0.8 if narrow else -0.6)
    if narrow:
        for y, label in enumerate(labels):
            axes.annotate(label, (0.0, y - 0.46), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    axes.set_xlabel(title)
    axes.grid(axis="x")
    return Rows(axes, narrow)


def _named(arm: Arm, several: bool) -> str:
    """Return an arm's method, with its pair where a study has several."""
    return f"{arm.pair}  {METHODS[arm.method].title}" if several else METHODS[arm.method].title


def _gains(gains: Sequence[ComparisonRow], margin: float, narrow: bool, colours: Mapping[str, Stroke]) -> str:
    """Draw each method's seeds as differences from its baseline's mean, and the difference's 95% interval."""
    shown = [g for g in gains if g.difference_pp is not None][:_MOST_ROWS]
    if not shown:
        return ""
    first: dict[str, ComparisonRow] = {g.pair: g for g in reversed(shown)}
    several = len(first) > 1
    lines: list[tuple[str, str, list[float], ComparisonRow | None]] = []
    for pair in dict.fromkeys(g.pair for g in shown):
        values, mean = first[pair].values[0], first[pair].mean[0]
        assert mean is not None  # else there would be no difference from it
        lines.append((_named(Arm(None, pair, "baseline"), several), "baseline", [v - mean for v in values], None))
        for g in (g for g in shown if g.pair == pair):
            lines.append((_named(Arm(None, pair, g.method), several), g.method, [v - mean for v in g.values[1]], g))
    rows = _rows([line[0] for line in lines], "gain over the baseline's mean, pp", narrow)
    rows.axes.axvspan(-margin, margin, color=_SOFT, alpha=0.18, lw=0)
    rows.axes.axvline(0, color=_INK, lw=0.8)
    for y, (_, method, values, found) in enumerate(lines):
        colour = colours[method].colour
        rows.axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.6, ms=6.5, mec="none")
        if found is None:
            continue
        if found.ci95_pp is not None:
            rows.axes.plot(found.ci95_pp, [y + 0.25] * 2, color=colour, lw=2, solid_capstyle="butt")
            rows.axes.plot(found.difference_pp, y + 0.25, "|", color=colour, ms=10, mew=2)
        rows.word(y, found.told, colour)
    return _svg(rows.axes.figure)


def _accuracy(study: Trials, narrow: bool, colours: Mapping[str, Stroke]) -> str:
    """Draw every seed of every arm, and the mean with its 95% interval; one far below in words."""
    from scipy import stats

    shown = sorted(study.arms, key=order)
    if len(shown) > _MOST_ROWS:  # of a study of every fault, what the faults are held against
        shown = [arm for arm in shown if arm.fault is None][:_MOST_ROWS] or shown[:_MOST_ROWS]
    found = {arm: scores(study.arms[arm]) for arm in shown}
    arms = {arm: values for arm, values in found.items() if values}
    if not arms:
        return ""
    best = max(fmean(values) for values in arms.values())
    near = [value for values in arms.values() if fmean(values) > best - _FAR for value in values]
    room = max(0.5, 0.08 * (max(near) - min(near)))
    left, right = max(0.0, min(near) - room), min(100.0 + room / 4, max(near) + room)
    several = len({arm.pair for arm in arms}) > 1
    labels = [f"{_named(arm, several)}, {arm.label}" for arm in arms]
    rows = _rows(labels, "test accuracy, %", narrow)
    rows.axes.set_xlim(left, right)
    for y, (arm, values) in enumerate(arms.items()):
        colour = colours[arm.method].colour
        if fmean(values) <= best - _FAR:
            text = f"\N{LEFTWARDS ARROW} off the scale: {fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            rows.axes.annotate(text, (left, y), va="center", color=colour)
            continue
        rows.axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.6, ms=6.5, mec="none")
        if len(values) > 1:
            half = stats.t.isf(0.025, len(values) - 1) * stdev(values) / len(values) ** 0.5
            rows.axes.plot([fmean(values) - half, fmean(values) + half], [y + 0.25] * 2, color=colour, lw=2)
            rows.axes.plot(fmean(values), y + 0.25, "|", color=colour, ms=10, mew=2)
    return _svg(rows.axes.figure)


def _curves(
    study: Trials, narrow: bool, colours: Mapping[str, Stroke], curves_of: Callable[[Arm], list[list[float]]]
) -> str:
    """Draw validation accuracy by epoch, the mean and the range over the seeds, of the corrected arms."""
    pairs = list(dict.fromkeys(arm.pair for arm in sorted(study.arms, key=order) if not arm.fault))
    if not pairs:
        return ""
    pairs = pairs[:_MOST_PANELS]
    figure, panels = _panels(len(pairs), narrow)
    for axes, pair in zip(panels, pairs, strict=True):
        for arm in (a for a in sorted(study.arms, key=order) if a.pair == pair and not a.fault):
            curves = curves_of(arm)
            if not curves:
                continue
            by_epoch = list(zip(*curves, strict=True))
            xs, (colour, line) = range(1, len(by_epoch) + 1), colours[arm.method]
            means = [fmean(values) for values in by_epoch]
            axes.plot(xs, means, color=colour, ls=line, label=METHODS[arm.method].title)
            axes.fill_between(
                xs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=colour, alpha=0.18, lw=0
            )
        axes.set_title(pair)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("validation accuracy, %")
        axes.grid()
    _name_lines(figure, panels[0], narrow)
    return _svg(figure)


def _name_lines(figure: Any, axes: Any, narrow: bool) -> None:
    """Add the legend: within the panel, or of many methods below all panels, which the figure then grows by."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= _MOST_WITHIN:
        axes.legend()
        return
    across = 2 if narrow else 4
    figure.set_figheight(figure.get_figheight() + _LINE * -(-len(labels) // across))
    figure.legend(handles, labels, loc="outside lower center", ncols=across)


_MOST_WITHIN, _LINE = 6, 0.2
"Methods whose names have room within a panel, and the height of a line of names in inches."


def _panels(count: int, narrow: bool) -> tuple[Any, list[Any]]:
    """Return a figure of so many panels, two in a line where there is room for two."""
    from matplotlib import pyplot as plt

    across = 1 if narrow or count == 1 else 2
    lines = -(-count // across)
    width = _WIDTHS[narrow] if narrow or across == 2 else 0.7 * _WIDTHS[False]
    size = (width, (2.6 if narrow else 3.2) * lines)
    figure, grid = plt.subplots(lines, across, figsize=size, squeeze=False, layout="constrained")
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _finished_curves(study: Trials, arm: Arm) -> list[list[float]]:
    """Return an arm's validation accuracies by epoch, of the seeds that came as far as any."""
    curves = [
        [epoch["val_accuracy"] for epoch in study.folder.trial(spec.key).curve()]
        for spec, result in study.arms[arm].values()
        if result is not None
    ]
    longest = max(map(len, curves), default=0)
    return [curve for curve in curves if curve and len(curve) == longest]


def _norms(study: Trials, claimed: float | None, narrow: bool) -> str:
    """Draw the gradient norms of the first steps before clipping, a line each of the first seeds, of projectors."""
    lines: dict[str, list[Any]] = {}
    several = len({arm.pair for arm in study.arms}) > 1
    for arm in sorted(study.arms, key=order):
        seeds = sorted(study.arms[arm])[:_MOST_LINES] if METHODS[arm.method].has_projectors else ()
        for table in (study.folder.trial(study.arms[arm][seed][0].key).norms() for seed in seeds):
            if "projectors" in table:
                lines.setdefault(f"{arm.pair}, {arm.label}" if several else arm.label, []).append(table)
    if not lines:
        return ""
    figure, panels = _panels(2, narrow)
    for axes, group in zip(panels, ("projectors", "student"), strict=True):
        for i, (label, tables) in enumerate(lines.items()):
            for j, table in enumerate(tables):
                colour, name = _LINES[i % len(_LINES)], label if j == 0 else None
                axes.plot(table["step"], table[group], color=colour, lw=0.9, alpha=0.7, label=name)
        axes.set_title(group)
        axes.set_xlabel("step")
        axes.set_ylabel("gradient norm")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # powers of ten are TeX, which names must not be
        axes.grid()
    if claimed is not None:
        panels[0].axhline(claimed, color=_INK, lw=1, ls="--")
        panels[0].annotate(f"the paper's {claimed:g}", (1, claimed), xycoords=("axes fraction", "data"), ha="right",
                           va="bottom")  # fmt: skip
    handles = panels[0].get_legend_handles_labels()
    legend = figure.legend(*handles, loc="outside lower center", ncols=1 if narrow else 3)
    for line in legend.get_lines():
        line.set(linewidth=2, alpha=1)
    return _svg(figure)


def _grid(study: Trials, narrow: bool) -> str:
    """Draw each arm's grid of one or two settings: mean accuracy on validation, its spread, and what was chosen."""
    from matplotlib import pyplot as plt

    by_arm: dict[Arm, list[GridRow]] = {}
    for row in grid_rows(study):
        by_arm.setdefault(Arm(row.fault, row.pair, row.method), []).append(row)
    shown = {arm: rows for arm, rows in by_arm.items() if len(rows[0].point) <= 2 and any(r.mean for r in rows)}
    if not shown:
        return ""
    columns = 1 if narrow else min(3, len(shown))
    lines = -(-len(shown) // columns)
    size = (_WIDTHS[True], 2.8 * lines) if narrow else (_WIDTHS[False] / 3 * columns, 2.8 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (arm, rows) in zip(grid.flat, shown.items(), strict=False):
        across, *down = reversed(rows[0].point)
        xs = list(dict.fromkeys(row.point[across] for row in rows))
        ys: list[float | None] = list(dict.fromkeys(row.point[down[0]] for row in rows)) if down else [None]
        at = {(row.point[across], row.point[down[0]] if down else None): row for row in rows}
        means = [[at[x, y].mean if at[x, y].mean is not None else float("nan") for x in xs] for y in ys]
        mesh = axes.pcolormesh(means, cmap="viridis", edgecolors="none")
        for (x, y), row in at.items():
            if row.mean is None:
                text, light = "diverged", False
            else:
                text = f"{row.mean:.1f}" + (f"\n\u00b1 {row.std:.1f}" if row.std is not None else "")
                light = mesh.norm(row.mean) > 0.6
            place = xs.index(x) + 0.5, ys.index(y) + 0.5
            colour = "#000000" if light else "#ffffff" if row.mean is not None else _INK
            axes.text(*place, text, ha="center", va="center", fontsize=9, color=colour)
            if row.chosen:
                corner = xs.index(x) + 0.03, ys.index(y) + 0.03
                axes.add_patch(plt.Rectangle(corner, 0.94, 0.94, fill=False, ec="#ffffff", lw=2.2))
                axes.add_patch(plt.Rectangle(corner, 0.94, 0.94, fill=False, ec="#000000", lw=0.9))
        axes.set_xticks([i + 0.5 for i in range(len(xs))], [f"{x:g}" for x in xs])
        axes.set_yticks([i + 0.5 for i in range(len(ys))] if down else [], [f"{y:g}" for y in ys] if down else [])
        axes.set_xlabel(across)
        axes.set_ylabel(down[0] if down else "")
        axes.set_title(f"{arm.pair}  {METHODS[arm.method].title}\n{arm.label}")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
    return _svg(figure)
