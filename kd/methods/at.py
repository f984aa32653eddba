"""AT: the student looks where the teacher looks; maps of a stage's activity, without their channels, are matched.

Zagoruyko and Komodakis: Paying More Attention to Attention, ICLR 2017 (1612.03928), eq. 2: the distance of the
normalised maps of squared activations. The authors' code (szagoruyko/attention-transfer) takes the mean of squares
where the paper has a norm, which the weight 1000 of the literature's tables (HobbitLong/RepDistiller) is for; so here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import alike
from kdbench.kd.models.registry import Answer


@method("at", title="AT", paper="Zagoruyko and Komodakis 2017, eq. 2", soft=Soft.NONE, seams=("features",))
class AT(Method):
    """The sum over the stages of the mean squared distance of normalised attention maps."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """RepDistiller's weight."""

        at_weight: float = 1000.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        stages = zip(self.ask.features(student), teacher.features, strict=True)
        maps = [tuple(map(_attention, alike(f_s, f_t))) for f_s, f_t in stages]
        return {"at": torch.stack([F.mse_loss(a_s, a_t) for a_s, a_t in maps]).sum()}


def _attention(features: Tensor) -> Tensor:
    """Return the mean of squares over the channels, as a vector of length 1 for each image (B, H * W)."""
    return F.normalize(features.square().mean(1).flatten(1))
