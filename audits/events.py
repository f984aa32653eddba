"""What was declared of a training and what was seen of it: the only things that a check may read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Where = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """Declared intent: gradients are clipped to `max_norm`, over all parameters at once or group by group."""

    max_norm: float
    scope: Literal["global", "per_group"] = "global"


@dataclass
class ClipCall:
    """One call of a torch clip function."""

    kind: Literal["norm", "value"]
    ids: frozenset[int]
    "Of the parameters it was handed that had a gradient."
    bound: float
    where: Where | None
    norms: tuple[Tensor, Tensor] | None = None
    "The norm that the caller clipped by, and the 2-norm of the same gradients, before clipping."


@dataclass
class Step:
    """One update by a watched optimizer."""

    number: int
    "Of this optimizer's steps, counted from 1."
    stepped: list[nn.Parameter]
    "The optimizer's parameters that had a gradient. Strong references: ids alone are reused after collection."
    clips: list[ClipCall]
    "Since this optimizer's step before, those that reached any of `stepped`, or nothing at all."
    clipped_elsewhere: bool
    "Whether there were others, on parameters that are not this optimizer's."
    written: frozenset[int] | None
    """Ids of the parameters whose gradient was written to after its accumulation, by anything but a torch clip; a write
    to all of them beside a torch clip is left out, since it is scaling. None: backward was not seen."""
    scaled: bool
    "Whether a GradScaler took part."
    norm: Tensor
    "2-norm over the gradients of `stepped`, as the optimizer got them."
    resolution: float
    "Relative spacing of numbers in the coarsest dtype among the gradients."
    where: Where | None


@dataclass(frozen=True)
class Spatial:
    """One call of a convolution or pooling module."""

    name: str
    kind: Literal["conv", "pool"]
    kernel: int
    stride: int
    input_size: tuple[int, int]
    output_size: tuple[int, int]


@dataclass(frozen=True)
class Provenance:
    """How much of the teacher equalled the declared checkpoint when the watch began."""

    equal: int
    "Numbers of parameters and buffers that are bitwise those of the checkpoint."
    total: int
    differing: list[str]
    "Names of the teacher's tensors that are not."
    unexpected: list[str]
    "Names of the checkpoint's tensors that the teacher has no place for."
    aliases: list[str]
    "Names of the declared tensors that are the teacher's own, in one memory: they prove nothing."


@dataclass
class Hits:
    """The teacher's answers against the labels, counted on the device."""

    right: Tensor
    by_class: Tensor


@dataclass
class Trace:
    """A training as the audits saw it."""

    student: nn.Module
    teacher: nn.Module | None
    clip: Clip | None
    names: Mapping[int, str]
    "Of each known parameter, by id."
    declared_at: Where | None
    steps: list[Step] = field(default_factory=list)
    spatial: dict[str, list[Spatial]] = field(default_factory=dict)
    "By role, the first two calls of convolution or pooling modules."
    provenance: Provenance | None = None
    hits: Hits | None = None
    labels_shown: bool = False
    student_width: int | None = None
    "Columns of the student's logits."

    broken: str | None = None
    "What went wrong in watching itself; from then on nothing was seen."

    def name(self, param: nn.Parameter) -> str:
        """Return a parameter's dotted name, or its shape if it belongs to no declared module."""
        return self.names.get(id(param), f"unnamed parameter of shape {tuple(param.shape)}")
