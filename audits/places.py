"""How a place in the user's code is named: a file beside the working folder, or a cell of a notebook."""

import sys
from pathlib import Path


def shown(file: str) -> str:
    """Return how a code's file is named to the user: relative where it can be, and a notebook's cell by its number."""
    if (cell := _cell(file)) is not None:
        return cell
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def is_cell(file: str) -> bool:
    """Say whether a code's file is a cell: IPython's own in a terminal has no file, and begins as no file does."""
    return file.startswith("<ipython-input") or "ipykernel_" in file


def _cell(file: str) -> str | None:
    """Return a cell as IPython's tracebacks call it, such as "Cell In[3]"; None of what is no cell, or not its own."""
    if not is_cell(file) or "IPython" not in sys.modules:
        return None
    shell = sys.modules["IPython"].get_ipython()
    label = shell.compile.format_code_name(file) if shell is not None else None
    return " ".join(label) if label else None
