"""What `kdbench mutate` found, in sentences, as JSON, as Markdown and as a page."""

import html
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdbench.harness.mutation.naming import Answer
from kdbench.harness.mutation.runs import Measured, Row, Status
from kdbench.harness.zoo.matrix_page import STYLE

KDBENCH = {
    "first": "named first",
    "named": "named",
    "other": "other alarm",
    "undecided": "undecided",
    "silent": "silent",
}
"In words, what kdbench says of a fault."
ORDER = ("injected", "dormant", "not-applicable", "broken")
"In which the rows stand."


def counted(rows: list[Row]) -> list[Row]:
    """Return the rows that count: the fault acted, and changed what is trained."""
    return [row for row in rows if row.status == "injected"]


def is_caught(row: Row) -> bool:
    """Say whether kdbench named the cause, or had not to: the script ended itself."""
    return row.kdbench in ("first", "named") or row.kdbench is None


def ordered(rows: list[Row]) -> list[Row]:
    """Return the rows as they are shown: what counts first, and by name."""
    return sorted(rows, key=lambda row: (ORDER.index(row.status), row.fault))


def first_line(found: Measured) -> str:
    """Return the whole in a sentence."""
    rows = counted(found.rows)
    sites = {place for row in rows for place in row.where}
    noticed = [f"your script noticed {sum(row.by_script is not None for row in rows)}"] if found.tests is None else []
    if found.tests is not None:
        noticed.append(f"your tests noticed {sum(bool(row.by_tests) for row in rows)}")
    count = Counter(row.status for row in found.rows)
    more = [f"{n} {word}" for status, word in _MORE.items() if (n := count[status])]
    whole = (
        f"{_many(len(rows), 'fault')} injected at {_many(len(sites), 'place')}: {noticed[0]}, "
        f"kdbench {sum(row.kdbench in ('first', 'named') for row in rows)}"
    )
    return "; ".join([whole, *more]) + "."


_MORE: dict[Status, str] = {"dormant": "dormant here", "not-applicable": "not applicable", "broken": "could not run"}


