"""Files of the user's that options name: noted as the command line is read, loaded before the command needs them.

Loading one imports PyTorch, which takes seconds; so a command that trains says first what it will do.
"""

from pathlib import Path

import click

_NOTED = "kdbench.own_files"
_FILES = "kdbench.all_own_files"


def note(ctx: click.Context, what: str, files: tuple[Path, ...]) -> None:
    """Note files that hold faults, methods or models, to be loaded by :func:`load_own_files`."""
    for key in (_NOTED, _FILES):
        ctx.meta.setdefault(key, []).extend((what, file) for file in files)


def files_of(ctx: click.Context, what: str) -> list[Path]:
    """Return the files of a kind that the command line names, loaded or not."""
    return [file for kind, file in ctx.meta.get(_FILES, []) if kind == what]


def load_own_files(ctx: click.Context) -> None:
    """Load the files that the command line names, once; InputError for one that cannot be loaded."""
    noted = ctx.meta.pop(_NOTED, [])
    if noted:
        from kdbench.harness import faults, loading  # noqa: F401  (faults enters its kind)

        for what, file in noted:
            loading.load(what, file)
