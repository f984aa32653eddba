"""Tables of arms and comparisons, as a newcomer reads them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, ControlsRow, GridRow, TeacherRow
from kdbench.harness.faults import audit_ids
from kdbench.harness.plan.plan import Decision
from kdbench.kd.methods import METHODS

if TYPE_CHECKING:
    from kdbench.harness.study import StudySummary

_NAMES = {id: name for name, id in audit_ids().items()}


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


def show_arms(console: Console, arms: Sequence[ArmRow], teachers: Sequence[TeacherRow]) -> None:
    """Print each arm with its accuracies by seed and the audits that fired."""
    table = _table(
        "pair", "method", "arm", "test accuracy by seed, %", "mean ± sd", "audits that fired", "as declared",
        title="Arms",
    )  # fmt: skip
    for teacher in teachers:
        table.add_row(
            teacher.arch, "teacher", teacher.fault or "corrected", _score(teacher.test_accuracy), "",
            _fired(teacher), _mark(teacher.as_expected),
        )  # fmt: skip
    for arm in arms:
        table.add_row(
            arm.pair,
            METHODS[arm.method].title,
            arm.fault or "corrected",
            "  ".join(_score(v) for v in arm.test_accuracy),
            _mean(arm.mean, arm.std),
            _fired(arm),
            _mark(arm.as_expected),
        )
    console.print(table)


def show_grid(console: Console, rows: Sequence[GridRow]) -> None:
    """Print what was tried first: each point's accuracy on validation, and which was chosen."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row.point))
    table = _table("pair", "method", "arm", *names, "validation accuracy, %", "chosen", title="Grid of settings")
    for row in rows:
        table.add_row(
            row.pair, METHODS[row.method].title, row.fault or "corrected",
            *(f"{row.point[name]:g}" if name in row.point else "" for name in names),
            _mean(row.mean, row.std), "yes" if row.chosen else "",
        )  # fmt: skip
    console.print(table)
    console.print()


def _mark(as_expected: bool) -> str:
    return "yes" if as_expected else "[bold red]NO[/]"


def _fired(arm: ArmRow | TeacherRow) -> str:
    roots = [f"{i} {_NAMES.get(i, '')}" for i in arm.failed_findings]
    return ", ".join(roots + [f"[dim](then {i} {_NAMES.get(i, '')})[/]" for i in arm.consequences]) or "none"


def show_study(console: Console, found: "StudySummary", decision: Decision) -> None:
    """Print what came of a study: the kdbench.run/1 object in tables and words."""
    arms, teachers = found.arms, found.teachers
    show_grid(console, found.grid)
    show_arms(console, arms, teachers)
    console.print()
    gain, bug = "Does distillation gain anything here?", "Does the bug matter here?"
    families, size = found.families, decision.margin_pp
    gain, bug = f"{gain} (corrected, against the baseline)", f"{bug} (bugged against corrected)"
    show_comparisons(console, found.gains, size, gain, families.gains)
    show_comparisons(console, found.comparisons, size, bug, families.comparisons)
    show_effects(console, arms)
    show_controls(console, found.controls)
    if found.controls is not None and not found.controls.as_declared:
        console.print("[bold red]Not as declared:[/] see the controls.")
    elif found.as_declared:
        caught = "every fault was caught by exactly the audits that it names"
        clean = "every corrected arm is proven clean"
        said = [caught] * any(row.fault for row in arms) + [clean] * any(not row.fault for row in arms)
        console.print(f"[bold green]As declared:[/] {', and '.join(said)}.")
    else:
        console.print("[bold red]Not as declared:[/] see the arms marked NO.")
    counts = ", ".join(f"{getattr(found, name)} {name}" for name in ("trained", "reused", "failed"))
    counts += (
        "".join(f", {getattr(found, name)} {name}" for name in ("retried", "diverged") if getattr(found, name)) + "."
    )
    shared = " All students of a pair share one teacher (seed 0): the spread holds no teacher variance."
    console.print(counts + (shared if teachers else ""))


_EFFECTS = {
    "invalid": "the decision was never asked for: the trial says nothing of the bug",
    "dormant": "it changed no weight and no score",
    "latent": "it changed the weights, and the accuracy is equivalent at the margin",
    "visible": "the accuracy differs",
    "undecided": "it changed the weights; these seeds cannot tell what that does to the accuracy",
}


