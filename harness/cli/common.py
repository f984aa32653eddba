"""What several commands share: finding a study, and printing."""

import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from kdbench.harness.cli.completion import complete_study
from kdbench.harness.cli.help import DECISION, OUTPUT, RECORDS, YOUR_CODE
from kdbench.harness.cli.own_files import note
from kdbench.harness.options import escaped
from kdbench.kd.errors import InputError, unknown

if TYPE_CHECKING:
    from kdbench.harness.publish.mirror import Mirror
    from kdbench.harness.records.record import StudyFolder

RUNS_OPTION = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    metavar="DIR",
    panel=RECORDS,
    help="Folder of the records.",
)


def _own_files(option: str, parameter: str, what: str) -> Callable[..., Any]:
    """Return the option that names files of the user's, which are loaded before the command runs."""

    def noted(ctx: click.Context, param: click.Parameter, files: tuple[Path, ...]) -> tuple[Path, ...]:
        note(ctx, what, files)
        return files

    return click.option(
        option,
        parameter,
        type=click.Path(path_type=Path),
        multiple=True,
        expose_value=False,
        callback=noted,
        metavar="FILE",
        panel=YOUR_CODE,
        help=f"Load {'networks' if what == 'models' else what} of your own from a Python file.",
    )


FAULTS_OPTION = _own_files("--faults", "fault_files", "faults")
METHOD_OPTION = _own_files("--method-file", "method_files", "methods")
MODEL_OPTION = _own_files("--model-file", "model_files", "models")


STUDY_OPTION = click.option(
    "--study",
    metavar="NAME",
    panel=RECORDS,
    shell_complete=complete_study,
    help="Choose a study of the runs folder; needed if there are several.",
)
ALLOW_OPTION = click.option(
    "--allow-difference",
    "allowed",
    multiple=True,
    metavar="NAME",
    panel=DECISION,
    help="Compare arms even if this differs between them (torch, device_name, code_digest, ...); the result notes it.",
)
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, panel=OUTPUT, help="Print one JSON object on stdout and nothing else there."
)


def loudness_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command -q and -v; :func:`progress_console` reads them."""
    quiet = click.option("-q", "--quiet", is_flag=True, panel=OUTPUT, help="Print the results only, and no progress.")
    verbose = click.option("-v", "--verbose", is_flag=True, panel=OUTPUT, help="Print a line for each finished trial.")
    return quiet(verbose(command))


def progress_console(quiet: bool, verbose: bool) -> Console:
    """Return the console of progress, which -q silences."""
    if quiet and verbose:
        raise InputError("-q and -v contradict each other; leave one out")
    return stderr(quiet)


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse "nan" and "inf" (an option's callback), which click takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", ctx, param)
    return value


def alpha_option(meaning: str, panel: str) -> Callable[..., Any]:
    """Return the option for the level of a family of tests."""
    between = click.FloatRange(0, 1, min_open=True, max_open=True)
    return click.option(
        "--alpha",
        type=between,
        callback=finite,
        default=0.05,
        show_default=True,
        metavar="LEVEL",
        panel=panel,
        help=meaning,
    )


def named_options(ctx: click.Context) -> dict[str, str]:
    """Return the options that stand on the command line, as they are written, by parameter."""
    typed = ParameterSource.COMMANDLINE
    return {
        str(param.name): param.opts[0]
        for param in ctx.command.params
        if isinstance(param, click.Option) and ctx.get_parameter_source(str(param.name)) is typed
    }


def program() -> str:
    """Return how this command was called, so that a command shown to the user works as it is printed."""
    called = Path(sys.argv[0])
    if shutil.which("kdbench") or called.name != "kdbench":
        return "kdbench"
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


class SafeConsole(Console):
    """A console on which control characters of what is printed are shown, and do nothing; its own styles work."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as ever, and escape what is text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))


def stdout() -> Console:
    """Return the console of results; without a terminal it is wide enough for a table."""
    return SafeConsole(width=None if os.isatty(1) or "COLUMNS" in os.environ else 140, highlight=False, soft_wrap=False)


def stderr(quiet: bool = False) -> Console:
    """Return the console of progress and remarks; a quiet one prints nothing."""
    width = None if os.isatty(2) or "COLUMNS" in os.environ else 140
    return SafeConsole(stderr=True, highlight=False, width=width, quiet=quiet)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def studies(runs: Path) -> list[str]:
    """Return the names of the studies in a runs folder; InputError if there are none."""
    names = sorted(path.parent.name for path in runs.glob("*/study.json"))
    if not names:
        raise InputError(f"{runs} holds no study; start one with: kdbench run --runs {runs}")
    return names


def find_study(runs: Path, name: str | None) -> "StudyFolder":
    """Return the study of this name, or the only one there is."""
    from kdbench.harness.records.record import StudyFolder

    names = studies(runs)
    if name is None:
        if len(names) > 1:
            raise InputError(f"{runs} holds {len(names)} studies; say which: --study {' | '.join(names)}")
        name = names[0]
    if name not in names:
        raise unknown("study", name, names)
    return StudyFolder(runs / name)


class LiveMirror:
    """Mirrors a study whenever one of its trials is done, beside the training; the last mirroring tells of trouble.

    A thread, since to import MLflow and to make its database takes seconds in which trials are to be started.
    """

    def __init__(self, runs: Path, study: "StudyFolder") -> None:
        self._runs, self._study = runs, study
        self._news, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "LiveMirror":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over = True
        self._news.set()
        # What it is writing is not to be written again, however slow the server; who interrupts is not kept waiting.
        self._thread.join(timeout=None if kind is None else 5)

    def trial_done(self) -> None:
        """Hear that there is something new to mirror."""
        self._news.set()

    def _work(self) -> None:
        with suppress(Exception):  # here, while trials run, rather than when all wait for it; trouble is told of later
            from kdbench.harness.publish import mirror  # noqa: F401
        while True:
            self._news.wait()
            self._news.clear()
            if self._over:
                return
            with suppress(Exception):  # MLflow's, of many kinds; a server that was down may be up at the next trial
                from kdbench.harness.analysis.study_table import read_study
                from kdbench.harness.publish.mirror import mirror_study

                mirror_study(self._runs, read_study(self._study))


def mirror_or_remark(runs: Path, study: "StudyFolder", notes: Console) -> "Mirror | None":
    """Mirror the study; MLflow in trouble costs a remark, never a result."""
    try:
        from kdbench.harness.analysis.study_table import read_study
        from kdbench.harness.publish.mirror import mirror_study

        mirror = mirror_study(runs, read_study(study))
        if mirror.set_aside is not None:
            said = f"MLflow's database was broken and lies in {mirror.set_aside} now; it was written anew"
            notes.print(escape(said), soft_wrap=True)
        return mirror
    except Exception as error:  # MLflow's, of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "requests" in {type(cause).__module__.partition(".")[0] for cause in (error.__cause__, error.__context__)}:
            reason = f"{os.environ['MLFLOW_TRACKING_URI']} does not answer"
        notes.print(f"MLflow was not written ({escape(reason)}); the records are whole, and kdbench mirror catches up")
        return None
