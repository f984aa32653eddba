"""What a method is, and the methods by name.

A method is one file: a class that says what it is, its own settings, and a `forward` that turns the answers of student
and teacher into named loss terms. Each term is weighed by the setting of its name: the term `kd` by `kd_weight`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from kdbench.kd.errors import InputError, unknown
from kdbench.kd.models.registry import Answer
from kdbench.kd.procedure import Procedure, Views
from kdbench.kd.settings import check_types
from kdbench.kd.streams import global_stream

Terms = Mapping[str, Tensor]
"Losses (scalars) by name, before they are weighed."
Part = Literal["labels", "ids", "views"]
Stages = Literal["none", "last", "all"]
"Which stages of the networks a method reads: those of both must be as many where it reads them all."
Seam = Literal["soft_loss", "features"]
"""The decisions of a procedure that are a method's to ask: how two answers differ, and which features are matched."""


class Soft(Enum):
    """The form of a method's term between the two networks' logits: what an audit may hold it against."""

    NONE = "none"
    HINTON = "forward"
    "T^2 KL(teacher || student), weighed by `kd_weight`, at `temperature` (Hinton et al. 2015)."
    DECOUPLED = "decoupled"
    "KL of the target class against the rest, and KL within the rest, each with a weight (Zhao et al. 2022)."
    DIVERGENCE = "divergence"
    "Other divergences of both softmaxes: an audit tells whether the rows belong together, and no more."
    CORRELATION = "correlation"
    "Correlations of both softmaxes: the same; but a clean training need not prove it, since older audits could not."
    OTHER = "other"
    "Anything else; an audit takes it for what it sees."


class Batch:
    """What a method may ask for about the images of a step; a part that it did not declare is an InputError."""

    def __init__(self, declared: Collection[Part], labels: Tensor, ids: Tensor, views: Views) -> None:
        self._declared = declared
        self._parts = {"labels": labels, "ids": ids, "views": views}

    def _part(self, name: str) -> Any:
        if name not in self._declared:
            raise InputError(f"a method asked for the batch's {name} and does not declare it; add it to needs=")
        return self._parts[name]

    @property
    def labels(self) -> Tensor:
        """Right classes, int64 (B,)."""
        found: Tensor = self._part("labels")
        return found

    @property
    def ids(self) -> Tensor:
        """Ids of the images in the data set, int64 (B,): the same image has the same id in every epoch."""
        found: Tensor = self._part("ids")
        return found

    @property
    def views(self) -> Views:
        """The images as student and teacher see them, each (B, 3, H, W)."""
        found: Views = self._part("views")
        return found


class Images(NamedTuple):
    """The images that a training is on: their ids in the data set and their right classes, int64 (N,) each."""

    ids: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """A method's numbers. A subclass adds its own: for each of its terms `TERM_weight`, and whatever else it reads.

    A weight has no default, or one above zero with its source. `temperature` is positive wherever there is one.
    """

    method: ClassVar[str] = "method"

    ce_weight: float = 1.0
    "Weight of the labels' cross-entropy."

    def __post_init__(self) -> None:
        where = f"method {self.method}"
        check_types(self, where)
        for name in self.names():
            value = getattr(self, name)
            if name == "temperature" and value <= 0:
                raise InputError(f"{where}: temperature is {value}; it must be positive")
            if name.endswith("_weight"):
                self.not_negative(name)

    def not_negative(self, name: str) -> None:
        """Raise InputError if a setting that weighs something is below zero."""
        if getattr(self, name) < 0:
            raise InputError(f"method {self.method}: {name} is {getattr(self, name)}; a weight must not be negative")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the settings, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def terms(cls) -> tuple[str, ...]:
        """Return the names of the terms that are weighed beside the labels', in order."""
        weights = (name for name in cls.names() if name.endswith("_weight") and name != "ce_weight")
        return tuple(name.removesuffix("_weight") for name in weights)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the defaults of the settings that have one."""
        return {field.name: field.default for field in fields(cls) if field.default is not MISSING}

    @classmethod
    def of_parts(cls, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return what tables by method say of the methods that this one is joined of, under its own names."""
        return {}

    def crops(self) -> int:
        """Return how many crops of each image a batch holds: a whole batch of first ones, one of second ones, ..."""
        return 1

    def weight(self, term: str) -> float:
        """Return the weight of a term."""
        value: float = getattr(self, f"{term}_weight")
        return value


