"""Logit-KD: the student matches the teacher's softened distribution (paper, 3.2; Hinton et al. 2015)."""

from dataclasses import dataclass

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.models.registry import Answer


@method("logit", title="Logit-KD", paper="Hinton et al. 2015; the paper, eq. 2", soft=Soft.HINTON, seams=("soft_loss",))
class LogitKD(Method):
    """T^2 KL between the softened answers."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Weights of the two terms, and the temperature of the soft targets."""

        kd_weight: float
        temperature: float = 4.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        soft = self.ask.soft_loss(student.logits.float(), teacher.logits.float(), self.settings.temperature)
        return {"kd": soft}
