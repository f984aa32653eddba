"""ResNets for small images, assembled from torchvision's own residual blocks.

A state dict has torchvision's names, so weights move both ways. Two stems: "cifar" (3x3 convolution, stride 1,
no pooling; paper, 3.4) keeps a 32x32 image at 32x32 before the first stage; "imagenet" (7x7, stride 2, max-pool;
He et al. 2016) leaves 8x8 of it.
"""

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from kdbench.kd.errors import unknown
from kdbench.kd.models.registry import Answer, Stem, model

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

ARCHITECTURES: dict[str, tuple[Literal["BasicBlock", "Bottleneck"], tuple[int, int, int, int]]] = {
    "r18": ("BasicBlock", (2, 2, 2, 2)),
    "r34": ("BasicBlock", (3, 4, 6, 3)),
    "r50": ("Bottleneck", (3, 4, 6, 3)),
    "r101": ("Bottleneck", (3, 4, 23, 3)),
}
"Residual block and blocks a stage."


class ResNet(nn.Module):
    """A ResNet with a choice of stem and base width that answers logits and stage features in one forward."""

    def __init__(self, arch: str, stem: Stem, num_classes: int, base_width: int = 64) -> None:
        super().__init__()
        # As slow to import as torch itself (it takes torch's compiler along), and needed by who builds a network alone.
        from torchvision.models import resnet

        name, depths = ARCHITECTURES[arch]
        block = resnet.BasicBlock if name == "BasicBlock" else resnet.Bottleneck
        self.conv1: nn.Module
        self.maxpool: nn.Module
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, base_width, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        elif stem == "imagenet":
            self.conv1 = nn.Conv2d(3, base_width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            raise unknown("stem", stem, get_args(Stem))
        self.bn1 = nn.BatchNorm2d(base_width)
        self.relu = nn.ReLU(inplace=True)
        channels = base_width
        self.channels: list[int] = []
        for number, depth in enumerate(depths):
            planes = base_width * 2**number
            layer = stage(block, channels, planes, depth, stride=1 if number == 0 else 2)
            self.add_module(f"layer{number + 1}", layer)
            channels = planes * block.expansion
            self.channels.append(channels)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Answer:
        """Answer a batch of images (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features: list[Tensor] = []
        for number in range(4):
            x = self.get_submodule(f"layer{number + 1}")(x)
            features.append(x)
        return Answer(self.fc(torch.flatten(self.avgpool(x), 1)), tuple(features))


def stage(
    block: "type[BasicBlock] | type[Bottleneck]", channels: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    """Return a stage of residual blocks; the first has the stride, and a 1x1 shortcut where it needs one."""
    from torchvision.models.resnet import conv1x1

    out = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(conv1x1(channels, out, stride), nn.BatchNorm2d(out))
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out, planes) for _ in range(depth - 1)))


def _resnet(arch: str, num_classes: int, base_width: int, stem: Stem) -> ResNet:
    return ResNet(arch, stem, num_classes, base_width)


for _arch in ARCHITECTURES:
    model(_arch)(partial(_resnet, _arch))
