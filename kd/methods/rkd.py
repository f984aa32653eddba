"""RKD: distances between two images and angles between three are as the teacher has them.

Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019 (1904.05068), RKD-D and RKD-A: Huber's loss of the
pairwise distances over their mean, and of the cosines of the angles. Of the pooled last stage. The weights 25 and 50
are those of RepDistiller on CIFAR-100, in the authors' ratio of 1 to 2 (lenscloth/RKD). The code's mean of distances
leaves out those of zero, as an image's to itself, and its loss counts them; so here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import exactly, pooled
from kdbench.kd.models.registry import Answer

_EPS = 1e-12
"Squared distance up to which two images are in one place, as in the official code."


@method("rkd", title="RKD", paper="Park et al. 2019, RKD-DA", soft=Soft.NONE, seams=("features",), stages="last")
class RKD(Method):
    """Smooth L1 of the distances over their mean, and of the cosines of the angles."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """RepDistiller's weights."""

        distance_weight: float = 25.0
        angle_weight: float = 50.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return both terms, computed in fp32 whatever the precision."""
        with exactly(student.logits):
            (d_s, a_s), (d_t, a_t) = (_relations(pooled(f)) for f in (self.ask.features(student), teacher.features))
        return {"distance": F.smooth_l1_loss(d_s, d_t), "angle": F.smooth_l1_loss(a_s, a_t)}


def _relations(e: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances (B, B) of embeddings (B, C) over their mean, and the cosines (B, B, B) of three's angles."""
    to = e[None] - e[:, None]
    squared = to.square().sum(2)
    apart = squared > _EPS
    distances = torch.where(apart, squared.clamp(min=_EPS).sqrt(), 0.0)
    mean = distances.sum() / apart.sum().clamp(min=1)
    directions = F.normalize(to, dim=2)
    return distances / mean.clamp(min=_EPS), directions @ directions.mT
