"""The distillation methods, one file a family, by name.

A method is an ``nn.Module`` that owns its projectors (its parameters) and turns the answers of student and teacher
into one distillation term.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from kd.errors import InputError
from kd.methods.feature import FeatureKD
from kd.methods.logit import LogitKD
from kd.procedure import Procedure
from kd.settings import check_types


@dataclass(frozen=True)
class MethodSettings:
    """A method's numbers, by the names of the two terms that they weigh."""

    ce_weight: float = 1.0
    kd_weight: float = 0.0
    temperature: float = 4.0
    "Of the soft targets (Logit-KD)."
    beta: float = 0.5
    "Weight of the cosine part (Feature-KD, eq. 3)."

    def __post_init__(self) -> None:
        check_types(self, "method")
        if self.temperature <= 0:
            raise InputError(f"method: temperature is {self.temperature}; it must be positive")
        for name in ("ce_weight", "kd_weight", "beta"):
            if getattr(self, name) < 0:
                raise InputError(f"method: {name} is {getattr(self, name)}; a weight must not be negative")


class NoDistillation(nn.Module):
    """Training on labels alone: no projector, and never asked for a term."""


Build = Callable[[Sequence[int], Sequence[int], MethodSettings, Procedure, torch.Generator], nn.Module]


class Kind(NamedTuple):
    """What the rest of the project needs to know of a method, and how to build it."""

    title: str
    needs_teacher: bool
    has_projectors: bool
    settings: tuple[str, ...]
    "The settings that this method reads."
    build: Build
    "Of student channels, teacher channels, settings, procedure and the projectors' random stream."


def _baseline(
    student: Sequence[int],
    teacher: Sequence[int],
    settings: MethodSettings,
    procedure: Procedure,
    rng: torch.Generator,
) -> nn.Module:
    return NoDistillation()


def _logit(
    student: Sequence[int],
    teacher: Sequence[int],
    settings: MethodSettings,
    procedure: Procedure,
    rng: torch.Generator,
) -> nn.Module:
    return LogitKD(settings.temperature, procedure.soft_loss)


def _feature(
    student: Sequence[int],
    teacher: Sequence[int],
    settings: MethodSettings,
    procedure: Procedure,
    rng: torch.Generator,
) -> nn.Module:
    return FeatureKD(student, teacher, settings.beta, procedure.features, rng)


METHODS: dict[str, Kind] = {
    "baseline": Kind("Baseline", False, False, ("ce_weight",), _baseline),
    "logit": Kind("Logit-KD", True, False, ("ce_weight", "kd_weight", "temperature"), _logit),
    "feature": Kind("Feature-KD", True, True, ("ce_weight", "kd_weight", "beta"), _feature),
}
