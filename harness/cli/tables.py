"""Tables that fit the terminal: whole columns are left out, or rows are stacked, and no name or verdict is ever cut."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Cell = str | tuple[str, str]
"Markup; or two of it, the second for where space is short."
_GAP = 2
_LEAST_WRAP = 12
"Columns that a cell with several words is given at least before it is wrapped."


@dataclass(frozen=True)
class Column:
    """One column of a table, and what may become of it on a narrow terminal."""

    title: Cell
    drop: int = 0
    "Place in the order in which columns are left out, from 1; 0 for one that never is."
    names: bool = False
    "Whether it names the row: such a column heads the row where rows are stacked."
    common: bool = False
    "Whether it may move into the table's title where all rows say the same."
    wraps: bool = False
    "Whether its cells may be broken between words."


@dataclass(frozen=True)
class _Layout:
    """One way to show a table."""

    columns: list[int]
    "Which columns, by number."
    short: bool
    widths: list[int] | None
    "By column; None where it does not fit."
    dropped: list[int]
    common: list[int]


def show_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    title: str | None = None,
    elsewhere: str | None = "--json",
) -> None:
    """Print a table within the console's width, with no cell cut.

    Where it is too wide, in this order: cells marked so are broken between words; short forms stand in; a column in
    which all rows agree moves into the title; columns are left out by their `drop` number, and a line says which; the
    rows are stacked, with every column in them. `elsewhere` is the option that shows everything at any width.
    """
    layout = _fit(columns, rows, console.width)
    used = layout.common if layout is not None else []
    said = [f"{_pick(columns[i].title, True)} {_pick(_common(rows, i), True)}" for i in used]
    if title or said:
        moved = ", ".join(said)
        head = f"{title} ({moved})" if title and moved else title or moved
        console.print(Text.from_markup(head, style="bold"))
    if layout is None:
        _stack(console, columns, rows)
        return
    assert layout.widths is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, width in zip(layout.columns, layout.widths, strict=True):
        header = "\n".join(_header(columns[i], layout.short, width))
        table.add_column(escape(header), width=width, no_wrap=not columns[i].wraps, overflow="fold")
    for row in rows:
        table.add_row(*(_pick(row[i], layout.short) for i in layout.columns))
    console.print(table)
    if layout.dropped:
        names = "; ".join(_pick(columns[i].title, False) for i in layout.dropped)
        more = f" or {elsewhere}" if elsewhere else ""
        note(console, f"left out at {console.width} columns: {names}. A wider terminal{more} shows them.")


def note(console: Console, text: str, *, style: str = "dim", indent: int = 2) -> None:
    """Print a remark in markup, broken between words, each of its lines indented."""
    for line in Text.from_markup(text, style=style).wrap(console, max(20, console.width - indent)):
        line.rstrip()
        console.print(Text(" " * indent).append_text(line), no_wrap=True, overflow="ignore", crop=False)


def _pick(cell: Cell, short: bool) -> str:
    return cell if isinstance(cell, str) else cell[short]


def _plain(cell: Cell, short: bool) -> str:
    return Text.from_markup(_pick(cell, short)).plain


def _common(rows: Sequence[Sequence[Cell]], i: int) -> Cell:
    """Return what all rows say in a column; empty where they differ, and rows that say nothing do not count."""
    found = {row[i] for row in rows} - {""}
    return found.pop() if len(found) == 1 else ""


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> _Layout | None:
    """Return the first layout that fits, of those in the order that :func:`show_table` promises; None if none does."""
    every = [*range(len(columns))]
    common = [i for i in every if columns[i].common and _common(rows, i)] if len(rows) > 1 else []
    order = sorted((i for i in every if columns[i].drop), key=lambda i: columns[i].drop)
    attempts: list[tuple[bool, list[int], int, bool]] = [(False, [], 0, True), (True, [], 0, False)]
    attempts += [(True, common, count, False) for count in range(len(order) + 1)]
    attempts.append((True, common, len(order), True))
    for short, moved, count, wrap in attempts:
        dropped = sorted(set(order[:count]) - {*moved})
        left = [i for i in every if i not in {*moved, *dropped}]
        widths = _widths([columns[i] for i in left], [[row[i] for row in rows] for i in left], width, short, wrap)
        if widths is not None:
            return _Layout(left, short, widths, dropped, moved)
    return None


def _widths(
    columns: Sequence[Column], cells: Sequence[Sequence[Cell]], width: int, short: bool, wrap: bool
) -> list[int] | None:
    """Return the columns' widths within `width`, headers in one line if there is room; None if they do not fit."""
    bodies = [max((cell_len(_plain(cell, short)) for cell in column), default=0) for column in cells]
    titles = [_plain(column.title, short) for column in columns]
    heads = [max(map(cell_len, title.split()), default=0) for title in titles]
    room = width - _GAP * (len(columns) - 1)
    for least in (list(map(cell_len, titles)), heads):  # with headers in one line, if that can be had
        widths = [max(body, head) for body, head in zip(bodies, least, strict=True)]
        floors = {
            i: max(_longest_word(cells[i], short), least[i], min(_LEAST_WRAP, widths[i]))
            for i, column in enumerate(columns)
            if wrap and column.wraps
        }
        while sum(widths) > room and (above := [i for i, floor in floors.items() if widths[i] > floor]):
            widths[max(above, key=widths.__getitem__)] -= 1  # the widest gives first
        if sum(widths) <= room:
            break
    else:
        return None
    for i, title in enumerate(titles):  # from the left, as far as there is room for a header in one line
        more = max(0, cell_len(title) - widths[i])
        widths[i] += more if sum(widths) + more <= room else 0
    return widths


def _longest_word(cells: Sequence[Cell], short: bool) -> int:
    return max((cell_len(word) for cell in cells for word in _plain(cell, short).split()), default=0)


def _header(column: Column, short: bool, width: int) -> list[str]:
    return textwrap.wrap(_plain(column.title, short), width, break_long_words=False, break_on_hyphens=False) or [""]


def _stack(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """Print each row as a block: what names it, and below it a line for each other column."""
    others = [i for i, column in enumerate(columns) if not column.names]
    wide = max((cell_len(_plain(columns[i].title, False)) for i in others), default=0)
    for row in rows:
        names = [_pick(row[i], False) for i, column in enumerate(columns) if column.names and row[i]]
        console.print(Text.from_markup(", ".join(names), style="bold"))
        block = Table.grid(padding=(0, _GAP, 0, 0))
        block.add_column(width=wide, no_wrap=True)
        block.add_column(overflow="fold")
        for i in others:
            if _pick(row[i], False):
                block.add_row(f"[dim]{_plain(columns[i].title, False)}[/]", _pick(row[i], False))
        console.print(Padding(block, (0, 0, 0, 2)))
