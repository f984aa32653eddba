"""How the command line spells what audits ask to be declared: they know declarations, and the harness its options."""

from dataclasses import replace

from kdbench.audits.finding import WAIVE, Report

_OPTIONS = {
    "steps": "--steps",
    "all steps": "--steps 0",
    "clip": "--max-norm and --clip-scope",
    "alpha": "--alpha",
    "form": "--form own, kdbench.check_soft_loss(loss) in the script, or --waive KD313=REASON",
    "alpha or kd_weight": "--alpha or --kd-weight",
    "no compile": "--no-compile",
    "student and teacher, or steps": "--student NAME --teacher NAME, or more --steps",
}
"By what an audit says would decide it; what is declared in code stays as it is."

REMEDIES = {
    "list-audits": " (kdbench audit --list)",
    "write-baseline": "; write it with --update-baseline",
    "rewrite-baseline": "; write it anew with --update-baseline",
}
"By the remedy of a policy that cannot be honoured: what to type, behind the sentence that says why."


def spelled(report: Report) -> Report:
    """Return a report whose findings name options where the audits name declarations."""
    return Report(
        tuple(
            replace(f, mend=spelled_mend(f.id, f.mend), decide_with=_OPTIONS.get(f.decide_with or "", f.decide_with))
            for f in report.findings
        )
    )


def spelled_mend(id: str, mend: str) -> str:
    """Return what to write instead, with the option where it says that the failure may be waived."""
    return f"{mend}: --waive {id}=REASON" if mend.endswith(WAIVE) else mend
