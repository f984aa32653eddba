"""One call of the script's that a fault may change, and how the same call is known again in another process."""

import hashlib
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kdbench.audits.observe import hooks
from kdbench.audits.updates import Where

Kind = Literal[
    "softmax",
    "kl_div",
    "distance",
    "scale",
    "add",
    "clip",
    "optimizer",
    "zero_grad",
    "step",
    "schedule",
    "backward",
    "unscale",
    "load",
    "pretrained",
    "forward",
    "conv",
]
OURS = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "faults"))
"Folders whose frames are none of the script's: the taps, and the faults that act in them."
_TORCH = str(Path(torch.__file__).parent)
_FRAMES = 10
"Frames that tell one call from another: a helper that is called for student and teacher stands in two of them."
_RUNNERS = {"<frozen runpy>", runpy.__file__}


@dataclass
class Call:
    """A call on its way from the script to torch; a fault changes the arguments, the answer, or leaves it out."""

    kind: Kind
    name: str
    "The function as torch calls it: softmax, log_softmax, mul, ..."
    original: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    number: float | None = None
    "What a tensor is multiplied with, for a scale: a division by 4 is .25."
    _place: str | None = field(default=None, repr=False)

    def proceed(self) -> Any:
        """Make the call."""
        return self.original(*self.args, **self.kwargs)

    @property
    def place(self) -> str:
        """Where it is made: the same in every process that runs the same code."""
        if self._place is None:
            self._place = place_of(self.name)
        return self._place

    @property
    def is_direct(self) -> bool:
        """Whether the script, or a library that trains, makes the call itself, and not torch on its way."""
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        return frame is None or not frame.f_code.co_filename.startswith(_TORCH)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument however it was passed."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def put(self, position: int, name: str, value: Any) -> None:
        """Replace an argument however it was passed."""
        if len(self.args) > position:
            self.args[position] = value
        else:
            self.kwargs[name] = value

    @property
    def tensor(self) -> Tensor:
        """The first tensor among the arguments."""
        return next(a for a in (*self.args, *self.kwargs.values()) if isinstance(a, Tensor))


def place_of(name: str) -> str:
    """Return a digest of the frames around a call: file, function and instruction of each, but for torch's and ours.

    An instruction, and not a line: ``F.softmax(s / T, 1), F.softmax(t / T, 1)`` may stand in one line.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8)
    frame: Any = sys._getframe(1)
    seen = 0
    while frame is not None and seen < _FRAMES:
        file = frame.f_code.co_filename
        if file in _RUNNERS:  # who runs the script is no part of it
            break
        if not file.startswith((*OURS, _TORCH, hooks.AUDITS, "<")):
            digest.update(f"{Path(file).name}:{frame.f_code.co_name}:{frame.f_lasti};".encode())
            seen += 1
        frame = frame.f_back
    return digest.hexdigest()


def is_of_the_audits() -> bool:
    """Say whether the audits themselves make this call: what they compute is none of the script's."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith((*OURS, _TORCH)):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(hooks.AUDITS)


def words(where: Where | None) -> str:
    """Return file and line of a call; a library's file from its package on."""
    if where is None:
        return "a library"
    folders = (f"{folder}{os.sep}" for folder in sorted(sys.path, key=len, reverse=True) if folder)
    home = next((folder for folder in folders if where["file"].startswith(folder)), "")
    return f"{where['file'].removeprefix(home)}:{where['line']}"
