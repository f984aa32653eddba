"""Logit standardisation: each image's logits get mean 0 and deviation 1 before they are compared, on both sides.

Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation, CVPR 2024 (2403.01427),
Z-score standardisation: the temperature is so a share of the logits' own deviation, and the student need not reach the
teacher's margins. Official code: sunshangquan/logit-standardization-KD. By itself this is T^2 KL of standardised
logits; joined with another method of logits, as in `ls+dkd`, it standardises what that one is shown. The deviation is
the unbiased one (over C - 1), as in the code.
"""

from dataclasses import dataclass

from torch import Tensor

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.models.registry import Answer

_EPS = 1e-7
"Beside the deviation, as in the official code."


def standardised(z: Tensor) -> Tensor:
    """Return logits (B, C) in fp32, each row with mean 0 and deviation 1; a row of equal logits becomes zeros."""
    z = z.float()
    centred = z - z.mean(1, keepdim=True)
    # By hand: the derivative of the deviation of equal logits is no number.
    deviation = (centred.square().sum(1, keepdim=True) / max(1, z.shape[1] - 1) + _EPS**2).sqrt()
    return centred / (_EPS + deviation)


@method("ls", title="LS", paper="Sun et al. 2024, Z-score", soft=Soft.DIVERGENCE, seams=("soft_loss",))
class StandardisedKD(Method):
    """T^2 KL between the softened standardised answers."""

    settings: "Settings"
    wraps = True

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The code's on CIFAR-100: temperature 2, and 9 beside a tenth of the labels' term."""

        ce_weight: float = 0.1
        kd_weight: float = 9.0
        temperature: float = 2.0

    @staticmethod
    def shown(answer: Answer) -> Answer:
        """Return an answer with standardised logits."""
        return answer._replace(logits=standardised(answer.logits))

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        z_s, z_t = (self.shown(answer).logits for answer in (student, teacher))
        return {"kd": self.ask.soft_loss(z_s, z_t, self.settings.temperature)}