class Method(nn.Module):
    """A method of distillation: its parameters are its projectors, its answer the terms beside the labels' loss.

    What stands in the class is what :func:`method` was told. A method asks its `procedure` for the decisions that it
    lists as seams, so that a study can replace them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    soft: ClassVar[Soft]
    has_projectors: ClassVar[bool]
    needs_teacher: ClassVar[bool]
    needs: ClassVar[tuple[Part, ...]]
    "The parts of a batch that it reads."
    seams: ClassVar[tuple[Seam, ...]]
    stages: ClassVar[Stages]
    wraps: ClassVar[bool] = False
    "Whether, joined with another method of logits, it changes what that one is shown and adds no term of its own."
    Settings: ClassVar[type[MethodSettings]]
    digest: ClassVar[str | None] = None
    "Of the file that it stands in, if that is a user's: another file is another method."

    def __init__(
        self,
        settings: Any,
        procedure: Procedure,
        student: Sequence[int],
        teacher: Sequence[int],
        images: Images | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.ask = procedure
        self.images = images
        self.build(student, teacher)
        if (own := [name for name, _ in self.named_parameters()]) and not self.has_projectors:
            raise InputError(
                f"method {self.name} makes parameters of its own ({', '.join(own[:3])}) and does not declare them; add "
                "projectors=True to @method"
            )
        self.images = None  # for building alone: a memory of all images is the method's own

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Make the projectors for the channels of both networks' stages, as [4, 8, 16, 32], in the order of `features`.

        The global generator is a stream of theirs.

        What is trained on stands in `self.images` here.
        """

    @staticmethod
    def shown(answer: Answer) -> Answer:
        """Return what another method of logits is shown of an answer where this one `wraps` it."""
        return answer

    def named_projectors(self) -> dict[str, nn.Module]:
        """Return the modules that hold the method's own parameters, by name."""
        return dict(self.named_children())

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the terms by name, for a batch of answers: logits (B, C) and stage features (B, C_l, H_l, W_l)."""
        raise NotImplementedError


class Methods(dict[str, type[Method]]):
    """The methods by name. One joined of several, as `logit+at`, is there when it is asked for, and in no list."""

    join: Callable[[str], type[Method]]
    "Makes a joined method of its name; set by the package."

    def __init__(self) -> None:
        super().__init__()
        self._joined: dict[str, tuple[list[type[Method]], type[Method]]] = {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and all(super(Methods, self).__contains__(part) for part in name.split("+"))

    def __missing__(self, name: str) -> type[Method]:
        if "+" not in name:
            raise KeyError(name)
        parts = [self[part] for part in name.split("+")]
        if self._joined.get(name, ([], None))[0] != parts:
            self._joined[name] = (parts, self.join(name))
        return self._joined[name][1]

    def rank(self, name: str) -> tuple[int, str]:
        """Return a method's place in tables: that of the list, and the joined ones behind, by name."""
        return (list(self).index(name), "") if "+" not in name else (len(self), name)


METHODS = Methods()
"Every method by name, in the order of tables."
Kind = TypeVar("Kind", bound=type[Method])


