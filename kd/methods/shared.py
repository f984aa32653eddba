"""What methods share: stages of one size, pooled outputs, fp32 throughout, and the divergence of a powered teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor


def alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two stages' outputs (B, C, H, W) in fp32; the larger is average-pooled to the smaller's size."""
    student, teacher = student.float(), teacher.float()
    if student.shape[-2:] == teacher.shape[-2:]:
        return student, teacher
    height, width = (min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True))
    size = (height, width)
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def pooled(features: tuple[Tensor, ...]) -> Tensor:
    """Return the last stage's output averaged over its pixels (B, C), in fp32: what the classifier is given."""
    return features[-1].float().mean((2, 3))


def exactly(like: Tensor) -> torch.autocast:
    """Return a block in which products of matrices are fp32 too: autocast would halve them whatever they are given."""
    return torch.autocast(like.device.type, enabled=False)


def powered_divergences(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """Return each image's KL (B,) of the teacher's distribution, to a power and renormalised, to the student's."""
    # A power of a softmax, renormalised, is the softmax of the power's multiple of the logits.
    log_q, log_p = student.float().log_softmax(1), (power * teacher.float()).log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
