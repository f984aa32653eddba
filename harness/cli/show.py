"""What came of a study, on the terminal: its arms, the reasons for every NO, comparisons, bugs and controls."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from kdbench.harness import loading
from kdbench.harness.analysis.because import Because
from kdbench.harness.analysis.headline import headline
from kdbench.harness.analysis.rows import Again, ArmRow, ControlsRow, GridRow, Positive, TeacherRow
from kdbench.harness.cli.common import program
from kdbench.harness.cli.comparisons import show_best, show_comparisons, show_over_pairs
from kdbench.harness.cli.tables import Cell, Column, note, show_table
from kdbench.harness.faults import audit_ids
from kdbench.harness.plan.preset import Decision
from kdbench.kd.methods import METHODS

if TYPE_CHECKING:
    from kdbench.harness.study import StudySummary


def _score(value: float | None) -> str:
    return "no score" if value is None else f"{value:.2f}"


def _mean(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "no score"
    return f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else "")


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def show_arms(console: Console, arms: Sequence[ArmRow], teachers: Sequence[TeacherRow]) -> None:
    """Print each arm with its accuracies by seed and the audits that fired."""
    columns = [
        Column("pair", names=True, common=True),
        Column("method", names=True),
        Column("arm", names=True),
        Column("test accuracy by seed, %", drop=1),
        Column("mean ± sd"),
        Column("audits that fired", wraps=True),
        Column("as declared"),
    ]
    rows: list[Sequence[Cell]] = [
        (
            "", f"teacher {teacher.arch}", teacher.fault or "corrected", "", _score(teacher.test_accuracy),
            _fired(teacher), _mark(teacher.as_expected),
        )
        for teacher in teachers
    ]  # fmt: skip
    rows += [
        (
            arm.pair,
            _title(arm.method),
            arm.fault or "corrected",
            "  ".join(_score(v) for v in arm.test_accuracy),
            _mean(arm.mean, arm.std),
            _fired(arm),
            _mark(arm.as_expected),
        )
        for arm in arms
    ]
    show_table(console, columns, rows, title="Arms")


def show_because(console: Console, reasons: Sequence[Because], title: str, shown: Collection[str] = ()) -> set[str]:
    """Print why rows are marked NO: each reason once, the rows that it holds for, its fix, and where there is more.

    Reasons with one explanation are one, whatever audits they come from; of what was `shown` before, the audits and
    the rows alone are printed. Returns what was shown here.
    """
    groups: dict[str, list[Because]] = {}
    for reason in reasons:
        groups.setdefault(reason.explanation or f"{reason.kind} {reason.audit}", []).append(reason)
    if groups:
        note(console, escape(title), style="bold red", indent=0)
    for key, same in groups.items():
        first = same[0]
        if key in shown:
            audits = ", ".join(dict.fromkeys(reason.audit or reason.kind for reason in same))
            note(console, f"{audits}, for the reason given above", style="")
        else:
            for reason in {reason.audit: reason for reason in reversed(same)}.values():
                note(console, f"{escape(reason.said)} [dim](seed {reason.seeds[0]})[/]", style="")
        note(console, f"in {escape('; '.join(dict.fromkeys(map(_row, same))))}", indent=4)
        if key in shown:
            continue
        if first.explanation is not None:
            note(console, escape(first.explanation), style="", indent=4)
        if first.fix is not None:
            note(console, f"[dim]fix:[/] {escape(first.fix)}", style="", indent=4)
        console.print(f"    [dim]more:[/] {escape(_more(first.trial))}", soft_wrap=True)
    return {*groups}


def _row(reason: Because) -> str:
    """Return the row that a reason is about, with its seeds."""
    seeds = f"seed{'s' * (len(reason.seeds) > 1)} {', '.join(map(str, reason.seeds))}"
    if reason.whose == "teacher":
        return f"teacher {reason.pair} {reason.fault or 'corrected'}"
    return f"{_title(reason.method)} {reason.fault or 'corrected'} ({reason.pair}, {seeds})"


def _more(trial: str) -> str:
    """Return the command that shows all findings of a trial, with the files that it needs."""
    return f"{program()} audits show {trial}{loading.as_options()}"


def show_grid(console: Console, rows: Sequence[GridRow]) -> None:
    """Print what was tried first: each point's accuracy on validation, and which was chosen."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row.point))
    columns = [
        Column("pair", names=True, common=True),
        Column("method", names=True, common=True),
        Column("arm", names=True, common=True),
        *(Column(escape(name), names=True) for name in names),
        Column(("validation accuracy, %", "val., %")),
        Column("chosen"),
    ]
    table = [
        (
            row.pair, _title(row.method), row.fault or "corrected",
            *(f"{row.point[name]:g}" if name in row.point else "" for name in names),
            _mean(row.mean, row.std), "yes" if row.chosen else "",
        )
        for row in rows
    ]  # fmt: skip
    show_table(console, columns, table, title="Grid of settings")
    console.print()


