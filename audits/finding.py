"""A finding is what one audit says of one training; a report is all of them, worst first."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warn", "info"]
Status = Literal["pass", "fail", "not_triggered", "error", "waived"]
Phase = Literal["static", "first", "burn-in", "end", "study"]

_STATUS_ORDER: tuple[Status, ...] = ("fail", "error", "not_triggered", "waived", "pass")
_COUNTED: tuple[Status, ...] = ("pass", "fail", "not_triggered", "error", "waived")
_SEVERITY_ORDER: tuple[Severity, ...] = ("error", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """What one audit says. `not_triggered` means undecided, and is never to be read as a pass."""

    id: str
    "Stable, e.g. KD201."
    name: str
    "The property that must hold, in kebab case."
    severity: Severity
    status: Status
    phase: Phase
    message: str
    "One sentence: what it means, or what was missing."
    observed: dict[str, Any] = field(default_factory=dict)
    "Numbers, names and lines seen; nothing inferred."
    mend: str = ""
    "What to write instead: the fix."
    where: dict[str, Any] | None = None
    "File and line of the user's code."
    consequence_of: str | None = None
    "The id of the failed audit that explains this failure."
    reason: str | None = None
    "Code from a closed list, for not_triggered and for error; for waived, the user's reason."
    decide_with: str | None = None
    "The declaration that would decide it, for not_triggered: its name, or code where there is code."

    def __str__(self) -> str:
        """Return it as a report shows it."""
        return paragraph(self)

    @property
    def sort_key(self) -> tuple[int, bool, int, str]:
        """Order fails first, root causes before consequences, then by severity and id."""
        return (
            _STATUS_ORDER.index(self.status),
            self.consequence_of is not None,
            _SEVERITY_ORDER.index(self.severity),
            self.id,
        )


class AuditFailure(AssertionError):
    """Raised on demand when an audit failed; the message is the report."""


@dataclass(frozen=True)
class Report:
    """The findings of one training, worst first."""

    findings: tuple[Finding, ...]

    def failed(self, severity: Severity = "error") -> list[Finding]:
        """Return the failed findings of at least this severity."""
        worst = _SEVERITY_ORDER.index(severity)
        return [f for f in self.findings if f.status == "fail" and _SEVERITY_ORDER.index(f.severity) <= worst]

    def raise_for(self, severity: Severity = "error") -> None:
        """Raise AuditFailure if an audit of at least this severity failed; its message holds what failed or broke."""
        __tracebackhide__ = True  # of pytest: a failed test ends at its own line
        if self.failed(severity):
            raise AuditFailure(self.failure(severity))

    def failure(self, severity: Severity = "error") -> str:
        """Return what of at least this severity failed or broke, and the counts: a message that stays short."""
        told = [*self.failed(severity), *(f for f in self.findings if f.status == "error")]
        return "\n".join([*map(paragraph, told), tally(self)])

    def counts(self) -> dict[Status, int]:
        """Return the number of findings by status."""
        found = Counter(f.status for f in self.findings)
        return {status: found[status] for status in _COUNTED}

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the findings as plain JSON values, in order; a number that JSON cannot hold becomes null."""
        return [finite(asdict(f)) for f in self.findings]

    def to_json(self) -> str:
        """Return the findings as a JSON list."""
        return json.dumps(self.to_dicts(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        parts = []
        for f in self.findings:
            if f.status in ("fail", "error", "waived"):
                parts.append(paragraph(f))
            elif f.status == "not_triggered":
                parts.append(
                    f"{heading(f)}: {f.message}" + (f"; decided with {f.decide_with}" if f.decide_with else "")
                )
        passed = [f"{f.id} {f.name}" for f in self.findings if f.status == "pass"]
        parts += ["passed: " + ", ".join(passed)] if passed else []
        return "\n".join([tally(self), *parts])


_TALLY: dict[Severity, str] = {"error": "failed", "warn": "warnings", "info": "notes"}
_MARKS: dict[Severity, str] = {"error": "", "warn": "warning", "info": "note"}
WAIVE = "waive it with the reason"
"How a fix ends that lets the failure be accepted; who shows it adds by which option."
FUNCTION_BROKE = "function-broke"
"The `reason` of a status `error` that a function under a property check caused; every other one is ours."
SEND = (
    "this is an error of kdbench, not of your code, and it decides nothing; please send the maintainers this message, "
    "the output of `kdbench doctor`, and the traceback that the environment variable KDBENCH_DEBUG=1 prints"
)
"What a user should know and do where an audit broke."


def is_ours(f: Finding) -> bool:
    """Say whether an audit broke by an error of kdbench, which is no finding on the user's code."""
    return f.status == "error" and f.reason != FUNCTION_BROKE


def tally(report: Report) -> str:
    """Return the counts in words; warnings and notes stand apart from failures."""
    counts = report.counts()
    failed = {severity: sum(f.severity == severity for f in report.failed("info")) for severity in _TALLY}
    parts = [f"{_TALLY[s]} {failed[s]}" for s in _SEVERITY_ORDER if failed[s] or s == "error"]
    parts.append(f"passed {counts['pass']}")
    parts += [f"waived {counts['waived']}"] if counts["waived"] else []
    ours = sum(map(is_ours, report.findings))
    parts += [f"errors of kdbench {ours}"] if ours else []
    parts += [f"checks that could not run {counts['error'] - ours}"] if counts["error"] > ours else []
    return ", ".join([*parts, f"undecided {counts['not_triggered']}"])


def standing(f: Finding) -> str:
    """Return what kind of finding it is in a word or two; nothing for a failure of severity error, the plain case."""
    if f.status == "error":
        return "error of kdbench" if is_ours(f) else "could not run"
    if f.status == "fail":
        return _MARKS[f.severity]
    return {"not_triggered": "undecided", "waived": "waived"}.get(f.status, f.status)


def heading(f: Finding) -> str:
    """Return the first line of a finding: id, name, location, and its kind where it is no plain failure."""
    place = f"{f.where['file']}:{f.where['line']}" if f.where and f.status in ("fail", "waived") else ""
    kind = standing(f)
    return "  ".join(part for part in (f"{f.id} {f.name}", place, f"({kind})" if kind else "") if part)


def body(f: Finding) -> list[str]:
    """Return the lines below the first: what is wrong with its evidence, what it follows from, and the fix."""
    lines = [f.message]
    if f.status == "waived":
        return [*lines, f"reason: {f.reason}"]
    if f.consequence_of:
        lines.append(f"follows from {f.consequence_of}; fix that first")
    if f.status == "fail" and f.mend:
        lines.append(f"fix: {f.mend}")
    if is_ours(f):
        lines.append(SEND)
    return lines


def paragraph(f: Finding) -> str:
    """Return a finding as text: its heading, and its lines indented."""
    return "\n".join([heading(f), *(f"  {line}" for line in body(f))])


def finite(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def sorted_report(findings: Sequence[Finding]) -> Report:
    """Put findings in reporting order."""
    return Report(tuple(sorted(findings, key=lambda f: f.sort_key)))
