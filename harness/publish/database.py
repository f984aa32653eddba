"""MLflow's SQLite file: made whole or not at all, and set aside where an earlier, interrupted making broke it."""

import itertools
import os
from pathlib import Path

from kdbench.harness.records import temporaries

import kdbench.harness.records.tracking  # noqa: F401  # isort: skip  # before mlflow, which reads it once
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

_BROKEN = ("already exists", "no such table", "malformed", "not a database")
"What SQLite and MLflow say of a file whose making was cut off, or that is none; a lock says something else."
_DETOURS = itertools.count(1)


def ensure(path: Path) -> Path | None:
    """Make MLflow's database unless it is there and whole; return where a broken one was moved to, if there was one.

    MLflow makes its tables one by one, and never again where it was cut off in between. So they are made under
    another name, which becomes the file's only when all are there; whoever comes second keeps the first one's.
    """
    aside = None
    if path.exists():
        try:
            # By an address of its own: MLflow keeps what it opened by address, a file that is moved away here too.
            _open(path.resolve(), "./" * next(_DETOURS))
            return None
        except Exception as error:  # MLflow's, SQLAlchemy's and SQLite's
            if not is_broken(error):
                raise
            aside = _free_name(path)
            path.replace(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporaries.sweep(path.parent)
    temporary = temporaries.temporary(path)
    try:
        _open(temporary.resolve())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return aside


def is_broken(error: Exception) -> bool:
    """Say whether an error shows that a database's making was cut off, or that the file is none."""
    said = " ".join(str(cause) for cause in (error, error.__cause__, error.__context__))
    return any(word in said for word in _BROKEN)


def _open(path: Path, detour: str = "") -> None:
    """Have MLflow open a database, make what is missing in it, and close it."""
    store = SqlAlchemyStore(f"sqlite:///{path.parent}/{detour}{path.name}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()


def _free_name(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    return free
