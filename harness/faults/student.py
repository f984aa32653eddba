"""Faults in the student's own mode."""

from typing import Any

import torch
from torch import nn

from kdbench.harness.faults.registry import fault
from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.mechanism import Acts, Live, answers_of, injected
from kdbench.harness.injection.scene import Scene


@fault("set_modes", caught_by=["student-mode"], needs="distillation")
def student_eval_mode(student: nn.Module, teacher: nn.Module | None, method: nn.Module) -> None:
    """The student is left in evaluation mode, as after a validation.

    Batch norm then normalises by statistics that never move again: those of its initialisation.
    """
    student.eval()
    method.train()
    if teacher is not None:
        teacher.eval()


@fault(
    "set_modes",
    caught_by=[],
    escapes="it is right for a student that was trained before, and whether this one was cannot be seen",
)
def student_norms_frozen(student: nn.Module, teacher: nn.Module | None, method: nn.Module) -> None:
    """The student's batch norms are put into evaluation mode, as for fine-tuning, while it is trained from scratch.

    The network itself says that it is training.
    """
    student.train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    method.train()
    if teacher is not None:
        teacher.eval()


# --- the same in a script of somebody's


@injected("student-eval-mode")
def _student_eval_mode(scene: Scene) -> Acts:
    scene.need(scene.moody, "the student answers the same in either mode: it has no batch norm and no dropout module")

    def in_eval(call: Call, live: Live) -> Any:
        if torch.is_grad_enabled():
            call.args[0].eval()
        return call.proceed()

    return {"forward": answers_of("student", in_eval)}
