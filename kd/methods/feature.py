"""Feature-KD: projected stage outputs of the student match the teacher's (paper, 3.3, eq. 3).

Not FitNets (Romero et al. 2015), which matches one hint layer through a regressor with batch norm and ReLU: here a
bare 1x1 convolution stands at each of the four stages, also where the channel counts are equal.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.models import Answer
from kd.streams import global_stream


class FeatureKD(nn.Module):
    """Mean over the stages of MSE plus beta times (1 - cosine of the pooled features), through 1x1 projectors."""

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        beta: float,
        features: Callable[[Answer], tuple[Tensor, ...]],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.features = features
        with global_stream(generator):
            projectors = [
                nn.Conv2d(c_s, c_t, kernel_size=1, bias=False)
                for c_s, c_t in zip(student_channels, teacher_channels, strict=True)
            ]
            for projector in projectors:
                nn.init.xavier_uniform_(projector.weight)
        self.projectors = nn.ModuleList(projectors)

    def forward(self, student: Answer, teacher: Answer) -> Tensor:
        """Return the term (a scalar), computed in fp32 whatever the precision."""
        stages = zip(self.projectors, self.features(student), teacher.features, strict=True)
        return torch.stack([self._stage(projector(f_s), f_t) for projector, f_s, f_t in stages]).mean()

    def _stage(self, projected: Tensor, target: Tensor) -> Tensor:
        projected, target = projected.float(), target.float()
        if projected.shape[-2:] != target.shape[-2:]:
            height, width = (min(a, b) for a, b in zip(projected.shape[-2:], target.shape[-2:], strict=True))
            size = (height, width)
            projected, target = F.adaptive_avg_pool2d(projected, size), F.adaptive_avg_pool2d(target, size)
        cosine = F.cosine_similarity(projected.mean((2, 3)), target.mean((2, 3)), dim=1)
        return F.mse_loss(projected, target) + self.beta * (1 - cosine).mean()
