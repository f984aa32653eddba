"""Comparisons on the terminal: the two sides, the verdicts, and what they mean in words."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.markup import escape

from kdbench.harness.analysis.best import BestOfPair
from kdbench.harness.analysis.over_pairs import OVER_PAIRS, OverPairs
from kdbench.harness.analysis.rows import ComparisonRow
from kdbench.harness.analysis.sentences import adjusted, in_words, number_format
from kdbench.harness.cli.tables import Column, note, show_table
from kdbench.harness.options import one_line

_MEANING = {
    "different": "a difference of this size would be rare if there were none",
    "equivalent": "the difference is within the margin of {size}",
    "both": "a real difference, and smaller than the margin of {size}",
    "undecided": "these seeds cannot tell; a difference smaller than `missed below` is easily missed. "
    "It does not mean `no effect`",
    "undefined": "nothing can be said; the notes say why",
}
_MANY = 8
"Comparisons beyond which the conclusion counts verdicts and leaves the sentences out."


def shown(entries: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Return comparisons with their names and notes as a line of text may have them: they come from anybody's file."""
    return [
        replace(
            entry,
            a=one_line(entry.a),
            b=one_line(entry.b),
            pair=one_line(entry.pair),
            method=one_line(entry.method),
            warnings=[one_line(text) for text in entry.warnings],
        )
        for entry in entries
    ]


def show_groups(
    console: Console,
    entries: Sequence[ComparisonRow],
    *,
    pair: str = "pair",
    group: str = "arm",
    unit: str = "pp",
) -> None:
    """Print each side of the comparisons once: how many scores it has, their mean and standard deviation.

    `pair` and `group` are what the columns of the same names are called in a table of the user's.
    """
    form = number_format(entries, unit)
    sides = {}
    for entry in entries:
        for side, name in enumerate((entry.a, entry.b)):
            method = "" if entry.b == entry.method else entry.method
            sides[entry.pair, method, name] = entry.n[side], entry.mean[side], entry.std[side]
    columns = [
        Column(escape(pair), names=True, common=True),
        Column("method", names=True, common=True),
        Column(escape(group), names=True),
        Column("n"),
        Column("mean"),
        Column("sd"),
    ]
    rows = [
        (escape(where), _title(method), escape(name), str(n), _number(mean, form), _number(std, form))
        for (where, method, name), (n, mean, std) in sides.items()
    ]
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    show_table(console, [columns[i] for i in used], [[row[i] for i in used] for row in rows])
    console.print()


def show_comparisons(
    console: Console,
    entries: Sequence[ComparisonRow],
    margin: float,
    title: str,
    family: int | None = None,
    unit: str = "pp",
    *,
    pair: str = "pair",
    group: str = "arm",
) -> None:
    """Print each comparison with its verdict, and what the verdicts that occur mean; by default they are a family.

    `pair` and `group` are as in :func:`show_groups`.
    """
    if not entries:
        return
    size = f"{margin:g} {unit}".strip()
    form = f"+{number_format(entries, unit)}"
    same = len({e.a for e in entries}) == 1  # then the title says against what
    by_method = all(e.b == e.method for e in entries)  # then the method is the arm
    columns = [
        Column(escape(pair), names=True, common=True),
        Column("method", names=True, common=not by_method),
        Column(escape(group), names=True),
        Column("verdict"),
        Column((f"difference, {unit}", f"diff, {unit}") if unit else ("difference", "diff")),
        Column("95% interval"),
        Column("adjusted p", drop=3),
        Column("missed below", drop=1),
        Column((f"seeds for {size}", "seeds needed"), drop=2),
    ]
    rows = [
        (
            escape(e.pair),
            _title(e.method),
            "" if by_method and same else escape(e.b if same else f"{e.b} against {e.a}"),
            e.told,
            _number(e.difference_pp, form),
            f"{e.ci95_pp[0]:{form}} to {e.ci95_pp[1]:{form}}" if e.ci95_pp else "",
            _number(e.holm_p, ".2g"),
            _number(e.mde_pp, ".1f" if unit else ".2g"),
            _number(e.seeds_for_power_80, "d"),
        )
        for e in entries
    ]
    used = [i for i, column in enumerate(columns) if not column.names or any(row[i] for row in rows)]
    show_table(console, [columns[i] for i in used], [[row[i] for i in used] for row in rows], title=escape(title))
    _show_notes(console, entries, size, family or len(entries))
    console.print()


