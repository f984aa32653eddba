"""The self-check: our own training, right or with faults, under every audit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from kdbench.harness.cli.audit_output import renderer
from kdbench.harness.cli.common import stderr, stdout
from kdbench.kd.errors import InputError, unknown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdbench.audits.report.policy import Policy
    from kdbench.audits.report.render import Audited
    from kdbench.harness.publish.audit_text import Detail
    from kdbench.harness.zoo.selfcheck import Run


def audit_ourselves(
    policy: "Policy",
    format_: str,
    *,
    variant: str,
    faults: Sequence[str],
    methods: Sequence[str],
    seed: int,
    pair: str | None,
    detail: "Detail",
) -> int:
    """Train each method, with the faults asked for or right, for a few steps under all audits; return the exit code."""
    from kdbench.audits.finding import sorted_report
    from kdbench.audits.report.policy import EXIT_CODES
    from kdbench.audits.report.render import Audited
    from kdbench.harness.faults import get
    from kdbench.harness.plan.preset import load_preset, split_pair
    from kdbench.harness.plan.variants import VARIANTS
    from kdbench.harness.zoo import selfcheck as canonical
    from kdbench.kd.methods import METHODS

    if variant not in ("corrected", "bugged"):
        raise unknown("variant", variant, ["corrected", "bugged"])
    names = [get(name).name for name in dict.fromkeys(faults)] or VARIANTS[variant]
    methods = list(dict.fromkeys(methods)) or list(METHODS)
    _check(methods)
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
    verdict, because = policy.verdict(report, ran=True, distilled=distilled), None
    if verdict == "clean" and any(run.fault is None and not run.as_declared for run in runs):
        verdict = "undecided"
        because = "no audit failed, and an audit that a bug would trip has not passed"
    audited = Audited(
        target=", ".join(name or "canonical" for name in names),
        report=report,
        verdict=verdict,
        threshold=policy.threshold,
        steps=max(run.steps for run in runs),
        student=student,
        teacher=teacher if any(distils) else None,
        declarable=False,
        undecided_because=because,
    )
    if format_ == "text":
        _show(stdout(), runs, audited, detail)
    else:
        click.echo(renderer(format_)(audited))
    return EXIT_CODES[audited.verdict]


def _check(methods: Sequence[str]) -> None:
    """Raise InputError, before anything is trained, for a method that is unknown or lacks a weight."""
    from kdbench.harness.plan.preset import check_method, load_preset

    preset = load_preset("quick")
    for method in methods:
        check_method(method)
        try:
            preset.settings(preset.pairs[0], method)
        except InputError as error:
            raise InputError(
                f"{error}; the self-check has no study file: give the weight a default in the method's Settings"
            ) from error


def _show(console: "Console", runs: Sequence["Run"], audited: "Audited", detail: "Detail") -> None:
    """Print what the audits say of our own training, a run a line, then the findings and the verdict."""
    from kdbench.harness.publish.audit_text import labels, show_findings, show_verdict

    if detail != "quiet":
        console.print(_table(runs))
    for run in runs:
        if not run.as_declared:
            what = f"{run.method} with {run.fault.name}" if run.fault else run.method
            console.print(f"not as declared: {what}: {'; '.join(run.departures)}", markup=False)
    show_findings(console, audited, detail)
    decided = {f.id for f in audited.report.findings if f.status != "not_triggered"}
    silent = [f for f in audited.report.findings if f.id not in decided]
    if silent and detail == "verbose":
        console.print(f"\nundecided in all of these runs: {labels(silent)}", markup=False)
    show_verdict(console, audited)


def _table(runs: Sequence["Run"]) -> "Table":
    """Return a table of the runs; failures by id, since the findings below it name them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "fault", "failed", "passed", "undecided", "as declared"):
        table.add_column(column, no_wrap=column != "failed", overflow="fold")
    for run in runs:
        counts = run.report.counts()
        failed = run.report.failed("error")
        causes, others = ([f.id for f in failed if bool(f.consequence_of) == behind] for behind in (False, True))
        table.add_row(
            run.method,
            run.fault.name if run.fault else "none",
            ", then ".join(", ".join(ids) for ids in (causes, others) if ids) or "none",
            str(counts["pass"]),
            str(counts["not_triggered"]),
            "yes" if run.as_declared else "[bold red]NO[/]",
        )
    return table
