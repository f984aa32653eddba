"""Strict typing of settings that come from a file or a command line: no value is silently taken for another."""

import math
from dataclasses import fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kdbench.kd.errors import InputError, unknown


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def check_types(settings: Any, where: str) -> None:
    """Hold each field of a frozen dataclass to its annotation: int, float (from an int, too), bool or Literal, or None.

    Raises InputError that names the field, and for a Literal the nearest choice.
    """
    of: type = type(settings)
    for field in fields(settings):
        name, kind = field.name, _hints(of)[field.name]
        value = getattr(settings, name)
        if NoneType in get_args(kind):
            if value is None:
                continue
            (kind,) = {*get_args(kind)} - {NoneType}
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise unknown(name, str(value), map(str, get_args(kind)), where)
            continue
        if kind is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError as error:
                raise InputError(f"{where}: {name} is larger than any number that a float holds") from error
            object.__setattr__(settings, name, value)  # so that 4 and 4.0 are one setting
        if type(value) is not kind:
            raise InputError(f"{where}: {name} is {value!r}; it must be of type {kind.__name__}")
        if kind is float and not math.isfinite(value):
            raise InputError(f"{where}: {name} is {value}; it must be a finite number")
