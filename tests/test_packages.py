"""Other people's packages as they are used: roles named, no false error, and a package's known bug named.

The scripts stand in tests/packages, and what must be said of each in tests/packages/cases.toml. `make test-packages`
installs the packages; without them the tests are skipped.
"""

import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "packages"
LONGEST = 300
"Seconds for one script. The slowest takes 30 on two cores; a stuck one must not hold up the rest."


@dataclass(frozen=True)
class Case:
    """A script, perhaps with one passage replaced, and what the audit must say of it."""

    script: str
    needs: tuple[str, ...]
    verdict: str
    student: str
    teacher: str | None = None
    """None where the teacher's answers are stored."""

    slip: str = ""
    old: str = ""
    new: str = ""
    projectors: int = 0
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    today: dict[str, str] = field(default_factory=dict)
    """By question (roles, findings, decided): what kdbench gets wrong today."""

    @property
    def name(self) -> str:
        return self.script.removesuffix(".py") + (f":{self.slip}" if self.slip else "")

    def text(self) -> str:
        """Return the script's text, with its passage replaced."""
        text = (FOLDER / self.script).read_text()
        if not self.slip:
            return text
        assert text.count(self.old) == 1, f"{self.name}: the passage to replace stands {text.count(self.old)} times"
        return text.replace(self.old, self.new)


def read_cases() -> list[Case]:
    entries = tomllib.loads((FOLDER / "cases.toml").read_text())["case"]
    return [Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in e.items()}) for e in entries]


CASES = {case.name: case for case in read_cases()}


def absent(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


@functools.cache
def audited(name: str) -> dict[str, Any]:
    """Run `kdbench audit` on a case as a user does, once per session, and return its JSON."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / case.script
        script.write_text(case.text())
        command = [sys.executable, "-m", "kdbench", "audit", "--format", "json", *case.options, str(script)]
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(FOLDER)}
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=LONGEST
        )
    assert done.stdout.startswith("{"), done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["script_error"] is None, seen["script_error"]
    return seen


def causes(seen: dict[str, Any], severity: str) -> list[str]:
    """Return the ids that failed by themselves, and not in consequence of another."""
    failed = [f for f in seen["findings"] if f["status"] == "fail" and f["severity"] == severity]
    return sorted(f["id"] for f in failed if f["consequence_of"] is None)


def asked(question: str) -> Iterator[Any]:
    """Yield each case as a parameter: skipped without its packages, and expected to fail where it is known to."""
    for case in CASES.values():
        missing = [package for package in case.needs if absent(package)]
        marks = [
            pytest.mark.packages,
            pytest.mark.xdist_group(case.name),
            pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (make test-packages)"),
        ]
        if question in case.today:
            marks.append(pytest.mark.xfail(reason=case.today[question], strict=True))
        yield pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", asked("roles"))
def test_roles_are_named(case):
    seen = audited(case.name)
    assert (seen["student"], seen["teacher"]) == (case.student, case.teacher)
    assert len(seen["projectors"]) == case.projectors


@pytest.mark.parametrize("case", asked("findings"))
def test_what_is_wrong_is_named_and_nothing_else(case):
    seen = audited(case.name)
    assert causes(seen, "error") == sorted(case.errors)
    assert causes(seen, "warn") == sorted(case.warnings)
    assert seen["counts"]["error"] == 0


@pytest.mark.parametrize("case", asked("decided"))
def test_the_verdict_rests_on_audits_that_decided(case):
    seen = audited(case.name)
    status = {f["id"]: f["status"] for f in seen["findings"]}
    assert seen["verdict"] == case.verdict, seen["summary"]
    assert {i: status[i] for i in case.passes} == dict.fromkeys(case.passes, "pass")


def test_every_script_has_a_case_and_stays_short():
    """Needs no package: a script that nobody runs, or that grew too long to read at a glance, is found at once."""
    scripts = {p.name for p in FOLDER.glob("*.py")}
    text = {script: (FOLDER / script).read_text() for script in scripts}
    helpers = {s for s in scripts if any(f"import {s.removesuffix('.py')}\n" in t for t in text.values())}
    assert scripts - helpers == {case.script for case in CASES.values()}
    for script in scripts - helpers:
        assert len(text[script].splitlines()) <= 40, script
    for case in CASES.values():
        compile(case.text(), case.name, "exec")


def test_the_page_of_findings_shows_what_the_tests_expect():
    """Needs no package: what reports/found prints comes from a script here, and names the ids that a run must name."""
    page = (FOLDER.parent.parent / "reports" / "found" / "README.md").read_text()
    blocks = re.findall(r"^\$ kdbench audit -q tests/packages/(\w+)\.py\n(.*?)^```$", page, re.S | re.M)
    assert len(blocks) >= 9
    for name, output in blocks:
        shown = set(re.findall(r"^(KD\d{3}) ", output, re.M))
        assert set(CASES[name].errors) <= shown, name
        lines = [int(n) for n in re.findall(rf"tests/packages/{name}\.py:(\d+)", output)]
        assert lines and max(lines) <= len((FOLDER / f"{name}.py").read_text().splitlines()), name
