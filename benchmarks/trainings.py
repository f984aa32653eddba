"""What the benchmarks train: R34 -> R18 on images of noise, by the project's own loop and by the textbook's."""

import contextlib
import copy
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import textbook
import torch
from sizes import Sizes
from timing import Call, Sides
from torch import nn

from kdbench.harness.run.cost import forward_flop
from kdbench.harness.run.throughput import noise, prepare
from kdbench.harness.run.trial import prepare_device
from kdbench.kd import train
from kdbench.kd.accelerate import rounding
from kdbench.kd.data import SIZE, statistics
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Precision, Recipe

DISTILLING = ("logit", "feature")
METHODS = ("baseline", *DISTILLING)
"The methods that the textbook's loop knows."
PAIR = ("r34", "r18")


@dataclass(frozen=True)
class Bench:
    """Makes what is timed, at one size on one device."""

    sizes: Sizes
    device: torch.device

    def prepare(
        self, method: str, precision: Precision = "fp32", steps: int | None = None, **options: bool
    ) -> train.Training:
        """Prepare a training whose epochs have `steps` steps and never end; its teacher has random weights.

        Its kernels are captured on a GPU, as a study's are, unless the options say otherwise.
        """
        captures = self.device.type == "cuda" and not options.get("compile")
        recipe = Recipe(
            epochs=10**6,
            batch_size=self.sizes.batch,
            base_width=self.sizes.width,
            train_size=self.sizes.batch * (steps or self.sizes.steps),
            val_size=1,
            lr_min=0.1,
            precision=precision,
            **{"graphs": captures, **options},
        )
        return prepare(recipe, method, PAIR, self.device)

    def step(self, method: str, precision: Precision, keep: bool = False, **options: bool) -> Sides:
        """Return our steps and the textbook's; `keep` has the allocator keep what is freed."""
        if keep:
            keep_memory()
        ours = self.prepare(method, precision, **options)
        return self._sides(self._warm(ours), self.step_textbook(ours), method, precision)

    def method_step(self, method: str) -> Sides:
        """Return a method's steps, and Logit-KD's on the same networks."""
        ours, logit = (self._warm(self.prepare(name)) for name in (method, "logit"))
        return Sides(ours, logit, self.sizes.batch * self.sizes.steps)

    def epoch(self, method: str, precision: Precision) -> Sides:
        """Return our epoch and the textbook's, with its loader."""
        ours = self.prepare(method, precision)
        return self._sides(self._warm(ours), self.epoch_textbook(ours), method, precision)

    def option(self, name: str) -> Sides:
        """Return Logit-KD steps with an option of the recipe, and without it."""
        faster, plain_step = (self._warm(self.prepare("logit", **{name: on})) for on in (True, False))
        return Sides(faster, plain_step, self.sizes.batch * self.sizes.steps)

    def against_roof(self, precision: Precision) -> Sides:
        """Return Logit-KD steps, to be held against the roof."""
        return self._sides(self._warm(self.prepare("logit", precision)), None, "logit", precision)

    def convolutions_against_roof(self, precision: Precision) -> Sides:
        """Return the convolutions of one such step, likewise."""
        return Sides(self.convolutions(precision), None, self.sizes.batch, self.flop("logit"), self.roof(precision))

    def roofs(self) -> Sides:
        """Return a matrix multiplication in bf16 and one in fp32."""
        return Sides(self.roof("bf16")[0], self.roof("fp32")[0])

    def _sides(self, ours: Call, theirs: Call | None, method: str, precision: Precision) -> Sides:
        steps = self.sizes.steps
        return Sides(ours, theirs, self.sizes.batch * steps, self.flop(method) * steps, self.roof(precision))

    def _warm(self, training: train.Training) -> Call:
        """Return its epochs as a call, what stands in for its networks already in place."""
        recipe, call = training.recipe, self.ours(training)
        if recipe.fold_teacher or recipe.compile or recipe.graphs:
            for _ in range(train.OWN_STEPS // self.sizes.steps + 1):
                call()
        return call

    def ours(self, training: train.Training) -> Callable[[], train.Epoch]:
        """Return one epoch of our loop as a call, under the settings that a trial has."""
        epochs = train.epochs(training)

        def call() -> train.Epoch:
            with as_in_a_trial(self.device):
                return next(epochs)

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
        ids, recipe = training.split.train, training.recipe
        images = noise(recipe.train_size + recipe.val_size)
        mean, std = statistics(images.pixels[ids])
        return textbook.loader(images, ids, mean, std, recipe.batch_size, self.device)

    def flop(self, method: str) -> int:
        """Return the operations of one step; a student's backward costs two forwards, projectors are not counted."""
        stem, width = CANONICAL.stem(SIZE), self.sizes.width
        teacher = forward_flop(PAIR[0], stem, width) if method in DISTILLING else 0
        return self.sizes.batch * (3 * forward_flop(PAIR[1], stem, width) + teacher)

    def convolutions(self, precision: Precision) -> Callable[[], None]:
        """Return the convolutions of a Logit-KD step, in its shapes, layouts and precision, as a call."""
        training = self.prepare("logit", precision, steps=1)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        images = training.pool.centre(torch.arange(self.sizes.batch, device=self.device))
        layers: list[tuple[nn.Conv2d, torch.Tensor, torch.Tensor | None]] = []

        def keep(layer: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            x = torch.randn_like(inputs[0], dtype=dtype)
            grad = None if net is training.teacher else torch.randn_like(output, dtype=dtype)
            layers.append((layer, x.requires_grad_(grad is not None and inputs[0] is not images), grad))

        for net in (training.teacher, training.student):
            assert net is not None
            convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
            hooks = [module.register_forward_hook(keep) for module in convolutions]
            with torch.no_grad():
                net(images)
            for hook in hooks:
                hook.remove()
            net.to(dtype)

        def call() -> None:
            with as_in_a_trial(self.device), rounding(precision):
                for layer, x, grad in layers:
                    if grad is None:
                        with torch.no_grad():
                            layer(x)
                    else:
                        wanted = (layer.weight, x) if x.requires_grad else (layer.weight,)
                        torch.autograd.grad(layer(x), wanted, grad)  # adds to no gradient of the call before

        return call

    def roof(self, precision: Precision) -> tuple[Callable[[], None], int]:
        """Return square matrix multiplications of this precision as a call, and their operations."""
        n, times = self.sizes.matmul, self.sizes.matmuls
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def call() -> None:
            with rounding(precision):
                for _ in range(times):
                    torch.mm(a, b, out=out)

        return call, 2 * n**3 * times


def keep_memory() -> None:
    """Have glibc's allocator give nothing back to the system, in this process and from now on."""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    if not (libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1)):
        raise OSError("mallopt refused")


def plain(training: train.Training) -> list[nn.Module | None]:
    """Return copies of a training's networks, laid out as the textbook has them."""
    nets = [training.student, training.teacher, getattr(training.method, "projectors", None)]
    return [None if net is None else copy.deepcopy(net).to(memory_format=torch.contiguous_format) for net in nets]


@contextlib.contextmanager
def as_in_a_trial(device: torch.device) -> Iterator[None]:
    """Set a GPU up as a trial does, and back: the textbook takes torch's defaults."""
    if device.type == "cpu":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    prepare_device(device.type, torch.get_num_threads())
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
