"""The numbers of a training; the decisions stand in :mod:`kd.procedure`."""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal

from kdbench.kd.errors import InputError
from kdbench.kd.settings import check_types

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"tf32 is fp32 whose products a GPU rounds to ten bits, which is what torch lets convolutions do unless told otherwise."
Schedule = Literal["epoch", "step", "drops"]
SAME_BITS = ("graphs",)
"Fields of a recipe that change how fast it is done, and no bit of what comes out (tests/test_cuda.py)."


@dataclass(frozen=True)
class Recipe:
    """Everything numeric about a training that is not the method's own; defaults are the paper's (4.1)."""

    epochs: int = 100
    batch_size: int = 128
    base_width: int = 64
    "Channels of the first stage; 64 is the ResNet of the literature."
    lr: float = 0.1
    lr_min: float = 1e-4
    warmup: float = 0.0
    "Share of the steps over which the learning rate rises linearly to `lr`."
    schedule: Schedule = "epoch"
    "Whether the cosine moves once an epoch (the paper) or every step; or no cosine, and a tenth after each of `drops`."
    drops: str = ""
    "Epochs after which the rate falls to a tenth, as 150, 180, 210; for the schedule drops."
    momentum: float = 0.9
    nesterov: bool = True
    "Whether the momentum is Nesterov's."
    distil_until: float = 1.0
    "Share of the epochs in which a student is distilled; then it learns from the labels alone (Cho, Hariharan 2019)."
    weight_decay: float = 5e-4
    max_norm: float = 1.0
    "Bound on the gradient's norm over everything the optimizer moves."
    crop_padding: int = 4
    flip: bool = True
    train_size: int = 45_000
    "Images trained on, out of the train set; what is left after `val_size` is not used."
    val_size: int = 5_000
    split_seed: int = 1234
    "Seed of the train/validation split; one for all trials, so all of them see the same split."
    test_stride: int = 1
    "Every n-th test image is scored; 1 scores all of them."
    normalisation: Literal["cifar10", "train"] = "train"
    "Pixel statistics: CIFAR-10's published per-pixel ones, or those of the train split."
    precision: Precision = "fp32"
    fold_teacher: bool = False
    "Whether a copy of the teacher with its batch norms folded into the convolutions answers; other last bits."
    compile: bool = False
    "Whether torch.compile makes the networks' forward and backward; other last bits."
    graphs: bool | None = None
    """Whether the networks' kernels are captured in CUDA graphs and launched together; the same bits. None, in a study,
    is on a GPU wherever nothing speaks against it; a training captures them where it is true."""

    def __post_init__(self) -> None:
        check_types(self, "recipe")
        for name in ("epochs", "batch_size", "base_width", "train_size", "val_size", "test_stride"):
            if getattr(self, name) < 1:
                raise InputError(f"recipe: {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "max_norm"):
            if getattr(self, name) <= 0:
                raise InputError(f"recipe: {name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise InputError("recipe: momentum lies from 0 to below 1, and weight_decay must not be negative")
        if not 0 <= self.lr_min <= self.lr:
            raise InputError(f"recipe: lr_min is {self.lr_min}; it lies between 0 and lr, {self.lr}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"recipe: warmup is {self.warmup}; it is a share of the steps, from 0 to below 1")
        if self.graphs and self.compile:
            raise InputError(
                "recipe: graphs captures the networks' own kernels, compile makes others; choose one of them"
            )
        if not 0 < self.distil_until <= 1:
            raise InputError(
                f"recipe: distil_until is {self.distil_until}; it is a share of the epochs, above 0, up to 1"
            )
        self._check_drops()
        if self.crop_padding < 0:
            raise InputError(f"recipe: crop_padding is {self.crop_padding}; it must not be negative")

    def _check_drops(self) -> None:
        if (self.schedule == "drops") != bool(self.drops):
            raise InputError('recipe: schedule = "drops" goes with drops = "150, 180", the epochs after which it drops')
        try:
            rising = [0, *self.drop_epochs(), self.epochs]
        except ValueError as error:
            raise InputError(f'recipe: drops is {self.drops!r}; write epochs, as "150, 180, 210"') from error
        if self.drops and any(later <= earlier for earlier, later in pairwise(rising)):
            raise InputError(f"recipe: drops is {self.drops!r}; they rise, and lie between 0 and {self.epochs} epochs")

    def drop_epochs(self) -> list[int]:
        """Return the epochs after which the rate falls to a tenth."""
        return [int(part) for part in self.drops.split(",")] if self.drops else []

    def decisive(self) -> dict[str, Any]:
        """Return what of it decides a training's numbers, as plain values.

        What came to be after the first records is left out at its default, so that no record is orphaned.
        """
        later = {"drops": "", "nesterov": True, "distil_until": 1.0}
        return {
            name: value
            for name, value in vars(self).items()
            if name not in SAME_BITS and not (name in later and value == later[name])
        }

    def needs_cuda(self) -> str | None:
        """Return which of its fields only a CUDA device can do, if any."""
        if self.graphs:
            return "graphs"
        return "precision tf32" if self.precision == "tf32" else None

    def check_batches(self, images: int) -> None:
        """Raise InputError if not one batch can be filled."""
        if images < self.batch_size:
            raise InputError(f"recipe: batch_size {self.batch_size} is larger than the train split of {images} images")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the fields, in order."""
        return [field.name for field in fields(cls)]
