"""Faults in gradient clipping."""

from torch import nn

from harness.faults import fault
from kd.procedure import Params


@fault("clipped", caught_by=["clip-coverage"], follows=["norm-bound"], needs="projectors")
def projector_unclipped(student: nn.Module, method: nn.Module) -> Params:
    """The projection layers train without a gradient bound.

    The clip is written for the student before the projectors exist, and is not extended when they come. Seen in
    umutonuryasar/kd-capacity-gap, whose paper first blamed it for Feature-KD's results; its second version measured
    95.00 +- .18 with the bug against 94.95 +- .20 without, five seeds each (p = .69).
    """
    return [*student.parameters()]
