"""The networks by name, what each says of a batch, and how one is built."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kdbench.kd.data import SIZE
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.streams import global_stream

Stem = Literal["cifar", "imagenet"]
Make = TypeVar("Make", bound=Callable[..., nn.Module])


class Answer(NamedTuple):
    """What a network says about a batch: `logits` (B, C) and the outputs of its stages, (B, C_l, H_l, W_l) each."""

    logits: Tensor
    features: tuple[Tensor, ...]


@dataclass(frozen=True)
class Model:
    """A network that can be asked for by name."""

    name: str
    make: Callable[..., nn.Module]
    takes: tuple[str, ...]
    "Which of `num_classes`, `base_width`, `stem` and `image_size` it is made from, by keyword."
    digest: str | None = None
    "Of the file that it stands in, if that is a user's: another file is another network."
    foreign: bool = False
    "Whether it is another library's, and so asked whether it can answer our images before anything is trained."

    @property
    def has_stem(self) -> bool:
        """Whether the stem can be chosen."""
        return "stem" in self.takes


class Models(dict[str, Model]):
    """The networks by name; one of another library, as `torchvision:resnet18`, is there when asked for, in no list."""

    find: Callable[[str], Model]
    "Finds a network of another library by its name; set by the package."

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and ":" in name)

    def __missing__(self, name: str) -> Model:
        if ":" not in name:
            raise KeyError(name)
        return self.find(name)


MODELS = Models()
"Every network by the name that stands in a pair."


def model(name: str) -> Callable[[Make], Make]:
    """Register a class or function under `name`; called with what it takes, it returns the network.

    What it may take, by keyword, is `num_classes`, `base_width`, `stem` and `image_size` (height and width in pixels).
    The network answers images (B, 3, H, W) with logits (B, C), with (logits, stage features), or with an
    :class:`Answer`.
    """

    def register(make: Make) -> Make:
        if not name.isidentifier():
            raise InputError(f"network {name!r}: a name is made of letters, digits and _, since a pair joins two by -")
        if name in MODELS:
            raise InputError(f"network {name} is registered already")
        found = tuple(signature(make).parameters)
        for word in found:
            if word not in _MAY_TAKE:
                raise unknown("argument", word, _MAY_TAKE, f"network {name}")
        if "num_classes" not in found:
            raise InputError(f"network {name}: it must take num_classes, the number of its logits")
        MODELS[name] = Model(name, make, found)
        return make

    return register


_MAY_TAKE = ("num_classes", "base_width", "stem", "image_size")


def get(name: str) -> Model:
    """Return the network of this name; InputError with the nearest one."""
    if name not in MODELS:
        raise unknown("network", name, MODELS)
    return MODELS[name]


def make(arch: str, stem: Stem, num_classes: int, base_width: int, size: int = SIZE) -> nn.Module:
    """Return a network for images of `size` pixels that answers with an `Answer`.

    Its initial weights come from the global generator.
    """
    entry = get(arch)
    given = {"num_classes": num_classes, "base_width": base_width, "stem": stem, "image_size": size}
    net = entry.make(**{name: given[name] for name in entry.takes})
    if entry.digest is not None:
        net.register_forward_hook(_answered)
    return net


def build(
    arch: str, stem: Stem, num_classes: int, base_width: int, generator: torch.Generator, size: int = SIZE
) -> nn.Module:
    """Build a network whose initial weights come from `generator` alone."""
    with global_stream(generator):
        return make(arch, stem, num_classes, base_width, size)


def stage_channels(arch: str, net: nn.Module, size: int = SIZE) -> Sequence[int]:
    """Return the channels of a network's stage features: ours say so as `channels`, a user's is asked with zeros."""
    if get(arch).digest is None:
        return list(net.channels)  # type: ignore[arg-type]
    return [feature.shape[1] for feature in _of_zeros(net, size).features]


def parse_stages(text: str) -> list[tuple[int, int]]:
    """Read which stages go together, teacher-student and counted from 1: "2-1, 3-2" are (2, 1) and (3, 2)."""
    pairs = [re.fullmatch(r"\s*([1-9]\d?)\s*-\s*([1-9]\d?)\s*", part) for part in text.split(",")]
    found = [(int(pair[1]), int(pair[2])) for pair in pairs if pair is not None]
    rising = all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(found))
    if len(found) < len(pairs) or not rising:
        raise InputError(
            f"stages {text!r}: write the teacher's stage and the student's, counted from 1 and rising, as \"2-1, 3-2\""
        )
    return found


def keep_stages(arch: str, net: nn.Module, channels: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Have a network answer with these of its stages alone, counted from 1; return their channels."""
    if missing := [stage for stage in kept if stage > len(channels)]:
        raise InputError(f"stages: {arch} answers with {len(channels)} stages, and stage {missing[0]} is asked for")

    def chosen(net: nn.Module, given: object, answer: Answer) -> Answer:
        return Answer(answer.logits, tuple(answer.features[stage - 1] for stage in kept))

    net.register_forward_hook(chosen)
    return [channels[stage - 1] for stage in kept]


def check(arch: str, stem: Stem, num_classes: int, base_width: int, size: int = SIZE) -> list[tuple[int, ...]]:
    """Build a network and ask it once; return the shapes (C, H, W) of its stages, or raise InputError."""
    try:
        net = build(arch, stem, num_classes, base_width, torch.Generator().manual_seed(0), size)
        answer = _of_zeros(net, size)
    except InputError:
        raise
    except Exception as error:  # the user's own code
        raise InputError(f"network {arch} cannot be built and asked: {type(error).__name__}: {error}") from error
    if answer.logits.shape[1] != num_classes:
        raise InputError(
            f"network {arch} answers with {answer.logits.shape[1]} logits, and there are {num_classes} classes"
        )
    return [tuple(feature.shape[1:]) for feature in answer.features]


def _of_zeros(net: nn.Module, size: int) -> Answer:
    """Return what a network says of one black image, leaving its modes and its statistics."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    with torch.no_grad():
        answer: Answer = net(torch.zeros(1, 3, size, size))
    for module, training in modes.items():
        module.training = training
    return answer


def _answered(net: nn.Module, given: object, found: object) -> Answer:
    """Return what a user's network answered as an `Answer` (a forward hook)."""
    logits, given_features = found if isinstance(found, tuple) and len(found) == 2 else (found, ())
    features = tuple(given_features) if isinstance(given_features, list | tuple) else (given_features,)
    if isinstance(logits, Tensor) and logits.ndim == 2 and all(_is_map(feature) for feature in features):
        return Answer(logits, features)
    raise InputError(
        f"{type(net).__name__} answered with {type(found).__name__}; return logits (B, C), or (logits, features) "
        "with each stage's output (B, C, H, W)"
    )


def _is_map(found: object) -> bool:
    return isinstance(found, Tensor) and found.ndim == 4
