"""Faults in the networks themselves."""

from kdbench.harness.faults.registry import fault
from kdbench.kd.models import Stem


@fault("stem", caught_by=["stem-resolution"], scope="both")
def imagenet_stem(input_size: int) -> Stem:
    """A network made for 224x224 images is trained on 32x32 ones.

    torchvision's ResNet is taken as it is: a 7x7 convolution with stride 2 and a max-pool leave 8x8 of the image for
    the first stage. Seen in weiaicunzai/pytorch-cifar100#29 and sthalles/SimCLR#34; costs 5.5 to 7.2 percentage points
    on CIFAR-10 (second version of the paper).
    """
    return "imagenet"
