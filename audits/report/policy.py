"""What the user chose to do with findings: waive, select, ignore, accept what is old; and what the whole comes to."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.finding import Finding, Report, Severity, sorted_report
from kdbench.audits.laws import LAWS

Verdict = Literal["clean", "failed", "undecided", "could-not-run"]

EXIT_CODES: dict[Verdict, int] = {"clean": 0, "failed": 1, "could-not-run": 3, "undecided": 4}
BASELINE_SCHEMA = "kdbench.baseline/1"


Remedy = Literal["list-audits", "write-baseline", "rewrite-baseline"]


class PolicyError(ValueError):
    """Raised for a choice that cannot be honoured; the message says why, `remedy` what helps, if something does."""

    def __init__(self, message: str, remedy: Remedy | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


_SHORTEST = 3
"Letters and digits of a prefix: `KD` alone says nothing."


def _names() -> dict[str, str]:
    """Return ids by name, of the audits of a training and of the property checks."""
    return {name: law.id for name, law in LAWS.items()} | {name: audit.id for name, audit in CATALOGUE.items()}


def audit_id(word: str) -> str:
    """Return the id of an audit that is given by id or name; PolicyError with the nearest one if there is none."""
    names = _names()
    ids = set(names.values())
    found = word.upper() if word.upper() in ids else names.get(word.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(word.upper(), ids, n=1, cutoff=0.5)
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5) or near
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise PolicyError(f"unknown audit {word!r}; {hint}There are: {', '.join(sorted(ids))}", "list-audits")


def audit_ids(word: str) -> list[str]:
    """Return the ids that a word stands for: one by id or name, or all that begin with it, as KD3."""
    ids = sorted(set(_names().values()))
    if word.upper() not in ids and len(word) >= _SHORTEST and (found := [i for i in ids if i.startswith(word.upper())]):
        return found
    return [audit_id(word)]


@dataclass(frozen=True)
class Policy:
    """Choices of the user's, by the ids of audits."""

    waive: Mapping[str, str] = field(default_factory=dict)
    "Reason by id: a failure of that audit is accepted."
    select: frozenset[str] = frozenset()
    "If any, all others are left out of the report."
    ignore: frozenset[str] = frozenset()
    "Left out of the report."
    strict: bool = False
    "Whether warnings count as failures."

    @classmethod
    def parse(
        cls,
        waive: Iterable[str] = (),
        select: Iterable[str] = (),
        ignore: Iterable[str] = (),
        strict: bool = False,
    ) -> "Policy":
        """Read choices as they are typed: ID=REASON, and ids, names or beginnings of ids in lists with commas.

        Raises PolicyError for an unknown audit and for a waiver without a reason.
        """
        waived: dict[str, str] = {}
        for text in waive:
            word, _, reason = text.partition("=")
            id = audit_id(word.strip()) if word.strip() else "ID"
            if not reason.strip():
                raise PolicyError(f"waiver {text!r} gives no reason; write it as {id}=REASON")
            waived[id] = reason.strip()
        selected, ignored = (
            frozenset(
                id for text in texts for word in text.split(",") if word.strip() for id in audit_ids(word.strip())
            )
            for texts in (select, ignore)
        )
        return cls(waived, selected, ignored, strict)

    @property
    def threshold(self) -> Severity:
        """The mildest severity that counts as a failure."""
        return "warn" if self.strict else "error"

    def apply(self, report: Report) -> Report:
        """Leave out what was not selected or is ignored, and accept what is waived."""
        return sorted_report(
            [
                replace(f, status="waived", reason=self.waive[f.id])
                if f.id in self.waive and (f.status == "fail" or is_not_understood(f))
                else f
                for f in report.findings
                if (not self.select or f.id in self.select) and f.id not in self.ignore
            ]
        )

    def needless(self, report: Report) -> list[str]:
        """Return the ids whose waiver a report shows to be no longer needed: the audit passes."""
        return sorted({f.id for f in report.findings if f.status == "pass"} & set(self.waive))

    def verdict(self, report: Report, *, ran: bool, distilled: bool) -> Verdict:
        """Return what a report comes to after the choices; silence is never clean.

        `ran` says whether what was watched ended well, `distilled` whether any distillation was seen in it. Without
        one, audits of gradients and clips that pass prove nothing of what was asked; nor do they where the distillation
        term was not understood.
        """
        if report.failed(self.threshold):
            return "failed"
        counts = report.counts()
        if not ran or counts["error"]:
            return "could-not-run"
        if any(is_not_understood(f) for f in report.findings):
            return "undecided"
        if not distilled or not counts["pass"] + counts["waived"]:
            return "undecided"
        return "clean"


