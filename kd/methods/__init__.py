"""The distillation methods, by name. To add a method, create a file in this folder.

Every file here is imported, and registers its method: first the three of the paper, in the order of its tables, then
the others by name.
"""

import importlib
import pkgutil

from kdbench.kd.methods import joined
from kdbench.kd.methods.registry import (
    METHODS,
    Batch,
    Images,
    Method,
    MethodSettings,
    Soft,
    Terms,
    build,
    method,
    read_settings,
    why_not_stages,
)
from kdbench.kd.models.registry import Answer

__all__ = [
    "METHODS",
    "Answer",
    "Batch",
    "Images",
    "Method",
    "MethodSettings",
    "Soft",
    "Terms",
    "build",
    "method",
    "read_settings",
    "why_not_stages",
]

for _name in ["baseline", "logit", "feature", *sorted(module.name for module in pkgutil.iter_modules(__path__))]:
    importlib.import_module(f"{__name__}.{_name}")
METHODS.join = joined.joined
