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
_SEVERITY_ORDER: tuple[Severity, ...] = ("error", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """What one audit says. `not_triggered` means that nothing was decided, and is never to be read as a pass."""

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
    "What to write instead."
    where: dict[str, Any] | None = None
    "File and line of the user's code."
    consequence_of: str | None = None
    "The id of the failed audit that explains this failure."
    reason: str | None = None
    "Code from a closed list, for not_triggered."
    decide_with: str | None = None
    "The declaration that would decide it, for not_triggered: its name, or code where there is code."

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
        """Raise AuditFailure if an audit of at least this severity failed."""
        if self.failed(severity):
            raise AuditFailure(str(self))

    def counts(self) -> dict[str, int]:
        """Return the number of findings by status."""
        found = Counter(f.status for f in self.findings)
        return {status: found[status] for status in ("pass", "fail", "not_triggered", "error", "waived")}

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the findings as plain JSON values, in order; a number that JSON cannot hold becomes null."""
        return [_finite(asdict(f)) for f in self.findings]

    def to_json(self) -> str:
        """Return the findings as a JSON list."""
        return json.dumps(self.to_dicts(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        counts = self.counts()
        head = f"failed {counts['fail']}, passed {counts['pass']}, not decided {counts['not_triggered']}"
        if counts["error"]:
            head += f", broken {counts['error']}"
        if counts["waived"]:
            head += f", waived {counts['waived']}"
        lines = [head]
        for f in self.findings:
            if f.status == "pass":
                continue
            place = f" ({f.where['file']}:{f.where['line']})" if f.where and f.status == "fail" else ""
            tail = f"; follows from {f.consequence_of}" if f.consequence_of else ""
            lines.append(f"{f.status.upper().replace('_', ' ')} {f.id} {f.name}{place}{tail}: {f.message}")
            if f.status == "fail" and f.mend:
                lines.append(f"    mend: {f.mend}")
            if f.decide_with:
                lines.append(f"    decided by: {f.decide_with}")
        passed = [f"{f.id} {f.name}" for f in self.findings if f.status == "pass"]
        if passed:
            lines.append("passed: " + ", ".join(passed))
        return "\n".join(lines)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def sorted_report(findings: Sequence[Finding]) -> Report:
    """Put findings in reporting order."""
    return Report(tuple(sorted(findings, key=lambda f: f.sort_key)))
