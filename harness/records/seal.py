"""Digests that a record carries of its own fields and of its files, so that a change is named by file and field.

They prove nothing against somebody who changes a record and makes the digests anew: for that, train it again
(`kdbench reproduce`), or sign the bundle.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdbench.kd.errors import InputError
from kdbench.kd.teacher import file_sha256

_PARTS = ("metrics", "fault", "teacher", "decision", "controls")
"Fields whose parts have a digest each."
_LENGTH = 16
"Hex digits of a digest: 64 bits are enough against accidents and careless hands."
_WHOLE = "file"
"The seal's digest of the whole text but the seal: one look says that nothing changed, and the others say what did."
_encode = json.JSONEncoder(sort_keys=True, allow_nan=False).encode


class ChangedError(InputError):
    """Raised for a record that is not as it was written; `fields` are those that changed."""

    def __init__(self, message: str, fields: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


def seal(fields: Mapping[str, Any], owner: str) -> dict[str, str]:
    """Return a digest for each field of a record; `owner`, its name, is part of all, so that no other's fits here."""
    return {name: _digest(owner, name, value) for name, value in _leaves(fields)}


def sealed_text(fields: Mapping[str, Any], owner: str, sort_keys: bool = False) -> str:
    """Return a record as JSON text, with its seal in the field of that name."""
    bare = json.dumps({**fields, "seal": {}}, indent=2, sort_keys=sort_keys, allow_nan=False) + "\n"
    found = {**seal(fields, owner), _WHOLE: _of_text(bare.encode(), owner)}
    return json.dumps({**fields, "seal": found}, indent=2, sort_keys=sort_keys, allow_nan=False) + "\n"


def is_whole(text: bytes, owner: str, sealed: Mapping[str, str]) -> bool:
    """Say whether a record's text is, byte for byte, what was sealed; where not, its fields may still be."""
    head, begin, rest = text.partition(b'"seal": {')
    bare = head + b'"seal": {}' + rest.partition(b"}")[2]
    return bool(begin) and sealed.get(_WHOLE) == _of_text(bare, owner)


def broken(fields: Mapping[str, Any], owner: str, sealed: Mapping[str, str]) -> list[str]:
    """Return the names of the fields that are not what the seal says, are missing, or were added; none where whole."""
    found = seal(fields, owner)
    sealed = {name: digest for name, digest in sealed.items() if name != _WHOLE}
    return sorted(name for name in found.keys() | sealed.keys() if found.get(name) != sealed.get(name))


def of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each of these files that is there."""
    return {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}


def _leaves(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if name == "seal":
            continue
        if name in _PARTS and isinstance(value, dict):
            yield from ((f"{name}.{part}", item) for part, item in value.items())
        elif name == "findings" and isinstance(value, list):
            yield "findings", [f.get("id") for f in value]
            yield from ((f"findings.{f.get('id')}", f) for f in value)
        else:
            yield name, value


def _digest(owner: str, name: str, value: Any) -> str:
    return hashlib.sha256(_encode([owner, name, value]).encode()).hexdigest()[:_LENGTH]


def _of_text(text: bytes, owner: str) -> str:
    return hashlib.sha256(owner.encode() + b"\0" + text).hexdigest()[:_LENGTH]
