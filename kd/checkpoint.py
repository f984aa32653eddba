"""A training between two epochs, kept so that it goes on to the bit as if it had never been cut off.

Every random decision of an epoch has a stream of its own, named by seed and epoch, so there is no random state to keep.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kd.train import Training

_LISTS = ("val_scores", "test_scores", "first_norms", "digests")
State = dict[str, Any]
"""What :func:`save` writes."""


def save(training: "Training", path: Path) -> None:
    """Write the state after the epoch that was yielded last; the file is there whole or not at all."""
    t = training
    state: State = {
        "modules": {name: module.state_dict() for name, module in _modules(t).items()},
        # A fault may have the optimizer move what belongs to none of them.
        "moved": [p.detach() for group in t.optimizer.param_groups for p in group["params"]],
        "optimizer": t.optimizer.state_dict(),
        "scaler": t.scaler.state_dict(),
        "best": t.best,
        "best_epoch": t.best_epoch,
        **{name: getattr(t, name) for name in _LISTS},
    }
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


def numbers(training: "Training", first: int) -> Iterator[int]:
    """Yield the epochs to be trained, from 0; of a training to be resumed the `first` steps, then what it lacks.

    The first epochs are trained again because whoever watches a training sees only its first steps. They also prove
    that this machine gives the bits of the one that wrote the state; if it does not, all epochs are trained.
    """
    t, number = training, 0
    while number < t.recipe.epochs:
        yield number
        number += 1
        if t.resume is None or number * t.steps_per_epoch < first:
            continue
        state, t.resume = t.resume, None
        digests = state["digests"]
        if number >= len(digests):
            continue
        if t.digests[:number] != digests[:number]:
            logging.warning("epoch %d has other weights than the one before the interruption: starting over", number)
            continue
        _restore(t, state)
        number = t.resumed_after = len(digests)


def _restore(t: "Training", state: State) -> None:
    for name, module in _modules(t).items():
        module.load_state_dict(state["modules"][name])
    moved = [p for group in t.optimizer.param_groups for p in group["params"]]
    with torch.no_grad():
        for parameter, value in zip(moved, state["moved"], strict=True):
            parameter.copy_(value)
    t.optimizer.load_state_dict(state["optimizer"])
    t.scaler.load_state_dict(state["scaler"])
    t.best, t.best_epoch = state["best"], state["best_epoch"]
    for name in _LISTS:
        getattr(t, name)[:] = state[name]


def _modules(t: "Training") -> dict[str, torch.nn.Module]:
    named = {"student": t.student, "method": t.method, "teacher": t.teacher}
    return {name: module for name, module in named.items() if module is not None}
