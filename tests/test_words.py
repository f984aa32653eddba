"""What users read uses the project's words: help, pages and the catalogue of audits keep to the glossary."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kdbench.harness.cli import cli

ROOT = Path(__file__).resolve().parent.parent
RETIRED = {
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "law": "property check",
    "laws": "property checks",
    "sight": "observation",
    "sighting": "observation",
    "moody": "mode-dependent",
    "not triggered": "undecided",
    "not decided": "undecided",
}
_FRAGMENT = re.compile(r"^Of (?!all\b)", re.M)
"A sentence that begins with a fragment, as in 'Of the processor, a trial.'"


def wrong(text: str) -> list[str]:
    """Return the retired words and fragments in a text that users read."""
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S)
    found = [f"{word!r} for {new!r}" for word, new in RETIRED.items() if re.search(rf"\b{word}\b(?!/)", prose, re.I)]
    return found + [f"fragment: {prose[m.start() : m.start() + 30]!r}" for m in _FRAGMENT.finditer(prose)]


def every_help() -> Iterator[tuple[str, str]]:
    """Yield each command's own words: its help, and that of its options."""

    def walk(name: str, command: click.Command) -> Iterator[tuple[str, str]]:
        yield name, "\n".join([command.help or "", *(getattr(param, "help", None) or "" for param in command.params)])
        if isinstance(command, click.Group):
            context = click.Context(command)
            for sub in command.list_commands(context):
                found = command.get_command(context, sub)
                assert found is not None
                yield from walk(f"{name} {sub}", found)

    return walk("kdbench", cli)


@pytest.mark.parametrize(
    ("name", "text"), list(every_help()), ids=lambda value: value if value.startswith("kdbench") else ""
)
def test_help_uses_the_words_of_the_glossary(name, text):
    assert not wrong(text)


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "harness/faults/README.md", *(ROOT / "docs").glob("*.md"), ROOT / "reports/README.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_pages_use_the_words_of_the_glossary(page):
    assert not wrong(page.read_text(encoding="utf-8"))


def test_retired_words_and_fragments_are_seen():
    assert wrong("the mend is simple") == ["'mend' for 'fix'"]
    assert wrong("Of the processor, a trial.") == ["fragment: 'Of the processor, a trial.'"]
    assert not wrong("Fix it with `mend=`, and amend the recommendation.")