def show_effects(console: Console, arms: Sequence[ArmRow]) -> None:
    """Print how far each bug got: asked for, in the weights from which epoch on, revealed by what, to what effect."""
    bugged = [arm for arm in arms if arm.fault]
    if not bugged:
        return
    table = _table(
        "pair", "method", "arm", "reached", "weights differ from epoch", "revealed by", "effect",
        title="How far did each bug get?",
    )  # fmt: skip
    for arm in bugged:
        at = arm.diverged_at
        table.add_row(
            arm.pair, METHODS[arm.method].title, arm.fault,
            {True: "yes", False: "NO", None: "not known"}[arm.reached],
            str(at) if at is not None else "never" if arm.dormant else "not known",
            ", ".join(arm.failed_findings) or "nothing", arm.effect,
        )  # fmt: skip
    console.print(table)
    for name in dict.fromkeys(arm.effect for arm in bugged if arm.effect is not None):
        console.print(f"  {name}: {_EFFECTS[name]}", style="dim")
    console.print()


def show_controls(console: Console, controls: ControlsRow | None) -> None:
    """Print what the controls showed, and what follows where they are missing or failed."""
    if controls is None:
        console.print(
            "[bold red]No controls:[/] this study was not shown to see anything, so it proves nothing; "
            "leave out --no-controls.\n",
            soft_wrap=True,
        )
        return
    again, positive = controls.again, controls.positive
    console.print("[bold]Controls[/]")
    if again is not None:
        twice = {
            "identical": f"the same bits in each of {again.epochs} epochs",
            "differs": "[bold red]NOT the same bits[/]: no difference of weights here means anything",
            "undecidable": "not the same bits, as this device does not promise them: divergence is undecidable here",
            "missing": "[bold red]did not finish[/]",
        }[again.verdict]
        arm = f"{METHODS[again.method].title}, {again.fault or 'corrected'}"
        console.print(f"  the same seed twice ({arm}, seed {again.seed}): {twice}", soft_wrap=True)
    if positive is None:
        console.print("  no positive control: no method here has a teacher whose answers could be shuffled")
    else:
        entry = positive.comparison
        by_audit = "as declared" if positive.seen_by_audit else "[bold red]NOT as declared[/]"
        said = f"caught by {', '.join(positive.arm.failed_findings) or 'nothing'}, {by_audit}"
        p, low = entry.welch_p, entry.difference_pp
        change = "no score" if low is None else f"accuracy {low:+.2f} pp" + (f" (p {p:.2g})" if p is not None else "")
        seen = "seen" if positive.seen_in_accuracy else "not seen"
        name = f"{positive.arm.fault}, {METHODS[positive.arm.method].title}"
        console.print(f"  positive control ({name}): {said}; {change}: {seen} in accuracy", soft_wrap=True)
        if not positive.seen_in_accuracy:
            console.print(
                "  A study that does not see this bug in accuracy says nothing of what the others do to it: "
                "give it more seeds, or more training.",
                style="bold",
                soft_wrap=True,
            )
    console.print()


_MEANING = {
    "different": "a difference of this size would be rare if there were none",
    "equivalent": "the difference is within the margin of {size}",
    "both": "a real difference, and smaller than the margin of {size}",
    "undecided": "these seeds cannot tell: a difference under `missed below` is easily missed. Not `no effect`",
    "undefined": "nothing can be said; the notes say why",
}


def show_comparisons(
    console: Console,
    entries: Sequence[ComparisonRow],
    margin: float,
    title: str,
    family: int | None = None,
    unit: str = "pp",
) -> None:
    """Print each comparison with its verdict, and what the verdicts that occur mean; by default they are a family."""
    if not entries:
        return
    size = f"{margin:g} {unit}".strip()
    columns = [name for name in ("pair", "method") if any(getattr(e, name) for e in entries)]
    table = _table(
        *columns, "arm", "verdict", f"difference, {unit}".rstrip(", "), "95% interval", "adjusted p", "missed below",
        f"seeds for {size}",
        title=escape(title),
    )  # fmt: skip
    places = "+.2f" if unit else "+.3g"
    same = len({e.a for e in entries}) == 1  # then the title says against what
    for e in entries:
        ci = e.ci95_pp
        table.add_row(
            *(METHODS[getattr(e, name)].title if name == "method" else escape(getattr(e, name)) for name in columns),
            escape(e.b if same else f"{e.b} against {e.a}"),
            e.told,
            _number(e.difference_pp, places),
            f"{ci[0]:{places}} to {ci[1]:{places}}" if ci else "",
            _number(e.holm_p, ".2g"),
            _number(e.mde_pp, ".1f" if unit else ".2g"),
            _number(e.seeds_for_power_80, "d"),
        )
    console.print(table)
    notes = [f"{name}: {_MEANING[name].format(size=size)}" for name in dict.fromkeys(e.verdict for e in entries)]
    notes += [w for e in entries for w in e.warnings]
    notes.append(
        f"one family of {family or len(entries)}: p is Holm's, of Welch's test; all else is of one comparison by itself"
    )
    for note in dict.fromkeys(notes):
        console.print(f"  {escape(note)}", style="dim")
    console.print()


def _number(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)
