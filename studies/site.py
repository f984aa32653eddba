"""The site of the documentation: a hook of MkDocs that adds what does not stand in docs/.

README.md, CHANGELOG.md and the reports come in as they are, their links turned to where the pages are. There is a page
per audit, made from the catalogue, the faults and docs/specimens; one of the public Python names; one of the schemas,
which stand beside it as files; and one per notebook. `make docs` builds all of it.
"""

import base64
import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "reports/**/*.md", "harness/faults/README.md", "tests/reported/**/README.md")
SPECIMENS = ROOT / "docs" / "specimens"
COLOURS = re.compile("\x1b\\[[0-9;]*m")
SCHEMAS = """# Schemas

The JSON Schemas of what kdbench writes and reads; `kdbench schema NAME` prints them. Later versions may add keys to
what it writes. Where a key goes, the number in its key `schema` rises. An editor that knows schemas checks a study
file that begins with `#:schema ./study.schema.json`, after `kdbench schema study > study.schema.json`.
"""
PICTURES = ("reports/**/*.png", "reports/**/*.svg", "docs/**/*.svg", "docs/**/*.png")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)|(src|href)=\"([^\"]+)\"")


def place(path: str) -> str:
    """Return where a file of the repository stands on the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that stand elsewhere, and those that are made here."""
    for path in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place(name), content=path.read_text(encoding="utf-8")))
    for path in (path for pattern in PICTURES for path in sorted(ROOT.glob(pattern))):
        name = place(path.relative_to(ROOT).as_posix())
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in {**rules(), "api.md": api(), **schemas(), **notebooks()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Turn a page's links to where their targets are; what is no page loses its link and keeps its words."""
    site = page.file.src_uri
    here = repository_path(site)
    if here is None:
        return markdown

    def turned(link: re.Match[str]) -> str:
        target = link[3] or link[5]
        path, hash_, part = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        found = os.path.normpath(PurePosixPath(here).parent / path)
        if files.get_file_from_path(place(found)) is None:
            if not (ROOT / found).exists():
                return link[0]  # MkDocs says that it is dead
            return link[2] if link[3] else link[0]
        to = os.path.relpath(place(found), PurePosixPath(site).parent) + hash_ + part
        return f"{link[1]}[{link[2]}]({to})" if link[3] else f'{link[4]}="{to}"'

    return LINK.sub(turned, markdown)


def repository_path(site: str) -> str | None:
    """Return the file of the repository that a page is; None for one that is made here."""
    if site == "index.md":
        return "README.md"
    return next((path for path in (f"docs/{site}", site) if (ROOT / path).is_file()), None)


# -- what is made here


def rules() -> dict[str, str]:
    """Return a page per audit, and the list of them."""
    from kdbench.harness.cli.audit_catalogue import Entry, by_id

    groups = by_id()
    pages = {f"rules/{same[0].id}.md": rule(same) for same in groups}

    def line(same: list[Entry]) -> str:
        first = same[0]
        kinds = ", ".join(entry.kind for entry in same)
        holds = first.story.splitlines()[0]
        return f"| [{first.id}]({first.id}.md) | {first.name} | {first.severity} | {kinds} | {holds} |"

    table = ["| audit | name | severity | kind | holds that |", "|---|---|---|---|---|", *map(line, groups)]
    kinds = "*trace*: decided by watching a training. *property*: decided by calling your function on made-up inputs."
    pages["rules/index.md"] = "\n".join(["# The audits", "", kinds, "", *table, ""])
    return pages


def rule(same: "list[Any]") -> str:
    """Return an audit's page: what it holds, its faults beside the right code, the fix."""
    from kdbench.harness.faults import FAULTS
    from kdbench.harness.zoo.language import TOKEN_FAULTS

    first = same[0]
    said = [f"# {first.id} {first.name}", ""]
    for entry in same:
        kind = "by watching a training" if entry.kind == "trace" else "by calling your function"
        said += [f"*{entry.severity}, decided {kind}*", "", flowing(entry.story), "", f"**Fix.** {entry.fix}", ""]
    known = sorted([*FAULTS.items(), *TOKEN_FAULTS.items()])
    faults = [fault for _, fault in known if first.name in fault.caught_by]
    said += [
        "## Wrong, and right",
        "",
        "The tests run everything that is shown here, and this audit must name what is wrong in it.",
        "",
        *specimen(first.id),
    ]
    for fault in faults:
        said += [f"### {fault.name}", "", flowing(fault.story), "", "```diff", fault.difference().strip(), "```", ""]
    said += [
        f"`kdbench audits explain {first.id}` prints this page. [What no evidence decides](../reports/audits.md)",
        "",
    ]
    return "\n".join(said)


def specimen(id: str) -> list[str]:
    """Return what docs/specimens holds for an audit: a slip as a diff, or a file; nothing where faults are enough."""
    slips = tomllib.loads((SPECIMENS / "slips.toml").read_text(encoding="utf-8"))
    if id in slips:
        right = (ROOT / slips[id].get("script", "docs/specimens/right.py")).read_text(encoding="utf-8")
        diff = difflib.unified_diff(right.splitlines(), slipped(right, slips[id]).splitlines(), lineterm="", n=2)
        return [slips[id]["says"], "", "```diff", *[*diff][2:], "```", ""]
    file = SPECIMENS / f"{id}.py"
    return ["```python", file.read_text(encoding="utf-8").strip(), "```", ""] if file.exists() else []


def slipped(right: str, slip: dict[str, Any]) -> str:
    """Return the right script with a slip put in; each old text must occur once."""
    for old, new in slip["changes"]:
        if right.count(old) != 1:
            raise ValueError(f"{old!r} occurs {right.count(old)} times in the right script")
        right = right.replace(old, new)
    return right


def schemas() -> dict[str, str]:
    """Return the schemas as files, and the page that lists them."""
    from kdbench.harness.schemas import DOCUMENTS, schema

    files = {f"schemas/{name}.json": json.dumps(schema(name), indent=2) + "\n" for name in DOCUMENTS}
    rows = [f"| [{name}]({name}.json) | {document.what} |" for name, document in DOCUMENTS.items()]
    lines = [SCHEMAS, "| schema | document |", "|---|---|", *rows, ""]
    return {**files, "schemas/index.md": "\n".join(lines)}


def notebooks() -> dict[str, str | bytes]:
    """Return the notebooks as pages, with the pictures that they drew."""
    pages: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        lines: list[str] = []
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                lines += [text, ""]
                continue
            lines += ["```python", text, "```", ""]
            shown = ""
            for output in cell["outputs"]:
                data = output.get("data", {})
                if "image/png" in data:
                    picture = f"{path.stem}-{number}.png"
                    pages[f"notebooks/{picture}"] = base64.b64decode(data["image/png"])
                    lines += [f"![what the cell draws]({picture})", ""]
                else:
                    shown += "".join(output.get("text") or data.get("text/plain", ""))
            if shown:  # a stream may have been flushed in the middle
                lines += ["```text", COLOURS.sub("", shown).rstrip(), "```", ""]
        pages[f"notebooks/{path.stem}.md"] = "\n".join(lines)
    return pages


def flowing(docstring: str) -> str:
    """Return a docstring with each paragraph in one line, and code marked by one backtick."""
    return "\n\n".join(" ".join(part.split()) for part in docstring.replace("``", "`").split("\n\n"))


def api() -> str:
    """Return the page of the public Python names."""
    from kdbench import audits

    names = sorted(audits.__all__)
    checks = [name for name in names if name.startswith("check")]
    said = ["# Python", "", "All of these can be had from `kdbench`, as `kdbench.watch`.", ""]
    said += listed("## Watching a training", [name for name in names if name not in checks])
    return "\n".join(said + listed("## Property checks", checks))


def listed(title: str, names: Iterable[str]) -> list[str]:
    """Return a section of documented names."""
    from kdbench import audits

    found = []
    for name in names:
        thing = getattr(audits, name)
        module = getattr(thing, "__module__", "")
        if module.startswith("kdbench.audits"):
            found += [f"::: {module.removeprefix('kdbench.')}.{getattr(thing, '__qualname__', name)}", ""]
    return [title, "", *found]
