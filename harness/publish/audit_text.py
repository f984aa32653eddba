"""An audit's report as people read it: what was covered, what failed and how to mend it, what could not be decided."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdbench.audits.checks.reading import NOT_UNDERSTOOD
from kdbench.audits.finding import Finding, Report
from kdbench.audits.report.policy import is_not_understood
from kdbench.audits.report.render import Audited
from kdbench.audits.script import Observation

_MARKS = {"error": "[bold red]FAIL[/]", "warn": "[bold yellow]WARN[/]", "info": "[bold]NOTE[/]"}

_OPTION, _STEPS, _CODE, _FORM, _SCOPE = "option", "steps", "code", "form", "scope"
_UNDECIDED = {
    _OPTION: "by an option of yours",
    _STEPS: "not in these steps",
    _CODE: "by a declaration in code",
    _FORM: "not recognised",
    _SCOPE: "with nothing to judge here",
}
"Kinds of what was not decided, in the order of what a user can do about it."


def _kind(f: Finding) -> str:
    decide = f.decide_with or ""
    if f.reason == "not-in-these-steps" or decide.startswith(("--steps", "burn_in")):
        return _STEPS
    if decide.startswith("--"):
        return _OPTION
    if decide:
        return _CODE
    return _SCOPE if f.reason in ("out-of-scope", "no-clip-call", "mode-independent") else _FORM


def coverage(report: Report) -> str:
    """Return the first line: what failed, what passed, and why the rest was not decided."""
    counts = report.counts()
    failed = {severity: sum(f.severity == severity for f in report.failed("info")) for severity in _MARKS}
    undecided = [_kind(f) for f in report.findings if f.status == "not_triggered"]
    parts = [f"[{'bold red' if failed['error'] else 'bold'}]failed {failed['error']}[/]"]
    parts += [f"warnings {failed['warn']}"] if failed["warn"] else []
    parts += [f"remarks {failed['info']}"] if failed["info"] else []
    parts += [f"passed {counts['pass']}"]
    parts += [f"waived {counts['waived']}"] if counts["waived"] else []
    parts += [f"[bold red]broken {counts['error']}[/]"] if counts["error"] else []
    why = ", ".join(f"{undecided.count(kind)} {words}" for kind, words in _UNDECIDED.items() if kind in undecided)
    return ", ".join([*parts, f"not decided {len(undecided)}"]) + (f": {why}" if why else "")


def of_the_term(audited: Audited) -> str | None:
    """Return a line on a distillation term that was not read: not understood, or taken as it is, and on whose word."""
    for f in audited.report.findings:
        if f.id != "KD313":
            continue
        if is_not_understood(f):
            return f"[bold yellow]undecided[/]: {escape(f.message)}" if audited.verdict == "undecided" else None
        if f.status == "waived" and f.message.startswith(NOT_UNDERSTOOD):
            return f"the distillation term was not read and is accepted as it is: {escape(f.reason or '')}"
        if "form of its own" in f.message:
            return escape(f.message)
    return None


def show_script(console: Console, audited: Audited, seen: Observation, remarks: Iterable[str]) -> None:
    """Print the report of a script."""
    if (said := of_the_term(audited)) is not None:
        console.print(said, soft_wrap=True)
    console.print(coverage(audited.report), soft_wrap=True)
    roles = [
        f"{role} {name or 'not recognised'}"
        for role, name in (("student", audited.student), ("teacher", audited.teacher))
    ]
    roles += [f"projectors {', '.join(audited.projectors)}"] if audited.projectors else []
    temperatures = {e.temperature for s in seen.trace.losses.sights for e in s.explanations if e.temperature}
    said = ", ".join(sorted({f"{t:g}" for pair in temperatures for t in pair}, key=float))
    roles += [f"temperature {said}"] if said else []
    crashed = f", exit code {seen.exit_code}" if seen.exit_code else ""
    losses = seen.trace.losses
    steps = f"{seen.steps} steps of distillation" if losses.sights else f"{losses.windows_seen} backwards"
    # That the steps asked for were seen is an end of its own, and says how many.
    stopped = seen.stopped + (" (--max-seconds)" if seen.stopped.endswith("seconds were over") else "")
    end = stopped if stopped.endswith("were seen") else f"{steps} were seen: {stopped}"
    console.print(f"{escape(', '.join(roles))}; {escape(end)}{crashed}", soft_wrap=True)
    if audited.verdict == "undecided":
        _show_undecided(console, audited, seen)
    elif audited.verdict == "could-not-run":
        console.print(f"[bold red]could not run[/]: {escape(audited.trouble or '')}", soft_wrap=True)
    if audited.unobserved:
        console.print(f"[bold]not seen[/], in processes of their own: {escape(', '.join(audited.unobserved))}")
    # Else there is nothing that options would decide.
    if losses.windows_seen or audited.report.failed("info"):
        show_findings(console, audited.report)
    for remark in remarks:
        console.print(escape(remark), style="dim", soft_wrap=True)


def _show_undecided(console: Console, audited: Audited, seen: Observation) -> None:
    """Say what was seen where nothing decided, and how to go on."""
    trace, losses = seen.trace, seen.trace.losses
    if losses.sights and any(is_not_understood(f) for f in audited.report.findings):
        return  # said first
    if losses.sights:
        console.print("[bold yellow]undecided[/]: no audit that was asked for passed or failed")
        return
    lines = ["[bold yellow]undecided[/]: no distillation was seen, so this says nothing of one."]
    if not trace.updates.steps:
        lines.append(f"{losses.windows_seen} backwards and no optimizer step were seen.")
    else:
        step = trace.updates.steps[-1]
        place = f" at {step.where['file']}:{step.where['line']}" if step.where else ""
        numbers = sum(p.numel() for p in step.stepped)
        lines.append(
            f"{losses.windows_seen} backwards were seen, and steps{escape(place)} of {len(step.stepped)} parameters "
            f"({numbers:,} numbers), in which no second network's answer, live or stored, reached a loss."
        )
    if losses.idle_name:
        lines.append(f"{escape(losses.idle_name)} answered the same batches, and its answers reached no loss.")
    ran = [f"{name} ({what})" for name, what in trace.networks.items()]
    for word, names in (
        ("networks", ran),
        ("optimizers", trace.updates.optimizers),
        ("losses", losses.functions),
    ):
        if names:
            lines.append(f"{word.capitalize()} seen: {escape(', '.join(names))}.")
    lines.append(
        "If there is a teacher, name its variable or class: --teacher NAME --student NAME. If the distillation comes "
        "later, let it come: --max-seconds N; --steps counts from its first step."
    )
    console.print(" ".join(lines))


def show_findings(console: Console, report: Report) -> None:
    """Print failures, then what was not decided by what would decide it, then the passes in a line."""
    show_failures(console, report)
    undecided = [f for f in report.findings if f.status == "not_triggered"]
    if undecided:
        table = _table()
        for kind in _UNDECIDED:
            mine = [f for f in undecided if _kind(f) == kind]
            for decide in dict.fromkeys(f.decide_with for f in mine):
                group = [f for f in mine if f.decide_with == decide]
                lines = [
                    f"{labels([f for f in group if f.message == message])}: {escape(message)}"
                    for message in dict.fromkeys(f.message for f in group)
                ]
                table.add_row(escape(decide or _UNDECIDED[kind]), "\n".join(lines))
        console.print("\n[bold]not decided[/], and what would decide it")
        console.print(table)
    passed = [f for f in report.findings if f.status == "pass"]
    if passed:
        console.print(f"\n[green]passed[/] {labels(passed)}")


def show_failures(console: Console, report: Report) -> None:
    """Print what failed, worst first and consequences behind their causes, then what broke and what was waived."""
    failed = sorted(report.failed("info"), key=lambda f: list(_MARKS).index(f.severity))
    table = _table()
    # Several trainings of ours may say the same in one report: it is printed once.
    for same in _grouped(failed):
        f = same[0]
        left = [f"{_MARKS[f.severity]} {labels(same)}"]
        left += [f"  {escape(run)}" for run in _runs(same)]
        left += [f"  {escape(f.where['file'])}:{f.where['line']}"] if f.where else []
        left += [f"  [dim]follows from {f.consequence_of}[/]"] if f.consequence_of else []
        right = escape(f.message) + (f"\n[dim]mend:[/] {escape(f.mend)}" if f.mend else "")
        table.add_row("\n".join(left), right)
    for status, mark in (("error", "[bold red]BROKEN[/]"), ("waived", "waived")):
        for same in _grouped([f for f in report.findings if f.status == status]):
            reason = f" ({escape(same[0].reason)})" if same[0].reason else ""
            table.add_row("\n".join([f"{mark} {labels(same)}", *_runs(same)]), f"{escape(same[0].message)}{reason}")
    if table.row_count:
        console.print()
        console.print(table)


def _grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for f in findings:
        groups.setdefault(f"{f.id} {f.message} {f.where}", []).append(f)
    return list(groups.values())


def _runs(findings: Sequence[Finding]) -> list[str]:
    """Return which of our own trainings the findings are of; nothing for a script."""
    if "method" not in findings[0].observed:
        return []
    return [", ".join(dict.fromkeys(f"{f.observed['method']}" for f in findings))]


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(max_width=42, overflow="fold")
    table.add_column(overflow="fold")
    return table


def labels(findings: Sequence[Finding]) -> str:
    return ", ".join(dict.fromkeys(f"[bold]{f.id}[/] {f.name}" for f in findings))
