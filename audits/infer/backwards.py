"""Gradients of a loss at tensors of its graph, which is left as it was."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_REENTRANT = "use_reentrant"
"What torch's message names where a checkpoint of the older kind lies on the way."


def gradients_of(
    outputs: Tensor | Sequence[Any], inputs: Tensor | Sequence[Any], seeds: Any = None
) -> tuple[Tensor | None, ...]:
    """Return the gradient at each input, None where there is none, or where it cannot be asked for."""
    try:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            outputs, inputs, seeds, retain_graph=True, allow_unused=True
        )
    except RuntimeError as error:
        if _REENTRANT not in str(error):
            raise
        return (None,) * (1 if isinstance(inputs, Tensor) else len(inputs))
    return found
