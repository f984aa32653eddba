"""VID: the teacher's features are likely under a Gaussian whose mean the student's predict.

Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation for Knowledge Transfer, CVPR 2019 (1904.05835),
2.1 and 2.2: the negative log-likelihood, a bound on the mutual information, of each stage. Variances are learned, one a
channel. Code: ssahn0215/variational-information-distillation, and HobbitLong/RepDistiller for the defaults. In
megvii-research/mdistiller the variances stand in a plain list, so that no optimizer moves them; here they are
parameters. The log-likelihood of a stage is a mean over its elements and the stages are added, as in the code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import alike
from kdbench.kd.models.registry import Answer

_EPS = 1e-5
"The least variance."
_VARIANCE = 5.0
"At the start, as in the official code."


@method(
    "vid", title="VID", paper="Ahn et al. 2019, log-likelihood", soft=Soft.NONE, projectors=True, seams=("features",)
)
class VID(Method):
    """The sum over stages of the mean of ((t - mean)^2 / variance + log variance) / 2."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """RepDistiller's weight."""

        vid_weight: float = 1.0

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Make for each stage three 1x1 convolutions, and a number for each channel that its variance is made of."""
        pairs = [*zip(student, teacher, strict=True)]
        self.regressors = nn.ModuleList(_regressor(c_s, c_t) for c_s, c_t in pairs)
        start = math.log(math.exp(_VARIANCE - _EPS) - 1)
        self.scales = nn.ParameterList(nn.Parameter(torch.full((c_t,), start)) for _, c_t in pairs)

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        stages = zip(self.regressors, self.scales, self.ask.features(student), teacher.features, strict=True)
        terms = [_unlikely(regressor, scale, *alike(f_s, f_t)) for regressor, scale, f_s, f_t in stages]
        return {"vid": torch.stack(terms).sum()}


def _regressor(c_s: int, c_t: int) -> nn.Sequential:
    first, second, third = (nn.Conv2d(c, c_t, kernel_size=1, bias=False) for c in (c_s, c_t, c_t))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


def _unlikely(regressor: nn.Module, scale: Tensor, f_s: Tensor, f_t: Tensor) -> Tensor:
    variance = (F.softplus(scale) + _EPS)[:, None, None]
    return ((regressor(f_s).float() - f_t).square() / variance + variance.log()).mean() / 2
