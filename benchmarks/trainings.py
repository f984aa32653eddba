"""What the benchmarks train: R34 -> R18 on images of noise, by the project's own loop and by the textbook's."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import textbook
import torch
from sizes import Sizes
from torch import Tensor, nn

from harness.cost import forward_flop
from kd import train
from kd.data import SIZE, Dataset, statistics
from kd.methods import METHODS as ALL_METHODS
from kd.methods import MethodSettings
from kd.procedure import CANONICAL
from kd.recipe import Recipe
from kd.teacher import save_checkpoint

METHODS = tuple(ALL_METHODS)
DISTILLING = tuple(name for name, kind in ALL_METHODS.items() if kind.needs_teacher)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Bench:
    """Everything that a training of the benchmarks is made from."""

    images: Dataset
    folder: Path
    "Where the teacher's weights lie."
    sizes: Sizes
    device: torch.device

    def teacher(self) -> train.Teacher:
        """Return a teacher of random weights; what it knows costs nothing and changes no time."""
        path = self.folder / f"teacher-{self.sizes.width}.safetensors"
        if not path.is_file():
            recipe = Recipe(base_width=self.sizes.width, batch_size=1, train_size=8, val_size=8)
            net = train.prepare(
                self.images, "r34", None, "baseline", MethodSettings(), recipe, CANONICAL, 0, torch.device("cpu")
            )
            save_checkpoint(net.student, path)
        return train.Teacher("r34", path)

    def prepare(self, method: str, precision: str = "fp32", steps: int | None = None) -> train.Training:
        """Prepare a training whose epochs have `steps` steps and never end."""
        distils = method in DISTILLING
        recipe = Recipe(
            epochs=10**6,
            batch_size=self.sizes.batch,
            base_width=self.sizes.width,
            train_size=self.sizes.batch * (steps or self.sizes.steps),
            val_size=1,
            lr_min=0.1,
            precision=precision,  # type: ignore[arg-type]
        )
        settings = MethodSettings(0.5, 0.5) if distils else MethodSettings()
        teacher = self.teacher() if distils else None
        return train.prepare(self.images, "r18", teacher, method, settings, recipe, CANONICAL, 0, self.device)

    def ours(self, training: train.Training) -> Callable[[], train.Epoch]:
        """Return one epoch of our loop as a call, under the settings that a trial has."""
        epochs = train.epochs(training)

        def call() -> train.Epoch:
            # A trial asks cuDNN for deterministic kernels; the textbook takes what it gets.
            before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
            try:
                return next(epochs)
            finally:
                torch.backends.cudnn.deterministic = before

        return call

    def step_textbook(self, training: train.Training) -> Callable[[], list[float]]:
        """Return as many steps of the textbook, from the same weights, which gets its batches for nothing."""
        nets, pool = plain(training), training.pool
        ids = torch.arange(self.sizes.batch, device=self.device)
        batch = (pool.centre(ids).contiguous(), pool.labels[ids])
        return lambda: textbook.train([batch] * self.sizes.steps, *nets)

    def epoch_textbook(self, training: train.Training) -> Callable[[], list[float]]:
        """Return an epoch of the textbook with its loader, from the same weights and over the same images."""
        nets, batches = plain(training), self.loader(training)
        return lambda: textbook.train(batches, *nets)

    def loader(self, training: train.Training) -> torch.utils.data.DataLoader:
        """Return the textbook's loader over the training's images."""
        ids = training.split.train
        mean, std = statistics(self.images.pixels[ids])
        return textbook.loader(self.images, ids, mean, std, self.sizes.batch, self.device)

    def flop(self, method: str) -> int:
        """Return the operations of one step; a student's backward costs two forwards, projectors are not counted."""
        stem, width = CANONICAL.stem(SIZE), self.sizes.width
        teacher = forward_flop("r34", stem, width) if method in DISTILLING else 0
        return self.sizes.batch * (3 * forward_flop("r18", stem, width) + teacher)

    def roof(self, precision: str) -> tuple[Callable[[], None], int]:
        """Return square matrix multiplications of this precision as a call, and their operations."""
        n, times = self.sizes.matmul, self.sizes.matmuls
        a, b = (torch.randn(n, n, device=self.device).to(_DTYPES[precision]) for _ in range(2))
        out = torch.empty_like(a)

        def call() -> None:
            for _ in range(times):
                torch.mm(a, b, out=out)

        return call, 2 * n**3 * times


def plain(training: train.Training) -> list[nn.Module | None]:
    """Return copies of a training's networks, laid out as the textbook has them."""
    nets = [training.student, training.teacher, getattr(training.method, "projectors", None)]
    return [None if net is None else copy.deepcopy(net).to(memory_format=torch.contiguous_format) for net in nets]


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Return images of noise and labels: their content costs nothing, and no download is needed."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, SIZE, SIZE, 3), generator=rng, dtype=torch.uint8)
    return pixels, torch.randint(0, 10, (count,), generator=rng)
