"""The catalogue of audits: each in a line, or the story of one."""

import textwrap
from dataclasses import dataclass
from typing import Any

from kdbench.harness.cli.common import print_json, stdout
from kdbench.kd.errors import unknown

SCHEMA = "kdbench.audits/1"
_NARROW = 100
"Columns below which an audit is printed in two lines: a table would leave no room for the sentence."
_KINDS = (
    "\ntrace: decided by watching a training, for example a script."
    "\nproperty: decided by calling your function on made-up inputs (kdbench.check_...)."
    "\nAn audit of both kinds is decided either way."
)


@dataclass(frozen=True)
class Entry:
    """One audit, of one kind."""

    id: str
    name: str
    severity: str
    kind: str
    "trace or property."
    story: str
    fix: str


def _entries() -> list[Entry]:
    """Return every audit and property check, by id; an id that is both has two entries."""
    from kdbench.audits.checks.all import CATALOGUE
    from kdbench.audits.laws import LAWS
    from kdbench.harness.declarations import spelled_mend

    entries = [
        Entry(a.id, a.name, a.severity, "trace", a.story, spelled_mend(a.id, a.mend)) for a in CATALOGUE.values()
    ]
    entries += [Entry(w.id, w.name, w.severity, "property", w.story, w.mend) for w in LAWS.values()]
    return sorted(entries, key=lambda e: (e.id, e.kind != "trace"))


def by_id() -> list[list[Entry]]:
    """Return the entries of each id together: what a training shows and what a function is held to are one audit."""
    groups: dict[str, list[Entry]] = {}
    for entry in _entries():
        groups.setdefault(entry.id, []).append(entry)
    return list(groups.values())


def list_audits(format_: str = "text") -> int:
    """Print every audit in a line, or all as one JSON object."""
    from rich.table import Table

    if format_ == "json":
        print_json({"schema": SCHEMA, "audits": [_row(same) for same in by_id()]})
        return 0
    console = stdout()
    if console.width < _NARROW:
        for same in by_id():
            row = _row(same)
            console.print(f"{row['id']} {row['name']}  ({row['severity']}; {', '.join(row['kinds'])})", markup=False)
            said = textwrap.fill(row["holds"], console.width, initial_indent="  ", subsequent_indent="  ")
            console.print(said, markup=False)
        console.print(_KINDS)
        return 0
    table = Table("id", "name", "severity", "kind", "holds that", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[:4]:
        column.no_wrap = True
    for same in by_id():
        row = _row(same)
        table.add_row(row["id"], row["name"], row["severity"], ", ".join(row["kinds"]), row["holds"])
    console.print(table)
    console.print(_KINDS)
    return 0


def _row(same: list[Entry]) -> dict[str, Any]:
    first = same[0]
    return {
        "id": first.id,
        "name": first.name,
        "severity": first.severity,
        "kinds": [entry.kind for entry in same],
        "holds": first.story.splitlines()[0],
        "fix": first.fix,
    }


def _flowing(docstring: str) -> str:
    """Return a docstring with each paragraph in one line, for a console of any width."""
    return "\n\n".join(" ".join(part.split()) for part in docstring.split("\n\n"))


def explain(word: str) -> int:
    """Print the story of an audit, given by id or name, where its fault was seen, and the fix."""
    from kdbench.harness.faults import FAULTS

    entries = _entries()
    found = [entry for entry in entries if word.lower() in (entry.id.lower(), entry.name)]
    if not found:
        raise unknown("audit", word, {part for entry in entries for part in (entry.id, entry.name)})
    console = stdout()
    for entry in found:
        console.print(f"[bold]{entry.id} {entry.name}[/] ({entry.severity}, {entry.kind})\n")
        console.print(_flowing(entry.story), markup=False)
        console.print(f"\nfix: {entry.fix}", markup=False)
        seen = [fault for _, fault in sorted(FAULTS.items()) if entry.name in fault.caught_by]
        for fault in seen if entry.kind == "trace" else []:
            console.print(f"\nseen as the fault {fault.name}: {_flowing(fault.story)}", markup=False)
        console.print()
    return 0
