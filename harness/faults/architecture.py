"""Faults in the networks themselves."""

from typing import Any

import torch.nn.functional as F

from kdbench.harness.faults.registry import fault
from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.mechanism import Acts, Live, injected
from kdbench.harness.injection.scene import Scene
from kdbench.kd.models import Stem


@fault("stem", caught_by=["stem-resolution"], scope="both")
def imagenet_stem(input_size: int) -> Stem:
    """A network made for 224x224 images is trained on 32x32 ones.

    torchvision's ResNet is taken as it is: a 7x7 convolution with stride 2 and a max-pool leave 8x8 of the image for
    the first stage. Seen in weiaicunzai/pytorch-cifar100#29 and sthalles/SimCLR#34; costs 5.5 to 7.2 percentage points
    on CIFAR-10 (second version of the paper).
    """
    return "imagenet"


# --- the same in a script of somebody's


@injected("imagenet-stem")
def _imagenet_stem(scene: Scene) -> Acts:
    scene.need(
        scene.conv is not None, "the student has no two-dimensional convolution, or the script did not build it itself"
    )
    small = scene.conv_data["stride"] == 1 and scene.conv_data["size"] <= 64
    scene.need(small, "the images are large, or the student's first convolution has a stride as it is")

    def build(call: Call, live: Live) -> Any:
        if len(live.world.convs) - 1 != scene.conv:
            return call.proceed()
        live.acted += 1
        live.kept["stem"] = call.args[0]
        for position, name, value in ((3, "kernel_size", 7), (4, "stride", 2), (5, "padding", 3)):
            call.put(position, name, value)
        return call.proceed()

    def pool(call: Call, live: Live) -> Any:
        out = call.proceed()
        return F.max_pool2d(out, 3, 2, 1) if call.args[0] is live.kept.get("stem") else out

    return {"conv": build, "forward": pool}
