"""How a report leaves: in which format, and alone on stdout."""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.kd.errors import InputError, unknown

if TYPE_CHECKING:
    from kdbench.audits.report.policy import Policy
    from kdbench.audits.report.render import Audited
    from kdbench.harness.publish.audit_text import Detail


FORMATS = ("json", "junit", "sarif", "github")
"For programs."


def read_policy(options: Mapping[str, Any]) -> "Policy":
    """Return the user's choices; PolicyError for one that cannot be honoured."""
    from kdbench.audits.report.policy import Policy

    return Policy.parse(options["waive"], options["select"], options["ignore"], options["strict"])


def detail(options: Mapping[str, Any]) -> "Detail":
    """Return how much of a report is printed as text; InputError where both less and more are asked for."""
    if options["quiet"] and options["verbose"]:
        raise InputError("-q and -v do not go together; give one of them")
    if (options["quiet"] or options["verbose"]) and options["format_"] != "text":
        raise InputError(f"{'-q' if options['quiet'] else '-v'} does nothing with --format {options['format_']}")
    return "quiet" if options["quiet"] else "verbose" if options["verbose"] else "normal"


@contextlib.contextmanager
def policy_errors() -> Iterator[None]:
    """Make a choice that cannot be honoured the user's error, as any other bad input."""
    from kdbench.audits.report.policy import PolicyError
    from kdbench.harness.declarations import REMEDIES

    try:
        yield
    except PolicyError as error:
        raise InputError(f"{error}{REMEDIES[error.remedy] if error.remedy else ''}") from error


@contextlib.contextmanager
def stdout_apart() -> Iterator[Callable[[str], None]]:
    """Send what is written to stdout, also by child processes, to stderr; yield what writes to the real one."""
    real = sys.stdout
    real.flush()
    kept = os.dup(1)
    os.dup2(2, 1)

    def write(text: str) -> None:
        real.flush()
        os.dup2(kept, 1)
        try:
            real.write(text + "\n")
            real.flush()
        finally:
            os.dup2(2, 1)

    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield write
    finally:
        real.flush()
        os.dup2(kept, 1)
        os.close(kept)
        atexit.register(os.dup2, 2, 1)  # before the exit handlers of the script, which may print too


def files_beside(texts: Iterable[str]) -> dict[Path, str]:
    """Read FORMAT=FILE texts as formats by file; InputError for another form, an unknown format, or no such folder.

    A file of Python is refused: the report would take the place of the script.
    """
    found: dict[Path, str] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise InputError(f"--also {text}: write it as FORMAT=FILE, such as sarif=kd.sarif")
        if file == "-":
            raise InputError(f"--also {text}: it writes to files alone; --format {name} writes to stdout")
        if name not in FORMATS:
            raise unknown("format", name, FORMATS, "--also")
        path = Path(file)
        if path.is_dir():
            raise InputError(f"--also {text}: {path} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise InputError(f"--also {text}: the folder {path.parent} does not exist; make it, or name another")
        if path.suffix == ".py":
            raise InputError(f"--also {text}: {path} is a script, which the report would overwrite; name another file")
        if path in found:
            raise InputError(f"--also {text}: {path} is named twice")
        found[path] = name
    return found


def renderer(format_: str) -> "Callable[[Audited], str]":
    """Return what writes a report in a machine's format."""
    from kdbench.audits.report import render

    forms = {"json": render.to_json, "junit": render.to_junit, "sarif": render.to_sarif, "github": render.to_github}
    return forms.get(format_, render.to_json)
