"""The command line: one file a command, and nothing heavy imported before a command needs it."""

import gc
import importlib
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

import kdbench
from kdbench.harness.cli.help import SETTINGS, Group, write_section
from kdbench.harness.options import told
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
        "signature": "Decide whether a fault lowers the accuracy, with few seeds.",
        "methods": "List the methods with their settings, and the networks.",
        "faults": "List the faults, or show one and what it changes.",
    },
    "Look at results and share them": {
        "report": "Write a study as a web page.",
        "ui": "Open a study's runs in the MLflow UI.",
        "mirror": "Bring MLflow up to date with the records.",
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


def run_cli(call: Callable[[], Any]) -> int:
    """Run a command; return its exit code, with what a user can fix said in one line and no traceback."""
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
