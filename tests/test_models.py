"""The networks are torchvision's, but for stem and width."""

import pytest
import torch
import torchvision

from kdbench.kd.errors import InputError
from kdbench.kd.models import build, resnet

COUNTS = {"r18": 11_173_962, "r34": 21_282_122, "r50": 23_520_842, "r101": 42_512_970}
TORCHVISION = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101"}


@pytest.mark.parametrize("arch", resnet.ARCHITECTURES)
def test_parameter_counts_with_cifar_stem(arch):
    with torch.device("meta"):
        net = resnet.ResNet(arch, "cifar", 10)
    assert sum(p.numel() for p in net.parameters()) == COUNTS[arch]


@pytest.mark.parametrize("arch", resnet.ARCHITECTURES)
def test_same_weights_and_imagenet_stem_give_torchvisions_outputs(arch):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, TORCHVISION[arch])(num_classes=10).eval()
    ours = resnet.ResNet(arch, "imagenet", 10).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images).logits, theirs(images))


@pytest.mark.parametrize(("stem", "sizes"), [("cifar", [32, 16, 8, 4]), ("imagenet", [8, 4, 2, 1])])
def test_stem_decides_the_stages_resolution(stem, sizes):
    net = resnet.ResNet("r50", stem, 7, base_width=8)
    answer = net(torch.randn(2, 3, 32, 32))
    assert answer.logits.shape == (2, 7)
    assert [f.shape[-1] for f in answer.features] == sizes
    assert [f.shape[1] for f in answer.features] == net.channels == [32, 64, 128, 256]
    assert all((f >= 0).all() for f in answer.features), "features are taken after the last ReLU"


def test_initial_weights_come_from_the_stream_alone():
    def conv1(seed):
        return build("r18", "cifar", 10, 4, torch.Generator().manual_seed(seed)).conv1.weight

    state = torch.get_rng_state()
    a = conv1(1)
    assert torch.equal(torch.get_rng_state(), state), "building a network moved the global generator"
    torch.manual_seed(123)
    assert torch.equal(a, conv1(1))
    assert not torch.equal(a, conv1(2))


def test_unknown_stem_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'cifar'"):
        resnet.ResNet("r18", "cifer", 10)
