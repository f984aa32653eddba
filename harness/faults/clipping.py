"""Faults in gradient clipping: which parameters are clipped, and when within an update."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from kdbench.harness.faults.registry import fault
from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.mechanism import Act, Acts, Live, at, injected
from kdbench.harness.injection.scene import Role, Scene, Site
from kdbench.kd.procedure import Params


@fault("clipped", caught_by=["clip-coverage"], follows=["norm-bound"], needs="projectors")
def projector_unclipped(student: nn.Module, method: nn.Module) -> Sequence[Params]:
    """The projection layers train without a gradient bound.

    The clip is written for the student before the projectors exist, and is not extended when they come. Seen in
    umutonuryasar/kd-capacity-gap, whose paper first blamed it for Feature-KD's results; its second version measured
    95.00 +- .18 with the bug against 94.95 +- .20 without, five seeds each (p = .69).
    """
    return [[*student.parameters()]]


@fault("clipped", caught_by=["clip-coverage"], follows=["norm-bound"])
def head_unclipped(student: nn.Module, method: nn.Module) -> Sequence[Params]:
    """The classifier's own layer trains without a gradient bound.

    The backbone is clipped, as code does that was written when the head was another module. A variation on the
    unclipped projector that every method can have.
    """
    head = {id(p) for p in student.get_submodule("fc").parameters()}
    return [[*(p for p in student.parameters() if id(p) not in head), *method.parameters()]]


@fault("clipped", caught_by=["norm-bound"], needs="projectors")
def clip_per_module(student: nn.Module, method: nn.Module) -> Sequence[Params]:
    """Student and projectors are clipped apart where one bound over both is declared.

    Each of the k modules may reach the bound, so the whole reaches sqrt(k) times it. Every parameter is clipped, so a
    look at which ones are covered finds nothing.
    """
    return [[*student.parameters()], [*method.parameters()]]


@fault("clipped", caught_by=["clip-order"], follows=["clip-coverage", "norm-bound"])
def clip_exhausted_generator(student: nn.Module, method: nn.Module) -> Sequence[Params]:
    """The clip is handed a generator that something has gone through before, and so clips nothing.

    ``parameters()`` was counted, or given to the optimizer, and the same generator is kept for the clip. torch accepts
    an empty iterable in silence.
    """
    both = (p for module in (student, method) for p in module.parameters())
    sum(p.numel() for p in both)
    return [both]


@fault("order", caught_by=["clip-order"], follows=["clip-coverage", "norm-bound"])
def clip_before_backward() -> Sequence[str]:
    """Gradients are clipped before the backward makes them.

    They have just been zeroed, so nothing is clipped. Seen in lucidrains/magvit2-pytorch#10.
    """
    return ("zero", "clip", "backward", "unscale", "step")


@fault("order", caught_by=["clip-order"], follows=["clip-coverage", "norm-bound"])
def clip_after_step() -> Sequence[str]:
    """Gradients are clipped when the optimizer has used them already.

    The norm that is logged looks bounded; no update ever is.
    """
    return ("zero", "backward", "unscale", "step", "clip")


@fault("order", caught_by=["clip-after-unscale"], follows=["norm-bound"], needs="scaler")
def clip_before_unscale() -> Sequence[str]:
    """Under mixed precision the scaled gradients are clipped, and divided by the scale afterwards.

    Bounded to 1 and then divided by 65,536, the updates all but vanish. Seen in milesial/Pytorch-UNet#468 and
    pytorch/examples#1196.
    """
    return ("zero", "backward", "clip", "unscale", "step")


# --- the same in a script of somebody's


def _clips(scene: Scene) -> list[Site]:
    found: list[Site] = scene.need(scene.of("clip"), "the script clips no gradient with torch's functions")
    return found


def _without(leave_out: Callable[[Role, str], bool]) -> Callable[[Call, Live], Any]:
    """Return a clip of what is left when some parameters are not handed over."""

    def change(call: Call, live: Live) -> Any:
        params = list(call.arg(0, "parameters"))
        call.put(
            0, "parameters", [p for p, (r, n) in zip(params, live.named(params), strict=True) if not leave_out(r, n)]
        )
        return call.proceed()

    return change


@injected("projector-unclipped")
def _projector_unclipped(scene: Scene) -> Acts:
    clips = _clips(scene)
    scene.need(scene.modules.get("projector"), "no projector stands between student and teacher")
    clips = scene.need([s for s in clips if s.data["projector"]], "the projectors are not clipped as it is")
    return {"clip": at(clips, _without(lambda role, name: role == "projector"))}


@injected("head-unclipped")
def _head_unclipped(scene: Scene) -> Acts:
    clips = _clips(scene)
    scene.need(scene.head, "the student's last layer was not found")
    return {"clip": at(clips, _without(lambda role, name: role == "student" and name in scene.head))}


@injected("clip-per-module")
def _clip_per_module(scene: Scene) -> Acts:
    scene.need("max_norm" in scene.declared, "nobody declared one bound over student and projectors (--max-norm)")
    clips = [s for s in _clips(scene) if s.name == "clip_grad_norm" and s.data["projector"] and s.data["student"]]
    scene.need(clips, "student and projectors are not clipped in one call")

    def change(call: Call, live: Live) -> Any:
        params = list(call.arg(0, "parameters"))
        roles = live.named(params)
        norms = []
        for ours in (True, False):
            call.put(
                0, "parameters", [p for p, (r, _) in zip(params, roles, strict=True) if (r == "projector") == ours]
            )
            norms.append(call.proceed())
        return norms[-1]

    return {"clip": at(clips, change)}


@injected("clip-exhausted-generator")
def _clip_exhausted_generator(scene: Scene) -> Acts:
    return {"clip": at(_clips(scene), _without(lambda role, name: True))}


def _held_back(scene: Scene) -> Act:
    """Return an act that makes no clip, and keeps it for another time."""
    scene.need(not scene.of("unscale"), "the gradients are unscaled first, and a clip at another time is another fault")
    places = {s.place for s in _clips(scene)}

    def wait(call: Call, live: Live) -> Any:
        if call.place not in places:
            return call.proceed()
        params = list(call.arg(0, "parameters"))
        call.put(0, "parameters", params)
        live.kept[call.place] = call
        return params[0].new_zeros(()) if params else None

    return wait


def _clip_now(live: Live) -> None:
    """Make the clips that were held back."""
    for clip in live.kept.values():
        live.acted += 1
        clip.proceed()


@injected("clip-before-backward")
def _clip_before_backward(scene: Scene) -> Acts:
    def backward(call: Call, live: Live) -> Any:
        _clip_now(live)
        return call.proceed()

    return {"clip": _held_back(scene), "backward": backward}


@injected("clip-after-step")
def _clip_after_step(scene: Scene) -> Acts:
    def step(call: Call, live: Live) -> Any:
        result = call.proceed()
        _clip_now(live)
        live.kept.clear()
        return result

    return {"clip": _held_back(scene), "step": step}


@injected("clip-before-unscale")
def _clip_before_unscale(scene: Scene) -> Acts:
    _clips(scene)
    scene.need(scene.of("unscale"), "no GradScaler unscales gradients before the clip")

    def leave_out(call: Call, live: Live) -> Any:
        if not call.is_direct:  # the scaler's own step, which unscales what nobody did by then
            return call.proceed()
        live.acted += 1
        return None

    return {"unscale": leave_out}
