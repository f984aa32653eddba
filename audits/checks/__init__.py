"""The catalogue: each audit is one small function, named for the property that must hold, one file a subject.

A check reads a :class:`audits.events.Trace` and returns a :class:`Verdict`; :func:`run` turns the verdicts of all
checks into findings. A new audit is one decorated function in one of these files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from audits.events import Trace, Where
from audits.finding import Finding, Phase, Report, Severity, Status, sorted_report


@dataclass(frozen=True)
class Verdict:
    """What a check found; make one with :func:`passed`, :func:`failed` or :func:`undecided`."""

    status: Status
    message: str
    observed: dict[str, Any] = field(default_factory=dict)
    where: Where | None = None
    reason: str | None = None
    decide_with: str | None = None
    severity: Severity | None = None
    "Where it is milder than the audit's own."


def passed(message: str, observed: Mapping[str, Any] | None = None) -> Verdict:
    """Say that the property holds."""
    return Verdict("pass", message, dict(observed or {}))


def failed(
    message: str, observed: Mapping[str, Any], where: Where | None = None, severity: Severity | None = None
) -> Verdict:
    """Say that the property does not hold, and where in the user's code."""
    return Verdict("fail", message, dict(observed), where, severity=severity)


def undecided(
    reason: str, message: str, decide_with: str | None = None, observed: Mapping[str, Any] | None = None
) -> Verdict:
    """Say what was missing, and which declaration would decide it."""
    return Verdict("not_triggered", message, dict(observed or {}), reason=reason, decide_with=decide_with)


@dataclass(frozen=True)
class Audit:
    """One entry of the catalogue."""

    id: str
    name: str
    severity: Severity
    phase: Phase
    mend: str
    follows: tuple[str, ...]
    "Ids of audits whose failure, if they failed too, explains a failure of this one; the likeliest first."
    check: Callable[[Trace], Verdict]

    @property
    def story(self) -> str:
        """What the property is and why it matters: the check's docstring."""
        return (self.check.__doc__ or "").strip()


CATALOGUE: dict[str, Audit] = {}
"Every audit by name, in the order of the ids."


def audit(
    id: str, *, severity: Severity, phase: Phase, mend: str, follows: tuple[str, ...] = ()
) -> Callable[[Callable[[Trace], Verdict]], Callable[[Trace], Verdict]]:
    """Enter a check into the catalogue under its function's name in kebab case."""

    def enter(check: Callable[[Trace], Verdict]) -> Callable[[Trace], Verdict]:
        name = check.__name__.replace("_", "-")
        if name in CATALOGUE or any(a.id == id for a in CATALOGUE.values()):
            raise ValueError(f"audit {id} {name} is in the catalogue already")
        CATALOGUE[name] = Audit(id, name, severity, phase, mend, follows, check)
        return check

    return enter


def run(trace: Trace) -> Report:
    """Hold a trace to every audit; an audit that breaks gives a finding of status `error`, never an exception."""
    verdicts: dict[str, Verdict] = {}
    for name, entry in CATALOGUE.items():
        try:
            verdicts[name] = entry.check(trace)
        except Exception as error:  # ours, and no reason to stop the user's training
            verdicts[name] = Verdict("error", f"the audit itself broke: {type(error).__name__}: {error}")
        if trace.broken is not None and verdicts[name].status != "fail":
            verdicts[name] = Verdict("error", f"watching itself broke and stopped: {trace.broken}")
    failures = {CATALOGUE[name].id for name, verdict in verdicts.items() if verdict.status == "fail"}
    return sorted_report(
        [
            Finding(
                id=(entry := CATALOGUE[name]).id,
                name=name,
                severity=verdict.severity or entry.severity,
                status=verdict.status,
                phase=entry.phase,
                message=verdict.message,
                observed=verdict.observed,
                mend=entry.mend,
                where=verdict.where,
                consequence_of=next((id for id in entry.follows if id in failures), None)
                if verdict.status == "fail"
                else None,
                reason=verdict.reason,
                decide_with=verdict.decide_with,
            )
            for name, verdict in verdicts.items()
        ]
    )


_NO_DISTILLATION = "no distillation was seen: no second network's answer, live or stored, reached a loss"


def no_distillation(trace: Trace) -> Verdict:
    """Say that nothing of a distillation was seen, and what was."""
    return undecided(
        "no-teacher-seen",
        f"{_NO_DISTILLATION} in {trace.windows_seen} backwards",
        "--student NAME --teacher NAME, or more --steps"
        if trace.script
        else "teacher=, and a backward within the watch",
    )


def some(names: list[str], most: int = 6) -> str:
    """Return the first few of many names."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


from audits.checks import architecture, clipping, inputs, losses, modes, optimizer, teacher  # noqa: E402, F401  (they enter their checks)
