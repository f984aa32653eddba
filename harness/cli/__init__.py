"""The command line: one file a command, and nothing heavy imported before a command needs it."""

import gc
import importlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

import kdbench
from kdbench.harness.options import told
from kdbench.kd.errors import InputError, unknown

COMMANDS = {
    "init": "Write a study's file to start from.",
    "run": "Train, audit and compare the arms of a study.",
    "audit": "Audit a distillation script as it is, or our own training.",
    "audits": "List or explain the audits, run them against every fault, show a trial's.",
    "status": "Show how far the studies are.",
    "compare": "Compare two arms of a study over its seeds, or groups of anybody's runs.",
    "power": "Plan seeds: how many a comparison needs, what so many show.",
    "signature": "Decide whether a fault shows in accuracy, over as few seeds as it takes.",
    "methods": "List the methods with their settings, and the networks.",
    "faults": "List the faults, or show one and what it changes.",
    "report": "Write a study as a page.",
    "bundle": "Pack a study so that another machine reproduces it.",
    "reproduce": "Train a packed study anew, and compare it with its record.",
    "ui": "Open a study's runs in the MLflow UI.",
    "mirror": "Write to MLflow what it lacks of the records.",
    "doctor": "Show what is installed, and whether it works.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a first visit."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command's file."""
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        command: click.Command = importlib.import_module(f"kdbench.harness.cli.{name}_command").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(kdbench.__version__)
def cli() -> None:
    """Knowledge-distillation benchmarks in which every number arrives with the proof that the code was right."""


def run_cli(call: Callable[[], Any]) -> int:
    """Run a command; return its exit code, with what a user can mend said in one line and no traceback."""
    try:
        result = call()
    except InputError as error:
        click.echo(f"error: {told(error)}", err=True)
        return 2
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()} (kdbench --help shows what there is)", err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    click.echo("interrupted; the same command again keeps what is done", err=True)
    return 130


def main() -> None:
    """Entry point of the `kdbench` command."""
    told: list[int] = []

    def heed(number: int, frame: Any) -> None:
        told.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job is to ignore it
        signal.signal(signal.SIGINT, heed)
    try:
        code = run_cli(lambda: cli.main(prog_name="kdbench", standalone_mode=False))
    except Exception:  # a package that was being imported may have made another error of the interruption
        if not told:
            raise
        code = _interrupted()
    gc.freeze()  # else the interpreter, as it ends, looks through all of PyTorch for garbage
    sys.exit(code)