def is_not_understood(finding: Finding) -> bool:
    """Say whether a finding is that the distillation term was not understood, or did nothing while it was looked at."""
    reasons = ("form-not-recognised", "not-in-these-steps")
    return finding.id == "KD313" and finding.status == "not_triggered" and finding.reason in reasons


def fingerprint(finding: Finding) -> str:
    """Return what stays the same of a finding from run to run: its id, the names that it gives, its file.

    Line numbers, counts and measured numbers are left out.
    """
    names: list[str] = []
    for key, value in sorted(finding.observed.items()):
        if isinstance(value, str):
            names.append(f"{key}={re.sub(r'[0-9]+(?:[.][0-9]+)?(?:e[-+]?[0-9]+)?', '#', value)}")
        elif isinstance(value, list | tuple) and value and all(isinstance(part, str) for part in value):
            names += [f"{key}={part}" for part in sorted(value)]
    file = Path(finding.where["file"]).name if finding.where else ""
    return hashlib.sha256("\n".join([finding.id, file, *names]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Baseline:
    """Failures that were there when a project began to be audited: they are accepted, new ones are not."""

    entries: tuple[Mapping[str, str], ...] = ()
    "Each with fingerprint, id, name, file and target."

    @classmethod
    def read(cls, path: Path) -> "Baseline":
        """Read a baseline file; PolicyError if it is none."""
        try:
            raw: Any = json.loads(path.read_text(encoding="utf-8"))
            if raw["schema"] != BASELINE_SCHEMA:
                raise ValueError(f"schema is {raw['schema']!r}, not {BASELINE_SCHEMA!r}")
            entries = [
                {name: str(e[name]) for name in ("fingerprint", "id", "name", "file", "target")}
                for e in raw["findings"]
            ]
        except FileNotFoundError:
            raise PolicyError(f"baseline {path} does not exist", "write-baseline") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise PolicyError(f"baseline {path} cannot be read ({error})", "rewrite-baseline") from error
        return cls(tuple(entries))

    def write(self, path: Path) -> None:
        """Write the baseline, sorted, so that equal ones are equal texts."""
        entries = sorted((dict(e) for e in self.entries), key=lambda e: (e["target"], e["id"], e["fingerprint"]))
        path.write_text(json.dumps({"schema": BASELINE_SCHEMA, "findings": entries}, indent=2) + "\n", encoding="utf-8")

    def updated(self, report: Report, target: str) -> "Baseline":
        """Return the baseline with the failures of this report in place of what it had of this target."""
        now = [
            {
                "fingerprint": fingerprint(f),
                "id": f.id,
                "name": f.name,
                "file": Path(f.where["file"]).name if f.where else "",
                "target": target,
            }
            for f in report.failed("warn")
        ]
        return Baseline((*(e for e in self.entries if e["target"] != target), *now))

    def apply(self, report: Report, target: str) -> Report:
        """Accept the failures that the baseline holds of this target."""
        known = {e["fingerprint"] for e in self.entries if e["target"] == target}
        return sorted_report(
            [
                replace(f, status="waived", reason="in the baseline")
                if f.status == "fail" and fingerprint(f) in known
                else f
                for f in report.findings
            ]
        )

    def gone(self, report: Report, target: str) -> list[str]:
        """Return the audits of this target's entries that did not occur in a report, before anything was accepted."""
        there = {fingerprint(f) for f in report.findings if f.status == "fail"}
        return sorted(
            f"{e['id']} {e['name']}" for e in self.entries if e["target"] == target and e["fingerprint"] not in there
        )
