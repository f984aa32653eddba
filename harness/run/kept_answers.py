"""Where a study keeps its teachers' answers, for which trials, and under which name (:mod:`kd.answers`)."""

import hashlib
import json
import platform
from typing import Any

import torch

from kdbench.harness import faults
from kdbench.harness.records.environment import code_digest, device_name, instructions, versions
from kdbench.harness.records.record import Folder, StudyFolder
from kdbench.harness.records.spec import Spec
from kdbench.kd.answers import Answers, may_keep
from kdbench.kd.methods import METHODS
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Recipe

_STUDENTS = {
    *("epochs", "lr", "lr_min", "warmup", "schedule", "drops", "momentum", "nesterov", "distil_until"),
    *("weight_decay", "max_norm", "test_stride", "graphs"),
}
"Fields of a recipe that decide no batch and no bit of a teacher's answer to one; a new field is not among them."


def answers_for(folder: Folder, spec: Spec, teacher_sha256: str | None) -> Answers | None:
    """Return where the answers of a trial's teacher lie; None if the study keeps none, or they are not for this trial.

    A repeat asks the teacher itself. So the control that a trial gives the same bits twice also holds what was read in
    the first run against what is asked in the second.
    """
    place = StudyFolder(folder.path.parent.parent).answers
    is_repeat = folder.path.parent.name == "again"
    if spec.teacher is None or teacher_sha256 is None or is_repeat or not place.is_dir():
        return None
    text = json.dumps(_decisive(spec, teacher_sha256), sort_keys=True)
    return Answers(place, hashlib.sha256(text.encode()).hexdigest()[:32])


def shared_by(spec: Spec) -> tuple[object, ...] | None:
    """Return what is equal of trials in a study that read each other's answers; None if a trial asks its teacher."""
    fault = faults.get(spec.fault) if spec.fault is not None else None
    procedure = fault.inject(CANONICAL, lambda: None) if fault is not None else CANONICAL
    may = may_keep(METHODS[spec.method], procedure, spec.recipe, torch.device(spec.device))
    if spec.teacher is None or not may or spec.settings.crops() > 1:
        return None
    return spec.teacher, spec.seed, *(getattr(spec.recipe, name) for name in Recipe.names() if name not in _STUDENTS)


def _decisive(spec: Spec, teacher_sha256: str) -> dict[str, Any]:
    """Return all that decides which batches a teacher is shown and what it answers, down to the last bit."""
    assert spec.teacher is not None
    return {
        "teacher": [spec.teacher.arch, spec.teacher_digest, teacher_sha256],
        "data": [spec.dataset, spec.data_digest],
        "seed": spec.seed,
        "recipe": {name: getattr(spec.recipe, name) for name in Recipe.names() if name not in _STUDENTS},
        "device": [spec.device, device_name(torch.device(spec.device)), instructions(), platform.machine()],
        "threads": spec.threads,
        "code": [spec.numerics, code_digest(), versions("torch", "torchvision", "timm")],
    }
