"""SP: images that are alike to the teacher are alike to the student, by the products of their last stage's outputs.

Tung and Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019 (1907.09682), L_SP: the squared distance of
the two B x B matrices of products, each row normalised, over B^2. Code: HobbitLong/RepDistiller, whose weight 3000 is
the paper's gamma; it is as the paper has it.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import exactly
from kdbench.kd.models.registry import Answer


@method("sp", title="SP", paper="Tung and Mori 2019, L_SP", soft=Soft.NONE, seams=("features",), stages="last")
class SP(Method):
    """The mean squared distance of the row-normalised matrices of products, of the last stage."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The paper's weight."""

        sp_weight: float = 3000.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        with exactly(student.logits):
            return {"sp": F.mse_loss(_products(self.ask.features(student)[-1]), _products(teacher.features[-1]))}


def _products(features: Tensor) -> Tensor:
    flat = features.float().flatten(1)
    return F.normalize(flat @ flat.T)
