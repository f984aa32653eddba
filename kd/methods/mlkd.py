"""MLKD: softened answers are matched image by image, by how images are alike, and by how classes are alike.

Jin, Wang, Lin: Multi-Level Logit Distillation, CVPR 2023, L_ins, L_batch and L_class: T^2 KL, the squared
distance of the B x B Gram matrices over B, and that of the C x C ones over C, each added over five temperatures.
Official code: Jin-Ying/Multi-Level-Logit-Distillation. It means to leave sure images and classes out of the last two,
by a mask that multiplies a sum and so leaves out nothing: here there is no mask. The paper trains on two views of each
image, a weak and a strong one. With `views` 2 so does this: on two crops of each image, and each term is the mean over
them, as the labels' is. The official code adds them at half the learning rate, which is the same; its strong view is
augmented more, here both are crops; and it compares images and classes on the weak view alone, here on both. The
networks see both views in one batch, there in two, so batch norm's statistics are of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.kd.errors import InputError
from kdbench.kd.methods.registry import Batch, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import exactly
from kdbench.kd.models.registry import Answer

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"The paper's, at each level."


@method("mlkd", title="MLKD", paper="Jin et al. 2023, three levels", soft=Soft.DIVERGENCE, seams=("soft_loss",))
class MLKD(Method):
    """The sum over temperatures of T^2 KL, and of the squared distances of both Gram matrices."""

    settings: "Settings"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """One weight a level; the official configuration has the same for all. The paper has two views."""

        instance_weight: float = 1.0
        batch_weight: float = 1.0
        class_weight: float = 1.0
        views: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.views not in (1, 2):
                raise InputError(f"method mlkd: views is {self.views}; it is 1, or 2 as in the paper")

        def crops(self) -> int:
            """Return `views`: a batch holds each image in so many crops."""
            return self.views

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the three terms, computed in fp32 whatever the precision."""
        z_s, z_t = student.logits.float(), teacher.logits.float()
        instance = torch.stack([self.ask.soft_loss(z_s, z_t, t) for t in TEMPERATURES]).sum()
        with exactly(z_s):
            pairs = [((z_s / t).softmax(1), (z_t / t).softmax(1)) for t in TEMPERATURES]
            views = [pair for q, p in pairs for pair in zip(self._views(q), self._views(p), strict=True)]
            images = torch.stack([_apart(q, p) for q, p in views]).sum() / self.settings.views
            classes = torch.stack([_apart(q.T, p.T) for q, p in views]).sum() / self.settings.views
        return {"instance": instance, "batch": images, "class": classes}

    def _views(self, answers: Tensor) -> Sequence[Tensor]:
        """Return the answers about each view, one of which stands after the other in a batch."""
        return answers.chunk(self.settings.views)


def _apart(q: Tensor, p: Tensor) -> Tensor:
    """Return the squared distance of the products of all rows with all rows, over the number of rows."""
    return (q @ q.T - p @ p.T).square().sum() / len(q)
