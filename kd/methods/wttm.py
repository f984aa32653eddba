"""WTTM: TTM in which an image counts for more, the less sure its teacher is.

Zheng and Yang: Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024 (2402.11148), L_WTTM: the
weight of an image is the sum of its teacher's probabilities to the power, before they are renormalised. Official code:
zkxufo/TTM, which is as the paper has it; weight 45 and power 0.1 are those that it shows for TTM on CIFAR-100.
"""

from dataclasses import dataclass

from kdbench.kd.errors import InputError
from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import powered_divergences
from kdbench.kd.models.registry import Answer


@method("wttm", title="WTTM", paper="Zheng and Yang 2024, L_WTTM", soft=Soft.DIVERGENCE)
class WTTM(Method):
    """The mean over the batch of power sum times KL(teacher's distribution to a power || student's as it is)."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The weight, and the power gamma of the teacher's probabilities: 1 over a temperature."""

        kd_weight: float = 45.0
        power: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.power <= 0:
                raise InputError(f"method {self.method}: power is {self.power}; it must be positive")

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        power = self.settings.power
        sums = (power * teacher.logits.float().log_softmax(1)).exp().sum(1)
        return {"kd": (sums * powered_divergences(student.logits, teacher.logits, power)).mean()}