def method(
    name: str,
    *,
    title: str,
    paper: str,
    soft: Soft,
    projectors: bool = False,
    teacher: bool = True,
    needs: tuple[Part, ...] = (),
    seams: tuple[Seam, ...] = (),
    stages: Stages | None = None,
) -> Callable[[Kind], Kind]:
    """Register a class as the method `name`. What does not fit together is an InputError that says so.

    A method that has projectors or asks for features reads all stages of both networks, unless `stages` says otherwise.
    """

    def register(kind: Kind) -> Kind:
        where = f"method {name}"
        if name in METHODS:
            raise InputError(f"{where} is registered already")
        if not (isinstance(kind, type) and issubclass(kind, Method)):
            raise InputError(f"{where}: what is decorated must be a class of Method, as class Mine(Method)")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise InputError(f"{where}: a name is of small letters, digits, - and _, as attention_transfer")
        if not isinstance(soft, Soft):
            raise InputError(f"{where}: soft is one of {', '.join(f'Soft.{form.name}' for form in Soft)}, not {soft!r}")
        for part in needs:
            if part not in get_args(Part):
                raise unknown("part of a batch", part, get_args(Part), where)
        for seam in seams:
            if seam not in get_args(Seam):
                raise unknown("seam", seam, get_args(Seam), where)
        read = stages or ("all" if projectors or "features" in seams else "none")
        if read not in get_args(Stages):
            raise unknown("word for stages", read, get_args(Stages), where)
        settings = vars(kind).get("Settings")
        if not (isinstance(settings, type) and issubclass(settings, MethodSettings)):
            raise InputError(f"{where}: the class needs a Settings of its own, a frozen dataclass of MethodSettings")
        for term in settings.terms():
            if settings.defaults().get(f"{term}_weight", 1.0) <= 0:
                given = settings.defaults()[f"{term}_weight"]
                why = "which turns the term off in silence" if given == 0 else "and a weight must not be negative"
                raise InputError(f"{where}: {term}_weight has the default {given:g}, {why}")
        if teacher and not settings.terms():
            raise InputError(f"{where}: it has no term; name its weight in Settings, as kd_weight: float")
        if soft is Soft.HINTON and not {"kd_weight", "temperature"} <= {*settings.names()}:
            raise InputError(f"{where}: a term of the form {soft.name} has the settings kd_weight and temperature")
        kind.name, kind.title, kind.paper, kind.soft = name, title, paper, soft
        kind.has_projectors, kind.needs_teacher, kind.needs, kind.seams = projectors, teacher, needs, seams
        kind.stages = read
        settings.method = name
        METHODS[name] = kind
        return kind

    return register


def get(name: str) -> type[Method]:
    """Return the method of this name; InputError with the nearest one."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def why_not_stages(name: str, student: int, teacher: int) -> str | None:
    """Return why a method cannot be used on networks with so many stages; None if it can."""
    reads = get(name).stages
    if reads == "none" or (student and teacher and (reads == "last" or student == teacher)):
        return None
    return f"method {name} needs {'stage' if reads == 'last' else 'as many stage'} features of both networks"


def read_settings(name: str, values: Mapping[str, Any], where: str | None = None) -> MethodSettings:
    """Return a method's settings with these values; one that is unknown, wrong or missing is an InputError.

    `where` says in the message where the values stand.
    """
    known, place = get(name).Settings, where or f"method {name}"
    for word in values:
        if word not in known.names():
            raise unknown("key", word, known.names(), place)
    missing = [word for word in known.names() if word not in values and word not in known.defaults()]
    if missing:
        weights = all(word.endswith("_weight") for word in missing)
        write = ", ".join(f"{word} = a number" for word in missing)
        if len(missing) == 1:
            said = f"is missing; this {'weight of a term' if weights else 'setting'} has"
        else:
            said = f"are missing; these {'weights of terms' if weights else 'settings'} have"
        raise InputError(f"{place}: {' and '.join(missing)} {said} no default, so write {write}")
    try:
        return known(**values)
    except InputError as error:
        raise InputError(f"{where}, {error}" if where else str(error)) from error


def build(
    name: str,
    student: Sequence[int],
    teacher: Sequence[int],
    settings: MethodSettings,
    procedure: Procedure,
    generator: torch.Generator,
    images: Images | None = None,
) -> Method:
    """Build a method for the channels of both networks' stages; its initial weights come from `generator` alone."""
    kind = get(name)
    if type(settings) is not kind.Settings:
        raise InputError(f"method {name}: its settings are of {type(settings).method}; make them with read_settings")
    with global_stream(generator):
        return kind(settings, procedure, student, teacher, images)