def _mark(as_expected: bool) -> str:
    return "yes" if as_expected else "[bold red]NO[/]"


def _fired(row: ArmRow | TeacherRow) -> Cell:
    """Return the audits that failed, with their names and without; what follows from others stands behind them."""
    names = {id: name for name, id in audit_ids().items()}

    def told(named: bool) -> str:
        def each(ids: Sequence[str]) -> str:
            return ", ".join(f"{id} {names.get(id, '')}".strip() if named else id for id in ids)

        roots, follow = each(row.failed_findings), each(row.consequences)
        return ", ".join([*([roots] if roots else []), *([f"[dim]then {follow}[/]"] if follow else [])]) or "none"

    return told(True), told(False)


def show_study(console: Console, found: "StudySummary", decision: Decision) -> None:
    """Print what came of a study: the kdbench.run/1 object in tables and words."""
    show_grid(console, found.grid)
    show_arms(console, found.arms, found.teachers)
    console.print()
    of_arms = [reason for reason in found.because if reason.whose != "control"]
    shown = show_because(console, of_arms, "Why NO")
    if of_arms:
        console.print()
    families, size = found.families, decision.margin_pp
    gain = "Does distillation gain anything here? (corrected, against the baseline)"
    bug = "Does the bug matter here? (bugged against corrected)"
    show_comparisons(console, found.gains, size, gain, families.gains)
    show_over_pairs(console, found.over_pairs)
    show_best(console, found.best)
    show_comparisons(console, found.comparisons, size, bug, families.comparisons)
    show_effects(console, found.arms)
    of_controls = [reason for reason in found.because if reason.whose == "control"]
    show_controls(console, found.controls, of_controls, shown)
    _conclude(console, found)
    words = headline(found.arms, found.because, found.gains, found.comparisons, found.controls, size)
    note(console, escape(words.text), style="bold", indent=0)
    counts = ", ".join(f"{getattr(found, name)} {name}" for name in ("trained", "reused", "failed"))
    counts += (
        "".join(f", {getattr(found, name)} {name}" for name in ("retried", "diverged") if getattr(found, name)) + "."
    )
    shared = (
        " All students of a pair share one teacher (seed 0), so the spread over seeds does not include the teacher's."
    )
    note(console, counts + (shared if found.teachers else ""), style="", indent=0)


def _conclude(console: Console, found: "StudySummary") -> None:
    """Print whether everything is as declared, and what is not."""
    caught = "every fault was caught by exactly the audits that it names"
    clean = "every corrected arm is proven clean"
    if found.as_declared and (found.controls is None or found.controls.as_declared):
        bugged = any(row.fault for row in found.arms)
        said = [caught] * bugged + [clean] * any(not row.fault for row in found.arms)
        note(console, f"[bold green]As declared:[/] {', and '.join(said)}.", style="", indent=0)
        return
    marks = [teacher.as_expected for teacher in found.teachers] + [arm.as_expected for arm in found.arms]
    wrong = marks.count(False)
    parts = (
        [f"{wrong} of {len(marks)} rows {'is' if wrong == 1 else 'are'} marked NO; `Why NO` above has the reasons"]
        if wrong
        else []
    )
    if found.controls is not None and not found.controls.as_declared:
        parts.append("a control is not as it must be" + " (see Controls)" * bool(not wrong))
    broken = [reason for reason in found.because if reason.kind == "broken"]
    if broken:
        ids = ", ".join(sorted({str(reason.audit) for reason in broken}))
        parts.append(f"{ids} broke down, which is an error of kdbench")
    note(console, f"[bold red]Not as declared:[/] {'; '.join(parts)}.", style="", indent=0)


