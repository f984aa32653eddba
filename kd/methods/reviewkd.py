"""ReviewKD: each stage of the student, fused with what later stages make of it, matches the teacher's at several sizes.

Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR 2021 (2104.09044), 3.2 and 3.3: attention-based
fusion (ABF) from the last stage to the first, and the hierarchical context loss (HCL). Official code:
dvlab-research/ReviewKD. It matches the teacher's outputs before their ReLU, here those after it, which is what a
network's stages are; and its weight rises over the first 20 of 240 epochs, which it does not here. The pooled output is
a fifth stage, as there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.models.registry import Answer

_WIDEST = 512
"Channels in which stages are fused, at most, as in the official code."
_SIZES = (4, 2, 1)
"To which outputs are pooled, as far as they are larger; each counts half of the one before."


@method(
    "reviewkd",
    title="ReviewKD",
    paper="Chen et al. 2021, 3.2-3.3",
    soft=Soft.NONE,
    projectors=True,
    seams=("features",),
)
class ReviewKD(Method):
    """The sum over the stages of the hierarchical context loss of fused outputs."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The weight is the official one of resnet32x4 and resnet8x4, and of WRN pairs."""

        review_weight: float = 5.0

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Make a fusion for each stage and for the pooled output, which is the first and fuses nothing."""
        ins, outs = [*student, student[-1]], [*teacher, teacher[-1]]
        middle = min(_WIDEST, ins[-1])
        made = [
            _Fusion(c_s, middle, c_t, at < len(student)) for at, (c_s, c_t) in enumerate(zip(ins, outs, strict=True))
        ]
        self.fusions = nn.ModuleList(reversed(made))

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision."""
        mine, theirs = (_reviewed(f) for f in (self.ask.features(student), teacher.features))
        later, terms = None, []
        for fusion, f_s, f_t in zip(self.fusions, mine, theirs, strict=True):
            matched, later = fusion(f_s, later, f_t.shape[-2:])
            terms.append(_context_loss(matched.float(), f_t.float()))
        return {"review": torch.stack(terms).sum()}


class _Fusion(nn.Module):
    """ABF: a stage's output and what came of the later ones, weighed pixel by pixel."""

    def __init__(self, c_in: int, middle: int, c_out: int, fuses: bool) -> None:
        super().__init__()
        first = nn.Conv2d(c_in, middle, 1, bias=False)
        last = nn.Conv2d(middle, c_out, 3, padding=1, bias=False)
        self.enter, self.leave = (nn.Sequential(c, nn.BatchNorm2d(c.out_channels)) for c in (first, last))
        self.weigh = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None
        for conv in (first, last):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, later: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return what is matched, of the teacher's size, and what earlier stages are fused with."""
        x = self.enter(x)
        if self.weigh is not None and later is not None:
            later = F.interpolate(later, x.shape[-2:], mode="nearest")
            shares = self.weigh(torch.cat([x, later], dim=1))
            x = x * shares[:, :1] + later * shares[:, 1:]
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.leave(x), x


def _reviewed(features: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the stages from the last to the first, before them the pooled output as an image of one pixel."""
    return [features[-1].mean((2, 3), keepdim=True), *reversed(features)]


def _context_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """HCL: the mean of the squared distances at full size and at the smaller ones, weighed 1, 1/2, 1/4, ..."""
    sizes = [size for size in _SIZES if size < f_s.shape[-2]]
    pools = [(f_s, f_t), *((F.adaptive_avg_pool2d(f_s, n), F.adaptive_avg_pool2d(f_t, n)) for n in sizes)]
    weights = [0.5**at for at in range(len(pools))]
    return torch.stack([w * F.mse_loss(a, b) for w, (a, b) in zip(weights, pools, strict=True)]).sum() / sum(weights)
