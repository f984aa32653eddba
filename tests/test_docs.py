"""Commands, links and shown output in the README and in docs/ are true."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kdbench.harness.cli import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "harness/faults/README.md"]
_COMMAND = re.compile(r"^(?:    |\$ |    \$ )(kdbench [^\n#]*)", re.M)
"A line of code that begins with kdbench, up to a remark."


def commands(text: str) -> list[str]:
    """Return the kdbench commands of a page's code lines."""
    return [line.strip() for found in _COMMAND.findall(text) for line in found.split(";")]


def wrong(command: str) -> str | None:
    """Say what is untrue of a command line: a command or an option that does not exist."""
    words = shlex.split(command)[1:]
    found: click.Command = cli
    while isinstance(found, click.Group) and words and re.fullmatch(r"[a-z-]+", words[0]):
        name, *words = words
        known = found.list_commands(click.Context(found))
        if name not in known:
            return f"no command {name}"
        sub = found.get_command(click.Context(found), name)
        assert sub is not None
        found = sub
    if found.name == "slurm" and "--" in words:  # what follows is of kdbench run
        at = words.index("--")
        if (why := wrong(shlex.join(["kdbench", "run", *words[at + 1 :]]))) is not None:
            return why
        words = words[:at]
    options = {name for param in found.params for name in (*param.opts, *param.secondary_opts)}
    options |= {"-h", "--help"} | ({"--version"} if found is cli else set())
    for word in words:
        if word.endswith(".py") or (found.name == "audit" and word in ("torchrun", "accelerate")):
            break  # what follows a script, or a launcher, is its own
        if word.startswith("-") and word.partition("=")[0] not in options:
            return f"{found.name} has no option {word}"
    return None


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.name if page.parent != ROOT / "harness/faults" else "faults"
)
def test_every_command_on_the_page_exists(page):
    text = page.read_text(encoding="utf-8")
    assert not [found for found in map(wrong, commands(text)) if found]


def test_a_command_or_an_option_that_does_not_exist_is_seen():
    assert wrong("kdbench audit --alfa 0.9 train.py") == "audit has no option --alfa"
    assert wrong("kdbench adit train.py") == "no command adit"
    assert wrong("kdbench audit --alpha 0.9 train.py --its own") is None
    assert wrong("kdbench faults show projector-unclipped") is None
    assert commands("    kdbench init; kdbench run study.toml   # a study\n") == [
        "kdbench init",
        "kdbench run study.toml",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_on_the_page_leads_to_a_file(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (page.parent / link).exists()]


_BLOCK = re.compile(r"<!-- run -->\n```console\n\$ (.*?)\n(.*?)```", re.S)


def test_the_readme_shows_what_its_commands_print():
    """Each block marked `run` is run where a reader would run it; lines that the page leaves out are marked by dots."""
    blocks = _BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 2
    for command, shown in blocks:
        words = shlex.split(command)
        assert words[0] == "kdbench"
        result = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300,
            env={**os.environ, "COLUMNS": "80"},
        )  # fmt: skip
        said = [line.rstrip() for line in result.stdout.splitlines()]
        missing = [
            line for line in shown.splitlines() if line.rstrip() not in {"", "..."} and line.rstrip() not in said
        ]
        assert not missing, result.stdout + result.stderr


def test_pages_count_the_faults_rightly():
    from kdbench.harness.faults import FAULTS

    said = [int(n) for page in PAGES for n in re.findall(r"(\d+) (?:deliberate bugs|of them)", page.read_text("utf-8"))]
    assert len(said) >= 2 and set(said) == {len(FAULTS)}


def method_row(name, kind):
    """Return a method's line in the README: a weight without a default must stand in a study's file."""
    defaults = kind.Settings.defaults()
    terms = [word for word in kind.Settings.names() if word.endswith("_weight")]
    weights = ", ".join(
        f"{w.removesuffix('_weight')} {defaults[w]:g}" if w in defaults else f"{w.removesuffix('_weight')} -"
        for w in terms
    )
    file = f"kd/methods/{name}.py"
    projectors = "yes" if kind.has_projectors else ""
    return f"| `{name}` | {kind.title} | {kind.paper} | {projectors} | {weights} | [{Path(file).name}]({file}) |"


def test_the_readme_lists_every_method_with_its_file():
    from kdbench.kd.methods import METHODS

    ours = {name: kind for name, kind in METHODS.items() if kind.digest is None and "+" not in name}
    wanted = [method_row(name, kind) for name, kind in ours.items()]
    found = [
        line
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and "kd/methods/" in line
    ]
    assert found == wanted, "\n".join(["", *wanted])
    assert all((ROOT / f"kd/methods/{name}.py").is_file() for name in ours)
