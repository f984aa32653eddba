"""Tables of arms and comparisons, as a newcomer reads them."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audits.checks import CATALOGUE
from harness.compare import in_words
from harness.plan import Decision
from kd.methods import METHODS

_NAMES = {audit.id: audit.name for audit in CATALOGUE.values()}


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _score(value: float | None) -> str:
    return "no score" if value is None else f"{value:.2f}"


def _mean(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "no score"
    return f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else "")


def show_arms(console: Console, arms: list[dict[str, Any]], teachers: list[dict[str, Any]]) -> None:
    """Print each arm with its accuracies by seed and the audits that fired."""
    table = _table(
        "pair", "method", "arm", "test accuracy by seed, %", "mean ± sd", "audits that fired", "as declared",
        title="Arms",
    )  # fmt: skip
    for teacher in teachers:
        table.add_row(
            teacher["arch"], "teacher", teacher["fault"] or "corrected", _score(teacher["test_accuracy"]), "",
            _fired(teacher), _mark(teacher["as_expected"]),
        )  # fmt: skip
    for arm in arms:
        table.add_row(
            arm["pair"],
            METHODS[arm["method"]].title,
            arm["fault"] or "corrected",
            "  ".join(_score(v) for v in arm["test_accuracy"]),
            _mean(arm["mean"], arm["std"]),
            _fired(arm),
            _mark(arm["as_expected"]),
        )
    console.print(table)


def _mark(as_expected: bool) -> str:
    return "yes" if as_expected else "[bold red]NO[/]"


def _fired(arm: dict[str, Any]) -> str:
    roots = [f"{i} {_NAMES.get(i, '')}" for i in arm["failed_findings"]]
    return ", ".join(roots + [f"[dim](then {i} {_NAMES.get(i, '')})[/]" for i in arm["consequences"]]) or "none"


def show_study(console: Console, found: dict[str, Any], decision: Decision) -> None:
    """Print what came of a study: the kdbench.run/1 object in tables and words."""
    arms, teachers = found["arms"], found["teachers"]
    show_arms(console, arms, teachers)
    console.print()
    gain, bug = "Does distillation gain anything here?", "Does the bug matter here?"
    show_comparisons(console, found["gains"], decision.margin_pp, f"{gain} (corrected, against the baseline)")
    show_comparisons(console, found["comparisons"], decision.margin_pp, f"{bug} (bugged against corrected)")
    if all(row["as_expected"] for row in [*arms, *teachers]):
        caught = "every fault was caught by exactly the audits that it names"
        clean = "every corrected arm is proven clean"
        said = [caught] * any(row["fault"] for row in arms) + [clean] * any(not row["fault"] for row in arms)
        console.print(f"[bold green]As declared:[/] {', and '.join(said)}.")
    else:
        console.print("[bold red]Not as declared:[/] see the arms marked NO.")
    counts = f"{found['trained']} trained, {found['reused']} reused, {found['failed']} failed."
    shared = " All students of a pair share one teacher (seed 0): the spread holds no teacher variance."
    console.print(counts + (shared if teachers else ""))


def show_comparisons(console: Console, entries: list[dict[str, Any]], margin: float, title: str) -> None:
    """Print each comparison's verdict in words."""
    if not entries:
        return
    table = _table("pair", "method", "comparison", "verdict", title=title)
    for entry in entries:
        table.add_row(
            entry["pair"],
            METHODS[entry["method"]].title,
            f"{entry['b']} against {entry['a']}",
            escape(in_words(entry, margin)),
        )
    console.print(table)
    notes = [w for entry in entries for w in entry["warnings"]]
    notes.append(f"one family of {len(entries)}: p is Holm's; the equivalence test is not adjusted")
    for note in dict.fromkeys(notes):
        console.print(f"  note: {escape(note)}", style="dim")
    console.print()
