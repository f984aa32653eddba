"""All members of the clean zoo: imports the themes, in the order in which their members are listed."""

# isort: off
from kdbench.harness.zoo.clean import optimizers, gradients, students, teachers, losses, tokens  # noqa: F401 (each registers its own)

# isort: on
from kdbench.harness.zoo.clean.registry import MEMBERS

__all__ = ["MEMBERS"]
