"""Feature-KD: projected stage outputs of the student match the teacher's (paper, 3.3, eq. 3).

Not FitNets (Romero et al. 2015), which matches one hint layer through a regressor with batch norm and ReLU: here a
bare 1x1 convolution stands at each of the four stages, also where the channel counts are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.models.registry import Answer


@method("feature", title="Feature-KD", paper="the paper, eq. 3", soft=Soft.NONE, projectors=True, seams=("features",))
class FeatureKD(Method):
    """Mean over the stages of MSE plus beta times (1 - cosine of the pooled features), through 1x1 projectors."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Weights of the two terms, and of the cosine within the second (eq. 3)."""

        kd_weight: float
        beta: float = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            self.not_negative("beta")

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Make a projector for each stage."""
        projectors = [nn.Conv2d(c_s, c_t, kernel_size=1, bias=False) for c_s, c_t in zip(student, teacher, strict=True)]
        for projector in projectors:
            nn.init.xavier_uniform_(projector.weight)
        self.projectors = nn.ModuleList(projectors)

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        stages = zip(self.projectors, self.ask.features(student), teacher.features, strict=True)
        return {"kd": torch.stack([self._stage(projector(f_s), f_t) for projector, f_s, f_t in stages]).mean()}

    def _stage(self, projected: Tensor, target: Tensor) -> Tensor:
        projected, target = projected.float(), target.float()
        if projected.shape[-2:] != target.shape[-2:]:
            height, width = (min(a, b) for a, b in zip(projected.shape[-2:], target.shape[-2:], strict=True))
            size = (height, width)
            projected, target = F.adaptive_avg_pool2d(projected, size), F.adaptive_avg_pool2d(target, size)
        cosine = F.cosine_similarity(projected.mean((2, 3)), target.mean((2, 3)), dim=1)
        return F.mse_loss(projected, target) + self.settings.beta * (1 - cosine).mean()
