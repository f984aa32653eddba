"""Teacher checkpoints: loaded whole or not at all (paper, 4.2), with a record of where they came from."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from kdbench.kd.errors import InputError


@dataclass(frozen=True)
class Provenance:
    """Where a teacher's weights came from."""

    file: str | None
    "Name of the checkpoint file; None if none was read."
    sha256: str | None
    "Of the file's bytes."
    loaded_fraction: float
    "Share of the network's numbers that came from the file."


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a .pt or .pth file as plain weights (no code is run).

    Raises InputError when the file is missing, unreadable or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"teacher checkpoint {path} does not exist; train it, or correct the path", "teacher")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"teacher checkpoint {path} is cut off, or holds more than plain weights, which is not read because it "
            "could run code; save `model.state_dict()`"
        ) from error
    except Exception as error:  # what a broken file raises depends on where it is cut
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"teacher checkpoint {path} is truncated or not a checkpoint: {said}") from error
    for name in ("state_dict", "model"):  # as Lightning has it, and RepDistiller
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise InputError(f"teacher checkpoint {path} holds no state dict; save `model.state_dict()`")
    return state


def load_strict(teacher: nn.Module, path: Path, sha256: str | None = None) -> Provenance:
    """Load a checkpoint into `teacher`, every tensor of it and nothing else, or raise InputError (a ValueError).

    With `sha256`, the file's own hash must match it. The message names the path, what differs and the mend.
    """
    if not path.is_file():
        raise InputError(f"teacher checkpoint {path} does not exist; train it, or correct the path", "teacher")
    digest = file_sha256(path)
    if sha256 is not None and digest != sha256.lower():
        raise InputError(f"teacher checkpoint {path} has SHA-256 {digest}, not the {sha256} that was declared")
    state = read_checkpoint(path)
    own = teacher.state_dict()
    _check_numbers(own, state, path)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("tensors missing", missing),
            ("tensors unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"teacher checkpoint {path} is not of this architecture: {'; '.join(problems)}. "
            "Check the pair, the width, the stem and the number of classes"
        )
    teacher.load_state_dict(state, strict=True)
    return Provenance(path.name, digest, 1.0)


def _check_numbers(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """Refuse weights that are no finite real numbers where the network has such; copying would hide it."""
    for name in own.keys() & state.keys():
        value = state[name]
        if value.layout != torch.strided or value.is_quantized:
            raise InputError(f"teacher checkpoint {path}: {name} is sparse or quantised; save it dense, in floats")
        if own[name].is_floating_point() and not value.is_floating_point():
            raise InputError(f"teacher checkpoint {path}: {name} is of {value.dtype}, not of real floats; save those")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(
                f"teacher checkpoint {path}: {name} holds NaN or an infinity; its training diverged, or the file is "
                "damaged"
            )


def save_checkpoint(module: nn.Module, path: Path) -> None:
    """Write a module's state dict as safetensors."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    safetensors.torch.save_file(state, path)
