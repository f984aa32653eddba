"""What decides a trial's numbers, and nothing else; its digest is the trial's name."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

from kd import NUMERICS
from kd.errors import InputError
from kd.methods import MethodSettings
from kd.recipe import SAME_BITS, Recipe


@dataclass(frozen=True)
class TeacherRef:
    """The teacher of a student's trial."""

    arch: str
    key: str
    "Of the trial that trains it, or ``sha256:`` and the hash of a checkpoint that was brought along."


@dataclass(frozen=True)
class Spec:
    """One training, completely: two equal specs give bitwise equal weights on a CPU."""

    dataset: str
    data_digest: str
    arch: str
    method: str
    settings: MethodSettings
    recipe: Recipe
    teacher: TeacherRef | None
    fault: str | None
    fault_digest: str | None
    seed: int
    threads: int
    "Of the processor: sums in another order have other last bits."
    device: str
    "Kind of device: cpu or cuda."
    numerics: int = NUMERICS

    @cached_property
    def key(self) -> str:
        """Name of the trial: a digest of everything above."""
        text = "\n".join(f"{name}: {_text(getattr(self, name))}" for name in _NAMES)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the spec as JSON text, the same for equal specs."""
        plain = self._plain()
        # They decide nothing, but the trial must hear of them.
        plain["recipe"] |= {name: value for name in SAME_BITS if (value := getattr(self.recipe, name))}
        return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def _plain(self) -> dict[str, Any]:
        return {name: _decisive(getattr(self, name)) for name in _NAMES}

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Read what :meth:`to_json` wrote; anything missing or unknown is an error."""
        try:
            raw = json.loads(text)
            raw["settings"] = MethodSettings(**raw["settings"])
            raw["recipe"] = Recipe(**raw["recipe"])
            raw["teacher"] = None if raw["teacher"] is None else TeacherRef(**raw["teacher"])
            return cls(**raw)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"not a trial's spec: {error}") from error

    def differences(self, other: "Spec") -> dict[str, tuple[Any, Any]]:
        """Return what differs between two specs, by dotted name."""
        mine, theirs = _flat(self), _flat(other)
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        }


_NAMES = tuple(field.name for field in fields(Spec))
_PARTS = (MethodSettings, Recipe, TeacherRef)


@lru_cache(maxsize=4096, typed=True)
def _text(value: Any) -> str:
    """Return a field's value as JSON; the trials of a study share most of theirs."""
    return json.dumps(_decisive(value), sort_keys=True, allow_nan=False)


def _decisive(value: Any) -> Any:
    """Return a field's value as plain data, without what changes a training's speed and no bit of it."""
    if not isinstance(value, _PARTS):
        return value
    return {name: part for name, part in vars(value).items() if name not in SAME_BITS}


def _flat(spec: Spec) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in spec._plain().items():
        if isinstance(value, dict):
            flat.update({f"{name}.{part}": item for part, item in value.items()})
        else:
            flat[name] = value
    return flat
