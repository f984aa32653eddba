"""What a GradScaler knows of an optimizer: whether its gradients were unscaled, and whether any was infinite."""

from typing import Any

import torch

from kdbench.audits.observe.torch_internals import scaler_states_of


def is_still_scaled(scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Say whether the scaler has not divided an optimizer's gradients by its scale since the last step."""
    return getattr(scaler_states_of(scaler)[id(optimizer)].get("stage"), "name", "") == "READY"


def found_infinite(scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Say whether the scaler found infinite gradients; a fused optimizer is called all the same, and moves nothing."""
    found = scaler_states_of(scaler)[id(optimizer)].get("found_inf_per_device", {})
    return any(bool(value) for value in found.values())
