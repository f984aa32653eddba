"""kdbench audits: the catalogue, the matrix that holds it to the faults, and the findings of recorded trials."""

from pathlib import Path
from typing import Any

import click

from kdbench.harness.cli.audit_output import detail, policy_errors, read_policy
from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION


@click.group("audits")
def command() -> None:
    """List the audits, explain one, run them against every fault, or show the findings of a recorded trial."""


@command.command("list")
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output format."
)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def list_(format_: str) -> int:
    """List the audits, one a line."""
    from kdbench.harness.cli.audit_catalogue import list_audits

    return list_audits(format_)


@command.command("explain")
@click.argument("audit", metavar="ID|NAME")
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def explain(audit: str) -> int:
    """Explain an audit: what it checks, how to fix what it finds, and which faults it catches."""
    from kdbench.harness.cli.audit_catalogue import explain

    return explain(audit)


@command.command("matrix")
@click.option("--fault", "faults", multiple=True, metavar="NAME", help="Run these faults only (kdbench faults list).")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="Train these methods only.")
@click.option("--seeds", metavar="RANGE", default="0-2", show_default=True, help="Seeds, as in 0-9.")
@click.option("--zoo-seeds", metavar="RANGE", help="Seeds of the correct trainings  [default: the first three]")
@click.option("--workers", type=click.IntRange(1), help="Number of processes  [default: usable cores]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder for matrix.json, .html and .png."
)
@click.option("--format", "format_", type=click.Choice(["text", "json", "html"]), default="text", show_default=True)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def matrix(**options: Any) -> int:
    """Train every fault, and correct trainings, for a few steps under every audit. This takes minutes.

    Exit 0 if each fault is caught by exactly the audits that it names and no correct training raises an alarm, else 1.
    """
    from kdbench.harness.cli.audit_matrix import run_matrix

    return run_matrix(**options)


@command.command("show")
@click.argument("trial", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--waive", multiple=True, metavar="ID=REASON", help="Accept a failure and give the reason.")
@click.option(
    "--select",
    multiple=True,
    metavar="ID,...",
    help="Show only these audits: ids, names, or the beginning of ids (KD3).",
)
@click.option(
    "--ignore", multiple=True, metavar="ID,...", help="Leave these audits out; ids, names, or the beginning of ids."
)
@click.option("--strict", is_flag=True, help="Count warnings as failures.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures and the verdict only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every audit: also those that passed or are undecided.")
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
    """Show the findings of a recorded trial (runs/STUDY/trials/KEY). The exit code is that of its audit."""
    with policy_errors():
        from kdbench.harness.cli.audit_recorded import show_recorded

        return show_recorded(trial, read_policy(choices), format_, detail({**choices, "format_": format_}))
