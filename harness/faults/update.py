"""Faults in what an update does with the gradients: zeroing, stepping, and which parameters move at all."""

import copy
from collections.abc import Sequence

from torch import nn

from kdbench.harness.faults.registry import fault
from kdbench.kd.procedure import Group, Params


@fault("order", caught_by=["gradients-zeroed"])
def no_zero_grad() -> Sequence[str]:
    """Gradients are never zeroed, so each step goes along the sum of all batches since the beginning.

    Common where a loop is rewritten for accumulation. With a clip behind it the loss falls all the same.
    """
    return ("backward", "unscale", "clip", "step")


@fault("order", caught_by=["one-step-per-backward"])
def double_step() -> Sequence[str]:
    """The optimizer steps twice on the gradients of one backward.

    With momentum that is far from twice the rate. Seen in huggingface/setfit#284, where a callback stepped as well.
    """
    return ("zero", "backward", "unscale", "clip", "step", "step")


@fault("order", caught_by=["gradients-used"], needs="distillation")
def zeroed_before_step() -> Sequence[str]:
    """The gradients are zeroed between the clip and the step, so that nothing is ever trained.

    zero_grad was moved behind the backward when the loop was reordered. The loss stands still, and no error tells.
    """
    return ("backward", "unscale", "clip", "zero", "step")


@fault("trainable", caught_by=["optimizer-coverage"], needs="projectors")
def projector_not_in_optimizer(student: nn.Module, method: nn.Module, teacher: nn.Module | None) -> Sequence[Params]:
    """The projection layers get gradients and are never moved.

    The student alone is handed to the optimizer, and has to match the teacher through a random projection. Seen in
    roymiles/Simple-Recipe-Distillation#1.
    """
    return [[*student.parameters()]]


@fault("trainable", caught_by=["no-stale-parameters"], follows=["optimizer-coverage"], needs="projectors")
def optimizer_built_early(student: nn.Module, method: nn.Module, teacher: nn.Module | None) -> Sequence[Params]:
    """The optimizer holds the projection layers of before they were replaced.

    It was built first; then the layers were made anew (another width, another device) and it went on moving those that
    no module holds any more.
    """
    replaced = copy.deepcopy(method)
    return [[*student.parameters()], [*replaced.parameters()]]


@fault("trainable", caught_by=["optimizer-coverage"], needs="distillation")
def norms_not_in_optimizer(student: nn.Module, method: nn.Module, teacher: nn.Module | None) -> Sequence[Params]:
    """One side of a split into groups with and without weight decay is lost: biases and norms never move.

    The lists are made by the number of dimensions, and only the first is handed over.
    """
    return [[p for p in module.parameters() if p.ndim > 1] for module in (student, method)]


@fault("trainable", caught_by=["optimizer-coverage"], needs="distillation")
def head_not_in_optimizer(student: nn.Module, method: nn.Module, teacher: nn.Module | None) -> Sequence[Params]:
    """The classifier's layer stays as it was initialised.

    The optimizer was built from the backbone's parameters, as for a network whose head is swapped for every task.
    """
    head = {id(p) for p in student.get_submodule("fc").parameters()}
    return [[p for p in student.parameters() if id(p) not in head], [*method.parameters()]]


@fault(
    "trainable",
    caught_by=[],
    escapes="the teacher answers without a gradient, so nothing of it ever moves: dormant until that is lost too",
    needs="own-teacher",
)
def teacher_in_optimizer(student: nn.Module, method: nn.Module, teacher: nn.Module | None) -> Sequence[Params]:
    """The teacher's parameters are handed to the optimizer along with the student's.

    Code does so that collects the parameters of a wrapper which holds both networks.
    """
    groups = [[*student.parameters()], [*method.parameters()]]
    return [*groups, [*teacher.parameters()]] if teacher is not None else groups


@fault("scheduled", caught_by=["group-schedule"], needs="projectors")
def projector_lr_lost(groups: Sequence[Group]) -> Sequence[Group]:
    """The schedule moves the first parameter group alone, and the projection layers keep the rate they began with.

    ``param_groups[0]["lr"] = rate``, or a scheduler built before the projectors' group was added.
    """
    return groups[:1]
