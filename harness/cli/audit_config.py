"""The choices of a project: [tool.kdbench] of its pyproject.toml, the defaults of kdbench audit."""

from pathlib import Path
from typing import Any

import click

from kdbench.harness.cli.help import Command
from kdbench.harness.records.reading import read_toml
from kdbench.kd.errors import InputError, unknown

_LISTS = ("select", "ignore", "waive")
_CONFIG: dict[str, tuple[type, ...]] = {
    "select": (list,),
    "ignore": (list,),
    "waive": (list, dict),
    "strict": (bool,),
    "steps": (int,),
    "max_seconds": (int, float),
    "max_norm": (int, float),
    "clip_scope": (str,),
    "form": (str,),
    "temperature": (int, float),
    "alpha": (int, float),
    "kd_weight": (int, float),
    "student": (str,),
    "teacher": (str,),
    "baseline": (str,),
    "contract": (str,),
    "format": (str,),
}
"Keys of [tool.kdbench], and what may stand there."


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
        for key, value in table.items():
            if key not in _CONFIG:
                raise unknown("key", key, _CONFIG, where)
            kinds = _CONFIG[key]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise InputError(f"{where}: {key} is {value!r}; it must be {' or '.join(_WORDS[k] for k in kinds)}")
        if isinstance(table.get("waive"), dict):
            table["waive"] = [f"{audit}={reason}" for audit, reason in table["waive"].items()]
        for key in _LISTS:
            if not all(isinstance(item, str) for item in table.get(key, [])):
                raise InputError(f"{where}: {key} is {table[key]!r}; it must be a list of texts")
        for key in ("baseline", "contract"):  # a path in a file means beside the file
            if key in table:
                table[key] = str(folder / table[key])
        return dict(table)
    return {}


_WORDS = {
    list: "a list",
    dict: "a table of reasons by id",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


class ConfiguredCommand(Command):
    """A command whose defaults are the project's [tool.kdbench]."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the project's choices before the command line, which wins."""
        ctx.default_map = read_config(Path.cwd())
        return super().parse_args(ctx, args)
