"""NKD: cross-entropy of the right class as far as the teacher is sure of it, and of the other classes among themselves.

Yang, Zeng, Li, Zhang, Yuan, Li: From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023 (2303.13005),
L_nkd. The probabilities of the other classes are divided by their sum on both sides, so that student and teacher
can agree in them; DKD's second part is the same but for the teacher's entropy. Official code: yzd-v/cls_KD. Its first
term is at temperature 1 whatever the second's is, and so here.
"""

from dataclasses import dataclass

import torch

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.models.registry import Answer


@method("nkd", title="NKD", paper="Yang et al. 2023, L_nkd", soft=Soft.DIVERGENCE, needs=("labels",))
class NKD(Method):
    """-p log q of the right class, and T^2 times the cross-entropy within the rest; means over the batch."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The weights are 1 and gamma; 1.5 and temperature 1 are the paper's on ImageNet."""

        target_weight: float = 1.0
        rest_weight: float = 1.5
        temperature: float = 1.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return both terms, computed in fp32 whatever the precision."""
        t = self.settings.temperature
        z_s, z_t = student.logits.float(), teacher.logits.float()
        here = batch.labels[:, None]
        target = -(z_t.softmax(1).gather(1, here) * z_s.log_softmax(1).gather(1, here)).mean()
        right = here == torch.arange(z_s.shape[1], device=z_s.device)
        log_q = (z_s / t).masked_fill(right, -torch.inf).log_softmax(1).masked_fill(right, 0.0)
        p = (z_t / t).masked_fill(right, -torch.inf).softmax(1)
        return {"target": target, "rest": -(t**2) * (p * log_q).sum(1).mean()}