_EFFECTS = {
    "invalid": "the decision that it replaces was never asked for, so the trial says nothing about the bug",
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
    columns = [
        Column("pair", names=True, common=True),
        Column("method", names=True),
        Column("arm", names=True),
        Column("reached", drop=1),
        Column(("weights differ from epoch", "differ from epoch")),
        Column("revealed by", wraps=True),
        Column("effect"),
    ]
    rows = [
        (
            arm.pair, _title(arm.method), arm.fault or "",
            {True: "yes", False: "NO", None: "not known"}[arm.reached],
            str(arm.diverged_at) if arm.diverged_at is not None else "never" if arm.dormant else "not known",
            ", ".join(arm.failed_findings) or "nothing", arm.effect or "",
        )
        for arm in bugged
    ]  # fmt: skip
    show_table(console, columns, rows, title="How far did each bug get?")
    for name in dict.fromkeys(arm.effect for arm in bugged if arm.effect is not None):
        note(console, f"{name}: {_EFFECTS[name]}")
    console.print()


def show_controls(
    console: Console, controls: ControlsRow | None, reasons: Sequence[Because] = (), shown: Collection[str] = ()
) -> None:
    """Print what the controls showed, why one is not as it must be, and what follows where one is missing or failed.

    `shown` are the reasons that were printed before.
    """
    if controls is None:
        note(
            console,
            "[bold red]No controls:[/] nothing shows that this study can see a bug, so it proves nothing; "
            "leave out --no-controls.",
            style="",
            indent=0,
        )
        console.print()
        return
    console.print("[bold]Controls[/]")
    if controls.again is not None:
        _show_again(console, controls.again)
    if controls.positive is None:
        note(
            console,
            "no positive control: its fault, teacher-rows-shuffled, applies to no method of this study",
            style="",
        )
    else:
        _show_positive(console, controls.positive)
    show_because(console, reasons, "Why a control is not as it must be", shown)
    console.print()


def _show_again(console: Console, again: Again) -> None:
    twice = {
        "identical": f"the same bits in each of {again.epochs} epochs",
        "differs": "[bold red]NOT the same bits[/]: no difference of weights here means anything",
        "undecidable": "not the same bits, as this device does not promise them: divergence is undecidable here",
        "missing": "[bold red]did not finish[/]",
    }[again.verdict]
    arm = f"{_title(again.method)}, {again.fault or 'corrected'}"
    note(console, f"the same seed twice ({arm}, seed {again.seed}): {twice}", style="")


def _show_positive(console: Console, positive: Positive) -> None:
    entry = positive.comparison
    by_audit = "as declared" if positive.seen_by_audit else "[bold red]NOT as declared[/]"
    said = f"caught by {', '.join(positive.failed_findings) or 'nothing'}, {by_audit}"
    p, low = entry.welch_p, entry.difference_pp
    change = "no score" if low is None else f"accuracy {low:+.2f} pp" + (f" (p {p:.2g})" if p is not None else "")
    seen = "seen" if positive.seen_in_accuracy else "not seen"
    name = f"{positive.fault}, {_title(positive.method)}"
    note(console, f"positive control ({name}): {said}; {change}: {seen} in accuracy", style="")
    if not positive.seen_in_accuracy:
        note(
            console,
            "A study that does not see this bug in accuracy says nothing about what other bugs do to accuracy: "
            "give it more seeds, or more training.",
            style="bold",
        )
