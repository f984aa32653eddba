"""The slim networks of the literature's tables on CIFAR: MobileNetV2 of half width, ShuffleNetV1 and ShuffleNetV2.

Sandler et al. 2018 (1801.04381), Zhang et al. 2018 (1707.01083, three groups) and Ma et al. 2018 (1807.11164), with the
strides and widths of HobbitLong/RepDistiller for images of 32x32. The blocks of the first and the third are
torchvision's, so a state dict of RepDistiller's does not fit them; its MobileNetV2 has one 1x1 convolution more (288
parameters), before the first block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.models import library
from kdbench.kd.models.registry import Answer, model

_MOBILE = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
"Of each stage the expansion, the channels at full width, the blocks and the first stride; the second keeps the size."


@model("mobilenet_v2_half")
def mobilenet_v2_half(num_classes: int, image_size: int) -> nn.Module:
    """MobileNetV2 of half the width."""
    from torchvision.models import MobileNetV2

    net = MobileNetV2(num_classes, width_mult=0.5, inverted_residual_setting=_MOBILE, round_nearest=1, dropout=0.0)
    return library.answering_with_stages(net, "mobilenet_v2_half", image_size)


@model("shufflenet_v2")
def shufflenet_v2(num_classes: int, image_size: int) -> nn.Module:
    """ShuffleNetV2 of width 1, with one 1x1 convolution for a stem, which keeps the size."""
    from torchvision.models import ShuffleNetV2

    net = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes)
    net.conv1 = nn.Sequential(nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
    net.maxpool = nn.Identity()
    return library.answering_with_stages(net, "shufflenet_v2", image_size)


class _Unit(nn.Module):
    """1x1, shuffle, 3x3 by channel, 1x1, in groups; the input is added, or stands beside it pooled (stride 2)."""

    def __init__(self, channels: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        added = out - channels if stride == 2 else out
        middle = added // 4
        first = 1 if channels == 24 else groups  # the first unit has too few channels for groups
        self.stride, self.groups = stride, first
        self.conv1 = nn.Conv2d(channels, middle, 1, groups=first, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, added, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(added)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, (B, out, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.channel_shuffle(out, self.groups) if self.groups > 1 else out
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))


class ShuffleNetV1(nn.Module):
    """Three stages of 4, 8 and 4 units after one 1x1 convolution."""

    def __init__(self, widths: tuple[int, ...], groups: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        channels, stages = 24, []
        for width, count in zip(widths, (4, 8, 4), strict=True):
            units = [_Unit(width if n else channels, width, 1 if n else 2, groups) for n in range(count)]
            stages.append(nn.Sequential(*units))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Linear(channels, num_classes)
        self.channels = [*widths]

    def forward(self, images: Tensor) -> Answer:
        """Answer a batch of images (B, 3, H, W)."""
        out, features = F.relu(self.bn1(self.conv1(images))), []
        for stage in self.stages:
            out = stage(out)
            features.append(out)
        return Answer(self.fc(out.mean((2, 3))), tuple(features))


@model("shufflenet_v1")
def shufflenet_v1(num_classes: int) -> ShuffleNetV1:
    """ShuffleNetV1 with three groups."""
    return ShuffleNetV1((240, 480, 960), 3, num_classes)
