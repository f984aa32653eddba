"""The catalogue of audits: each in a line, or the story of one."""

from kdbench.harness.cli.common import stdout
from kdbench.kd.errors import unknown


def _entries() -> list[tuple[str, str, str, str, str, str]]:
    """Return id, name, severity, kind, story and mend of every audit and law, by id."""
    from kdbench.audits.checks.all import CATALOGUE
    from kdbench.audits.laws import LAWS
    from kdbench.harness.declarations import spelled_mend

    entries = [(a.id, a.name, a.severity, "trace", a.story, spelled_mend(a.id, a.mend)) for a in CATALOGUE.values()]
    entries += [(w.id, w.name, w.severity, "property", w.story, w.mend) for w in LAWS.values()]
    return sorted(entries)


def list_audits() -> int:
    """Print every audit in a line."""
    from rich.table import Table

    table = Table("id", "name", "severity", "kind", "holds that", box=None, pad_edge=False, header_style="bold")
    for id, name, severity, kind, story, _ in _entries():
        table.add_row(id, name, severity, kind, story.splitlines()[0])
    console = stdout()
    console.print(table)
    console.print(
        "\ntrace: read off a training, also a script's."
        " property: a function of yours held to a law (kdbench.audits.laws)"
    )
    return 0


def _flowing(docstring: str) -> str:
    """Return a docstring with each paragraph in one line, for a console of any width."""
    return "\n\n".join(" ".join(part.split()) for part in docstring.split("\n\n"))


def explain(word: str) -> int:
    """Print the story of an audit, given by id or name, where its fault was seen, and the mend."""
    from kdbench.harness.faults import FAULTS

    entries = _entries()
    found = [entry for entry in entries if word.lower() in (entry[0].lower(), entry[1])]
    if not found:
        raise unknown("audit", word, {part for entry in entries for part in entry[:2]})
    console = stdout()
    for id, name, severity, kind, story, mend in found:
        console.print(f"[bold]{id} {name}[/] ({severity}, {kind})\n")
        console.print(_flowing(story), markup=False)
        console.print(f"\nmend: {mend}", markup=False)
        seen = [fault for _, fault in sorted(FAULTS.items()) if name in fault.caught_by]
        for fault in seen if kind == "trace" else []:
            console.print(f"\nseen as the fault {fault.name}: {_flowing(fault.story)}", markup=False)
        console.print()
    return 0
