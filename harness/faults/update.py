"""Faults in what an update does with the gradients: zeroing, stepping, and which parameters move at all."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from kdbench.harness.faults.registry import fault
from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.mechanism import Acts, Live, injected
from kdbench.harness.injection.scene import Role, Scene
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


# --- the same in a script of somebody's


_TAUGHT = ("student", "projector")


def _trains_the_student(call: Call, live: Live) -> bool:
    """Say whether a call is of an optimizer, or a module, of the student's: the teacher's own training stays right."""
    owner = call.args[0]
    if isinstance(owner, nn.Module):
        return any(role in _TAUGHT for role, _ in live.named([*owner.parameters()]))
    number = live.world.number_of(owner)
    if number is not None:  # its first step may come before the first forward
        groups = live.scene.optimizers[number].groups if number in live.scene.distilling else []
        return any(role in _TAUGHT for group in groups for role, _ in group)
    return any(role in _TAUGHT for group in owner.param_groups for role, _ in live.named(group["params"]))


@injected("no-zero-grad")
def _no_zero_grad(scene: Scene) -> Acts:
    scene.need(scene.of("zero_grad"), "the script calls no zero_grad")

    def leave_out(call: Call, live: Live) -> Any:
        if not call.is_direct or not _trains_the_student(call, live):
            return call.proceed()
        live.acted += 1
        return None

    return {"zero_grad": leave_out}


@injected("double-step")
def _double_step(scene: Scene) -> Acts:
    def twice(call: Call, live: Live) -> Any:
        if not _trains_the_student(call, live):
            return call.proceed()
        live.acted += 1
        result = call.proceed()
        call.original(call.args[0])  # without its closure, which would make a backward of its own
        return result

    return {"step": twice}


@injected("zeroed-before-step")
def _zeroed_before_step(scene: Scene) -> Acts:
    def zeroed(call: Call, live: Live) -> Any:
        if not _trains_the_student(call, live):
            return call.proceed()
        live.acted += 1
        closure = call.arg(1, "closure")
        if closure is None:
            call.args[0].zero_grad()
            return call.proceed()

        def closed() -> Any:
            result = closure()
            call.args[0].zero_grad()
            return result

        call.put(1, "closure", closed)
        return call.proceed()

    return {"step": zeroed}


def _built_with(
    scene: Scene, keep: Callable[[Role, str], bool], why: str, put: Callable[[Any], Any] | None = None
) -> Acts:
    """Build the optimizers without the parameters that are not kept, or with others in their place."""
    chosen = {
        n: [[keep(role, name) for role, name in group] for group in optimizer.groups]
        for n, optimizer in enumerate(scene.optimizers)
        if n in scene.distilling and any(role in _TAUGHT for group in optimizer.groups for role, _ in group)
    }
    acting = {n for n, groups in chosen.items() if any(not kept for group in groups for kept in group)}
    whole = {n for n in acting if not any(kept for group in chosen[n] for kept in group)}
    scene.need(acting, why)
    scene.need(not whole, "an optimizer of its own holds nothing else, and torch builds none without parameters")

    def build(call: Call, live: Live) -> Any:
        number = len(live.world.optimizers) - 1
        if number not in acting:
            return call.proceed()
        live.acted += 1
        flat = [kept for group in chosen[number] for kept in group]
        call.put(1, "params", _picked(list(call.arg(1, "params")), flat, put))
        return call.proceed()

    return {"optimizer": build}


def _picked(params: list[Any], kept: list[bool], put: Callable[[Any], Any] | None) -> list[Any]:
    """Return parameters or groups of them with those left out, or replaced, that are not kept."""
    at = iter(kept)

    def pick(some: Any) -> list[Any]:
        found = []
        for p in some:
            if next(at):
                found.append(p)
            elif put is not None:
                found.append(put(p))
        return found

    if params and isinstance(params[0], dict):
        groups = []
        for group in params:
            given = group["params"]
            left = pick([given] if isinstance(given, Tensor) else list(given))
            if left:
                groups.append({**group, "params": left})
        return groups
    named = params and isinstance(params[0], tuple)
    return pick(params) if not named else [p for p, keep in zip(params, kept, strict=True) if keep]


@injected("projector-not-in-optimizer")
def _projector_not_in_optimizer(scene: Scene) -> Acts:
    scene.need(scene.modules.get("projector"), "no projector stands between student and teacher")
    return _built_with(scene, lambda role, name: role != "projector", "no optimizer holds the projectors as it is")


@injected("optimizer-built-early")
def _optimizer_built_early(scene: Scene) -> Acts:
    scene.need(scene.modules.get("projector"), "no projector stands between student and teacher")

    def replaced(p: Any) -> Any:
        return nn.Parameter(p.detach().clone())

    why = "no optimizer holds the projectors as it is"
    return _built_with(scene, lambda role, name: role != "projector", why, replaced)


@injected("norms-not-in-optimizer")
def _norms_not_in_optimizer(scene: Scene) -> Acts:
    norms = set(scene.norms)
    why = "the optimizer holds no biases and norms of the student's as it is"
    return _built_with(scene, lambda role, name: role != "student" or name not in norms, why)


@injected("head-not-in-optimizer")
def _head_not_in_optimizer(scene: Scene) -> Acts:
    head = set(scene.need(scene.head, "the student's last layer was not found"))
    why = "the optimizer does not hold the student's last layer as it is"
    return _built_with(scene, lambda role, name: role != "student" or name not in head, why)


@injected("projector-lr-lost")
def _projector_lr_lost(scene: Scene) -> Acts:
    """The loop that sets the rates by hand reaches the first group alone."""
    scene.need(scene.modules.get("projector"), "no projector stands between student and teacher")
    whose = {n: [{role for role, _ in group} for group in scene.optimizers[n].groups] for n in scene.moved}
    lost = {n for n, groups in whose.items() if any("projector" in roles for roles in groups[1:])}
    scene.need(lost, "no schedule moves a parameter group of the projectors' own")
    why = "a scheduler of torch's sets the rates: it refuses a group that it was not built with, so none can be lost"
    scene.need(lost - set(scene.scheduled), why)

    def build(call: Call, live: Live) -> Any:
        result = call.proceed()
        live.kept[f"rates {len(live.world.optimizers) - 1}"] = [group.get("lr") for group in call.args[0].param_groups]
        return result

    def step(call: Call, live: Live) -> Any:
        number = live.world.number_of(call.args[0])
        if number in lost and number not in scene.scheduled:
            live.acted += 1
            for group, rate in list(zip(call.args[0].param_groups, live.kept[f"rates {number}"], strict=False))[1:]:
                group["lr"] = rate
        return call.proceed()

    return {"optimizer": build, "step": step}
