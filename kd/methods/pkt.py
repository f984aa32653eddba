"""PKT: an image's probability of being another's neighbour is as the teacher has it.

Passalis and Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018 (1803.10837): KL
of the row-normalised affinities, (cosine + 1) / 2, of the pooled last stage. Code:
passalis/probabilistic_kt. It takes the mean over all B^2 entries where the paper has a sum, which the weight 30000 of
RepDistiller is for; an image's affinity to itself counts, as in the code and not in the paper.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import exactly, pooled
from kdbench.kd.models.registry import Answer

_EPS = 1e-7
"Beside norms and under logarithms, as in the official code."


@method("pkt", title="PKT", paper="Passalis and Tefas 2018, cosine", soft=Soft.NONE, seams=("features",), stages="last")
class PKT(Method):
    """The mean over all pairs of t log(t / s), t and s the teacher's and the student's affinities."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """RepDistiller's weight."""

        pkt_weight: float = 30000.0

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        with exactly(student.logits):
            s, t = (_affinities(pooled(f)) for f in (self.ask.features(student), teacher.features))
        return {"pkt": (t * ((t + _EPS) / (s + _EPS)).log()).mean()}


def _affinities(e: Tensor) -> Tensor:
    unit = e / (torch.linalg.vector_norm(e, dim=1, keepdim=True) + _EPS)
    affinities = (unit @ unit.T + 1) / 2
    return affinities / affinities.sum(1, keepdim=True)