def _many(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def reasons(rows: list[Row]) -> dict[str, list[str]]:
    """Return by reason the faults that have no place in the script."""
    found: dict[str, list[str]] = {}
    for row in ordered(rows):
        if row.status == "not-applicable":
            found.setdefault(row.why, []).append(row.fault)
    return found


def told(row: Row) -> str:
    """Return what kdbench says of a row, with the audits that failed."""
    if row.kdbench is None:
        return row.why or "the script ended before there was anything to see"
    found = f": {', '.join(row.found)}" if row.found else ""
    missing = f" (expected {', '.join(row.expected)})" if row.kdbench not in ("first", "named") else ""
    return f"{KDBENCH[row.kdbench]}{found}{missing}"


def noticed(row: Row) -> str:
    """Return who else noticed, in words."""
    if row.status != "injected":
        return "dormant" if row.status == "dormant" else ""
    if row.by_tests is not None:
        return row.by_tests[0] if len(row.by_tests) == 1 else f"{len(row.by_tests)} tests" if row.by_tests else "none"
    if row.by_script is None:
        return "no"
    kind, _, rest = row.by_script.partition(": ")  # the whole stands in JSON
    return kind.rpartition(".")[2] if rest else row.by_script


@dataclass(frozen=True)
class Noticed:
    """One fault, and who noticed it: an entry of kdbench.mutate/1."""

    name: str
    status: Status
    why: str | None
    "Why it is not applicable, or what came of it."
    where: list[str]
    "Files and lines that it was put into."
    expected: list[str]
    "Ids of the audits that must name it."
    failed: list[str]
    "Ids of the audits that failed, causes first."
    kdbench: Answer | None
    "How kdbench noticed; null where the script ended itself."
    by_script: str | None
    "How the script itself noticed; null if it did not."
    by_tests: list[str] | None
    "The tests that noticed; null where a script was run."
    seconds: float


@dataclass(frozen=True)
class MutateObject:
    """What came of all faults: the kdbench.mutate/1 object."""

    schema: Literal["kdbench.mutate/1"]
    target: str
    summary: str
    steps: int
    seconds: float
    cpu_seconds: float | None
    unmutated: str | None
    "The verdict on the script as it is."
    tests: int | None
    "Tests that step an optimizer; null for a script."
    student: str | None
    teacher: str | None
    remarks: list[str]
    faults: list[Noticed]


def to_json(found: Measured) -> dict[str, Any]:
    """Return the kdbench.mutate/1 object."""
    rows = [
        Noticed(
            name=row.fault,
            status=row.status,
            why=row.why or None,
            where=list(row.where),
            expected=list(row.expected),
            failed=list(row.found),
            kdbench=row.kdbench,
            by_script=row.by_script,
            by_tests=list(row.by_tests) if row.by_tests is not None else None,
            seconds=row.seconds,
        )
        for row in ordered(found.rows)
    ]
    made = MutateObject(
        schema="kdbench.mutate/1",
        target=found.target,
        summary=first_line(found),
        steps=found.steps,
        seconds=round(found.seconds, 1),
        cpu_seconds=round(found.cpu, 1) if found.tests is None else None,
        unmutated=found.verdict or None,
        tests=found.tests,
        student=found.scene.names.get("student") or None,
        teacher=found.scene.names.get("teacher") or None,
        remarks=found.remarks,
        faults=rows,
    )
    return asdict(made)


def to_markdown(found: Measured) -> str:
    """Return the table in Markdown."""
    who = "your script" if found.tests is None else "your tests"
    lines = [f"**{first_line(found)}**", "", f"| fault | where | {who} | kdbench |", "|---|---|---|---|"]
    for row in ordered(found.rows):
        if row.status != "not-applicable":
            cells = (row.fault, ", ".join(row.where), noticed(row), told(row))
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    absent = [row for row in ordered(found.rows) if row.status == "not-applicable"]
    if absent:
        lines += ["", "Not applicable:", ""]
        lines += [f"- {row.fault}: {row.why}" for row in absent]
    lines += ["", *(f"{remark}." for remark in found.remarks)]
    return "\n".join(lines).rstrip() + "\n"


def to_html(found: Measured) -> str:
    """Return the table as a page that needs nothing else."""
    who = "your script" if found.tests is None else "your tests"
    rows = "".join(_html_row(row) for row in ordered(found.rows) if row.status != "not-applicable")
    absent = "".join(
        f"<li>{html.escape(why)}: {html.escape(', '.join(faults))}</li>" for why, faults in reasons(found.rows).items()
    )
    missing = f"<h2>Not applicable</h2><ul>{absent}</ul>" if absent else ""
    remarks = "".join(f"<p class=soft>{html.escape(remark)}.</p>" for remark in found.remarks)
    target = html.escape(found.target)
    over = f" over {found.steps} steps" if found.tests is None else ", in every test that distils"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Who would notice? {target}</title>
<style>{STYLE}h2 {{ font-size: 1.1rem; margin: 1.4rem 0 .3rem }} td.wide {{ white-space: normal; min-width: 11rem }}
.small {{ display: none; font-weight: normal; opacity: .75; overflow-wrap: anywhere }}
@media (max-width: 40rem) {{ .place {{ display: none }} .small {{ display: block }} td.wide {{ min-width: 5.5rem }} }}
</style>
<h1>Who would notice a bug in {target}?</h1>
<p>{html.escape(first_line(found))}</p>
<p class="soft">Each row is a bug that was put in, in a run of its own{over}. A bug
counts if it acted and changed what is trained.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Who noticed"><table>
<thead><tr><th>fault</th><th class=place>where</th><th>{who}</th><th>kdbench</th></tr></thead>
<tbody>{rows}</tbody></table></div>
{missing}{remarks}
</html>
"""


_CLASS = {"first": "hit", "named": "hit", "other": "miss", "undecided": "miss", "silent": "wrong", None: "none"}


def _html_row(row: Row) -> str:
    where = "<br>".join(map(html.escape, row.where))
    return (
        f"<tr><td>{html.escape(row.fault)}<span class=small>{where}</span></td><td class=place>{where}</td>"
        f"<td class=wide>{html.escape(noticed(row))}</td>"
        f'<td class="wide {_CLASS[row.kdbench]}">{html.escape(told(row))}</td></tr>'
    )
