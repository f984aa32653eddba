"""How the commands explain themselves: options in named groups, and examples at the end of every help."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import rich_click

from kdbench.harness.cli.own_files import load_own_files
from kdbench.kd.errors import unknown

if TYPE_CHECKING:
    from rich_click.rich_context import RichContext
    from rich_click.rich_help_formatter import RichHelpFormatter

YOUR_CODE, RECORDS, DECISION, OUTPUT = "Your own code", "Records", "How it is decided", "Output"
"Groups of options that many commands have."

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "rich_help_config": {
        "theme": "default-slim",
        "options_table_column_types": ["opt_all_metavar", "help"],
        "options_table_help_sections": ["help", "required", "default"],
        "default_string": r"\[default: {}]",
        "append_metavars_help_string": "{}",
        "panel_title_string": "{}",
    },
}
"What every command's context is made with."

_NAMES = 10
"Width of the names in a section, so that sections stand in line."


class Example(NamedTuple):
    """What to type, one command a line, and what it does."""

    does: str
    commands: str


class _Explained(click.Command):
    """What commands and groups have in common: a docstring in paragraphs, and examples at the end of the help."""

    examples: Sequence[Example] = ()

    def format_help_text(self, ctx: "RichContext", formatter: "RichHelpFormatter") -> None:  # type: ignore[override]
        """Write the docstring."""
        write_paragraphs(self.help or "", formatter)

    def format_epilog(self, ctx: "RichContext", formatter: "RichHelpFormatter") -> None:  # type: ignore[override]
        """Write the examples."""
        write_examples(self.examples, formatter)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return click's own option, which flushes what it prints."""
        return click.Command.get_help_option(self, ctx)


class Command(_Explained, rich_click.RichCommand):
    """A command whose options stand in groups, and whose help ends with examples.

    The user's own files are loaded before it runs, unless it `loads_late`, by itself.
    """

    def __init__(
        self, *args: Any, examples: Sequence[tuple[str, str]] = (), loads_late: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = [Example(*example) for example in examples]
        self.loads_late = loads_late

    def invoke(self, ctx: click.Context) -> Any:
        """Load the user's own files, and run."""
        if not self.loads_late:
            load_own_files(ctx)
        return super().invoke(ctx)


class Group(_Explained, rich_click.RichGroup):  # type: ignore[misc]  # rich-click has it so too
    """A group that explains itself when no command is named, and names the nearest one for a slip."""

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "no_args_is_help": False})
        self.examples = [Example(*example) for example in examples]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Print the help and end well where nothing was asked for."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command; InputError with the nearest name if there is none."""
        found = super().get_command(ctx, name)
        if found is None and not ctx.resilient_parsing:
            raise unknown(f"command of {ctx.command_path}", name, self.list_commands(ctx))
        return found


def explained(
    name: str, examples: Sequence[tuple[str, str]], cls: type[Command] = Command, **settings: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Return the decorator that makes a command, with examples as pairs of what they do and what to type."""
    return click.command(name, cls=cls, examples=examples, **settings)


def write_paragraphs(text: str, formatter: "RichHelpFormatter") -> None:
    """Write paragraphs as wide as the terminal, a blank line after each."""
    from rich.text import Text

    for paragraph in inspect.cleandoc(text).split("\n\n"):
        formatter.write(Text(" ".join(paragraph.split()) + "\n"))


def write_section(title: str, rows: Sequence[tuple[str, str]], formatter: "RichHelpFormatter") -> None:
    """Write a titled table of two columns, as the options are written."""
    from rich.table import Table
    from rich.text import Text

    formatter.write(Text(title, style="bold"))
    table = Table(box=None, pad_edge=True, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True, min_width=_NAMES)
    table.add_column()
    for name, text in rows:
        table.add_row(Text(name, style="bold cyan"), Text(text))
    formatter.write(table)
    formatter.write(Text(""))


def write_examples(examples: Sequence[Example], formatter: "RichHelpFormatter") -> None:
    """Write what to type, each line under what it does."""
    if not examples:
        return
    from rich.text import Text

    lines = [Text("Examples", style="bold")]
    for example in examples:
        lines += [Text(f"  # {example.does}", style="dim")]
        lines += [Text(f"  {line}") for line in example.commands.splitlines()]
    formatter.write(Text("\n").join(lines))
    formatter.write(Text(""))
