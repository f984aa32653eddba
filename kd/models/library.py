"""Classifiers of torchvision and timm by name, as `torchvision:resnet18` and `timm:mobilenetv3_small_100`.

The network is the library's own with random weights, traced (torch.fx) so that it answers with the outputs of its
stages as well: of all blocks that answer with maps of one size, the last. Its state dict has the library's names.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.kd.errors import InputError, unknown
from kdbench.kd.models.registry import Answer, Model

LIBRARIES = ("torchvision", "timm")


def found(name: str) -> Model:
    """Return the network of a name that holds a colon; InputError if there is none."""
    library, _, arch = name.partition(":")
    if library not in LIBRARIES:
        raise unknown("library of networks", library, LIBRARIES, f"network {name}")
    return Model(name, partial(_made, library, arch), ("num_classes", "image_size"), foreign=True)


def _made(library: str, arch: str, num_classes: int, image_size: int) -> nn.Module:
    made = _torchvisions if library == "torchvision" else _timms
    try:
        net = made(arch, num_classes, image_size)
    except InputError:
        raise
    except Exception as error:  # a library's own, as of images that its patches do not divide
        raise InputError(
            f"network {library}:{arch} cannot be built for images of {image_size}x{image_size}: {error}"
        ) from error
    return answering_with_stages(net, f"{library}:{arch}", image_size)


def answering_with_stages(net: nn.Module, name: str, image_size: int) -> nn.Module:
    """Return a classifier so that it answers with an `Answer`: its logits, and of maps of each size the last."""
    stages = _stages(net, name, image_size)
    if not stages:  # a transformer's: methods that read logits alone can have it, untraced
        net.channels = []  # type: ignore[assignment]
        net.register_forward_hook(lambda net, given, out: Answer(out, ()))
        return net
    return _answering(net, [place for place, _ in stages], [channels for _, channels in stages], name)


def _torchvisions(arch: str, num_classes: int, size: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if arch not in known:
        raise unknown("network of torchvision", arch, known)
    try:  # a transformer's positions are for one size of image; other networks know no such argument
        net: nn.Module = models.get_model(arch, weights=None, num_classes=num_classes, image_size=size)
    except TypeError:
        net = models.get_model(arch, weights=None, num_classes=num_classes)
    return net


def _timms(arch: str, num_classes: int, size: int) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise InputError(f"network timm:{arch}: timm is not installed; pip install timm") from error
    if not timm.is_model(arch):
        raise unknown("network of timm", arch, timm.list_models())
    try:  # a transformer's positions are for one size of image; other networks know no such argument
        net: nn.Module = timm.create_model(arch, pretrained=False, num_classes=num_classes, img_size=size)
    except TypeError:
        net = timm.create_model(arch, pretrained=False, num_classes=num_classes)
    return net


def _stages(net: nn.Module, name: str, image: int) -> list[tuple[str, int]]:
    """Return the blocks whose outputs are the stages, in order, with their channels: the last at each map's size."""
    seen: dict[tuple[int, int], tuple[str, int]] = {}
    handles = []

    def note(place: str, module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.ndim == 4:
            _, channels, height, width = _channels_first(out).shape
            seen[height, width] = place, channels

    for place, module in net.named_modules():
        if place and any(True for _ in module.children()):
            handles.append(module.register_forward_hook(partial(note, place)))
    modes = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, image, image))
    except Exception as error:  # a library's own, as of images that are too small
        raise InputError(f"network {name} cannot answer images of {image}x{image}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return [seen[size] for size in sorted(seen, reverse=True)]


def _answering(net: nn.Module, stages: list[str], channels: list[int], name: str) -> nn.Module:
    """Return the network traced, with an `Answer` of logits and stages."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    try:
        last = get_graph_node_names(net)[0][-1]
        nodes = {place: f"stage{at}" for at, place in enumerate(stages)} | {last: "logits"}
        traced: nn.Module = create_feature_extractor(net, return_nodes=nodes)
    except Exception as error:  # what torch.fx cannot follow
        raise InputError(f"network {name} cannot be traced for its stages: {error}") from error
    traced.channels = channels  # type: ignore[assignment]
    traced.register_forward_hook(_answered)
    return traced


def _answered(net: nn.Module, given: object, out: dict[str, Tensor]) -> Answer:
    return Answer(out["logits"], tuple(_channels_first(out[f"stage{at}"]) for at in range(len(out) - 1)))


def _channels_first(out: Tensor) -> Tensor:
    """Return a map as (B, C, H, W); Swin's come as (B, H, W, C), which is told by images being square."""
    _, first, second, third = out.shape
    return out.permute(0, 3, 1, 2) if first == second != third else out
