"""One report of what several processes of one training found."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from kdbench.audits.finding import Finding, Report, sorted_report
from kdbench.audits.report.policy import fingerprint

_OF_ALL = ("KD335",)
"Audits of what the job keeps: one rank saves and scores for all, so one that passes decides."


def ranks_in_words(ranks: Iterable[int], world: int) -> str:
    """Return which ranks it is, as the subject of a sentence: `rank 1 alone`, `ranks 1 and 3 of 4`."""
    some = sorted(ranks)
    if len(some) == 1:
        return f"rank {some[0]} alone"
    return f"ranks {', '.join(map(str, some[:-1]))} and {some[-1]} of {world}"


def merged(findings: Mapping[int, list[Finding]], world: int) -> Report:
    """Return the findings of all ranks as one report: what all share is said once, what some have names them.

    A failure stands, whoever saw it. Where none failed, an audit passed if a rank decided it, and is undecided if none
    did. A rank that is missing from `findings` did not report.
    """
    by_id: dict[str, dict[int, Finding]] = {}
    for rank, found in sorted(findings.items()):
        for f in found:
            by_id.setdefault(f.id, {})[rank] = f
    return sorted_report([f for of_ranks in by_id.values() for f in _of_one_audit(of_ranks, world)])


def _of_one_audit(by_rank: dict[int, Finding], world: int) -> list[Finding]:
    for id_ in _OF_ALL:
        passes = [f for f in by_rank.values() if f.id == id_ and f.status == "pass"]
        if passes:
            return passes[:1]
    for status in ("fail", "error"):
        groups: dict[str, dict[int, Finding]] = {}
        for rank, f in by_rank.items():
            if f.status == status:
                groups.setdefault(fingerprint(f), {})[rank] = f
        if groups:
            return [_marked(group, len(by_rank), world) for group in groups.values()]
    for status in ("pass", "not_triggered"):
        same = [f for f in by_rank.values() if f.status == status]
        if same:
            return same[:1]
    return list(by_rank.values())[:1]


def _marked(group: dict[int, Finding], judged: int, world: int) -> Finding:
    """Return the finding of these ranks, which are named where they are not all that judged it."""
    first = next(iter(group.values()))
    worst = min((f.severity for f in group.values()), key=("error", "warn", "info").index)
    cause = first.consequence_of if all(f.consequence_of for f in group.values()) else None
    if len(group) == judged:
        return replace(first, severity=worst, consequence_of=cause)
    return replace(
        first,
        severity=worst,
        consequence_of=cause,
        message=f"{ranks_in_words(group, world)}: {first.message}",
        observed={**first.observed, "ranks": sorted(group)},
    )
