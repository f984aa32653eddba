"""Damaged copies of a good file: bytes flipped, cut, doubled; and where it is JSON, values that no writer wrote.

The n-th damage of a file is the same on every machine.
"""

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "\x00",
    "\x1b]0;t\x07", "../../../etc/passwd", "/", "é" * 300, "9" * 5000, [], {}, [[]], [None], {"": None},
    {"a": {"b": []}},
)  # fmt: skip
"What stands where something else belongs."
DEEP = 100_000
"Brackets inside brackets: more than any parser's stack holds."


def damaged(content: bytes, number: int, structured: bool) -> bytes:
    """Return a file's content with damage of this number; `structured` where it is JSON, an object or one a line."""
    chance = random.Random(number)
    if structured and chance.random() < 0.7:
        return _as_json(content, chance)
    return chance.choice(_ON_BYTES)(content, chance)


def damaged_toml(content: bytes, number: int) -> bytes:
    """Return a TOML file's content with damage of this number: a value, a key or a table that nobody meant."""
    chance = random.Random(number)
    if chance.random() < 0.3:
        return chance.choice(_ON_BYTES)(content, chance)
    lines = content.decode().splitlines()
    at = [i for i, line in enumerate(lines) if re.match(r"\s*[\w.\"'-]+\s*=", line)]
    i = chance.choice(at)
    key, _, value = lines[i].partition("=")
    odd = chance.choice(["''", "[]", "{}", "0", "-1", "nan", "inf", "1e400", "true", "[[1]]", "'x'",
                         "9" * 400, "1979-05-27", "[" * 2000 + "]" * 2000, f"[{value}]", value * 2])  # fmt: skip
    how = chance.randrange(5)
    if how == 0:
        lines[i] = f"{key}= {odd}"
    elif how == 1:
        lines.pop(i)
    elif how == 2:
        lines[i] = f"{key.strip()}x = {odd}"
    elif how == 3:
        lines.insert(i, chance.choice(["[study]", "[a.b]", "[[study]]", "[method]", "study = 1", f"{key}= {odd}"]))
    else:
        lines[chance.choice(at)] = f"{key}={odd}"
    return "\n".join(lines).encode()


def _flip(content: bytes, chance: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 8))):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _double(content: bytes, chance: random.Random) -> bytes:
    a, b = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:b] + content[a:]


def _put_in(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return (
        content[:at] + chance.choice((b"\xff\xfe", b"\0", b"[" * DEEP, b'{"a":' * DEEP, b"\xef\xbb\xbf")) + content[at:]
    )


def _nothing(content: bytes, chance: random.Random) -> bytes:
    return chance.choice((b"", b"\n", b"null", b"[]", b"{}", b"1", b'"x"'))


_ON_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _flip, _cut, _double, _put_in, _nothing)


def _as_json(content: bytes, chance: random.Random) -> bytes:
    lines = content.decode().splitlines()
    try:
        value, line = json.loads(content), None
    except ValueError:  # an object a line
        line = chance.randrange(len(lines))
        value = json.loads(lines[line])
    value = _with_odd(copy.deepcopy(value), chance)
    if line is None:
        return json.dumps(value, indent=2).encode()
    lines[line] = json.dumps(value)
    return ("\n".join(lines) + "\n").encode()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _places(item, (*path, key))
    return found


def _with_odd(value: Any, chance: random.Random) -> Any:
    for _ in range(chance.choice((1, 1, 1, 3))):
        places = _places(value)
        if not places:
            return chance.choice(ODD)
        *path, last = chance.choice(places)
        parent = value
        for step in path:
            parent = parent[step]
        how = chance.randrange(6)
        if how == 0:
            del parent[last]
        elif how == 1 and isinstance(parent, dict):
            parent[str(last) + "x"] = parent.pop(last)
        elif how == 2 and isinstance(parent, list):
            parent.append(parent[last])
        else:
            parent[last] = copy.deepcopy(chance.choice(ODD))
    return value
