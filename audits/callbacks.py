"""What the callbacks for trainers share: a watch over the first steps of a training, and what comes of it."""

import warnings
import weakref
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from operator import attrgetter
from typing import get_args

import torch
from torch import Tensor, nn

from kdbench.audits.finding import Report
from kdbench.audits.infer.provenance import provenance
from kdbench.audits.infer.roles import Declared
from kdbench.audits.observe import hooks
from kdbench.audits.trace import KD, Clip, Declaration, Trace
from kdbench.audits.watch import OnFail, Watch

Named = str | nn.Module
"A module, or the name of the attribute of the trained module that holds it."


class TrainerAudit:
    """Watches the first steps that a trainer takes, and leaves its report in ``report``.

    `student`, `teacher` and `projectors` are modules or names of attributes of the module that the trainer trains; who
    is not given is read off what happens. Without `clip`, the bound that the trainer clips to is the declared one.
    After `steps` optimizer steps every hook and every copy is gone. `on_fail` says what a failed audit of severity
    error does then: it is recorded, warned of, or raised as AuditFailure, which ends the training.
    """

    def __init__(
        self,
        *,
        student: Named | None = None,
        teacher: Named | None = None,
        projectors: Named | Mapping[str, Named] | None = None,
        clip: Clip | None = None,
        kd: KD | None = None,
        teacher_weights: Mapping[str, Tensor] | None = None,
        steps: int = 20,
        on_fail: OnFail = "warn",
    ) -> None:
        super().__init__()
        if steps < 1 or on_fail not in get_args(OnFail):
            raise ValueError(f"KDAudit: steps is at least 1, and on_fail one of {', '.join(get_args(OnFail))}")
        self._student, self._teacher = student, teacher
        self._projectors = {"projectors": projectors} if isinstance(projectors, Named) else dict(projectors or {})
        self._clip, self._kd, self._teacher_weights = clip, kd, teacher_weights
        self._wanted, self._on_fail = steps, on_fail
        self._declared_at = hooks.call_site()
        self.watch: Watch | None = None
        "While it runs; ``watch.labels`` shows it the labels of a batch."
        self.report: Report | None = None
        "The findings over the steps watched, once they are over."

    def _begin(self, trained: nn.Module, optimizers: Iterable[torch.optim.Optimizer], clip: Clip | None) -> None:
        self._let_go()  # a training before this one may have ended in an exception that nobody told of
        student, teacher = (_module(given, trained) for given in (self._student, self._teacher))
        projectors = {name: module for name, p in self._projectors.items() if (module := _module(p, trained))}
        roles = {"teacher": teacher, "student": student, **projectors}
        names = {id(p): f"{role}.{name}" for role, m in roles.items() if m for name, p in m.named_parameters()}
        names |= {id(p): name for name, p in trained.named_parameters()}
        intent = Declaration(student, teacher, self._clip or clip, self._kd or KD(), at=self._declared_at)
        trace = Trace(intent, names)
        if teacher is not None and self._teacher_weights is not None:
            trace.teacher.provenance = provenance(teacher, self._teacher_weights)
        declared = Declared(student, teacher, projectors)
        # A step more than will be looked at: the watch's own end of the burn-in is not waited for.
        self.watch = Watch(trace, list(optimizers), self._wanted + 1, 1, "record", declared)
        self.watch.__enter__()
        self.report = None
        self._release = weakref.finalize(self, self.watch.close)

    def _stepped(self) -> None:
        """End it after a step, if that was the last to be looked at."""
        if self.watch is not None and self.watch.steps >= self._wanted:
            self._end()

    def _end(self) -> None:
        """Draw up the report, let go of everything, and do what was asked for on a failure."""
        if self.watch is None:
            return
        report = self.report = self.watch.report
        self._let_go()
        if self._on_fail == "raise":
            report.raise_for("error")
        elif self._on_fail == "warn" and report.failed("error"):
            where = self._declared_at or {"file": "<unknown>", "line": 0}
            warnings.warn_explicit(str(report), UserWarning, where["file"], where["line"])

    def _let_go(self) -> None:
        if self.watch is not None:
            self._release()
            self.watch = None


def _module(given: Named | None, trained: nn.Module) -> nn.Module | None:
    if not isinstance(given, str):
        return given
    try:
        found = attrgetter(given)(trained)
    except AttributeError:
        children = [name for name, _ in trained.named_children()]
        near = get_close_matches(given, children, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(children) or 'none'}"
        raise ValueError(f"KDAudit: {type(trained).__name__} has no attribute {given!r}; {hint}") from None
    if not isinstance(found, nn.Module):
        raise ValueError(f"KDAudit: {type(trained).__name__}.{given} is a {type(found).__name__}, no module")
    return found
