"""The catalogue that checks enter, and the verdicts that they return.

It is complete once :mod:`audits.checks.all` is imported, which holds a trace to every audit of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.audits.finding import Phase, Severity, Status
from kdbench.audits.trace import Trace
from kdbench.audits.updates import Where


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
    by_itself: bool = False
    "Whether what was seen is wrong whatever else failed, so that it follows from no other failure."
    explains: bool = True
    "Whether other failures may follow from it: from what is in no loss none does."
    mend: str | None = None
    "Where the audit's own would not mend what was seen."


def passed(message: str, observed: Mapping[str, Any] | None = None) -> Verdict:
    """Say that the property holds."""
    return Verdict("pass", message, dict(observed or {}))


def failed(
    message: str,
    observed: Mapping[str, Any],
    where: Where | None = None,
    severity: Severity | None = None,
    by_itself: bool = False,
    explains: bool = True,
    mend: str | None = None,
) -> Verdict:
    """Say that the property does not hold, where in the user's code, and what mends it if the audit's own does not."""
    return Verdict(
        "fail",
        message,
        dict(observed),
        where,
        severity=severity,
        by_itself=by_itself,
        explains=explains,
        mend=mend,
    )


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
        if not (check.__doc__ or "").strip():
            raise ValueError(f"audit {id} {name} has no docstring; write in its first line what must hold")
        CATALOGUE[name] = Audit(id, name, severity, phase, mend, follows, check)
        return check

    return enter


_NO_DISTILLATION = "no distillation was seen: no second network's answer, live or stored, reached a loss"


def backwards_seen(trace: Trace) -> str:
    """Return how many backwards there were, and of how many of them the loss was looked at."""
    losses = trace.losses
    if losses.backwards <= losses.windows_seen:
        return f"{losses.windows_seen} backwards"
    return f"the {losses.windows_seen} backwards that were looked at, of {losses.backwards}"


def no_distillation(trace: Trace) -> Verdict:
    """Say that nothing of a distillation was seen, and what was."""
    return undecided(
        "no-teacher-seen",
        f"{_NO_DISTILLATION} in {backwards_seen(trace)}",
        "student and teacher, or steps" if trace.script else "teacher=, and a backward within the watch",
    )


def some(names: list[str], most: int = 6) -> str:
    """Return the first few of many names."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
