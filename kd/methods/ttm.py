"""TTM: the teacher's distribution is flattened by a power; the student's is left as it is.

Zheng and Yang: Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024 (2402.11148), L_TTM. Without a
temperature on the student's side the loss holds a regulariser, the student's Renyi entropy. Official code: zkxufo/TTM,
which is as the paper has it; weight 45 and power 0.1 are those that it shows for vgg13 and vgg8 on CIFAR-100.
"""

from dataclasses import dataclass

from kdbench.kd.errors import InputError
from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import powered_divergences
from kdbench.kd.models.registry import Answer


@method("ttm", title="TTM", paper="Zheng and Yang 2024, L_TTM", soft=Soft.DIVERGENCE)
class TTM(Method):
    """KL(teacher's distribution to a power || student's as it is), a mean over the batch."""

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
        return {"kd": powered_divergences(student.logits, teacher.logits, self.settings.power).mean()}
