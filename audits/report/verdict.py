"""What a report comes to, in one sentence."""

from collections.abc import Sequence

from kdbench.audits.finding import Finding, Report, Severity, is_ours
from kdbench.audits.report.policy import Verdict

_NAMED = 8
"Ids that the sentence names: more are in the report."
_WAYS = 2
"Declarations that the sentence names."
STEPS = ("--steps", "steps", "all steps", "burn_in")
"How a declaration begins that only asks for a longer look."


def sentence(report: Report, verdict: Verdict, threshold: Severity, trouble: str | None, declarable: bool) -> str:
    """Return the verdict in words: what failed, what a declaration would decide, and what else the report holds."""
    failed = report.failed(threshold)
    counts = report.counts()
    if verdict == "failed":
        decided = counts["pass"] + counts["fail"] + counts["waived"]
        said = f"Not clean: {len(failed)} of {decided} audits failed: {ids(failed)}"
    elif verdict == "clean":
        said = f"Clean: {_several(counts['pass'], 'audit')} passed"
        said += _open(report) if declarable else ""
    elif verdict == "undecided":
        said = f"Undecided: {trouble}"
    else:
        ours = [f for f in report.findings if is_ours(f)]
        said = f"Could not run: {trouble}"
        if ours:
            said = f"Error of kdbench: {_several(len(ours), 'audit')} broke and decided nothing: {ids(ours)}"
    return ". ".join([said, *_besides(report, failed, verdict)])


def ids(findings: Sequence[Finding]) -> str:
    """Return the ids of findings, each once."""
    names = list(dict.fromkeys(f.id for f in findings))
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def decidable(report: Report) -> list[Finding]:
    """Return the undecided audits that a declaration of the user's would decide."""
    return [
        f
        for f in report.findings
        if f.status == "not_triggered" and f.decide_with and not f.decide_with.startswith(STEPS)
    ]


def _open(report: Report) -> str:
    open_ = decidable(report)
    ways = list(dict.fromkeys(f.decide_with for f in open_))
    if not ways:
        return ""
    verb = "needs" if len(open_) == 1 else "need"
    how = " and ".join(map(str, ways)) if len(ways) <= _WAYS else "declarations of yours"
    return f". {len(open_)} more {verb} {how} to decide"


def _besides(report: Report, failed: Sequence[Finding], verdict: Verdict) -> list[str]:
    """Return what does not decide the verdict: warnings, notes, what was waived, and audits that broke."""
    mild = [f for f in report.failed("info") if f not in failed]
    said = []
    for word, found in (
        ("warning", [f for f in mild if f.severity == "warn"]),
        ("note", [f for f in mild if f.severity == "info"]),
    ):
        if found:
            said.append(f"{_several(len(found), word)}: {ids(found)}")
    if waived := [f for f in report.findings if f.status == "waived"]:
        said.append(f"{len(waived)} waived: {ids(waived)}")
    broken = [f for f in report.findings if is_ours(f)]
    if broken and verdict != "could-not-run":
        said.append(f"{_several(len(broken), 'audit')} broke, which is an error of kdbench: {ids(broken)}")
    return said


def _several(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
