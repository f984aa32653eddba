"""kdbench schema: the form of what kdbench prints and reads, for other programs and for editors."""

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import METHOD_OPTION, print_json, stdout
from kdbench.harness.cli.help import explained


@explained(
    "schema",
    examples=[
        ("list the documents", "kdbench schema"),
        ("print the schema of an audit's JSON", "kdbench schema audit"),
        ("have an editor check study files", "kdbench schema study > study.schema.json"),
    ],
)
@click.argument("name", required=False)
@METHOD_OPTION
def command(name: str | None) -> None:
    """Print the JSON Schema of a document that kdbench writes or reads; without a name, list the documents.

    Later versions may add keys to what kdbench writes. Where a key goes, the number in its key `schema` rises.
    """
    from kdbench.harness.schemas import DOCUMENTS, schema

    if name is not None:
        print_json(schema(name))
        return
    from kdbench.harness.cli.tables import Column, show_table

    rows = [
        (name, escape(document.what), "read" if document.is_read else "written") for name, document in DOCUMENTS.items()
    ]
    show_table(stdout(), [Column("name", names=True), Column("document", wraps=True), Column("by kdbench")], rows)
