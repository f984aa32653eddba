"""An audit's report as people read it: the roles, what failed and how to fix it, what is undecided, the verdict."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.console import Console
from rich.text import Text

from kdbench.audits.checks.reading import NOT_UNDERSTOOD
from kdbench.audits.finding import Finding, Report, body, is_ours, standing
from kdbench.audits.report.policy import is_not_understood
from kdbench.audits.report.render import Audited
from kdbench.audits.report.verdict import decidable
from kdbench.audits.script import Observation

Detail = Literal["quiet", "normal", "verbose"]

_WIDTH = 110
"Columns beyond which lines of text grow hard to read."
_COLOURS = {"error": "bold red", "warn": "bold yellow", "info": "bold"}
_VERDICTS = {"clean": "bold green", "failed": "bold red", "undecided": "bold yellow", "could-not-run": "bold red"}


def show_script(
    console: Console, audited: Audited, seen: Observation, remarks: Iterable[str], detail: Detail = "normal"
) -> None:
    """Print the report of a script; the verdict stands last."""
    if detail != "quiet":
        _show_seen(console, audited, seen)
    show_findings(console, audited, detail)
    if detail != "quiet":
        remarks = list(remarks)
        if remarks:
            console.print()
        for remark in remarks:
            _print(console, f"note: {remark}", hang="  ", style="dim")
    show_verdict(console, audited)


def show_verdict(console: Console, audited: Audited) -> None:
    """Print the verdict in words."""
    console.print()
    _print(console, audited.summary, hang="  ", style=_VERDICTS[audited.verdict])


def of_the_term(audited: Audited) -> str | None:
    """Return a line on a distillation term that was not read: not understood, or taken as it is, and on whose word."""
    for f in audited.report.findings:
        if f.id != "KD313":
            continue
        if is_not_understood(f):
            return f"Undecided: {f.message}" if audited.verdict == "undecided" else None
        if f.status == "waived" and f.message.startswith(NOT_UNDERSTOOD):
            return f"the distillation term was not read and is accepted as it is: {f.reason or ''}"
        if "form of its own" in f.message:
            return f.message
    return None


def _show_seen(console: Console, audited: Audited, seen: Observation) -> None:
    """Say who played which part and how long was looked; and what was seen where nothing was recognised."""
    trace, losses = seen.trace, seen.trace.losses
    if (said := of_the_term(audited)) is not None:
        _print(console, said, hang="  ", style="bold yellow" if audited.verdict == "undecided" else "")
    roles = [
        f"{role} {name or 'not recognised'}"
        for role, name in (("student", audited.student), ("teacher", audited.teacher))
    ]
    roles += [f"projectors {', '.join(audited.projectors)}"] if audited.projectors else []
    roles += [f"temperature {said}"] if (said := _temperature(seen)) else []
    crashed = f", exit code {seen.exit_code}" if seen.exit_code else ""
    steps = f"{seen.steps} steps of distillation" if losses.sights else f"{losses.backwards} backwards"
    # That the steps asked for were seen is an end of its own, and says how many.
    stopped = seen.stopped + (" (--max-seconds)" if seen.stopped.endswith("seconds were over") else "")
    end = stopped if stopped.endswith("were seen") else f"{steps} were seen: {stopped}"
    end += f" in each of {seen.processes} processes" if stopped.endswith("were seen") and seen.processes > 1 else ""
    _print(console, f"{audited.target}: {', '.join(roles)}", hang="  ")
    _print(console, f"{end}{crashed}{'; ' if seen.afterwards else ''}{seen.afterwards}", hang="  ")
    if not losses.sights and audited.verdict != "could-not-run":
        trained = len(trace.updates.steps) > 0
        _print(console, " ".join(_without_distillation(seen, trained)))
    if audited.unobserved:
        _print(console, f"not seen, in processes of their own: {', '.join(audited.unobserved)}", hang="  ")


_SOFT = ("nothing", "unknown", "permuted", "mse-logits", "hard-labels", "cosine", "mse-probabilities")
"Forms of a term that has no temperature, or whose temperature was not read."


def _temperature(seen: Observation) -> str:
    """Return the temperature in words: one, the student's and the teacher's, or that it changes; empty if unread."""
    pairs = {
        e.temperature
        for s in seen.trace.losses.sights
        for e in s.explanations
        if e.temperature is not None and e.form not in _SOFT
    }
    if len(pairs) > 1:
        numbers = [t for pair in pairs for t in pair]
        return f"between {min(numbers):g} and {max(numbers):g} (it changes, or the terms have several)"
    for student, teacher in pairs:
        return f"{student:g}" if student == teacher else f"{student:g} (student) and {teacher:g} (teacher)"
    return ""


def _without_distillation(seen: Observation, trained: bool) -> list[str]:
    """Return, in sentences, what was seen where no distillation was, and how to go on."""
    trace, losses = seen.trace, seen.trace.losses
    lines = []
    if trained:
        step = trace.updates.steps[-1]
        place = f" at {step.where['file']}:{step.where['line']}" if step.where else ""
        numbers = sum(p.numel() for p in step.stepped)
        lines.append(
            f"The steps{place} move {len(step.stepped)} parameters ({numbers:,} numbers), and no second network's "
            "answer, live or stored, reached a loss."
        )
    else:
        lines.append("No optimizer step was seen.")
    if losses.idle_name:
        lines.append(f"{losses.idle_name} answered the same batches, and its answers reached no loss.")
    ran = [f"{name} ({what})" for name, what in trace.networks.items()]
    for word, names in (
        ("networks", ran),
        ("optimizers", trace.updates.optimizers),
        ("losses", losses.functions),
    ):
        if names:
            lines.append(f"{word.capitalize()} seen: {', '.join(names)}.")
    lines.append(
        "If there is a teacher, name its variable or class: --teacher NAME --student NAME. If the distillation begins "
        "later, wait longer: --max-seconds N. --steps counts from its first step."
    )
    return lines


def show_findings(console: Console, audited: Audited, detail: Detail = "normal") -> None:
    """Print failures; with more detail, what a declaration would decide, every undecided audit, and the passes."""
    report = audited.report
    quiet = Report(tuple(f for f in report.findings if _loud(f, audited)))
    show_failures(console, quiet if detail == "quiet" else report)
    distilled = not any(f.message.startswith("no distillation was seen") for f in report.findings)
    if detail == "normal" and distilled and audited.declarable:
        _show_decidable(console, decidable(report))
    if detail == "verbose":
        _show_undecided(console, [f for f in report.findings if f.status == "not_triggered"])
        passed = [f for f in report.findings if f.status == "pass"]
        if passed:
            console.print("\npassed")
            for f in passed:
                _print(console, f"  {f.id} {f.name}: {f.message}", hang="    ")


def _loud(f: Finding, audited: Audited) -> bool:
    return f in audited.report.failed(audited.threshold) or f.status == "error"


def _show_decidable(console: Console, findings: Sequence[Finding]) -> None:
    """Print the audits that a declaration would decide, one short line each."""
    if not findings:
        return
    width = max(len(f"{f.id} {f.name}") for f in findings)
    console.print("\nundecided, and what decides it")
    for f in findings:
        _print(console, f"  {f'{f.id} {f.name}'.ljust(width)}  {f.decide_with}", hang=" " * (width + 4))


def _show_undecided(console: Console, findings: Sequence[Finding]) -> None:
    """Print every undecided audit with its reason."""
    if findings:
        console.print("\nundecided")
    for same in _grouped(findings):
        how = f"; decided with {same[0].decide_with}" if same[0].decide_with else ""
        _print(console, f"  {labels(same)}: {same[0].message}{how}", hang="    ")


def show_failures(console: Console, report: Report) -> None:
    """Print what failed, worst first and consequences behind their causes, then what broke and what was waived."""
    failed = sorted(report.failed("info"), key=lambda f: list(_COLOURS).index(f.severity))
    rest = [f for status in ("error", "waived") for f in report.findings if f.status == status]
    # Several trainings of ours may say the same in one report: it is printed once.
    for same in [*_grouped(failed), *_grouped(rest)]:
        f = same[0]
        console.print()
        place = f"{f.where['file']}:{f.where['line']}" if f.where and f.status != "error" else ""
        kind = standing(f)
        parts = [labels(same), place, *_runs(same), f"({kind})" if kind else ""]
        colour = "bold red" if is_ours(f) else _COLOURS[f.severity] if f.status == "fail" else "bold"
        _print(console, "  ".join(part for part in parts if part), hang="    ", style=colour)
        for line in body(f):
            hang = "       " if line.startswith("fix: ") else "  "
            _print(console, f"  {line}", hang=hang)


def _print(console: Console, text: str, hang: str = "", style: str = "") -> None:
    """Print text in lines that fit, each after the first behind `hang`; a word that is too long is not broken."""
    width = max(20, min(console.width, _WIDTH))
    for line in text.splitlines():
        wrapped = textwrap.wrap(
            line, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
        )
        for piece in wrapped or [""]:
            console.print(Text(piece, style=style), soft_wrap=True)


def _grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for f in findings:
        key = f"{f.message} {f.status}" if f.status == "not_triggered" else f"{f.id} {f.message} {f.where}"
        groups.setdefault(key, []).append(f)
    return list(groups.values())


def _runs(findings: Sequence[Finding]) -> list[str]:
    """Return which of our own trainings the findings are of; nothing for a script."""
    if "method" not in findings[0].observed:
        return []
    return [", ".join(dict.fromkeys(f"{f.observed['method']}" for f in findings))]


def labels(findings: Sequence[Finding]) -> str:
    """Return id and name of findings, each once."""
    return ", ".join(dict.fromkeys(f"{f.id} {f.name}" for f in findings))