def show_over_pairs(console: Console, rows: Sequence[OverPairs], unit: str = "pp", pair: str = "pair") -> None:
    """Print each method over all pairs with its intervals, and which of them these seeds cannot tell from the best."""
    if not rows:
        return
    columns = [
        Column("method", names=True),
        Column("mean gain, pp" if unit else "mean gain"),
        Column("95% interval"),
        Column("probability of a gain", drop=2),
        Column("95% interval", drop=1),
        Column("among the best"),
    ]
    lines = [
        (
            (_title(row.method) if unit else "") or escape(row.method),
            f"{row.gain_pp:+.3g}",
            "{:+.3g} to {:+.3g}".format(*row.gain_ci95_pp),
            f"{row.p_gain:.2f}",
            "{:.2f} to {:.2f}".format(*row.p_gain_ci95),
            "yes" if row.among_best else "no",
        )
        for row in rows
    ]
    show_table(
        console, columns, lines, title=escape(f"Over {len(rows[0].pairs)} {pair}s together, against {rows[0].against}")
    )
    for said in OVER_PAIRS:
        note(console, escape(said))
    console.print()


def show_best(console: Console, found: Sequence[BestOfPair], named: bool = True) -> None:
    """Print the best of each pair in a sentence; `named`: methods are called by their titles."""
    for best in found:
        names = [best.best, *best.not_told_apart] if named else []
        note(console, escape(best.in_words({name: _title(name) for name in names})))
    if found:
        console.print()


def _show_notes(console: Console, entries: Sequence[ComparisonRow], size: str, family: int) -> None:
    """Print what the verdicts mean, what must be known of single comparisons, and how p was adjusted."""
    notes = [f"{name}: {_MEANING[name].format(size=size)}" for name in dict.fromkeys(e.verdict for e in entries)]
    notes += [f"{_of(e)}: {why}" for e in entries if (why := adjusted(e, family)) is not None]
    notes += [w for e in entries for w in e.warnings]
    if family > 1:
        notes.append(
            f"p is Welch's, adjusted (Holm) for a family of {family} comparisons; the other columns are of each "
            "comparison by itself"
        )
    else:
        notes.append("p is Welch's; there is one comparison, so nothing is adjusted")
    for line in dict.fromkeys(notes):
        note(console, escape(line))


def _of(entry: ComparisonRow) -> str:
    """Return which comparison, in a few words."""
    method = _title(entry.method)
    return method if entry.b == entry.method else f"{method} {entry.b}".strip()


def conclude(
    console: Console, entries: Sequence[ComparisonRow], margin: float, family: int | None = None, unit: str = "pp"
) -> None:
    """Print what the comparisons say in words, one a line; of many, how often each verdict occurs."""
    if len(entries) > _MANY:
        verdicts = [entry.verdict for entry in entries]
        counts = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts))
        note(console, f"{len(entries)} comparisons: {counts}.", style="", indent=0)
        return
    form = number_format(entries, unit)
    several = len({(e.pair, e.method if e.b != e.method else "") for e in entries}) > 1
    if len(entries) > 1:
        shown = sum(e.verdict in ("different", "both") for e in entries)
        rest = [
            f"{n} {name}"
            for name in ("equivalent", "undecided", "undefined")
            if (n := sum(e.verdict == name for e in entries))
        ]
        note(
            console,
            f"{shown} of {len(entries)} differences are shown" + (f"; {', '.join(rest)}." if rest else "."),
            style="bold",
            indent=0,
        )
    for entry in entries:
        place = ", ".join(filter(None, (entry.pair, _title(entry.method) if entry.b != entry.method else "")))
        head = f"{place}: " if several and place else ""
        note(console, escape(head + in_words(entry, margin, family or len(entries), unit, form)), style="", indent=0)


def _title(method: str) -> str:
    if not method:  # of a table from elsewhere: no method is ours, and PyTorch is not needed
        return ""
    from kdbench.kd.methods import METHODS

    return METHODS[method].title if method in METHODS else escape(method)


def _number(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)
