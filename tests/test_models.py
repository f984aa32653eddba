"""The networks are torchvision's, but for stem and width."""

import pytest
import torch
import torchvision

from kdbench.kd.errors import InputError
from kdbench.kd.models import MODELS, Answer, build, check, keep_stages, make, parse_stages, resnet
from kdbench.kd.teacher import load_strict, save_checkpoint

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


# -- the literature's networks on CIFAR

PUBLISHED = {
    "resnet8": 0.08, "resnet14": 0.18, "resnet20": 0.28, "resnet32": 0.47, "resnet44": 0.67, "resnet56": 0.86,
    "resnet110": 1.74, "resnet8x4": 1.23, "resnet32x4": 7.43,
    "wrn_16_1": 0.18, "wrn_16_2": 0.70, "wrn_40_1": 0.57, "wrn_40_2": 2.26, "vgg8": 3.97, "vgg13": 9.46,
    "mobilenet_v2_half": 0.81, "shufflenet_v1": 0.95, "shufflenet_v2": 1.36,
}  # fmt: skip
"Millions of parameters with 100 classes, as tables of the literature have them."
WORKED_OUT = {
    "resnet20": 278_324,
    "resnet56": 861_620,
    "wrn_16_2": 703_284,
    "vgg8": 3_965_028,
    "shufflenet_v1": 949_258,
}
"To the number, layer by layer on paper."


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        net = make(name, "cifar", 100, 64)
    count = sum(p.numel() for p in net.parameters())
    assert round(count / 1e6, 2) == PUBLISHED[name] and count == WORKED_OUT.get(name, count)


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_1", "vgg8"])
def test_stages_halve_the_image_and_their_last_is_what_the_classifier_is_given(name):
    net = build(name, "cifar", 7, 64, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        answer = net(torch.randn(2, 3, 32, 32))
        assert torch.allclose(net.fc(answer.features[-1].mean((2, 3))), answer.logits, atol=1e-6)
    sizes = [f.shape[-1] for f in answer.features]
    assert sizes == ([16, 8, 4, 4] if name == "vgg8" else [32, 16, 8])
    assert [f.shape[1] for f in answer.features] == net.channels and answer.logits.shape == (2, 7)
    assert not MODELS[name].has_stem


def test_a_wide_block_is_its_definition_in_other_words():
    """Pre-activation: the shortcut of a block that changes the width is taken after batch norm and ReLU."""
    from torch.nn import functional as F

    net = build("wrn_16_2", "cifar", 5, 64, torch.Generator().manual_seed(0)).eval()
    block, x = net.block2.layer[0], torch.randn(2, 32, 8, 8)
    a = F.relu(block.bn1(x))
    wanted = block.convShortcut(a) + block.conv2(F.relu(block.bn2(block.conv1(a))))
    assert torch.equal(block(x), wanted)
    same = net.block2.layer[1]
    assert same.convShortcut is None
    y = torch.randn(2, 64, 4, 4)
    assert torch.equal(same(y), y + same.conv2(F.relu(same.bn2(same.conv1(F.relu(same.bn1(y)))))))


# -- networks of other libraries


def test_a_network_of_torchvision_answers_as_its_own_and_with_its_stages(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    ours = build("torchvision:resnet18", "cifar", 10, 64, torch.Generator().manual_seed(1)).eval()
    save_checkpoint(theirs, tmp_path / "t.safetensors")
    load_strict(ours, tmp_path / "t.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        answer = ours(images)
        assert isinstance(answer, Answer) and torch.equal(answer.logits, theirs(images))
    assert [tuple(f.shape[1:]) for f in answer.features] == [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]
    assert ours.channels == [64, 128, 256, 512]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_other_families_have_stages_of_falling_size_and_train(name):
    net = build(f"torchvision:{name}", "cifar", 4, 64, torch.Generator().manual_seed(0)).train()
    answer = net(torch.randn(3, 3, 32, 32))
    sizes = [f.shape[-1] for f in answer.features]
    assert sizes == sorted({*sizes}, reverse=True) and [f.shape[1] for f in answer.features] == net.channels
    answer.logits.sum().backward()
    assert answer.logits.shape == (3, 4) and any(p.grad is not None for p in net.parameters())


def test_the_initial_weights_of_a_librarys_network_come_from_the_stream():
    def first(seed):
        return next(build("torchvision:resnet18", "cifar", 3, 64, torch.Generator().manual_seed(seed)).parameters())

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:resnet81", "unknown network of torchvision 'resnet81'; did you mean 'resnet18'"),
        ("torchvsion:resnet18", "unknown library of networks 'torchvsion'; did you mean 'torchvision'"),
        ("torchvision:maxvit_t", "cannot answer images of 32x32"),
    ],
)
def test_a_librarys_network_that_cannot_be_had_is_refused(name, says):
    with pytest.raises(InputError) as error:
        check(name, "cifar", 10, 64)
    assert says in str(error.value)


def test_a_transformer_is_made_for_the_size_of_the_images():
    net = build("torchvision:vit_b_16", "cifar", 3, 64, torch.Generator().manual_seed(0), 48).eval()
    answer = net(torch.zeros(1, 3, 48, 48))
    assert answer.logits.shape == (1, 3) and answer.features == () and net.channels == []
    assert net.encoder.pos_embedding.shape[1] == 1 + 9
    with pytest.raises(InputError, match="vit_b_16 cannot be built for images of 40x40"):
        check("torchvision:vit_b_16", "cifar", 3, 64, 40)


def test_maps_whose_channels_come_last_are_turned():
    net = build("torchvision:swin_t", "cifar", 3, 64, torch.Generator().manual_seed(0), 64).eval()
    with torch.no_grad():
        shapes = [tuple(f.shape[1:]) for f in net(torch.zeros(1, 3, 64, 64)).features]
    assert shapes == [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)] and net.channels == [96, 192, 384, 768]


def test_stages_are_chosen_by_number():
    net = build("wrn_16_1", "cifar", 5, 64, torch.Generator().manual_seed(0)).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = net(images)
        channels = keep_stages("wrn_16_1", net, net.channels, [1, 3])
        chosen = net(images)
    assert channels == [net.channels[0], net.channels[2]] and torch.equal(chosen.logits, whole.logits)
    assert [torch.equal(a, whole.features[i]) for a, i in zip(chosen.features, (0, 2), strict=True)] == [True, True]
    with pytest.raises(InputError, match=r"wrn_16_1 answers with 3 stages, and stage 4 is asked for"):
        keep_stages("wrn_16_1", net, net.channels, [4])


@pytest.mark.parametrize("text", ["", "1", "1-1,", "0-1", "1-2, 1-3", "2-2, 3-1", "a-b", "1-1 2-2"])
def test_stages_that_are_no_pairing_are_refused(text):
    assert parse_stages("2-1, 3-2,4-3") == [(2, 1), (3, 2), (4, 3)]
    with pytest.raises(InputError, match=r"write the teacher's stage and the student's"):
        parse_stages(text)


def test_a_network_of_timm_by_name():
    pytest.importorskip("timm")
    net = build("timm:resnet10t", "cifar", 6, 64, torch.Generator().manual_seed(0)).eval()
    answer = net(torch.zeros(1, 3, 32, 32))
    assert answer.logits.shape == (1, 6) and len(answer.features) >= 3
