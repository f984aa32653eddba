"""Comments in the audited code that waive a finding: ``# kdbench: ignore[KD312] reason``.

At the end of a line of code, or on a line of its own above it, a comment speaks of that statement. On a line of its own
before the first statement of a file (a docstring may stand before it) it speaks of the whole file.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kdbench.audits.finding import Finding, Report, sorted_report
from kdbench.audits.report.policy import PolicyError, audit_id

_COMMENT = re.compile(r"#\s*kdbench\s*:\s*(?P<word>[\w-]*)\s*(\[(?P<ids>[^\]]*)\])?\s*[:-]?\s*(?P<reason>.*)")
FORM = "# kdbench: ignore[ID] REASON"


@dataclass(frozen=True)
class Ignore:
    """One comment."""

    file: str
    "As it was named to :func:`read`."
    path: Path
    line: int
    ids: tuple[str, ...]
    reason: str
    lines: range | None
    "Those of the statement that it speaks of; None for the whole file."

    @property
    def place(self) -> str:
        """File and line, as reports name them."""
        return f"{self.file}:{self.line}"

    def covers(self, finding: Finding, script: str | None, folder: Path) -> bool:
        """Say whether it speaks of a finding; of one without a location where it speaks of the script as a whole."""
        if finding.id not in self.ids:
            return False
        if finding.where is None:
            return self.lines is None and self.file == script
        if (folder / str(finding.where["file"])).resolve() != self.path:
            return False
        return self.lines is None or int(finding.where["line"]) in self.lines


def read(files: Iterable[str], folder: Path) -> tuple[list[Ignore], list[str]]:
    """Return the comments in these files, and a remark for each that does not count and why.

    A relative path is one from `folder`.
    """
    found: list[Ignore] = []
    remarks: list[str] = []
    for file in files:
        try:
            path = (folder / file).resolve()
            text = path.read_text(encoding="utf-8")
            if "kdbench" not in text:
                continue
            comments = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError, tokenize.TokenError):
            continue  # what is no Python has no line that a finding could be at
        for token in comments:
            match = _COMMENT.match(token.string)
            if match is None:
                continue
            place = f"{file}:{token.start[0]}"
            if match["word"] != "ignore" or match["ids"] is None:
                remarks.append(f"{place}: {token.string.strip()!r} is not understood; write {FORM}")
                continue
            ids = _ids(match["ids"], place, remarks)
            if not match["reason"].strip():
                remarks.append(
                    f"{place}: ignore[{match['ids']}] gives no reason, so the finding stays; "
                    f"write # kdbench: ignore[{match['ids']}] REASON"
                )
            elif ids:
                lines = _covered(tree, text.splitlines(), token)
                found.append(Ignore(file, path, token.start[0], ids, match["reason"].strip(), lines))
    return found, remarks


def apply(
    report: Report, ignores: Iterable[Ignore], script: str | None, folder: Path
) -> tuple[Report, dict[str, str], list[str]]:
    """Waive what the comments speak of; return the report, the comment's place by id, and remarks on idle comments."""
    findings = list(report.findings)
    places: dict[str, str] = {}
    remarks: list[str] = []
    for ignore in ignores:
        hit = {i for i, f in enumerate(findings) if f.status == "fail" and ignore.covers(f, script, folder)}
        for i in hit:
            places[findings[i].id] = ignore.place
            findings[i] = replace(findings[i], status="waived", reason=ignore.reason)
        for id in ignore.ids:
            if id not in {findings[i].id for i in hit}:
                remarks.append(f"{ignore.place}: ignore[{id}] waives nothing: {_instead(findings, id)}")
    return sorted_report(findings), places, remarks


def _ids(text: str, place: str, remarks: list[str]) -> tuple[str, ...]:
    ids = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        try:
            ids.append(audit_id(word))
        except PolicyError as error:
            remarks.append(f"{place}: {str(error).partition('There are: ')[0].strip().rstrip(';')}")
    if not text.strip():
        remarks.append(f"{place}: ignore[] names no audit; write {FORM}")
    return tuple(dict.fromkeys(ids))


def _instead(findings: list[Finding], id: str) -> str:
    """Say what became of an audit whose finding a comment missed."""
    for f in findings:
        if f.id == id and f.status == "fail":
            place = f"at {f.where['file']}:{f.where['line']}" if f.where else "without a location"
            return f"{id} failed {place}"
    return {
        "pass": f"{id} passed",
        "waived": f"{id} is waived already",
        "not_triggered": f"{id} is undecided",
    }.get(next((f.status for f in findings if f.id == id), ""), f"{id} was not reported")


def _covered(tree: ast.Module, lines: list[str], token: tokenize.TokenInfo) -> range | None:
    """Return the lines of the statement that a comment speaks of; None for the whole file."""
    line = token.start[0]
    if not lines[line - 1][: token.start[1]].strip():  # a line of its own
        first = next((s.lineno for s in tree.body if not _is_docstring(s)), len(lines) + 1)
        if line < first:
            return None
        while line < len(lines) and lines[line - 1].lstrip().startswith("#"):
            line += 1
    spans = [
        range(s.lineno, (s.end_lineno or s.lineno) + 1)
        for s in ast.walk(tree)
        if isinstance(s, ast.stmt)
        and not isinstance(s, ast.Match)
        and not hasattr(s, "body")
        and s.lineno <= line <= (s.end_lineno or s.lineno)
    ]
    return min(spans, key=len, default=range(line, line + 1))


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
