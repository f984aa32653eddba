"""Python files of the user's, with faults, methods or networks: each is run once, in every process that needs it.

A file that does not register what it was named for, or stops half-way, leaves nothing registered.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.harness.records.digests import digest as meant
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS
from kdbench.kd.models import MODELS


@dataclass(frozen=True)
class Kind:
    """What a file of the user's may be named for."""

    name: str
    option: str
    what: str
    "What it holds, one of them in words."
    mend: str
    registries: Callable[[], tuple[dict[str, Any], ...]]
    "The first must have something new in it; all are put back as they were if the file fails."


KINDS = {
    "methods": Kind(
        "methods",
        "--method-file",
        "method",
        "decorate a class with @method (from kdbench.kd.methods)",
        lambda: (METHODS,),
    ),
    "models": Kind(
        "models", "--model-file", "network", "decorate a class with @model (from kdbench.kd.models)", lambda: (MODELS,)
    ),
}
"Beside these kdbench.harness.faults enters its own."


class Loaded(NamedTuple):
    """A file whose registrations are in force; whoever starts a process for trials hands it on."""

    kind: str
    path: Path


LOADED: list[Loaded] = []
_FOUND: dict[Path, set[str]] = {}
"By file that was run: the kinds of what it registered."


def files_of(kind: str) -> list[Path]:
    """Return the files that were named for a kind."""
    return [loaded.path for loaded in LOADED if loaded.kind == kind]


def digest_of(path: Path) -> str:
    """Return the digest of a file's bytes, by which it is told whether it was loaded or trusted before."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def meaning_of(path: Path) -> str:
    """Return the digest of what a file's code means: another one is another experiment; a comment changes nothing."""
    return meant({"": path.read_text(encoding="utf-8")})


def load_all(files: Iterable[tuple[str, str | Path]]) -> None:
    """Load files by kind, as :data:`LOADED` has them in another process."""
    for kind, path in files:
        load(kind, Path(path))


def is_loaded(kind: str, path: Path) -> bool:
    """Say whether a file, or one of the same content, was loaded for a kind."""
    digest = digest_of(path)
    return any(done.kind == kind and digest_of(done.path) == digest for done in LOADED if done.path.is_file())


def as_options(*kinds: str, whole: bool = True) -> str:
    """Return the options that name the files loaded so far, as they follow a command that is shown.

    `kinds`, if any, are the kinds that the command takes. Where the text leaves this machine, without `whole`, a file
    is named without its folder.
    """
    loaded = [(kind, path) for kind, path in LOADED if not kinds or kind in kinds]
    return "".join(f" {KINDS[kind].option} {path if whole else path.name}" for kind, path in loaded)


def load(kind: str, path: Path) -> None:
    """Register what a file of the user's holds, once; a file without anything of the kind is an InputError."""
    entry, path = KINDS[kind], path.resolve()
    if path.is_dir():
        raise InputError(f"{entry.option} {path} is a folder; name a Python file in it")
    if not path.is_file():
        raise InputError(f"{entry.option} {path} does not exist; name a Python file with a {entry.what}: {entry.mend}")
    if is_loaded(kind, path):
        return
    if path not in (done.path for done in LOADED):
        _run(path, entry)
    if kind not in _FOUND[path]:
        raise InputError(f"{entry.option} {path}: it registers no {entry.what}; {entry.mend}")
    LOADED.append(Loaded(kind, path))


def _run(path: Path, entry: Kind) -> None:
    name = f"kdbench_{entry.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{entry.option} {path} is no Python file; its name must end in .py")
    before = {kind: [dict(registry) for registry in known.registries()] for kind, known in KINDS.items()}
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        if len(entry.registries()[0]) == len(before[entry.name][0]):
            raise InputError(f"it registers no {entry.what}; {entry.mend}")
    except Exception as error:
        for kind, contents in before.items():
            for registry, content in zip(KINDS[kind].registries(), contents, strict=True):
                registry.clear()
                registry.update(content)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in ("kd", "audits", "harness"):
            what += f"; what is imported is kdbench.{error.name} now"
        raise InputError(f"{entry.option} {path}{f', line {line}' if line else ''}: {what}") from error
    _FOUND[path] = {kind for kind, known in KINDS.items() if len(known.registries()[0]) > len(before[kind][0])}
    digest = meaning_of(path)
    for added in METHODS.keys() - before["methods"][0].keys():
        METHODS[added].digest = digest
    for added in MODELS.keys() - before["models"][0].keys():
        MODELS[added] = replace(MODELS[added], digest=digest)
