"""What do the declared networks answer when they are called, and are the teacher's answers right?

Where a script declared nothing, :mod:`audits.infer.stems` and :mod:`audits.infer.gradients` read it off its windows.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.audits.hits import Hits
from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.stems import FIRST, spatial_call
from kdbench.audits.observe import hooks
from kdbench.audits.trace import Trace


class Answers(Observer):
    """Takes in each call of a module of the declared student or teacher, and the labels that are shown."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._logits: Tensor | None = None
        "The teacher's last."
        self._roles: dict[int, list[tuple[str, str]]] = {}
        declared = trace.declared
        for role, module in (("student", declared.student), ("teacher", declared.teacher)):
            for name, part in module.named_modules() if module is not None else ():
                self._roles.setdefault(id(part), []).append((role, name))

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Take in one call."""
        for role, name in self._roles.get(id(module), ()):
            calls = self._trace.data.spatial.setdefault(role, [])
            image = args[0] if args else kwargs.get("input")
            shapes = [tuple(t.shape) if isinstance(t, Tensor) else None for t in (image, output)]
            if len(calls) < FIRST and (call := spatial_call(name, module, *shapes)) is not None:
                calls.append(replace(call, where=hooks.call_site()))
            if name == "":
                logits = _logits(output)
                if role == "teacher":
                    self._logits = None if logits is None else logits.clone()  # losses may mask theirs in place
                elif logits is not None:
                    self._trace.teacher.student_width = logits.shape[1]

    def labels(self, labels: Tensor) -> None:
        """Hold the labels (B,) against what the teacher has just answered."""
        logits, self._logits = self._logits, None
        teacher = self._trace.teacher
        teacher.labels_shown = True
        if logits is None or labels.ndim != 1 or len(labels) != len(logits):
            return
        with torch.inference_mode(False), torch.no_grad():
            hits = Hits.of(logits.clone(), labels)
            teacher.hits = hits if teacher.hits is None else teacher.hits + hits

    def forget(self) -> None:
        """Forget the last answer: labels shown after a step are another batch's, or come too late."""
        self._logits = None


def _logits(output: Any) -> Tensor | None:
    """Return the logits (B, C) in what a network returned, if it is plain which tensor they are."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        flat = [part for part in output if isinstance(part, Tensor) and part.ndim == 2]
        output = flat[0] if len(flat) == 1 else None
    return output.detach() if isinstance(output, Tensor) and output.ndim == 2 else None
