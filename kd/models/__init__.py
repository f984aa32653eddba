"""The networks, a file a family, by name. A file of this folder registers its networks when it is imported."""

from kdbench.kd.models import resnet  # noqa: F401  (it registers its networks)
from kdbench.kd.models.registry import MODELS, Answer, Model, Stem, build, check, make, model, stage_channels

__all__ = ["MODELS", "Answer", "Model", "Stem", "build", "check", "make", "model", "stage_channels"]
