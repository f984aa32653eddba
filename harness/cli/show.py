"""Tables of arms and comparisons, as a newcomer reads them."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audits.checks import CATALOGUE
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


_MEANING = {
    "different": "a difference of this size would be rare if there were none",
    "equivalent": "the difference is within the margin of {margin:g} pp",
    "both": "a real difference, and smaller than the margin of {margin:g} pp",
    "undecided": "these seeds cannot tell: below `80% power from` a difference is easily missed. Not `no effect`",
    "undefined": "nothing can be said; the notes say why",
}


def show_comparisons(
    console: Console, entries: list[dict[str, Any]], margin: float, title: str, family: int | None = None
) -> None:
    """Print each comparison with its verdict, and what the verdicts that occur mean; by default they are a family."""
    if not entries:
        return
    table = _table(
        "pair", "method", "arm", "verdict", "difference, pp", "95% interval", "adjusted p", "80% power from",
        f"seeds for {margin:g} pp",
        title=title,
    )  # fmt: skip
    same = len({e["a"] for e in entries}) == 1  # then the title says against what
    for e in entries:
        ci, verdict = e["ci95_pp"], e["verdict"]
        if verdict in ("different", "both"):
            verdict += ", higher" if e["difference_pp"] > 0 else ", lower"
        table.add_row(
            e["pair"],
            METHODS[e["method"]].title,
            e["b"] if same else f"{e['b']} against {e['a']}",
            verdict,
            _number(e["difference_pp"], "+.2f"),
            f"{ci[0]:+.2f} to {ci[1]:+.2f}" if ci else "",
            _number(e["holm_p"], ".2g"),
            _number(e["mde_pp"], ".1f"),
            _number(e["seeds_for_power_80"], "d"),
        )
    console.print(table)
    notes = [f"{name}: {_MEANING[name].format(margin=margin)}" for name in dict.fromkeys(e["verdict"] for e in entries)]
    notes += [w for e in entries for w in e["warnings"]]
    notes.append(
        f"one family of {family or len(entries)}: p is Holm's, of Welch's test; the equivalence test is not adjusted"
    )
    for note in dict.fromkeys(notes):
        console.print(f"  {escape(note)}", style="dim")
    console.print()


def _number(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)
