"""A study's methods and networks of the user's, asked once before anything is trained: two images, no update."""

import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kdbench.harness import loading
from kdbench.harness.records.spec import Spec
from kdbench.kd import train
from kdbench.kd.data import Dataset
from kdbench.kd.errors import InputError
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.teacher import Provenance

_FEW = 2
"Images of a rehearsal; a batch norm in training mode needs two."


class _Rehearsed(Exception):
    """The first loss is there: the rehearsal is over."""


def rehearse(specs: Iterable[Spec], data: Dataset, device: str) -> None:
    """Compute the first loss of each training that takes a file of the user's, and refuse what cannot be trained.

    It is the training's own loop, stopped before its first update, with a teacher whose weights are random. Raises
    InputError with the method's or network's mistake. What a GPU is needed for is not rehearsed without one.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return
    own = (spec for spec in specs if spec.method_digest or spec.arch_digest or spec.teacher_digest)
    different = {(s.method, s.arch, s.teacher.arch if s.teacher else None): s for s in own}
    for spec in different.values():
        size = min(_FEW, spec.recipe.batch_size)
        error = _first_loss(spec, data, device, size)
        if error is not None and size < spec.recipe.batch_size:  # it may need more than two images
            error = _first_loss(spec, data, device, spec.recipe.batch_size)
        if error is not None:
            taught = f", taught by {spec.teacher.arch}," if spec.teacher is not None else ""
            raise InputError(
                f"training {spec.arch} with method {spec.method}{taught} stops in its first batch: "
                f"{type(error).__name__}: {error}{_place(error)}"
            ) from error


def _untrained(teacher: nn.Module, student: nn.Module, checkpoint: Path, sha256: str | None) -> Provenance:
    return Provenance(None, None, 0.0)


def _first_loss(spec: Spec, data: Dataset, device: str, images: int) -> Exception | None:
    """Go through a training up to its first loss; return what the user's code raised, if it did."""
    teacher = train.Teacher(spec.teacher.arch, Path()) if spec.teacher is not None else None
    recipe = replace(spec.recipe, batch_size=images, fold_teacher=False, compile=False, graphs=False)
    procedure = replace(CANONICAL, load_teacher=_untrained)

    def stop(_: Tensor) -> None:
        raise _Rehearsed

    try:
        training = train.prepare(
            data,
            spec.arch,
            teacher,
            spec.method,
            spec.settings,
            recipe,
            procedure,
            spec.seed,
            torch.device(device),
            spec.stages,
        )
        for _ in train.epochs(training, stop):
            pass
    except _Rehearsed:
        return None
    except InputError as error:
        raise InputError(f"{error}{_place(error)}", error.about) from error
    except Exception as error:  # the user's own code
        return error
    return None


def _place(error: Exception) -> str:
    """Return the line of the user's file at which an error was raised, or of what it called."""
    files = {str(loaded.path) for loaded in loading.LOADED}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
