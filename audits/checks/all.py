"""Every audit in the catalogue, and what holds a trace to all of them."""

import os
import traceback
from dataclasses import replace

from kdbench.audits.checks import (
    architecture,
    clipping,
    inputs,
    losses,
    modes,
    optimizer,
    rank_batches,
    rank_buffers,
    rank_clip,
    rank_students,
    rank_teachers,
    rank_tokens,
    saved,
    teacher,
    tokens,
    weights,
)
from kdbench.audits.checks.catalogue import CATALOGUE, Verdict, undecided
from kdbench.audits.finding import Finding, Report, sorted_report
from kdbench.audits.observe import torch_internals
from kdbench.audits.trace import Trace

__all__ = ["CATALOGUE", "run"]

SUBJECTS = (
    *(clipping, optimizer, teacher, modes, inputs, losses, weights, tokens, saved, architecture),
    *(rank_batches, rank_teachers, rank_students, rank_buffers, rank_clip, rank_tokens),
)
"The files whose checks entered the catalogue when they were imported."


_HIDDEN = ("no-teacher-seen", "form-not-recognised", "route-not-seen")
"Reasons that compiled code may be behind, of which nothing within is seen."


def _how_to_see(verdict: Verdict, trace: Trace) -> Verdict:
    """Return a verdict with a way to decide it, where what is compiled may hide what it needs."""
    if verdict.status != "not_triggered" or verdict.reason not in _HIDDEN or not trace.compiled:
        return verdict
    said = f"{verdict.message}; part of this is compiled, of which only the two ends are seen"
    return replace(verdict, message=said, decide_with=verdict.decide_with or "no compile")


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
        verdicts[name] = _how_to_see(verdicts[name], trace)
        if trace.broken is not None and verdicts[name].status != "fail":
            verdicts[name] = Verdict("error", f"watching itself broke and stopped: {trace.broken}")
    causes = {CATALOGUE[name].id for name, verdict in verdicts.items() if verdict.status == "fail" and verdict.explains}
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
                mend=verdict.mend or entry.mend,
                where=verdict.where,
                consequence_of=next((id for id in entry.follows if id in causes), None)
                if verdict.status == "fail" and not verdict.by_itself
                else None,
                reason=verdict.reason,
                decide_with=verdict.decide_with,
            )
            for name, verdict in verdicts.items()
        ]
    )
