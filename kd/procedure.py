"""The method section of the paper as data: each decision one pure function, all of them one `Procedure`.

The training loop (:mod:`kd.train`) asks these functions every question that it has. A variant of a study is a
`Procedure` with one field replaced, and so differs from the canonical one in exactly one decision. A function is
handed everything that a wrong decision would need (the test scores, the teacher, ...), so that not using it is
visible.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.data import Crops, Pool
from kdbench.kd.errors import InputError
from kdbench.kd.models import Answer, Stem
from kdbench.kd.recipe import Recipe
from kdbench.kd.streams import stream as named_stream
from kdbench.kd.teacher import Provenance, load_strict

Params = Iterable[nn.Parameter]
Group = dict[str, Any]
"""A parameter group of the optimizer."""


class Split(NamedTuple):
    """Ids of the images trained on, of those that choose the epoch, and of those that score the result."""

    train: Tensor
    val: Tensor
    test: Tensor


class Views(NamedTuple):
    """The batch as the student sees it and as the teacher sees it, each (B, 3, H, W)."""

    student: Tensor
    teacher: Tensor


def split(train_ids: Tensor, test_ids: Tensor, recipe: Recipe, generator: torch.Generator) -> Split:
    """Cut validation out of the train set at random; test stays apart (4.1)."""
    wanted = recipe.train_size + recipe.val_size
    if wanted > len(train_ids):
        raise InputError(
            f"recipe: train_size {recipe.train_size} + val_size {recipe.val_size} is {wanted}, but the train set holds "
            f"{len(train_ids)} images"
        )
    order = train_ids[torch.randperm(len(train_ids), generator=generator)]
    return Split(
        order[recipe.val_size :][: recipe.train_size],
        order[: recipe.val_size],
        test_ids[:: recipe.test_stride],
    )


def stem(input_size: int) -> Stem:
    """Keep the full resolution up to the first stage: 3x3 convolution, stride 1, no pooling (3.4)."""
    return "cifar"


def load_teacher(teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None) -> Provenance:
    """Load the trained teacher whole from its own checkpoint, or raise a ValueError (4.2, teacher loading)."""
    return load_strict(teacher, checkpoint, sha256)


def set_modes(student: nn.Module, teacher: nn.Module | None, method: nn.Module) -> None:
    """Train the student and its projectors; the teacher answers in evaluation mode (3.2)."""
    student.train()
    method.train()
    if teacher is not None:
        teacher.eval()


def views(pool: Pool, ids: Tensor, crops: Crops) -> Views:
    """Crop and flip at random; student and teacher see the same pixels (4.1)."""
    images = pool.crop(ids, crops)
    return Views(images, images)


def labels(pool: Pool, ids: Tensor, teacher: nn.Module | None) -> Tensor:
    """Learn each image's own label, with a teacher or without (3.1)."""
    return pool.labels[ids]


def teacher_answer(teacher: nn.Module, images: Tensor, step: int, steps_per_epoch: int) -> Answer:
    """Ask the teacher about the very images of the step, whichever it is, without recording a gradient (3.2)."""
    with torch.no_grad():
        answer: Answer = teacher(images)
    return answer


def features(answer: Answer) -> tuple[Tensor, ...]:
    """Match the outputs of all four stages, in the graph, so that the term trains the student (3.3)."""
    return answer.features


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over the batch of KL(teacher || student) at temperature T (eq. 2)."""
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def combine(ce: Tensor, kd: Tensor, ce_weight: float, kd_weight: float) -> Tensor:
    """Weigh the label term and the distillation term (eq. 1: ce_weight = 1 - alpha, kd_weight = alpha)."""
    return ce_weight * ce + kd_weight * kd


def trainable(student: nn.Module, method: nn.Module, teacher: nn.Module | None) -> Sequence[Params]:
    """Optimise the student and the projection layers, a group each, and nothing of the teacher (3.3)."""
    return [[*student.parameters()], [*method.parameters()]]


def clipped(student: nn.Module, method: nn.Module) -> Sequence[Params]:
    """Clip the union of student and projection parameters as one (4.2, gradient clipping): each set to the bound."""
    return [[*student.parameters(), *method.parameters()]]


def order() -> Sequence[str]:
    """Return the verbs of one update, in order (4.1, 4.2)."""
    return ("zero", "backward", "unscale", "clip", "step")


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the rate at a step counted from 0: linear warm-up, then cosine from `lr` to `lr_min` (4.1), or drops."""
    warm = round(recipe.warmup * recipe.epochs * steps_per_epoch)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    if recipe.schedule == "drops":
        return recipe.lr * 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in recipe.drop_epochs())
    if recipe.schedule == "epoch":
        done, whole = (
            step // steps_per_epoch - warm // steps_per_epoch,
            recipe.epochs - warm // steps_per_epoch,
        )
    else:
        done, whole = step - warm, recipe.epochs * steps_per_epoch - warm
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * (1 + math.cos(math.pi * done / whole)) / 2


def scheduled(groups: Sequence[Group]) -> Sequence[Group]:
    """Move the learning rate of every parameter group alike (4.1)."""
    return groups


def select(val: Sequence[float], test: Sequence[float]) -> int:
    """Report the epoch that is best on validation, of equals the last; the test scores decide nothing (4.1)."""
    return max(range(len(val)), key=lambda epoch: (val[epoch], epoch))


def aggregate(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (ddof = 1) over seeds; no deviation from a single seed (abstract)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def stream(seed: int, name: str) -> torch.Generator:
    """Give each random decision of a seed a stream of its own (4.1, reproducibility)."""
    return named_stream(seed, name)


@dataclass(frozen=True)
class Procedure:
    """Every decision of the method section. The defaults are canonical."""

    split: Callable[[Tensor, Tensor, Recipe, torch.Generator], Split] = split
    stem: Callable[[int], Stem] = stem
    load_teacher: Callable[[nn.Module, nn.Module, Path, str | None], Provenance] = load_teacher
    set_modes: Callable[[nn.Module, nn.Module | None, nn.Module], None] = set_modes
    views: Callable[[Pool, Tensor, Crops], Views] = views
    labels: Callable[[Pool, Tensor, nn.Module | None], Tensor] = labels
    teacher_answer: Callable[[nn.Module, Tensor, int, int], Answer] = teacher_answer
    features: Callable[[Answer], tuple[Tensor, ...]] = features
    soft_loss: Callable[[Tensor, Tensor, float], Tensor] = soft_loss
    combine: Callable[[Tensor, Tensor, float, float], Tensor] = combine
    trainable: Callable[[nn.Module, nn.Module, nn.Module | None], Sequence[Params]] = trainable
    clipped: Callable[[nn.Module, nn.Module], Sequence[Params]] = clipped
    order: Callable[[], Sequence[str]] = order
    learning_rate: Callable[[Recipe, int, int], float] = learning_rate
    scheduled: Callable[[Sequence[Group]], Sequence[Group]] = scheduled
    select: Callable[[Sequence[float], Sequence[float]], int] = select
    aggregate: Callable[[Sequence[float]], tuple[float, float | None]] = aggregate
    stream: Callable[[int, str], torch.Generator] = stream


CANONICAL = Procedure()
