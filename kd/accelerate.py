"""Faster stand-ins for the networks of a training, for a recipe that asks for them."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd.errors import InputError

TOLERANCE = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}
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


def check_folded(logits: Tensor, original: Tensor, precision: str) -> None:
    """Raise InputError if a folded network's logits (B, C) are not the original's but for rounding."""
    largest = original.abs().max()
    share = ((logits - original).abs().max() / largest).item()
    if not share <= TOLERANCE[precision]:
        raise InputError(
            f"fold_teacher: the folded teacher's logits differ from its own by {share:.2g} of the largest logit, more "
            f"than rounding in {precision} explains; leave fold_teacher out for this teacher"
        )


def compiled(module: nn.Module) -> nn.Module:
    """Return the module behind ``torch.compile``: the same parameters, other kernels, so other last bits."""
    return torch.compile(module, dynamic=False)  # type: ignore[return-value]
