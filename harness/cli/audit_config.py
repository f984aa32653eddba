"""The choices of a project: [tool.kdbench] of its pyproject.toml, the defaults of kdbench audit and mutate."""

from pathlib import Path
from typing import Any

import click

from kdbench.harness.cli.help import Command
from kdbench.harness.contract import Choices
from kdbench.harness.records.reading import parse_value, read_toml
from kdbench.kd.errors import InputError, unknown


def read_config(start: Path) -> dict[str, Any]:
    """Return [tool.kdbench] of the first pyproject.toml from a folder upwards that has one; {} if none has.

    An unknown key or a value of another type is an InputError that names file and key.
    """
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        if not path.is_file():
            continue
        tools = read_toml(path, "TOML").get("tool")
        table = tools.get("kdbench") if isinstance(tools, dict) else None
        if table is None:
            continue
        where = f"{path}, [tool.kdbench]"
        if not isinstance(table, dict):
            raise InputError(f"{where}: {table!r} stands where a table belongs")
        for key in table:
            if key not in Choices.__dataclass_fields__:
                raise unknown("key", key, Choices.__dataclass_fields__, where)
        parse_value(Choices, table, where)
        if isinstance(table.get("waive"), dict):
            table["waive"] = [f"{audit}={reason}" for audit, reason in table["waive"].items()]
        for key in ("baseline", "contract"):  # a path in a file means beside the file
            if key in table:
                table[key] = str(folder / table[key])
        return dict(table)
    return {}


class ConfiguredCommand(Command):
    """A command whose defaults are the project's [tool.kdbench]."""

    takes: tuple[str, ...] | None = None
    "The choices that it takes; None for all."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the project's choices before the command line, which wins."""
        found = read_config(Path.cwd())
        ctx.default_map = {k: v for k, v in found.items() if self.takes is None or k in self.takes}
        return super().parse_args(ctx, args)
