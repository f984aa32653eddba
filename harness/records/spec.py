"""What decides a trial's numbers, and nothing else; its digest is the trial's name."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

from kdbench.kd import NUMERICS
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.methods import METHODS, MethodSettings, read_settings
from kdbench.kd.recipe import SAME_BITS, Recipe


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
    method_digest: str | None = None
    "Of the file of the user's that the method stands in; None for a method of ours."
    arch_digest: str | None = None
    "Of the file of the user's that the network stands in."
    teacher_digest: str | None = None
    "Of the file of the user's that the teacher's network stands in."
    stages: str | None = None
    "Which of the teacher's stages goes with which of the student's, as 2-1, 3-2; None for each with the same one."

    @property
    def network(self) -> str:
        """The network, and of one that was taught by whom and how: what a teacher and its assistants are told by."""
        taught = "" if self.teacher is None else f" (taught by {self.teacher.arch}, {self.method})"
        return f"{self.arch}{taught}"

    @cached_property
    def key(self) -> str:
        """Name of the trial: a digest of everything above."""
        text = "\n".join(f"{name}: {_text(value)}" for name, value in self._decisive_values().items())
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the spec as JSON text, the same for equal specs."""
        plain = self._plain()
        # They decide nothing, but the trial must hear of them.
        plain["recipe"] |= {name: value for name in SAME_BITS if (value := getattr(self.recipe, name))}
        return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def _decisive_values(self) -> dict[str, Any]:
        """Return the fields by name; what came to be later is no part of an experiment that does without it."""
        values = {name: getattr(self, name) for name in _NAMES}
        return {name: value for name, value in values.items() if value is not None or name not in _UNLESS_NONE}

    def _plain(self) -> dict[str, Any]:
        """Return the fields as plain data, of a method its own settings and no others."""
        return {
            name: vars(value) if isinstance(value, MethodSettings) else _decisive(value)
            for name, value in self._decisive_values().items()
        }

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Read what :meth:`to_json` wrote; anything missing or unknown is an error."""
        try:
            raw = json.loads(text, parse_constant=_no_number)
            raw["settings"] = _read_settings(raw["method"], raw["settings"])
            raw["recipe"] = _recipe(tuple((name, type(value), value) for name, value in raw["recipe"].items()))
            raw["teacher"] = None if raw["teacher"] is None else TeacherRef(**raw["teacher"])
            spec = cls(**raw)
            _check_plain(spec)
        except RecursionError as error:
            raise InputError("not a trial's spec: it is nested too deeply") from error
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a trial's spec: {error}") from error
        return spec

    def names(self) -> set[str]:
        """Return the dotted names of all that decides the numbers."""
        return set(_flat(self))

    def differences(self, other: "Spec") -> dict[str, tuple[Any, Any]]:
        """Return what differs between two specs, by dotted name."""
        mine, theirs = _flat(self), _flat(other)
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        }


_NAMES = tuple(field.name for field in fields(Spec))
_MAY_BE_NONE = ("fault", "fault_digest", "method_digest", "arch_digest", "teacher_digest", "stages")
_UNLESS_NONE = ("method_digest", "arch_digest", "teacher_digest", "stages")

# Until version 0.1 one class held the numbers of every method, and a spec, and so its key, named all four of them.
# The keys of the methods of then are still made from these four, and from what was added to a method since where it
# is not at its default: so no record is orphaned.
_METHODS_OF_0_1 = ("baseline", "logit", "feature")
_SETTINGS_OF_0_1 = {"ce_weight": 1.0, "kd_weight": 0.0, "temperature": 4.0, "beta": 0.5}


@lru_cache(maxsize=4096, typed=True)
def _text(value: Any) -> str:
    """Return a field's value as JSON; the trials of a study share most of theirs."""
    return json.dumps(_decisive(value), sort_keys=True, allow_nan=False)


def _decisive(value: Any) -> Any:
    """Return a field's value as plain data, without what changes a training's speed and no bit of it."""
    if isinstance(value, MethodSettings):
        return _decisive_settings(value)
    if isinstance(value, Recipe):
        return value.decisive()
    return vars(value) if isinstance(value, TeacherRef) else value


def _decisive_settings(settings: MethodSettings) -> dict[str, Any]:
    """Return the settings that make a method's key: those that are not at their default, so a new one moves no key."""
    base = _SETTINGS_OF_0_1 if settings.method in _METHODS_OF_0_1 else {}
    defaults = settings.defaults()
    changed = {name: value for name, value in vars(settings).items() if name not in defaults or value != defaults[name]}
    return {**base, **{name: value for name, value in vars(settings).items() if name in base}, **changed}


@lru_cache(maxsize=256)
def _recipe(items: tuple[tuple[str, type, Any], ...]) -> Recipe:
    """Return a recipe, checked; the trials of a study share it."""
    return Recipe(**{name: value for name, _, value in items})


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _check_plain(spec: Spec) -> None:
    """Hold the fields that are texts or whole numbers to that; the others check themselves."""
    for name, value in vars(spec).items():
        if name in ("settings", "recipe", "teacher"):
            continue
        kind = int if name in ("seed", "threads", "numerics") else str
        if type(value) is not kind and not (value is None and name in _MAY_BE_NONE):
            raise ValueError(f"{name} is no {'whole number' if kind is int else 'text'}")
    if spec.teacher is not None and not all(isinstance(value, str) for value in vars(spec.teacher).values()):
        raise ValueError("teacher is no pair of texts")


def _read_settings(method: str, raw: dict[str, Any]) -> MethodSettings:
    """Return a method's settings as a spec holds them; one of another method is passed over at the value of 0.1."""
    if method not in METHODS:
        raise unknown("method", method, METHODS, "a trial's spec")
    own = METHODS[method].Settings.names()
    foreign = {name: value for name, value in raw.items() if name not in own}
    if method in _METHODS_OF_0_1:
        foreign = {name: value for name, value in foreign.items() if _SETTINGS_OF_0_1.get(name) != value}
    for name in foreign:
        raise unknown("setting", name, own, f"a trial of {method}")
    return read_settings(method, {name: value for name, value in raw.items() if name in own}, f"a trial of {method}")


def _flat(spec: Spec) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in spec._plain().items():
        if isinstance(value, dict):
            flat.update({f"{name}.{part}": item for part, item in value.items()})
        else:
            flat[name] = value
    return flat
