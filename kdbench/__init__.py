"""kdbench: knowledge-distillation benchmarks in which every number arrives with the proof that the code was right.

``kdbench.watch`` attaches the audits to a training loop of yours; ``kdbench.KD`` and ``kdbench.Clip`` say what you
mean by it. Every public name of :mod:`kdbench.audits` can be had from here. Importing the package is free: torch is
imported when a name is first used.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from kdbench.audits import *  # noqa: F403

__version__ = "0.2.0"

_HERE = _Path(__file__).resolve().parent
if not (_HERE / "kd").is_dir():
    # A wheel holds kd, audits and harness inside this folder; in a checkout they stand beside it.
    __path__ = [str(_HERE), str(_HERE.parent)]


def __getattr__(name: str) -> _Any:
    """Return a public name of the audits; `__all__` names them all."""
    if name == "__all__":
        return __dir__()
    if not name.startswith("_"):
        audits = _import_module("kdbench.audits")
        if name in audits.__all__:
            return getattr(audits, name)
    raise AttributeError(f"module 'kdbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names: those of the audits, and the version."""
    return sorted({"__version__", *_import_module("kdbench.audits").__all__})
