"""Methods joined by ``+``: the terms of several, each with its own weight, as in `logit+at`.

A joined method is made of its parts when it is asked for; no list holds it. Its settings are those of the parts; a name
that an earlier part has gets the later one's name before it: `logit+feature` has `kd_weight` and `feature_kd_weight`.
A method that wraps others (logit standardisation) adds no term of its own beside another method of logits, but changes
the answers that this one is shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, ClassVar

from torch import nn

from kdbench.kd.errors import InputError
from kdbench.kd.methods.registry import METHODS, Batch, Method, MethodSettings, Soft, Stages, Terms
from kdbench.kd.models.registry import Answer


def joined(name: str) -> type[Method]:
    """Return the method that a joined name stands for; InputError if it stands for none, or is written otherwise."""
    names = name.split("+")
    kinds = [METHODS[part] for part in names]
    for part, kind in zip(names, kinds, strict=True):
        if not kind.needs_teacher:
            raise InputError(f"method {name}: {part} has no term to be joined with others")
        if names.count(part) > 1:
            raise InputError(f"method {name}: {part} stands in it twice")
    order = [*METHODS]
    kinds.sort(key=lambda kind: (not kind.wraps, kind.soft is Soft.NONE, order.index(kind.name)))
    right = "+".join(kind.name for kind in kinds)
    if right != name:
        raise InputError(f"method {name}: write it as {right}, so that it is the same in every study")
    wrappers = [kind for kind in kinds if kind.wraps]
    terms = [kind for kind in kinds if not kind.wraps]
    if len(wrappers) > 1:
        raise InputError(f"method {name}: only one of {' and '.join(k.name for k in wrappers)} can change the answers")
    if not any(kind.soft is not Soft.NONE for kind in terms):
        terms, wrappers = kinds, []
    return _kind(name, terms, wrappers[0] if wrappers else None)


def _kind(name: str, parts: Sequence[type[Method]], wrapper: type[Method] | None) -> type[Method]:
    softs = [kind.soft for kind in parts if kind.soft is not Soft.NONE]
    everyone = [*parts, *([wrapper] if wrapper is not None else [])]
    digests = [kind.digest for kind in everyone if kind.digest is not None]
    stages: tuple[Stages, ...] = ("all", "last", "none")
    declared: dict[str, Any] = {
        "name": name,
        "title": " + ".join(kind.title for kind in (everyone if wrapper is None else [wrapper, *parts])),
        "paper": "; ".join(dict.fromkeys(kind.paper for kind in everyone)),
        "soft": Soft.OTHER if wrapper is not None or len(softs) > 1 else [*softs, Soft.NONE][0],
        "has_projectors": any(kind.has_projectors for kind in parts),
        "needs_teacher": True,
        "needs": tuple(dict.fromkeys(part for kind in parts for part in kind.needs)),
        "seams": tuple(dict.fromkeys(seam for kind in parts for seam in kind.seams)),
        "stages": next(word for word in stages if word == "none" or word in {kind.stages for kind in parts}),
        "wraps": False,
        "digest": "+".join(digests) or None,
        "parts": tuple(parts),
        "wrapper": wrapper,
        "Settings": _settings(name, parts),
        "__doc__": f"The terms of {', '.join(kind.name for kind in parts)}.",
    }
    return type("Joined", (Joined,), declared)


def _settings(name: str, parts: Sequence[type[Method]]) -> type[MethodSettings]:
    """Make the settings: the labels' weight as the first part has it, then each part's own in order."""
    own: dict[str, dict[str, str]] = {}
    taken = {"ce_weight"}
    made: list[Any] = [("ce_weight", float, field(default=parts[0].Settings.defaults()["ce_weight"]))]
    for kind in parts:
        own[kind.name] = {"ce_weight": "ce_weight"}
        types, defaults = {f.name: f.type for f in fields(kind.Settings)}, kind.Settings.defaults()
        for word in kind.Settings.names():
            if word == "ce_weight":
                continue
            ours = word if word not in taken else f"{kind.name.replace('-', '_')}_{word}"
            taken.add(ours)
            own[kind.name][word] = ours
            made.append((ours, types[word], field(default=defaults[word])) if word in defaults else (ours, types[word]))
    settings: Any = make_dataclass("Settings", made, bases=(JoinedSettings,), frozen=True, kw_only=True)
    settings.method, settings.own, settings.kinds = name, own, {kind.name: kind.Settings for kind in parts}
    found: type[MethodSettings] = settings
    return found


class JoinedSettings(MethodSettings):
    """The settings of all parts under their joined names."""

    own: ClassVar[Mapping[str, Mapping[str, str]]]
    "By part, the joined name of each of its settings."
    kinds: ClassVar[Mapping[str, type[MethodSettings]]]

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.own:
            if self.part(part).crops() != 1:
                raise InputError(
                    f"method {self.method}: {part} is trained on several crops of each image only by itself; "
                    "leave its views at 1, or do not join it"
                )

    @classmethod
    def of_parts(cls, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what tables say of the parts, under their joined names; the labels' weight is the first part's."""
        found: dict[str, Any] = {}
        for at, (part, names) in enumerate(cls.own.items()):
            table = tables.get(part, {})
            found |= {names[word]: table[word] for word in names if word in table and (word != "ce_weight" or not at)}
        return found

    def crops(self) -> int:
        """Return 1: a part that would have more crops of each image is refused as the settings are made."""
        return 1

    def part(self, name: str) -> MethodSettings:
        """Return a part's own settings; what it refuses is an InputError that names the part."""
        return self.kinds[name](**{word: getattr(self, ours) for word, ours in self.own[name].items()})


class Joined(Method):
    """The terms of several methods."""

    settings: JoinedSettings
    parts: ClassVar[tuple[type[Method], ...]]
    wrapper: ClassVar[type[Method] | None]

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Build each part; one that reads no stages is told of none."""
        made = {}
        for kind in self.parts:
            channels = (student, teacher) if kind.stages != "none" else ((), ())
            made[kind.name] = kind(self.settings.part(kind.name), self.ask, *channels, self.images)
        self.of = nn.ModuleDict(made)

    def _parts(self) -> Iterator[tuple[str, Method]]:
        for name, part in self.of.items():
            assert isinstance(part, Method)
            yield name, part

    def named_projectors(self) -> dict[str, nn.Module]:
        """Return the projectors of all parts, each with its part's name before its own."""
        return {f"{name}.{own}": m for name, part in self._parts() for own, m in part.named_projectors().items()}

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the terms of all parts under their joined names."""
        found = {}
        for name, part in self._parts():
            shown = (student, teacher)
            if self.wrapper is not None and part.soft is not Soft.NONE:
                shown = (self.wrapper.shown(student), self.wrapper.shown(teacher))
            for term, value in part(*shown, batch).items():
                found[self.settings.own[name][f"{term}_weight"].removesuffix("_weight")] = value
        return found
