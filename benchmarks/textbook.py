"""The yardstick: distillation as tutorials write it, with PIL transforms and a DataLoader, and nothing tuned.

The same networks, losses, optimizer and clip as :mod:`kd.train`; images one by one through PIL, tensors channels-first,
one ``loss.item()`` a step. It is kept plain on purpose.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from kdbench.harness.records.environment import usable_cores
from kdbench.kd.data import Dataset


class PilImages(TorchDataset):
    """A data set's images as PIL images through torchvision's transforms."""

    def __init__(self, dataset: Dataset, ids: Tensor, mean: Tensor, std: Tensor) -> None:
        self.images = [Image.fromarray(dataset.pixels[i].numpy()) for i in ids]
        self.labels = dataset.labels[ids].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean.tolist(), std.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader(
    dataset: Dataset, ids: Tensor, mean: Tensor, std: Tensor, batch_size: int, device: torch.device
) -> DataLoader:
    """Return the loader over these images.

    On a processor it works in the training's own process, whose cores are all training; beside a GPU, which trains
    alone, it has workers on all cores, up to eight.
    """
    images = PilImages(dataset, ids, mean, std)
    if device.type == "cpu":
        return DataLoader(images, batch_size, shuffle=True, drop_last=True)
    workers = min(8, usable_cores())
    return DataLoader(
        images, batch_size, True, drop_last=True, num_workers=workers, pin_memory=True, persistent_workers=True
    )


def loss_of(
    student: nn.Module, teacher: nn.Module | None, projectors: nn.ModuleList | None, images: Tensor, labels: Tensor
) -> Tensor:
    """Return the loss: cross-entropy; with a teacher Logit-KD (T = 4); with projectors as well Feature-KD instead."""
    answer = student(images)
    loss = F.cross_entropy(answer.logits, labels)
    if teacher is None:
        return loss
    with torch.no_grad():
        target = teacher(images)
    if projectors is None:
        log_student = F.log_softmax(answer.logits / 4, dim=1)
        kd = 16 * F.kl_div(log_student, F.softmax(target.logits / 4, dim=1), reduction="batchmean")
    else:
        kd = 0
        for conv, f_s, f_t in zip(projectors, answer.features, target.features, strict=True):
            projected = conv(f_s)
            cosine = F.cosine_similarity(projected.mean((2, 3)), f_t.mean((2, 3)))
            kd = kd + F.mse_loss(projected, f_t) + 0.5 * (1 - cosine).mean()
        kd = kd / len(projectors)
    return 0.5 * loss + 0.5 * kd


def train(
    batches: Iterable[tuple[Tensor, Tensor]],
    student: nn.Module,
    teacher: nn.Module | None,
    projectors: nn.ModuleList | None,
) -> list[float]:
    """Train on the batches; return each step's loss."""
    parameters = [*student.parameters(), *(projectors.parameters() if projectors is not None else [])]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    student.train()
    if teacher is not None:
        teacher.eval()
    device = parameters[0].device
    losses = []
    for images, labels in batches:
        loss = loss_of(student, teacher, projectors, images.to(device), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
