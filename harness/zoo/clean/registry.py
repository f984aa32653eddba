"""The registry of the clean zoo: a member enters it where it is written."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Open = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True)
class Member:
    """A correct training; `loop` returns what it trained."""

    name: str
    loop: Callable[[Open], nn.Module]
    waived: Mapping[str, str] = field(default_factory=dict)
    "Reason by id: what an audit rightly says of it, and the user would waive."


MEMBERS: dict[str, Member] = {}


def member(**options: Any) -> Callable[[Callable[[Open], nn.Module]], Callable[[Open], nn.Module]]:
    """Enter a training into the zoo, under its function's name."""

    def enter(loop: Callable[[Open], nn.Module]) -> Callable[[Open], nn.Module]:
        MEMBERS[loop.__name__] = Member(loop.__name__, loop, **options)
        return loop

    return enter
