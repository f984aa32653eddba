"""Logit-KD: the student matches the teacher's softened distribution (paper, 3.2; Hinton et al. 2015)."""

from collections.abc import Callable

from torch import Tensor, nn

from kd.models import Answer


class LogitKD(nn.Module):
    """T^2 KL between the softened answers; `soft_loss` is the procedure's."""

    def __init__(self, temperature: float, soft_loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        super().__init__()
        self.temperature = temperature
        self.soft_loss = soft_loss

    def forward(self, student: Answer, teacher: Answer) -> Tensor:
        """Return the term (a scalar) for logits (B, C) of both, computed in fp32 whatever the precision."""
        return self.soft_loss(student.logits.float(), teacher.logits.float(), self.temperature)
