"""A training between two epochs on the disk, from which it goes on to the bit as if it had never been cut off.

What stands in a state is the training's own affair (:class:`kd.train.Training`); every random decision of an epoch has
a stream of its own, named by seed and epoch, so there is no random state to keep.
"""

import logging
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]
"""What a training gives as its state: tensors, numbers and containers of them."""


def save(state: State, path: Path) -> None:
    """Write a state; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load(path: Path, device: torch.device) -> State | None:
    """Read a state; None if there is none, or one that was cut off."""
    try:
        state: State = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:
        logging.warning("%s cannot be read (%s); the training starts over", path.name, type(error).__name__)
        return None
    return state
