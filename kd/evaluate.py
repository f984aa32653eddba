"""What a trained network is worth: accuracy, and how closely a student follows its teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def logits_of(model: nn.Module, batches: Sequence[Tensor], images: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the model's logits (N, C) in evaluation mode over batches of image ids, leaving its modes."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    answers = [model(images(ids)).logits.float() for ids in batches]
    for module, training in modes.items():
        module.training = training
    return torch.cat(answers)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right answers in percent."""
    return 100.0 * (logits.argmax(1) == labels).double().mean().item()


def per_class_accuracy(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Return the share of right answers in percent for each class; None for a class that has no image."""
    right = (logits.argmax(1) == labels).double()
    counts = torch.bincount(labels, minlength=logits.shape[1])
    sums = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device).index_add_(0, labels, right)
    return [100.0 * s / n if n else None for s, n in zip(sums.tolist(), counts.tolist(), strict=True)]


@dataclass(frozen=True)
class Fidelity:
    """How closely a student follows its teacher on the same images."""

    agreement: float
    "Share of images with the same first class, in percent."
    kl_t1: float
    "Mean KL(teacher || student) at temperature 1, in nats."
    kl_t4: float
    "The same at temperature 4."


def fidelity(student: Tensor, teacher: Tensor) -> Fidelity:
    """Compare two sets of logits (N, C) for the same images."""

    def kl(temperature: float) -> float:
        log_s = F.log_softmax(student.double() / temperature, dim=1)
        log_t = F.log_softmax(teacher.double() / temperature, dim=1)
        return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True).item()

    return Fidelity(accuracy(student, teacher.argmax(1)), kl(1.0), kl(4.0))
