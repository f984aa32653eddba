"""Where do the teacher's weights come from, and does the teacher stay what it was?"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.audits.infer.layers import plain_name
from kdbench.audits.infer.names import Names
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.roles import Cast, Group
from kdbench.audits.observe.loads import Loads, Network
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import Change, Sight, Trace

_FOLLOWED = 6
"Windows, and parameters in each, that show whether a teacher follows its student: a moving average moves all alike."
_OFF_THE_WAY = 2e-2
"Share of a teacher's movement that may lead elsewhere than to the student: rounding, where the share moved is small."
_STATISTICS = ("running_mean", "running_var")
"Buffers that a training moves; others may be queues and caches."


class _Pair(NamedTuple):
    """A parameter of a teacher and the student's of the same name."""

    name: str
    teacher: nn.Parameter
    student: nn.Parameter


class TeacherState(Observer):
    """Keeps what the teacher was at the first distillation step, and holds it against what it is later."""

    def __init__(self, trace: Trace, taint: Taint, known: Known, names: Names, loads: Loads) -> None:
        self._trace, self._taint, self._known, self._names, self._loads = trace, taint, known, names, loads
        self.restart()

    def restart(self) -> None:
        """Forget what the teacher was."""
        self._first: dict[str, tuple[Tensor, Tensor]] | None = None
        "By name, the teacher's tensors and what was in them."
        self._first_student: dict[str, Tensor] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._rates: list[float] = []

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Remember the teacher, the first time; see whether it follows the student and gets a gradient."""
        if self._first is None and self._known.teachers:
            self._first = self._tensors()
            for module in _modules(self._known.students):
                self._first_student.update((n, v.detach().clone()) for n, v in _state(module))
            self._trace.teacher.loaded = self._loads.judge(
                [Network(g.module, self._taint.parameters(g.mask)) for g in self._known.teachers],
                _modules(self._known.students),
                self._names.param,
            )
        if len(self._trace.losses.sights) < _FOLLOWED:
            self._follow()
        calls = [c for g in (*cast.teachers, *cast.idle) for c in g.calls]
        sight.teacher_leaves = self._names.params(self._taint.moved_by(raw.leaves) & cast.teacher_mask)
        sight.teacher_grad = any(c.answer is not None and c.answer.requires_grad for c in calls)

    def _tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            f"{self._names.head(group)}.{name}": (value, value.detach().clone())
            for group in self._known.teachers
            for name, value in (_state(group.module) if group.module is not None else ())
            if not value.is_meta and (not group.is_base or self._taint.bit(value) & group.mask)
        }

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Say what of the teacher an optimizer stepped, and what changed."""
        if not self._known.started:
            return
        teacher = self._known.teacher_mask
        stepped = teacher & self._taint.mask(list(self._known.moved.keys()))
        self._trace.teacher.stepped = self._names.params(stepped)
        self._trace.teacher.change = self._change(bool(stepped), bool(teacher & self._known.labelled))

    def _change(self, by_optimizer: bool, has_own_label_loss: bool) -> Change | None:
        if not self._first:
            return None
        params, buffers = [], []
        for name, (live, old) in self._first.items():
            if torch.equal(live.detach(), old) or (bool(live.isnan().any()) and bool(old.isnan().any())):
                continue
            if isinstance(live, nn.Parameter):
                params.append(name)
            elif name.endswith(_STATISTICS):
                buffers.append(name)
        rate = sum(self._rates) / len(self._rates) if self._rates else None
        return Change(params, buffers, by_optimizer, has_own_label_loss, rate, self._silent(buffers))

    def _silent(self, moved: list[str]) -> list[str]:
        """Return the teacher's running statistics that stood still while the student's of the same name moved."""
        found: list[str] = []
        then = {plain_name(n): b for n, b in self._first_student.items()}
        for student in _modules(self._known.students):
            now = {plain_name(n): b for n, b in student.named_buffers()}
            for group in self._known.teachers:
                for name, own in group.module.named_buffers() if group.module is not None else ():
                    key, full = plain_name(name), f"{self._names.head(group)}.{name}"
                    other, before = now.get(key), then.get(key)
                    if not name.endswith(_STATISTICS) or other is None or other is own:
                        continue
                    if before is not None and full not in moved and not torch.equal(other, before):
                        found.append(full)
        return found

    def _follow(self) -> None:
        """See whether the teacher moved towards the student, all parameters by one share: a moving average does."""
        pairs = self._pairs()
        if pairs and self._before:
            moved, way, old_way = [], [], []
            for name, p, other in pairs:
                if name in self._before:
                    t0, s0 = self._before[name]
                    moved.append((p.detach() - t0).flatten())
                    way.append((other.detach() - t0).flatten())
                    old_way.append((s0 - t0).flatten())
            m = torch.cat(moved).double() if moved else torch.zeros(1)
            if float(m.norm()) > 0:
                for w in (torch.cat(way).double(), torch.cat(old_way).double()):
                    size = float(w @ w)
                    q = float(m @ w) / size if size else 0.0
                    if size and 0 < q <= 1 and float((m - q * w).norm()) <= _OFF_THE_WAY * float(m.norm()):
                        self._rates.append(q)
                        break
        self._before = {name: (p.detach().clone(), s.detach().clone()) for name, p, s in pairs}

    def _pairs(self) -> list[_Pair]:
        """Return some parameters that teacher and student have under one name and in one shape."""
        pairs: list[_Pair] = []
        for teacher in _modules(self._known.teachers):
            for student in _modules(self._known.students):
                own = {plain_name(n): p for n, p in student.named_parameters()}
                for name, p in teacher.named_parameters():
                    other = own.get(plain_name(name))
                    if other is not None and other.shape == p.shape and other is not p and other.device == p.device:
                        pairs.append(_Pair(name, p, other))
        return pairs[:_FOLLOWED]


def _modules(groups: list[Group]) -> list[nn.Module]:
    return [g.module for g in groups if g.module is not None]


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
