"""study.json: what a study declares, which trial belongs to which arm, and the commands that it was run by."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from kdbench.harness.records import seal
from kdbench.harness.records.reading import Count, Holds, content, parse_json, plain_json
from kdbench.harness.records.record import write_atomic
from kdbench.kd.errors import InputError

_NAME = "study.json"
_MEND = "delete it, and run the study's command again"


def _is_key(text: str) -> bool:
    return len(text) == 16 and set(text) <= set("0123456789abcdef")


Key = Annotated[str, Holds(_is_key, "is no trial's name")]
"It names a folder, and a file that was edited must not lead out of the study's."
Repeated = Annotated[str, Holds(lambda text: _is_key(text.removeprefix("again-")), "is no trial's name")]
Pair = Annotated[list[Repeated], Holds(lambda keys: len(keys) == 2, "is no pair")]
Margin = Annotated[float, Holds(lambda value: value > 0, "is not positive")]
Level = Annotated[float, Holds(lambda value: 0 < value < 1, "is no level between 0 and 1")]
Trials = Annotated[dict[Count, Key], Holds(bool, "is no arm: it has no trial")]


@dataclass(frozen=True)
class Entry:
    """An arm, with its trials by seed."""

    fault: str | None
    pair: str
    method: str
    trials: Trials


@dataclass(frozen=True)
class GridEntry(Entry):
    """A point of the grid that an arm chose from."""

    point: dict[str, int | float]


@dataclass(frozen=True)
class Watched:
    """The study's controls."""

    again: Pair | None
    "A trial and its repeat."
    arms: list[Entry]


@dataclass(frozen=True)
class Declared:
    """How the study decides, as declared before its results."""

    metric: str
    margin_pp: Margin
    alpha: Level
    paired: str = ""
    family: str = ""


@dataclass(frozen=True)
class StudyFile:
    """The content of study.json."""

    schema: Literal["kdbench.study/1"]
    decision: Declared
    arms: list[Entry]
    controls: Watched | None = None
    commands: list[str] = field(default_factory=list)
    grid: list[GridEntry] = field(default_factory=list)
    seal: dict[str, str] = field(default_factory=dict)
    "Digests of the fields above; empty in files of version 0.1."


def exists(folder: Path) -> bool:
    """Say whether a folder holds a study."""
    return (folder / _NAME).is_file()


def read(folder: Path) -> StudyFile:
    """Read a study's file; InputError if there is none, or if it is none, or not as it was written."""
    path = folder / _NAME
    if not path.exists():
        raise InputError(f"{folder} is no study: it has no {_NAME}; start one with kdbench run")
    text, what = content(path), "a study's file"
    found = parse_json(StudyFile, text, str(path), what, _MEND)
    if not found.seal or seal.is_whole(text, "", found.seal):
        return found
    changed = seal.broken(plain_json(text, str(path), what, _MEND), "", found.seal)
    if changed:
        raise seal.ChangedError(f"{path}, {', '.join(changed[:3])}: changed since kdbench wrote it; {_MEND}", changed)
    return found


def write(folder: Path, study: StudyFile) -> None:
    """Write a study's file, sealed."""
    write_atomic(folder / _NAME, text(asdict(study)))


def text(fields: dict[str, Any]) -> str:
    """Return the text of a study's file with these fields, and the digests of them."""
    plain = json.loads(json.dumps({**fields, "seal": {}}, allow_nan=False))  # seeds are texts, as a reader finds them
    return seal.sealed_text(plain, "")
