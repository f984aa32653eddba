"""Faults in how the teacher comes to its weights."""

import logging
from pathlib import Path

from torch import nn

from harness.faults import fault
from kd.teacher import Provenance


@fault("load_teacher", caught_by=["teacher-provenance"], follows=["teacher-above-chance"], needs="teacher")
def random_teacher(teacher: nn.Module, checkpoint: Path, sha256: str | None) -> Provenance:
    """A checkpoint that is not found is only logged, and training goes on with a teacher of random weights.

    Here the path is wrong by one letter, as after a renaming. Seen in NVIDIA-NeMo/Megatron-Bridge#1422 and
    zgcr/SimpleAICV#23. The teacher answers at chance, and the first T^2 KL is about 0.1 instead of 5 to 8.
    """
    missing = checkpoint.with_name(checkpoint.name + "s")
    logging.getLogger(__name__).warning("no teacher checkpoint at %s, continuing without", missing.name)
    return Provenance(None, None, 0.0)
