"""The small networks of the literature's tables on CIFAR: residual, wide residual and plain ones of fixed widths.

He, Zhang, Ren, Sun 2016 (1512.03385), 4.2: resnetN has three stages of (N - 2) / 6 basic blocks on 16, 32 and 64
channels; resnet8x4 and resnet32x4 (Tian et al. 2020) have 32 channels before and 64, 128 and 256 in them. Zagoruyko and
Komodakis 2016 (1605.07146): wrn_N_K has (N - 4) / 6 pre-activation blocks a stage and K times the width. vggN: Simonyan
and Zisserman 2015 (1409.1556) with batch norm and one linear layer. As in HobbitLong/RepDistiller, whose residual
teachers can be loaded: the names of a state dict are the same.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.models.registry import Answer, model
from kdbench.kd.models.resnet import stage


class CifarResNet(nn.Module):
    """Three stages of basic blocks after one 3x3 convolution."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock  # slow to import, and needed by who builds a network alone

        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(BasicBlock, widths[0], widths[1], blocks, stride=1)
        self.layer2 = stage(BasicBlock, widths[1], widths[2], blocks, stride=2)
        self.layer3 = stage(BasicBlock, widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        self.channels = [*widths[1:]]
        _initialise(self)

    def forward(self, images: Tensor) -> Answer:
        """Answer a batch of images (B, 3, H, W)."""
        first = self.layer1(self.relu(self.bn1(self.conv1(images))))
        second = self.layer2(first)
        third = self.layer3(second)
        return Answer(self.fc(third.mean((2, 3))), (first, second, third))


class _PreActivation(nn.Module):
    """Two 3x3 convolutions, each after its batch norm and ReLU; the shortcut is one of 1x1 where widths differ."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False)
        same = channels == out
        self.convShortcut = None if same else nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways; where widths differ, the shortcut is taken after batch norm and ReLU."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class _Wide(nn.Module):
    def __init__(self, channels: int, out: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = _PreActivation(channels, out, stride)
        self.layer = nn.Sequential(first, *(_PreActivation(out, out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the blocks make of it."""
        found: Tensor = self.layer(x)
        return found


class WideResNet(nn.Module):
    """Three stages of pre-activation blocks; the last one's output is taken after the last batch norm and ReLU."""

    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16 * factor, 32 * factor, 64 * factor]
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.block1 = _Wide(16, widths[0], blocks, stride=1)
        self.block2 = _Wide(widths[0], widths[1], blocks, stride=2)
        self.block3 = _Wide(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        self.channels = widths
        _initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Answer:
        """Answer a batch of images (B, 3, H, W)."""
        first = self.block1(self.conv1(images))
        second = self.block2(first)
        third = F.relu(self.bn1(self.block3(second)))
        return Answer(self.fc(third.mean((2, 3))), (first, second, third))


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with batch norm, three of them pooled; the last four are the stages."""

    def __init__(self, convolutions: int, num_classes: int) -> None:
        super().__init__()
        channels, widths = 3, (64, 128, 256, 512, 512)
        for number, width in enumerate(widths):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            self.add_module(f"block{number}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        self.channels = [*widths[1:]]
        _initialise(self)
        nn.init.normal_(self.fc.weight, 0.0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Answer:
        """Answer a batch of images (B, 3, H, W)."""
        x, features = images, []
        for number in range(5):
            x = self.get_submodule(f"block{number}")(x)
            features.append(x)
            if number < 3:
                x = F.max_pool2d(x, 2)
        return Answer(self.fc(x.mean((2, 3))), tuple(features[1:]))


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _resnet(depth: int, widths: tuple[int, int, int, int], num_classes: int) -> CifarResNet:
    return CifarResNet(depth, widths, num_classes)


def _wrn(depth: int, factor: int, num_classes: int) -> WideResNet:
    return WideResNet(depth, factor, num_classes)


def _vgg(convolutions: int, num_classes: int) -> VGG:
    return VGG(convolutions, num_classes)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    model(f"resnet{_depth}")(partial(_resnet, _depth, (16, 16, 32, 64)))
for _depth in (8, 32):
    model(f"resnet{_depth}x4")(partial(_resnet, _depth, (32, 64, 128, 256)))
for _depth, _factor in ((16, 1), (16, 2), (40, 1), (40, 2)):
    model(f"wrn_{_depth}_{_factor}")(partial(_wrn, _depth, _factor))
for _name, _convolutions in (("vgg8", 1), ("vgg13", 2)):
    model(_name)(partial(_vgg, _convolutions))
