"""The networks by name, what each says of a batch, and how one is built."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
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
    "Which of `num_classes`, `base_width` and `stem` it is made from, by keyword."
    digest: str | None = None
    "Of the file that it stands in, if that is a user's: another file is another network."
    library: bool = False
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

    What it may take, by keyword, is `num_classes`, `base_width` and `stem`. The network answers images (B, 3, H, W)
    with logits (B, C), with (logits, stage features), or with an :class:`Answer`.
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


_MAY_TAKE = ("num_classes", "base_width", "stem")


def get(name: str) -> Model:
    """Return the network of this name; InputError with the nearest one."""
    if name not in MODELS:
        raise unknown("network", name, MODELS)
    return MODELS[name]


def make(arch: str, stem: Stem, num_classes: int, base_width: int) -> nn.Module:
    """Return a network whose initial weights come from the global generator, and which answers with an `Answer`."""
    entry = get(arch)
    given = {"num_classes": num_classes, "base_width": base_width, "stem": stem}
    net = entry.make(**{name: given[name] for name in entry.takes})
    if entry.digest is not None:
        net.register_forward_hook(_answered)
    return net


def build(arch: str, stem: Stem, num_classes: int, base_width: int, generator: torch.Generator) -> nn.Module:
    """Build a network whose initial weights come from `generator` alone."""
    with global_stream(generator):
        return make(arch, stem, num_classes, base_width)


def stage_channels(arch: str, net: nn.Module) -> Sequence[int]:
    """Return the channels of a network's stage features: ours say so as `channels`, a user's is asked with zeros."""
    if get(arch).digest is None:
        return list(net.channels)  # type: ignore[arg-type]
    return [feature.shape[1] for feature in _of_zeros(net).features]


def check(arch: str, stem: Stem, num_classes: int, base_width: int) -> int:
    """Build a user's network and ask it once; return how many stages it answers with, or raise InputError."""
    try:
        answer = _of_zeros(build(arch, stem, num_classes, base_width, torch.Generator().manual_seed(0)))
    except InputError:
        raise
    except Exception as error:  # the user's own code
        raise InputError(f"network {arch} cannot be built and asked: {type(error).__name__}: {error}") from error
    if answer.logits.shape[1] != num_classes:
        raise InputError(
            f"network {arch} answers with {answer.logits.shape[1]} logits, and there are {num_classes} classes"
        )
    return len(answer.features)


def _of_zeros(net: nn.Module) -> Answer:
    """Return what a network says of one black image, leaving its modes and its statistics."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    with torch.no_grad():
        answer: Answer = net(torch.zeros(1, 3, SIZE, SIZE))
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
