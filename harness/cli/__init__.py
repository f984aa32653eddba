"""The command line: one file a command, and nothing heavy imported before a command needs it."""

import errno
import gc
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

import kdbench
from kdbench.harness.cli.help import SETTINGS, Group, write_section
from kdbench.harness.options import clean, told
from kdbench.harness.run.processes import ENDING
from kdbench.kd.errors import InputError, unknown

if TYPE_CHECKING:
    from rich_click.rich_help_formatter import RichHelpFormatter

JOBS = {
    "Is my script right?": {
        "audit": "Audit a distillation script as it is.",
        "mutate": "Put known bugs into a script, and show who would have noticed.",
        "audits": "List the audits, explain one, and show how well they find faults.",
    },
    "Is my gain real?": {
        "compare": "Compare two arms of a study, or groups of runs from anywhere.",
        "power": "Find out how many seeds a comparison needs.",
    },
    "Run a study": {
        "init": "Write a study file to start from.",
        "run": "Train, audit and compare the arms of a study.",
        "status": "Show how far the studies are.",
        "slurm": "Write a study as jobs of a Slurm cluster.",
        "signature": "Decide whether a fault lowers the accuracy, with few seeds.",
        "methods": "List the methods with their settings, and the networks.",
        "faults": "List the faults, or show one and what it changes.",
    },
    "Look at results and share them": {
        "report": "Write a study as a web page.",
        "ui": "Open a study's runs in the MLflow UI.",
        "verify": "Check that nobody changed a study's files.",
        "mirror": "Bring MLflow up to date with the records.",
        "schema": "Print the form of what kdbench writes and reads, as JSON Schema.",
        "bundle": "Pack a study for another machine.",
        "reproduce": "Train a packed study again and compare it with its record.",
    },
    "This machine": {
        "doctor": "Check that the installation works.",
    },
}
"The commands by the job that somebody comes with, each in a sentence."

COMMANDS = {name: does for commands in JOBS.values() for name, does in commands.items()}


class LazyGroup(Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a first visit."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command's file."""
        if name not in COMMANDS:
            if ctx.resilient_parsing:
                return None
            raise unknown("command", name, COMMANDS)
        command: click.Command = importlib.import_module(f"kdbench.harness.cli.{name}_command").command
        return command

    def format_options(self, ctx: click.Context, formatter: "RichHelpFormatter") -> None:  # type: ignore[override]
        """List the commands by job from the table above, importing none, and then the options."""
        for job, commands in JOBS.items():
            write_section(job, list(commands.items()), formatter)
        options = {", ".join(param.opts): getattr(param, "help", None) or "" for param in self.get_params(ctx)}
        write_section("Options", list(options.items()), formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin so, importing none."""
        return [CompletionItem(name, help=does) for name, does in COMMANDS.items() if name.startswith(incomplete)]


@click.group(
    cls=LazyGroup,
    context_settings=SETTINGS,
    examples=[
        ("audit your own training script, unchanged", "kdbench audit train.py"),
        ("train and compare a small study on the CPU", "kdbench run --preset quick"),
        ("compare two of its arms", "kdbench compare corrected bugged"),
        (
            "complete names on Tab (zsh: zsh_source; fish: fish_source)",
            'eval "$(_KDBENCH_COMPLETE=bash_source kdbench)"',
        ),
    ],
)
@click.version_option(kdbench.__version__)
def cli() -> None:
    """Benchmarks for knowledge distillation, whose results come with proof that the code behind them was right.

    `kdbench COMMAND --help` explains a command and shows examples.
    """


def run_cli(call: Callable[[], Any], interrupted: Callable[[], int | None] = lambda: None) -> int:
    """Run a command; return its exit code, with what a user can fix said in one line and no traceback.

    `interrupted` returns the signal by which somebody asked to end it, or None: a package that was being imported then
    may have made an error of its own of the interruption.
    """
    try:
        result = call()
    except InputError as error:
        click.echo(f"error: {told(error)}", err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "kdbench"
        click.echo(f"error: {error.format_message()} ({where} --help shows the options)", err=True)
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        return _interrupted(interrupted(), error)
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as error:  # what click and rich make of a reader that left
        if isinstance(error.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    except OSError as error:
        if asked := interrupted():
            return _interrupted(asked)
        if error.errno not in _MACHINE:
            return _unforeseen(error)
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"error: {error.strerror}{where}; {_MACHINE[error.errno]}, and run the same command again", err=True)
        return 3
    except Exception as error:
        asked = interrupted()
        return _interrupted(asked) if asked else _unforeseen(error)
    return result if isinstance(result, int) else 0


_MACHINE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that you may write to",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOENT: "put back what was removed meanwhile",
}
"What a machine's state does to any command, and what to do."


def _unforeseen(error: Exception) -> int:
    """Say in a sentence what broke and where, keep the traceback in a file, and return 70, which no verdict uses."""
    if os.environ.get("KDBENCH_DEBUG"):
        raise error
    with tempfile.NamedTemporaryFile("w", prefix="kdbench-error-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = clean(f"{type(error).__name__}: {error}")
    click.echo(
        f"error: kdbench broke, and that is its fault: {said} ({Path(place.filename).name}, line {place.lineno}). "
        f"Please send its maintainers {file.name} and the output of `kdbench doctor`",
        err=True,
    )
    return 70


def _reader_gone() -> int:
    """End quietly where the reader of our output left, as `| head -1` does, with the code that a shell expects."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # else the interpreter, as it ends, writes to the pipe
    return 128 + signal.SIGPIPE


def _interrupted(number: int | None = None, error: BaseException | None = None) -> int:
    """Say that a command was ended, and what it noted of that, and return a shell's code for the signal."""
    notes: list[str] = []
    while error is not None:  # click makes an Abort of a KeyboardInterrupt
        notes += getattr(error, "__notes__", ())
        error = error.__cause__ or error.__context__
    click.echo("; ".join(["interrupted", *notes[:1]]), err=True)
    return 128 + (number or signal.SIGINT)


def main() -> None:
    """Entry point of the `kdbench` command."""
    told: list[int] = []

    def heed(number: int, frame: Any) -> None:
        told.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job is to ignore it
        signal.signal(signal.SIGINT, heed)
    for number in ENDING:  # what a cluster's scheduler sends: leases are given back, as on Ctrl-C
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, heed)
    code = run_cli(lambda: cli.main(prog_name="kdbench", standalone_mode=False), lambda: told[0] if told else None)
    for number in (signal.SIGINT, *ENDING):  # a second one, as it ends, would hide the code of the first
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # else the interpreter, as it ends, looks through all of PyTorch for garbage
    sys.exit(code)
