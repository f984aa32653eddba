"""kdbench audits: the catalogue, the matrix that holds it to the faults, and the findings of recorded trials."""

from pathlib import Path
from typing import Any

import click

from kdbench.harness.cli.audit_output import policy_errors, read_policy
from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION


@click.group("audits")
def command() -> None:
    """List the audits, explain one, hold all of them to every fault, or show what they said of a trial."""


@command.command("list")
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def list_() -> int:
    """List the audits, one a line."""
    from kdbench.harness.cli.audit_catalogue import list_audits

    return list_audits()


@command.command("explain")
@click.argument("audit", metavar="ID|NAME")
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def explain(audit: str) -> int:
    """Tell an audit's story, where its fault was seen, and the mend."""
    from kdbench.harness.cli.audit_catalogue import explain

    return explain(audit)


@command.command("matrix")
@click.option("--fault", "faults", multiple=True, metavar="NAME", help="These faults only (kdbench faults list).")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="These methods only.")
@click.option("--seeds", metavar="RANGE", default="0-2", show_default=True, help="As in 0-9.")
@click.option("--zoo-seeds", metavar="RANGE", help="Of the clean zoo  [default: the first three seeds]")
@click.option("--workers", type=click.IntRange(1), help="Processes at a time  [default: usable cores]")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="matrix.json, .html and .png go there.")
@click.option("--format", "format_", type=click.Choice(["text", "json", "html"]), default="text", show_default=True)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def matrix(**options: Any) -> int:
    """Train every fault for a few steps under every audit, and correct trainings beside them: minutes.

    Exit 0 if each fault is caught by exactly the audits that it names and no correct training raises an alarm, else 1.
    """
    from kdbench.harness.cli.audit_matrix import run_matrix

    return run_matrix(**options)


@command.command("show")
@click.argument("trial", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--waive", multiple=True, metavar="ID=REASON", help="Accept a failure, and say why.")
@click.option("--select", multiple=True, metavar="ID,...", help="Show these audits only, by id or name.")
@click.option("--ignore", multiple=True, metavar="ID,...", help="Leave these audits out.")
@click.option("--strict", is_flag=True, help="Warnings count as failures.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "junit", "sarif", "github"]),
    default="text",
    show_default=True,
)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def show(trial: Path, format_: str, **choices: Any) -> int:
    """Show the findings of a recorded trial (runs/STUDY/trials/KEY); exit as its audit did."""
    with policy_errors():
        from kdbench.harness.cli.audit_recorded import show_recorded

        return show_recorded(trial, read_policy(choices), format_)
