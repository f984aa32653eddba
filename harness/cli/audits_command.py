"""kdbench audits: the catalogue, the matrix that holds it to the faults, and the findings of recorded trials."""

from pathlib import Path
from typing import Any

import rich_click as click

from kdbench.harness.cli.audit_output import detail, policy_errors, read_policy
from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION, loudness_options
from kdbench.harness.cli.completion import complete_fault, complete_method
from kdbench.harness.cli.help import OUTPUT, Group

FINDINGS, TRAINED = "Which findings count", "What is trained"
"Groups of options."


@click.group(
    "audits",
    cls=Group,
    examples=[
        ("list the audits", "kdbench audits list"),
        ("what does KD312 check, and how is it fixed?", "kdbench audits explain KD312"),
        ("which audits catch this fault?", "kdbench audits matrix --fault missing-t-squared"),
    ],
)
def command() -> None:
    """List the audits, explain one, try all of them on every fault, or show what they found in a recorded trial."""


@command.command(
    "list",
    examples=[
        ("list the audits", "kdbench audits list"),
        ("list them together with your own", "kdbench audits list --faults my_faults.py"),
    ],
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    metavar="FORMAT",
    panel=OUTPUT,
    help="Print text or json.",
)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def list_(format_: str) -> int:
    """List the audits, one a line."""
    from kdbench.harness.cli.audit_catalogue import list_audits

    return list_audits(format_)


@command.command(
    "explain",
    examples=[
        ("explain an audit by its id", "kdbench audits explain KD312"),
        ("explain an audit by its name", "kdbench audits explain kd-scale"),
    ],
)
@click.argument("audit", metavar="ID|NAME")
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def explain(audit: str) -> int:
    """Explain an audit: what it checks, where the mistake was seen, and how to fix it."""
    from kdbench.harness.cli.audit_catalogue import explain

    return explain(audit)


@command.command(
    "matrix",
    loads_late=True,
    examples=[
        ("try every fault and the clean trainings; this takes minutes", "kdbench audits matrix"),
        ("try one fault with one method", "kdbench audits matrix --fault missing-t-squared --method logit"),
        (
            "try it beside the clean trainings, and write the page",
            "kdbench audits matrix --fault missing-t-squared --zoo-seeds 0-2 --output out",
        ),
    ],
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME",
    panel=TRAINED,
    shell_complete=complete_fault,
    help="Try this fault only (kdbench faults list); may be repeated. The clean zoo is then left out.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    panel=TRAINED,
    shell_complete=complete_method,
    help="Try this method only (kdbench methods lists them); may be repeated.",
)
@click.option(
    "--seeds",
    metavar="RANGE",
    default="0-2",
    show_default=True,
    panel=TRAINED,
    help="Train with these seeds, such as 0-9.",
)
@click.option(
    "--zoo-seeds",
    metavar="RANGE",
    panel=TRAINED,
    help="Train the clean zoo (correct trainings in many styles) with these seeds; by default with the first three, or "
    "not at all beside --fault; none leaves it out.",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", panel=TRAINED, help="Processes at a time; by default one a core."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    panel=OUTPUT,
    help="Write matrix.json, matrix.html and matrix.png to this folder.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "html"]),
    default="text",
    show_default=True,
    metavar="FORMAT",
    panel=OUTPUT,
    help="Print text, json or html.",
)
@loudness_options
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def matrix(**options: Any) -> int:
    """Train with every fault for a few steps under every audit, and correct trainings beside them. It takes minutes.

    Exit codes: 0 if each fault is caught by exactly the audits that it names, and no correct training raises an alarm;
    1 if not; 2 for bad input.
    """
    from kdbench.harness.cli.audit_matrix import run_matrix

    return run_matrix(**options)


@command.command(
    "show",
    examples=[
        ("show the findings of a trial", "kdbench audits show runs/quick-digits/trials/0123456789abcdef"),
        ("show one audit's as JSON", "kdbench audits show --select KD312 --format json DIR"),
    ],
)
@click.argument("trial", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--waive", multiple=True, metavar="ID=REASON", panel=FINDINGS, help="Accept a failure of this audit, with a reason."
)
@click.option(
    "--select",
    multiple=True,
    metavar="ID,...",
    panel=FINDINGS,
    help="Show these audits only: ids, names, or the beginning of ids (KD3).",
)
@click.option("--ignore", multiple=True, metavar="ID,...", panel=FINDINGS, help="Leave out these audits.")
@click.option("--strict", is_flag=True, panel=FINDINGS, help="Count warnings as failures.")
@click.option("-q", "--quiet", is_flag=True, panel=OUTPUT, help="Print failures and the verdict only.")
@click.option(
    "-v", "--verbose", is_flag=True, panel=OUTPUT, help="Print every audit: also those that passed or are undecided."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "junit", "sarif", "github"]),
    default="text",
    show_default=True,
    metavar="FORMAT",
    panel=OUTPUT,
    help="Print text, json, junit, sarif or github.",
)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
def show(trial: Path, format_: str, **choices: Any) -> int:
    """Show the findings of a recorded trial, whose folder is runs/STUDY/trials/KEY.

    Exit codes: those of kdbench audit.
    """
    with policy_errors():
        from kdbench.harness.cli.audit_recorded import show_recorded

        return show_recorded(trial, read_policy(choices), format_, detail({**choices, "format_": format_}))
