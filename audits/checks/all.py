"""Every audit in the catalogue, and what holds a trace to all of them."""

import os
import traceback

from kdbench.audits.checks import architecture, clipping, inputs, losses, modes, optimizer, teacher, weights
from kdbench.audits.checks.catalogue import CATALOGUE, Verdict, undecided
from kdbench.audits.finding import Finding, Report, sorted_report
from kdbench.audits.observe import torch_internals
from kdbench.audits.trace import Trace

__all__ = ["CATALOGUE", "run"]

SUBJECTS = (clipping, optimizer, teacher, modes, inputs, losses, weights, architecture)
"The files whose checks entered the catalogue when they were imported."


def run(trace: Trace) -> Report:
    """Hold a trace to every audit; an audit that breaks gives a finding of status `error`, never an exception."""
    verdicts: dict[str, Verdict] = {}
    for name, entry in CATALOGUE.items():
        lacks = torch_internals.lacking(entry.id)
        try:
            verdicts[name] = undecided("torch-version", lacks) if lacks else entry.check(trace)
        except Exception as error:  # ours, and no reason to stop the user's training
            if os.environ.get("KDBENCH_DEBUG"):
                traceback.print_exception(error)
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
                if verdict.status == "fail" and not verdict.by_itself
                else None,
                reason=verdict.reason,
                decide_with=verdict.decide_with,
            )
            for name, verdict in verdicts.items()
        ]
    )
