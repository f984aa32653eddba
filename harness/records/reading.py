"""The one door by which a file comes in: of a bounded size, parsed, held against a type, and refused in one sentence.

Only this file imports pydantic, and only when something is read: a trial writes its record without it.
"""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from kdbench.kd.errors import InputError

T = TypeVar("T")

MOST_BYTES = 256 * 2**20
"Of a file of text. A record of 10,000 epochs has 20 MB; what is larger is no record."
SAID = 200
"Characters that a message repeats of a file's content."


@dataclass(frozen=True)
class Holds:
    """A condition on a value, beside its type: ``Annotated[float, Holds(lambda x: x > 0, "must be positive")]``."""

    condition: Callable[[Any], bool]
    said: str
    "What is wrong with a value for which it does not hold, after the value."

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Have pydantic, which looks for this method, check the condition after the type."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        if not self.condition(value):
            raise ValueError(f"{str(value)[:SAID]} {self.said}")
        return value


Percent = Annotated[float, Holds(lambda value: 0 <= value <= 100, "is no percentage")]
Share = Annotated[float, Holds(lambda value: 0 <= value <= 1, "is no share between 0 and 1")]
Count = Annotated[int, Holds(lambda value: value >= 0, "is negative")]
Number = Annotated[int, Holds(lambda value: value >= 1, "is below 1")]


def content(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return a regular file's bytes; a pipe, a device, a folder or more than `most` bytes is an InputError."""
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file" if path.exists() else f"{path} does not exist")
        if path.stat().st_size > most:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; more than {most:,} are not read")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(kind: type[T], path: Path, what: str, mend: str) -> T:
    """Read a file of JSON as a value of a type, or raise InputError: the file, the place in it, and the mend."""
    return parse_json(kind, content(path), str(path), what, mend)


def parse_json(
    kind: type[T], text: bytes, where: str, what: str, mend: str, unknown: Literal["forbid", "ignore"] = "forbid"
) -> T:
    """Read JSON text as a value of a type; another type is an error, and so is an `unknown` key unless ignored."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(text, strict=True, extra=unknown)
    except ValidationError as error:
        raise InputError(f"{where} is not {what}: {_said(error)}; {mend}") from error


def parse_value(kind: type[T], value: Any, where: str) -> T:
    """Hold a value, as TOML gave it, against a type; another type is an InputError that names the key."""
    from pydantic import ValidationError

    try:  # as JSON: from Python's own values a strict reading wants an instance, and a loose one takes "7" for 7
        return _adapter(kind).validate_json(json.dumps(value, default=_no_string), strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {_said(error)}") from error


def _no_string(value: Any) -> dict[str, str]:
    """Return what stands for a date or a time of TOML, which JSON has none of: no field takes it."""
    return {type(value).__name__: str(value)}


def plain_json(text: bytes | str, where: str, what: str, mend: str) -> Any:
    """Parse JSON text of any form; NaN, an infinity, and nesting beyond what a stack holds are InputErrors."""
    from pydantic_core import from_json

    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InputError(f"{where} is not {what}: {_short(error)}; {mend}") from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Parse a file of TOML; one that is none, or not UTF-8, is an InputError."""
    return parse_toml(content(path), str(path), what)


def parse_toml(text: bytes, where: str, what: str = "TOML") -> dict[str, Any]:
    """Parse TOML text; what is none, or nested beyond what a stack holds, is an InputError."""
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        joined = re.search(rb"^\s*\[[^\]\"'\n]*\+", text, re.M)
        quoted = '; a name with + stands in quotes, as [method."logit+at"]' if joined else ""
        raise InputError(f"{where} cannot be read as {what}: {_short(error)}{quoted}") from error


_ADAPTERS: dict[Any, Any] = {}


def _adapter(kind: Any) -> Any:
    if kind not in _ADAPTERS:
        from pydantic import TypeAdapter

        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _said(error: Exception) -> str:
    """Return the first thing that a value is blamed for, after the place of it."""
    problems = getattr(error, "errors", None)
    if problems is None:
        return _short(error)
    first, count = problems(include_url=False, include_input=False)[0], error.error_count()  # type: ignore[attr-defined]
    place = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"{place[:SAID]}{': ' if place else ''}{said[:1].lower()}{said[1:SAID]}{more}"


def _short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return said if len(said) <= SAID else f"{said[:SAID]} ..."
