"""Reading what a function under a law returned."""

import math
from typing import Any

from torch import Tensor


class OddAnswerError(TypeError):
    """A function under a law returned what the law cannot judge."""


def short(value: Any) -> str:
    said = " ".join(repr(value).split())
    return said if len(said) <= 80 else said[:77] + "..."


def number(value: Any, of: str) -> float:
    """Return a number or a tensor of one number as a float, or raise OddAnswerError."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise OddAnswerError(f"{of} is {short(value)}, not a number") from None


def close(a: float, b: float, tolerance: float = 1e-5) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
