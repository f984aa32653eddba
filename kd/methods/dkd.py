"""DKD: the KL of Logit-KD taken apart into the right class against the rest, and the rest among themselves.

Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022 (2203.08679). Logit-KD is TCKD + (1 - p) NCKD,
where p is the teacher's probability of the right class: what a sure teacher knows of the other classes is hardly
heard. Here each part has a weight of its own. Not here: the official code's linear warm-up of both weights over the
first 20 of 240 epochs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.models.registry import Answer

_NOTHING = -1000.0
"A logit at which a probability is 0 and a logarithm still a number, as in the official code."


@method(
    "dkd",
    title="DKD",
    paper="Zhao et al. 2022, eq. 7",
    soft=Soft.DECOUPLED,
    needs=("labels",),
    seams=("soft_loss",),
)
class DKD(Method):
    """T^2 KL of (right class, rest) and T^2 KL within the rest, both by the procedure's own soft loss."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The weights are alpha and beta of eq. 7; temperature 4 is the paper's on CIFAR-100."""

        tckd_weight: float
        nckd_weight: float
        temperature: float = 4.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return both terms, computed in fp32 whatever the precision."""
        t = self.settings.temperature
        z_s, z_t = student.logits.float(), teacher.logits.float()
        right = batch.labels[:, None] == torch.arange(z_s.shape[1], device=z_s.device)
        rest_s, rest_t = (z.masked_fill(right, _NOTHING * t) for z in (z_s, z_t))
        pair_s, pair_t = _pair(z_s, rest_s, batch.labels, t), _pair(z_t, rest_t, batch.labels, t)
        return {"tckd": self.ask.soft_loss(pair_s, pair_t, t), "nckd": self.ask.soft_loss(rest_s, rest_t, t)}


def _pair(z: Tensor, rest: Tensor, labels: Tensor, t: float) -> Tensor:
    """Return two logits (B, 2) whose softmax at temperature t is (p, 1 - p) of the right class."""
    others = t * torch.logsumexp(rest / t, dim=1, keepdim=True)
    return torch.cat([z.gather(1, labels[:, None]), others], dim=1)
