"""Faults in gradient clipping: which parameters are clipped, and when within an update."""

from collections.abc import Sequence

from torch import nn

from kdbench.harness.faults.registry import fault
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
