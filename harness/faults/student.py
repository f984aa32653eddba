"""Faults in the student's own mode."""

from torch import nn

from kdbench.harness.faults.registry import fault


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
