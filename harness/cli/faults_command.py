"""kdbench faults: the zoo."""

from pathlib import Path

import rich_click as click

from kdbench.harness.cli.common import FAULTS_OPTION, JSON_OPTION, print_json, stderr, stdout
from kdbench.harness.cli.completion import complete_fault
from kdbench.harness.cli.help import OUTPUT, Group


@click.group(
    "faults",
    cls=Group,
    examples=[
        ("list the faults and the audits that catch them", "kdbench faults list"),
        ("show what one of them changes in the code", "kdbench faults show projector-unclipped"),
    ],
)
def command() -> None:
    """List the faults (the deliberate bugs of the catalogue), or show one and what it changes."""


@command.command(
    "list",
    examples=[
        ("list the faults", "kdbench faults list"),
        ("list them together with your own", "kdbench faults list --faults my_faults.py"),
    ],
)
@FAULTS_OPTION
@JSON_OPTION
def list_faults(as_json: bool) -> None:
    """List every fault with the function that it replaces and the audits that must catch it."""
    from kdbench.harness.faults import FAULTS, audit_ids

    if as_json:
        print_json(
            {
                "schema": "kdbench.faults/1",
                "faults": [
                    {
                        "name": f.name,
                        "seam": f.seam,
                        "caught_by": f.ids(f.caught_by),
                        "follows": f.ids(f.follows),
                        "scope": f.scope,
                        "escapes": f.escapes,
                        "story": f.story,
                    }
                    for _, f in sorted(FAULTS.items())
                ],
            }
        )
        return
    from rich.markup import escape

    from kdbench.harness.cli.tables import Column, show_table

    ids = audit_ids()
    columns = [
        Column("fault", names=True),
        Column("replaces", drop=1),
        Column("caught by", wraps=True),
        Column("what goes wrong", wraps=True),
    ]
    rows = [
        (
            fault.name,
            fault.seam,
            ", ".join(sorted(f"{ids[name]} {name}" for name in fault.caught_by)) or "none (it escapes)",
            escape(fault.story.splitlines()[0]),
        )
        for _, fault in sorted(FAULTS.items())
    ]
    show_table(stdout(), columns, rows)


@command.command(
    "show",
    examples=[
        ("show one fault", "kdbench faults show missing-t-squared"),
        ("show two that act together", "kdbench faults show missing-t-squared+imagenet-stem"),
    ],
)
@click.argument("name", shell_complete=complete_fault)
@FAULTS_OPTION
def show(name: str) -> None:
    """Show what goes wrong with a fault, how its code differs from the correct code, and which audits catch it."""
    from kdbench.harness.faults import get

    fault = get(name)
    console = stdout()
    console.print(f"[bold]{fault.name}[/]: replaces {fault.seam} in the training of {_whose(fault.scope)}\n")
    console.print(fault.story + "\n", markup=False)
    console.print(fault.difference() + "\n", markup=False)
    if fault.escapes:
        console.print(f"escapes every audit: {fault.escapes}")
    else:
        console.print(f"caught by: {', '.join(fault.ids(fault.caught_by))} ({', '.join(fault.caught_by)})")
    if fault.follows:
        console.print(f"may follow: {', '.join(fault.ids(fault.follows))} ({', '.join(fault.follows)})")


@command.command(
    "gallery",
    examples=[
        ("make the page of all faults; this takes minutes", "kdbench faults gallery --output gallery.md"),
        ("make the page of one fault", "kdbench faults gallery --fault random-teacher"),
    ],
)
@click.option(
    "--fault",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_fault,
    help="Show this fault only; may be repeated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    panel=OUTPUT,
    help="Write the page to this file instead of stdout.",
)
@FAULTS_OPTION
def gallery(names: tuple[str, ...], output: Path | None) -> None:
    """Train every fault for a few steps and make a page that shows its story, its code and the audits' findings."""
    from kdbench.harness.faults import FAULTS, get
    from kdbench.harness.zoo.gallery import page

    text = page([get(name).name for name in names] or list(FAULTS), lambda word: stderr().print(word, style="dim"))
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _whose(scope: str) -> str:
    return "the student" if scope == "student" else "teacher and student"
