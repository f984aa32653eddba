"""FitNets' hint: one stage of the student, through a regressor, matches one stage of the teacher.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets, ICLR 2015 (1412.6550), eq. 3. The paper trains up to the hint
first and distils from logits afterwards; the code that the literature's tables come from (HobbitLong/RepDistiller,
megvii-research/mdistiller) trains the hint together with the labels, as here, through a convolution with batch norm and
ReLU. There the convolution has a stride where the sizes differ; here the larger output is average-pooled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from kdbench.kd.errors import InputError
from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import alike
from kdbench.kd.models.registry import Answer


@method(
    "fitnet", title="FitNet", paper="Romero et al. 2015, eq. 3", soft=Soft.NONE, projectors=True, seams=("features",)
)
class FitNet(Method):
    """Mean squared distance of one stage's outputs, the student's through a 1x1 convolution, batch norm and ReLU."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The weight is RepDistiller's, and so is the stage, counted from 1."""

        hint_weight: float = 100.0
        hint_stage: int = 2

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Make the regressor of the one stage."""
        at = self.settings.hint_stage
        if not 1 <= at <= len(student):
            raise InputError(f"method fitnet: hint_stage is {at}; the networks have the stages 1 to {len(student)}")
        c_s, c_t = student[at - 1], teacher[at - 1]
        self.regressor = nn.Sequential(nn.Conv2d(c_s, c_t, kernel_size=1), nn.BatchNorm2d(c_t), nn.ReLU())

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        at = self.settings.hint_stage - 1
        f_s, f_t = alike(self.ask.features(student)[at], teacher.features[at])
        return {"hint": F.mse_loss(self.regressor(f_s).float(), f_t)}
