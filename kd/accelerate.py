"""Faster stand-ins for the networks of a training, for a recipe that asks for them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdbench.kd.errors import InputError
from kdbench.kd.models import Answer
from kdbench.kd.recipe import Precision

TOLERANCE = {"fp32": 1e-4, "tf32": 0.02, "bf16": 0.1, "fp16": 0.02}
"Largest difference of a folded network's logits, as a share of the largest logit."


def folded(net: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode with each batch norm folded into the convolution before it.

    In torchvision's residual networks ``bnN`` normalises what ``convN`` beside it computes, and within a Sequential
    each batch norm the convolution before it. A batch norm that stands otherwise is an InputError.
    """
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for parent in list(net.modules()):
        last = ""
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d):
                place = name.replace("bn", "conv") if name.startswith("bn") else last
                conv = getattr(parent, place, None)
                if not isinstance(conv, nn.Conv2d):
                    raise InputError(f"fold_teacher: the batch norm {name!r} follows no convolution; leave it out here")
                setattr(parent, place, fuse_conv_bn_eval(conv, module))
                setattr(parent, name, nn.Identity())
            last = name
    return net


def check_folded(logits: Tensor, original: Tensor, precision: Precision) -> None:
    """Raise InputError if a folded network's logits (B, C) are not the original's but for rounding."""
    largest = original.abs().max()
    share = ((logits - original).abs().max() / largest).item()
    if not share <= TOLERANCE[precision]:
        raise InputError(
            f"fold_teacher: the folded teacher's logits differ from its own by {share:.2g} of the largest logit, more "
            f"than rounding in {precision} explains; leave fold_teacher out for this teacher"
        )


@contextmanager
def rounding(precision: Precision) -> Iterator[None]:
    """Let a GPU round what it multiplies to TF32 if that is the precision, and not if it is another.

    By torch's own default it does so in convolutions. Half precisions are autocast's affair.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def compiled(module: nn.Module) -> nn.Module:
    """Return the module behind ``torch.compile``: the same parameters, other kernels, so other last bits."""
    return torch.compile(module, dynamic=False)  # type: ignore[return-value]


class _Replayed(nn.Module):
    """A network that answers batches of one shape by replaying its kernels; in other modes than then, by itself."""

    def __init__(self, module: nn.Module, replay: Callable[[Tensor], Answer]) -> None:
        super().__init__()
        self.module = module
        self.replay = replay
        self.modes = _modes(module)

    def forward(self, images: Tensor) -> Answer:
        """Answer a batch (B, C, H, W)."""
        return self.replay(images) if _modes(self.module) == self.modes else self.module(images)


def captured(module: nn.Module, images: Tensor, autocast: torch.autocast, *, trained: bool) -> nn.Module:
    """Return a network with its kernels captured in CUDA graphs: the same kernels, launched together, so the same bits.

    `images` (B, C, H, W) are a batch as all will be; the network is captured in the modes that it is in now, with its
    backward if it is trained. Each answer overwrites the one before, and so do the gradients: an update must not add
    up those of several batches.
    """
    # In one piece: what is captured, and what replays it, share every tensor by name.
    images, kind = images.clone(), images.device.type
    parameters = {name: p for name, p in module.named_parameters() if trained and p.requires_grad}

    def answered() -> tuple[list[Tensor], list[Tensor]]:
        # The same parameters as leaves of their own: what autograd keeps of earlier steps is bound to another stream.
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        answer: Answer = functional_call(module, leaves, (images,))
        return list(leaves.values()), [answer.logits, *answer.features]

    there, back = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    seeds: list[Tensor] = []
    gradients: tuple[Tensor, ...] = ()
    with (
        _unchanged(module),
        torch.set_grad_enabled(trained),
        # Casts that a cache keeps from before the capture would be missing from the graph.
        torch.autocast(kind, autocast.fast_dtype, autocast._enabled, cache_enabled=False),
    ):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries set themselves up when first called, which no graph may hold
                leaves, answers = answered()
                if trained:
                    torch.autograd.grad(answers, leaves, [torch.zeros_like(a) for a in answers])
                del leaves, answers
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(there):
            leaves, answers = answered()
        if trained:
            seeds = [torch.zeros_like(a) for a in answers]
            with torch.cuda.graph(back, pool=there.pool()):
                gradients = torch.autograd.grad(answers, leaves, seeds)

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, batch: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
            images.copy_(batch)
            there.replay()
            return tuple(a.detach() for a in answers)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
            for seed, gradient in zip(seeds, given, strict=True):
                seed.copy_(gradient)
            back.replay()
            return None, *(g.detach() for g in gradients)

    def replay(batch: Tensor) -> Answer:
        logits, *features = Replay.apply(batch, *parameters.values())
        return Answer(logits, tuple(features))

    return _Replayed(module, replay)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put buffers back as they were: what runs before a capture updates statistics."""
    before = [buffer.clone() for buffer in module.buffers()]
    yield
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)


def _modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]
