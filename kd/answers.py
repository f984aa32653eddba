"""A teacher's answers, kept in files for the other trainings that would ask it the same.

Order and crops of an epoch are drawn from streams of the seed that the epoch names. The trainings of one seed, teacher
and data recipe so show the teacher the very same batches, whatever their method, its settings and the student: the
first to ask writes down the logits of an epoch, and the others read them. The bits are those that they would have been
given, since the batches are the same ones; nothing is looked up by image.

What is read is trusted as far as this: a file carries a digest of its content and of what it is the answer to, and
before an epoch's file is used the teacher is asked about one of its batches (:class:`kd.train._Teaching`). A file that
fails either is removed with a warning, and that epoch asks the teacher. Against somebody who changes a file and makes
its digest anew, that one batch is all there is.

On a GPU nothing is kept: there a captured teacher (`graphs`) is fast, and what the host reads a step waits for.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload
from uuid import uuid4

import safetensors.torch
import torch
from torch import Tensor

from kdbench.kd.methods import Method
from kdbench.kd.models import Answer
from kdbench.kd.procedure import CANONICAL, Procedure
from kdbench.kd.recipe import Recipe

LIMIT = 2 * 10**9
"""Bytes in a study's folder beyond which nothing more is written: 1,100 epochs of CIFAR-10, or 110 of CIFAR-100. What
only saves time must not fill a disk on which results are to be written."""
_APART = {"soft_loss", "combine", "clipped", "learning_rate", "select", "aggregate"}
"Decisions that are made without the teacher, its weights, its images and its modes; those with logits have a copy."


def may_keep(method: type[Method], procedure: Procedure, recipe: Recipe, device: torch.device) -> bool:
    """Say whether a training's teacher may be asked by the files: if nothing but its logits is read, and no fault near.

    A decision is near the teacher unless it is known to be apart, so a new one is near. Under fp16 the scaler may skip
    the optimizer's steps, by which a watch counts how long it looks; it would miss the teacher there.
    """
    replaced = {name for name, decision in vars(procedure).items() if decision is not getattr(CANONICAL, name)}
    reads_logits = method.needs_teacher and method.stages == "none"
    return reads_logits and not replaced - _APART and recipe.precision != "fp16" and device.type == "cpu"


@dataclass(frozen=True)
class Answers:
    """The files of one teacher and seed in the folder of a study, an epoch each."""

    folder: Path
    "It is there, or nothing is kept: whoever wants no answers kept removes it."
    asked: str
    "A digest of all that decides the answers; it names the files' folder."

    def path(self, epoch: int) -> Path:
        """Return where the answers of an epoch lie."""
        return self.folder / self.asked / f"{epoch}.answers"

    def read(self, epoch: int, steps: int) -> Tensor | None:
        """Return the logits (steps, B, C) of an epoch; None if there are none, or what is there cannot be used."""
        path = self.path(epoch)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logging.warning("the teacher is asked: %s cannot be read (%s)", path.name, error)
            return None
        digest, tensors = content[:32], content[32:]
        if digest == self._digest(epoch, tensors):
            logits = safetensors.torch.load(tensors)["logits"]
            if len(logits) == steps:
                return logits
        self.discard(epoch, "is damaged, or answers something else")
        return None

    def write(self, epoch: int, logits: Tensor) -> None:
        """Keep the logits (steps, B, C) of an epoch, whole or not at all; others may do the same with the same bytes.

        A training goes on where this fails or the folder is full.
        """
        path = self.path(epoch)
        unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # as the sweep of a study knows them
        try:
            if path.exists() or not self.folder.is_dir() or self._size() + logits.nbytes > LIMIT:
                return
            path.parent.mkdir(exist_ok=True)
            tensors = safetensors.torch.save({"logits": logits})
            unfinished.write_bytes(self._digest(epoch, tensors) + tensors)
            unfinished.replace(path)
        except OSError as error:
            logging.warning("the teacher's answers are not kept: %s", error)
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def discard(self, epoch: int, why: str) -> None:
        """Remove the answers of an epoch, and say so."""
        logging.warning("the teacher is asked in epoch %d: what was kept of its answers %s", epoch + 1, why)
        self.path(epoch).unlink(missing_ok=True)

    def _digest(self, epoch: int, tensors: bytes) -> bytes:
        """Return a digest of a file's content under its own name, so that no other's fits here."""
        return hashlib.sha256(f"{self.asked}/{epoch}\0".encode() + tensors).digest()

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*/*"))


def stacked(answers: Sequence[Tensor]) -> Tensor | None:
    """Return the logits of all steps as one tensor (steps, B, C); None if it could not give back each step's layout."""
    kinds = {(logits.shape, logits.dtype, logits.is_contiguous()) for logits in answers}
    return torch.stack(list(answers)) if len(kinds) == 1 and answers[0].is_contiguous() else None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two answers are the same in type, shape, layout and every bit."""
    alike = (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
    return alike and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


class AskedLate(Sequence[Tensor]):
    """The stage features beside kept logits: the teacher is asked when a method reads what it has not declared."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._ask = ask

    @cached_property
    def _features(self) -> tuple[Tensor, ...]:
        return self._ask().features

    def __len__(self) -> int:
        return len(self._features)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, at: int | slice) -> Tensor | tuple[Tensor, ...]:
        return self._features[at]
