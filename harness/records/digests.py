"""Digests of code that a comma does not break: comments, docstrings and layout do not count, every formula does.

Sources are read when a module that holds them is imported: what is edited later is not what runs here.
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Mapping


def meaning(source: str) -> str:
    """Return a text that two sources share if they differ in comments, docstrings or layout alone.

    It is the syntax tree, written without places, without what is empty (newer Pythons have more fields) and without
    texts that stand as statements of their own. Two Pythons give the same text.
    """
    found: list[str] = []
    _write(ast.parse(source), found)
    return "".join(found)


def _write(value: object, into: list[str]) -> None:
    if isinstance(value, ast.AST):
        into.append(f"{type(value).__name__}(")
        for name in value._fields:
            part = getattr(value, name, None)
            if part is not None and part != [] and name not in ("ctx", "kind"):  # both say how a thing is written
                into.append(f"{name}=")
                _write(part, into)
        into.append(")")
    elif isinstance(value, list):
        into.append("[")
        for part in value:
            if not (isinstance(part, ast.Expr) and _is_text(part.value)):
                _write(part, into)
        into.append("]")
    else:
        into.append(f"{value!r},")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def digest(sources: Mapping[str, str]) -> str:
    """Return a digest of what sources mean, by their places."""
    found = hashlib.sha256()
    for place in sorted(sources):
        found.update(f"{place}\0{meaning(sources[place])}\0".encode())
    return found.hexdigest()[:16]


def without_comments(source: str) -> str:
    """Return a source without its comments, and without the lines that hold nothing else; one without any as it is."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    starts = {token.start[0]: token.start[1] for token in tokens if token.type == tokenize.COMMENT}
    lines = []
    for number, line in enumerate(source.split("\n"), 1):
        cut = line[: starts[number]].rstrip() if number in starts else line
        if cut or number not in starts:
            lines.append(cut)
    return "\n".join(lines)


def without_docstring(source: str) -> str:
    """Return the source of one function or class without its docstring, and the blanks before it."""
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    first = node.body[0]
    if not (isinstance(first, ast.Expr) and _is_text(first.value)):
        return source
    text = source.encode()  # columns are counted in bytes
    starts = [0, *(at + 1 for at, byte in enumerate(text) if byte == ord("\n"))]
    assert first.end_lineno is not None and first.end_col_offset is not None
    begin = starts[first.lineno - 1] + first.col_offset
    end = starts[first.end_lineno - 1] + first.end_col_offset
    return text[:begin].decode().rstrip() + text[end:].decode()
