"""DIST: student and teacher need agree only in how probabilities rise and fall together (Pearson's correlation).

Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022 (2205.10536), 3.2 and
3.3: 1 - correlation over the classes of each image (inter), and over the images of each class (intra). Official code:
hunto/DIST_KD. It multiplies both terms by the square of the temperature, which the paper does not have; so does this.
Weights and temperature are the code's on CIFAR-100; on ImageNet the temperature is 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.models.registry import Answer

_EPS = 1e-8
"The least norm: a row that is the same everywhere correlates with nothing."


@method("dist", title="DIST", paper="Huang et al. 2022, L_inter and L_intra", soft=Soft.CORRELATION)
class DIST(Method):
    """T^2 (1 - Pearson's correlation of the softened answers), over rows (inter) and over columns (intra)."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The weights are the paper's beta and gamma, times the code's weight of the whole; the labels have 1."""

        inter_weight: float = 2.0
        intra_weight: float = 2.0
        temperature: float = 4.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return both terms, computed in fp32 whatever the precision."""
        t = self.settings.temperature
        q, p = ((answer.logits.float() / t).softmax(1) for answer in (student, teacher))
        return {"inter": t**2 * _apart(q, p), "intra": t**2 * _apart(q.T, p.T)}


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - the mean correlation of the rows of two matrices."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    a, b = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=_EPS) for x in (a, b))
    return 1 - (a * b).sum(1).mean()
