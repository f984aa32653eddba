"""The findings of a recorded trial, shown again."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.harness.cli.audit_output import renderer
from kdbench.harness.cli.common import stdout
from kdbench.kd.errors import InputError

if TYPE_CHECKING:
    from kdbench.audits.report.policy import Policy
    from kdbench.harness.publish.audit_text import Detail


def show_recorded(path: Path, policy: "Policy", format_: str, detail: "Detail") -> int:
    """Show the findings of a recorded trial; return the exit code that its audit had."""
    from kdbench.audits.finding import Finding, sorted_report
    from kdbench.audits.report.policy import EXIT_CODES
    from kdbench.audits.report.render import Audited
    from kdbench.harness.publish.audit_text import show_findings, show_verdict
    from kdbench.harness.records.record import Folder

    _check_folder(path)
    folder = Folder(path.resolve())
    spec, result = folder.spec(), folder.result()
    if result is None:
        raise InputError(f"{path} is an unfinished trial: it has no result.json yet; the same kdbench run finishes it")
    report = policy.apply(sorted_report([Finding(**f) for f in result.findings]))
    ran = result.status in ("finished", "diverged")
    audited = Audited(
        target=str(path),
        report=report,
        verdict=policy.verdict(report, ran=ran, distilled=True),
        threshold=policy.threshold,
        student=spec.arch,
        teacher=spec.teacher.arch if spec.teacher else None,
        script_error=None if ran else result.reason,
        declarable=False,
    )
    if format_ == "text":
        console = stdout()
        if detail != "quiet":
            told = f"{spec.method}, {spec.fault or 'corrected'}, {spec.arch}, seed {spec.seed}: {result.status}"
            console.print(told + (f" ({result.reason})" if result.reason else ""), markup=False, soft_wrap=True)
        show_findings(console, audited, detail)
        show_verdict(console, audited)
    else:
        click.echo(renderer(format_)(audited))
    return EXIT_CODES[audited.verdict]


def _check_folder(path: Path) -> None:
    """Raise InputError for what is no folder, with the command that was meant where it is an audit's id or name."""
    from kdbench.audits.report.policy import PolicyError, audit_id

    if path.is_dir():
        return
    try:
        audit_id(str(path))
    except PolicyError:
        raise InputError(
            f"{path} is no folder; name the folder of a trial, RUNS/STUDY/trials/KEY (kdbench status lists the studies)"
        ) from None
    raise InputError(
        f"{path} is an audit, and this shows a trial's findings; to read about it: kdbench audits explain {path}"
    )
