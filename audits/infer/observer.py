"""What every observer is: one question about a training, answered from what goes by."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from kdbench.audits.infer.roles import Cast, Group
from kdbench.audits.observe.windows import ModuleCall, RawWindow
from kdbench.audits.trace import Sight

EXPLAINED = 3
"Windows that are read closely: each costs a second backward through the loss, and three show whether they agree."


class Observer:
    """Keeps what its checks need and no more; it overrides only the calls that it needs."""

    def answered(self, raw: RawWindow, call: ModuleCall) -> None:
        """Take in the answer of a module with parameters that nothing of a network's was fed to."""

    def restart(self) -> None:
        """Forget what was seen of a distillation: it was none, and the true one begins."""

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Take in a backward of the distillation, before it runs, and fill in its part of the sight."""

    def step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        """Take in a step since the distillation began, and the parameters that it moved."""

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Draw the conclusions that need the whole of what was seen; called again where more is seen."""


@dataclass
class Known:
    """Who has played which part so far, in the order of appearance; what all observers share."""

    students: list[Group] = field(default_factory=list)
    teachers: list[Group] = field(default_factory=list)
    projectors: list[Group] = field(default_factory=list)
    idle: int = 0
    "Mask of networks that answered the student's batch and reached no loss, and of that student."
    labelled: int = 0
    "Mask of what a label loss, or another loss of its own, was computed from since the distillation began."
    along: int = 0
    "Mask of teachers that had learned before, and that a backward without labels trains along."
    moved: Any = field(default_factory=WeakTensorKeyDictionary)
    "Parameters that an optimizer stepped since the distillation began."
    started: bool = False
    "Whether a distillation was seen."
    strength: int = 0
    "How sure that is, as :attr:`Cast.strength` says it of a window."
    restarts: int = 0
    "How often something that was taken for a distillation was followed by one that surely is."

    @property
    def settled(self) -> bool:
        """Whether a distillation was seen that surely is one."""
        return self.strength > 1

    def restart(self) -> None:
        """Forget who played which part."""
        self.students, self.teachers, self.projectors = [], [], []
        self.labelled, self.along, self.moved = 0, 0, WeakTensorKeyDictionary()
        self.started, self.strength = False, 0

    @property
    def student_mask(self) -> int:
        """The parameters of all students."""
        return _union(self.students)

    @property
    def teacher_mask(self) -> int:
        """The parameters of all teachers."""
        return _union(self.teachers)


def _union(groups: Iterable[Group]) -> int:
    whole = 0
    for group in groups:
        whole |= group.mask
    return whole
