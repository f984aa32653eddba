"""kdbench init: a study's file to start from."""

import shutil
from importlib import resources
from pathlib import Path

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import program, stdout
from kdbench.harness.cli.help import explained
from kdbench.kd.errors import InputError


@explained(
    "init",
    examples=[
        ("write study.toml", "kdbench init"),
        ("write it by another name, and see its trials", "kdbench init mine.toml\nkdbench run mine.toml --dry-run"),
    ],
)
@click.argument("file", type=click.Path(path_type=Path), default=Path("study.toml"))
def command(file: Path) -> None:
    """Write a commented study file to start from (study.toml); an existing file is never overwritten."""
    if file.exists():
        raise InputError(f"{file} exists already; name another file, or remove it")
    if file.suffix != ".toml":
        raise InputError(f"{file}: a study's file ends in .toml")
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}")
    with resources.as_file(resources.files("kdbench.harness.presets") / "template.toml") as template:
        shutil.copyfile(template, file)
    call = f"{program()} run {file} --dry-run"
    stdout().print(f"{escape(str(file))} is written; {escape(call)} shows its trials and their cost", soft_wrap=True)
