"""The gallery of the faults: each with its difference, its story, what it did to the numbers, and who told.

Nothing on the page is written by hand: the difference is computed from the sources, numbers and findings
are those of a training of a few steps on real digits, seed 0, beside its corrected twin.
"""

import ast
import hashlib
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from rich.console import Console

from kdbench.audits.finding import Finding, Report
from kdbench.harness.faults import FAULTS, Fault, audit_ids
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.record import first_difference
from kdbench.harness.zoo.language import TOKEN_FAULTS, TokenRun, audit_tokens
from kdbench.harness.zoo.selfcheck import EPOCHS, Run, audit_once
from kdbench.kd.methods import METHODS
from kdbench.kd.recipe import Precision

COMMAND = "kdbench faults gallery --output reports/faults.md"
_ROOT = Path(__file__).resolve().parents[2]
_PLACE = re.compile(r"\S+\.py:\S+")
_LARGEST = re.compile(r"(norm-bound +)\S+\.py:\S+(.*\n +at step) \d+")
"The step of the largest norm, and its place: of norms that are nearly equal, last bits decide which is largest."
_NUMBER = re.compile(r"(?<![A-Z\d])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def method_for(fault: Fault) -> str:
    """Return the method that the gallery shows a fault in: of the demo's that it applies to, by the two names alone."""
    able = [method for method in load_preset("quick").methods if not fault.why_not(method)]
    return max(able, key=lambda method: hashlib.sha256(f"{fault.name} {method}".encode()).digest())


@cache
def twin(method: str, precision: Precision) -> Run:
    """Return the corrected training that a fault's is held against."""
    return audit_once(method, None, 0, lambda _: None, precision)


def _told(fault: Fault) -> str:
    """Say by which audits a fault is caught."""
    ids = audit_ids()

    def named(names: Sequence[str]) -> str:
        return ", ".join(sorted(f"{ids[name]} {name}" for name in names))

    told = [f"caught by {named(fault.caught_by)}" if fault.caught_by else f"escapes: {fault.escapes}"]
    told += [f"may follow: {named(fault.follows)}"] if fault.follows else []
    return "; ".join(told)


def section(run: Run) -> str:
    """Return a fault's part of the page, of its training."""
    fault = run.fault
    assert fault is not None
    whose = "teacher and student" if fault.scope == "both" else "the student"
    lines = lines_of(run.report)
    parts = [
        f"## {fault.name}",
        f"Replaces `{fault.seam}` in the training of {whose}; {_told(fault)}.",
        fault.story,
        f"```diff\n{fault.difference()}\n```",
        f"{numbers(run)} `kdbench audit --fault {fault.name} --method {run.method}` prints:",
        f"```\n{lines}\n```" if lines else "```\n(no audit of severity error fails)\n```",
        *([f"NOT as declared: {'; '.join(run.departures)}."] if not run.as_declared else []),
    ]
    return "\n\n".join(parts) + "\n"


def token_section(run: TokenRun) -> str:
    """Return the part of the page of a fault in a language model's training."""
    fault = run.fault
    assert fault is not None
    parts = [
        f"## {fault.name}",
        f"Replaces `{fault.seam}` in the training of a language model, token by token; {_told(fault)}.",
        fault.story,
        f"```diff\n{fault.difference()}\n```",
        "After a few steps on the Zen of Python, seed 0, the audits print:",
        f"```\n{lines_of(run.report, ('error', 'warn'))}\n```",
        *([f"NOT as declared: {'; '.join(run.departures)}."] if run.departures else []),
    ]
    return "\n\n".join(parts) + "\n"


def numbers(run: Run) -> str:
    """Return in a sentence what the fault did to the numbers of a few steps."""
    assert run.fault is not None
    precision: Precision = "fp16" if run.fault.needs_scaler else "fp32"
    right = twin(run.method, precision)
    mine, theirs = run.epochs[-1], right.epochs[-1]
    differ = first_difference([epoch.digest for epoch in run.epochs], [epoch.digest for epoch in right.epochs])
    where = f"After {run.steps} steps of {METHODS[run.method].title} ({EPOCHS} epochs of digits, seed 0)"
    if differ is None:
        return f"{where} every weight is the same to the bit as without it."
    shown = ", ".join(
        f"{name} {_shown(a)} ({_shown(b)})"
        for name, a, b in (
            ("loss", mine.loss["total"], theirs.loss["total"]),
            ("gradient norm", mine.grad_norms["all"]["mean"], theirs.grad_norms["all"]["mean"]),
        )
    )
    return f"{where}, with it and (without it): {shown}; the weights differ from epoch {differ} on."


def _shown(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no number"


def lines_of(report: Report, severities: Sequence[str] = ("error",)) -> str:
    """Return what the audit prints of the failures of these severities, as plain text."""
    from kdbench.harness.publish.audit_text import show_failures

    found = [_plain(f) for f in report.findings if f.status == "fail" and f.severity in severities]
    out = io.StringIO()
    show_failures(Console(file=out, width=118, highlight=False, color_system=None), Report(tuple(found)))
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def _plain(f: Finding) -> Finding:
    """Return a finding whose place is a function of a file: no matter where the project lies, and in which line."""
    if f.where is None:
        return f
    path = Path(f.where["file"])
    absolute = path if path.is_absolute() else _ROOT / path
    inside = absolute.relative_to(_ROOT).as_posix() if absolute.is_relative_to(_ROOT) else path.name
    return replace(f, where={"file": inside, "line": function_at(absolute, f.where["line"])})


@cache
def _functions(path: Path) -> list[tuple[int, int, str]]:
    """Return first line, last line and name of each class and function in a file, outer ones before inner ones."""
    found: list[tuple[int, int, str]] = []

    def visit(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}" if outer else child.name
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found.append((first, child.end_lineno or first, name))
            visit(child, name)

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def function_at(path: Path, line: int) -> str:
    """Return the name of the innermost function, or class, around a line; `module` where there is none."""
    around = [name for first, last, name in _functions(path) if first <= line <= last]
    return around[-1] if around else "module"


def page(names: Sequence[str], told: Callable[[str], None]) -> str:
    """Train each fault for a few steps, and return the page in Markdown; of all faults, a language model's too."""
    head = (
        "# The faults\n\n"
        f"    {COMMAND}\n\n"
        "Each fault is one function in the place of one decision. The differences are computed from the sources;\n"
        "numbers and findings are of a training of a few steps on real digits. All of it is made by the command above\n"
        "and compared by the test suite, so this page cannot drift from the code. After so few steps a number shows\n"
        "that something changed, not what it is worth: what some bugs cost is measured in the other reports.\n"
    )
    parts = [section(audit_once(method_for(FAULTS[name]), FAULTS[name], 0, told)) for name in sorted(names)]
    if {*names} >= {*FAULTS}:
        parts += [token_section(audit_tokens(TOKEN_FAULTS[name], 0)) for name in sorted(TOKEN_FAULTS)]
    return "\n".join([head, *parts])


def sections(text: str) -> dict[str, str]:
    """Return the parts of a page by fault."""
    return {part.partition("\n")[0]: f"## {part}" for part in re.split(r"^## ", text, flags=re.M)[1:]}


def agree(one: str, other: str) -> bool:
    """Say whether two sections are the same but for what is a machine's own: sizes after some steps of training.

    Story, difference and places in the code must be equal, and so must every word. Numbers of the training may differ
    by half, since other processors sum in another order, and the largest norm may be that of another step; and words
    may stand in another order, since a number of another length breaks a line elsewhere.
    """
    one, other = (_LARGEST.sub(r"\1#\2 #", text) for text in (one, other))
    halves = [text.partition("\nAfter ") for text in (one, other)]
    if halves[0][0].strip() != halves[1][0].strip():
        return False
    if sorted(_PLACE.findall(one)) != sorted(_PLACE.findall(other)):
        return False
    words = [sorted(_NUMBER.sub("#", after).split()) for _, _, after in halves]
    numbers = [sorted(map(float, _NUMBER.findall(after))) for _, _, after in halves]
    return words[0] == words[1] and all(
        math.isclose(a, b, rel_tol=0.5, abs_tol=0.5) for a, b in zip(*numbers, strict=True)
    )
