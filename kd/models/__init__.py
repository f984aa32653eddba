"""The networks, a file a family, by name. A file of this folder registers its networks when it is imported."""

from kdbench.kd.models import cifar, library, mobile, resnet  # noqa: F401  (they register their networks)
from kdbench.kd.models.registry import (
    MODELS,
    Answer,
    Model,
    Stem,
    build,
    check,
    keep_stages,
    make,
    model,
    parse_stages,
    stage_channels,
)

MODELS.find = library.found

__all__ = [
    "MODELS",
    "Answer",
    "Model",
    "Stem",
    "build",
    "check",
    "keep_stages",
    "make",
    "model",
    "parse_stages",
    "stage_channels",
]
