"""The self-check: our own training, right or with faults, under every audit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from harness.cli.audit_output import renderer
from harness.cli.common import stderr, stdout
from kd.errors import InputError, unknown

if TYPE_CHECKING:
    from audits.report.policy import Policy


def audit_ourselves(
    policy: "Policy",
    format_: str,
    *,
    variant: str,
    faults: Sequence[str],
    methods: Sequence[str],
    seed: int,
    pair: str | None,
) -> int:
    """Train each method, with the faults asked for or right, for a few steps under all audits; return the exit code."""
    from audits.finding import sorted_report
    from audits.report.policy import EXIT_CODES
    from audits.report.render import Audited
    from harness import canonical
    from harness.cli.audit_text import show_ourselves
    from harness.faults import get
    from harness.plan import check_method, load_preset, split_pair
    from harness.variants import VARIANTS
    from kd.methods import METHODS

    if variant not in ("corrected", "bugged"):
        raise unknown("variant", variant, ["corrected", "bugged"])
    names = [get(name).name for name in dict.fromkeys(faults)] or VARIANTS[variant]
    methods = list(dict.fromkeys(methods)) or list(METHODS)
    for method in methods:
        check_method(method)
    pair = pair or load_preset("quick").pairs[0]
    teacher, student = split_pair(pair)
    notes = stderr()
    runs = canonical.audit_ourselves(methods, names, seed, lambda text: notes.print(text, style="dim"), pair)
    if not runs:
        why = "; ".join(f"{m}: {get(n).why_not(m)}" for n in names if n for m in methods)
        raise InputError(f"the fault named applies to none of the methods asked for ({why})")
    findings = [
        replace(f, observed={"method": run.method, "fault": run.fault.name if run.fault else None, **f.observed})
        for run in runs
        for f in policy.apply(run.report).findings
    ]
    report = sorted_report(findings)
    distils = [METHODS[method].needs_teacher for method in dict.fromkeys(run.method for run in runs)]
    distilled = any(distils) or not any(METHODS[method].needs_teacher for method in methods)
    audited = Audited(
        target=", ".join(name or "canonical" for name in names),
        report=report,
        verdict=policy.verdict(report, ran=True, distilled=distilled),
        threshold=policy.threshold,
        steps=max(run.steps for run in runs),
        student=student,
        teacher=teacher if any(distils) else None,
    )
    if format_ == "text":
        show_ourselves(stdout(), runs, audited)
    else:
        click.echo(renderer(format_)(audited))
    return EXIT_CODES[audited.verdict]
