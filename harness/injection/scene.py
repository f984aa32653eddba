"""What a survey learned of a script: who is who, and where its calls stand. It travels between processes as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Side = Literal["student", "teacher", "labels", "distillation", "both", "other"]
Role = Literal["student", "teacher", "projector", "other"]


class NotApplicableError(Exception):
    """A fault has no place in this script; the message says why."""


@dataclass(frozen=True)
class Site:
    """A place in the script at which a call is made, again and again."""

    kind: str
    name: str
    place: str
    where: str
    "File and line, for people."
    side: Side
    "Whose answer it is applied to, or which part of the loss."
    number: float | None = None
    "Of a scale."
    data: dict[str, Any] = field(default_factory=dict)
    "What else was seen: the dimension of a softmax, the reduction of a divergence."


@dataclass(frozen=True)
class Optimizer:
    """An optimizer as it was built: for each parameter of each group, whose it is and its name."""

    kind: str
    groups: list[list[tuple[Role, str]]]
    where: str = ""


@dataclass(frozen=True)
class Load:
    """A call of load_state_dict, by its number in the run."""

    number: int
    side: Side
    where: str
    statistics: int
    "Running statistics among the tensors that it loads."
    head: list[str] = field(default_factory=list)
    "Names of the tensors of the last layer."


@dataclass
class Scene:
    """A script as far as faults need to know it."""

    modules: dict[str, list[int]] = field(default_factory=dict)
    "By role, the numbers of the modules that play it, in the order in which the script first calls modules."
    begins: dict[str, int] = field(default_factory=dict)
    "By number of a module, how often it is called before the distillation begins: in its own training, say."
    called: dict[str, list[str]] = field(default_factory=dict)
    "By role, where its networks are called first."
    names: dict[str, str] = field(default_factory=dict)
    "By role, the name in the report."
    head: list[str] = field(default_factory=list)
    "Names of the parameters of the student's last layer."
    norms: list[str] = field(default_factory=list)
    "Names of the student's parameters with one dimension: biases and norms."
    conv: int | None = None
    "Number of the student's first convolution, in the order in which the script builds them."
    conv_data: dict[str, Any] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    scheduled: list[int] = field(default_factory=list)
    "Numbers of the optimizers whose rates a scheduler of torch's moves."
    distilling: list[int] = field(default_factory=list)
    "Numbers of the optimizers that stepped since the distillation began."
    moved: list[int] = field(default_factory=list)
    "Numbers of the optimizers with a group behind the first whose rate changed from step to step."
    loads: list[Load] = field(default_factory=list)
    pretrained: list[int] = field(default_factory=list)
    "Of the networks that Transformers loads by from_pretrained, the numbers of those that teach."
    teacher_statistics: bool = False
    "Whether the teacher holds running statistics."
    labelled: bool = False
    "Whether a label loss stands beside the term."
    temperature: float | None = None
    teacher_input: str = ""
    "images, numbers or tokens."
    moody: bool = False
    "Whether the student answers otherwise in training mode."
    moody_teacher: bool = False
    steps: int = 0
    "Calls of an optimizer's step."
    declared: dict[str, Any] = field(default_factory=dict)
    "What the user declared, by option: max_norm, temperature, alpha, kd_weight, ..."

    def of(self, kind: str, *sides: Side) -> list[Site]:
        """Return the sites of a kind on these sides; on any if none is named."""
        return [s for s in self.sites if s.kind == kind and (not sides or s.side in sides)]

    def need(self, there: Any, why: str) -> Any:
        """Return what is there; NotApplicableError with the reason if nothing is."""
        if not there:
            raise NotApplicableError(why)
        return there

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Scene":
        """Read what :meth:`to_json` wrote."""
        made = dict(values)
        made["sites"] = [Site(**s) for s in values["sites"]]
        made["optimizers"] = [
            Optimizer(o["kind"], [[(role, name) for role, name in group] for group in o["groups"]], o["where"])
            for o in values["optimizers"]
        ]
        made["loads"] = [Load(**item) for item in values["loads"]]
        return cls(**made)
