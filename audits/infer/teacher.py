"""Where do the teacher's weights come from, and does the teacher stay what it was?"""

from weakref import ref

import torch
from torch import Tensor, nn

from kdbench.audits.infer.averages import Averages, Pair
from kdbench.audits.infer.layers import plain_name
from kdbench.audits.infer.names import Names
from kdbench.audits.infer.observer import EXPLAINED, Known, Observer
from kdbench.audits.infer.roles import Cast, Group
from kdbench.audits.infer.twins import hold_the_same, is_remade, twins_in
from kdbench.audits.observe.loads import Loads, Network
from kdbench.audits.observe.readable import copy_of, is_still, numbers
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import Change, Sight, Trace

_FOLLOWED, _TENSORS = 24, 400
"Windows, and parameters in each, that show whether a teacher follows its student: a moving average moves all alike."
_STATISTICS = ("running_mean", "running_var")
"Buffers that a training moves; others may be queues and caches."


class TeacherState(Observer):
    """Keeps what the teacher was at the first distillation step, and holds it against what it is later."""

    def __init__(self, trace: Trace, taint: Taint, known: Known, names: Names, loads: Loads) -> None:
        self._trace, self._taint, self._known, self._names, self._loads = trace, taint, known, names, loads
        self._twins: list[tuple[ref[nn.Module], ref[nn.Module]]] = []
        "Networks that were one in a backward that could not be read."
        self.restart()

    def restart(self) -> None:
        """Forget what the teacher was."""
        self._first: dict[str, tuple[Tensor, Tensor]] | None = None
        "By name, the teacher's tensors and what was in them."
        self._first_student: dict[str, Tensor] = {}
        self._averages = Averages()
        self._copy = ""

    def _are_twins(self) -> bool:
        """Say whether the only teacher and the only student were one in the backward before the first that is read."""
        students, teachers = _modules(self._known.students), _modules(self._known.teachers)
        found = [(learner(), asked()) for learner, asked in self._twins]
        one_each = len(students) == len(teachers) == 1 and not self._known.projectors
        return one_each and any(a is students[0] and b is teachers[0] for a, b in found)

    def begins(self, raw: RawWindow) -> None:
        """Note the networks that are one, in a backward of which no more is known yet."""
        if self._first is None:
            self._twins = [(ref(learner), ref(asked)) for learner, asked in twins_in(raw)]

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Remember the teacher, the first time; see whether it follows the student and gets a gradient."""
        if self._first is None and self._known.teachers:
            self._first = self._tensors()
            for module in _modules(self._known.students):
                self._first_student.update((n, copy) for n, v in _state(module) if (copy := copy_of(v)) is not None)
            self._trace.teacher.loaded = self._loads.judge(
                [Network(g.module, self._taint.parameters(g.mask)) for g in self._known.teachers],
                _modules(self._known.students),
                self._names.param,
            )
            if (loaded := self._trace.teacher.loaded) is not None:
                loaded.began_as_one = self._are_twins()
            self._copy = self._copy_beside(cast)
        if len(self._trace.losses.sights) < _FOLLOWED:
            self._averages.window(self._pairs(), self._taint.window)
        calls = [c for g in (*cast.teachers, *cast.idle) for c in g.calls]
        leaves = self._taint.moved_by(raw.leaves) & cast.teacher_mask
        sight.teacher_leaves = self._names.params(leaves & ~self._passed_through(raw, cast) if leaves else 0)
        if len(self._trace.losses.sights) < EXPLAINED:
            sight.teacher_through = self._goes_through(raw, cast)
        sight.teacher_grad = any(c.answer is not None and c.answer.requires_grad for c in calls)

    def _passed_through(self, raw: RawWindow, cast: Cast) -> int:
        """Return the parameters of the teacher's parts that the student's own features go through, gradient and all."""
        student = cast.student_mask
        through = [
            self._taint.mask(c.module.parameters())
            for c in raw.calls
            if c.grad and c.fed.params & student and raw.root.calls >> c.index & 1
        ]
        whole = 0
        for mask in through:
            whole |= 0 if mask & student else mask
        return whole

    def _goes_through(self, raw: RawWindow, cast: Cast) -> str:
        """Return the name of a module that the student's side trains and that made a target, cut from its graph, of the
        teacher's answer."""
        teacher, student = cast.teacher_mask, cast.student_mask
        for call in raw.calls if not any(g.is_base for g in cast.teachers) else ():
            if not call.fed.params & teacher or call.fed.params & student or not call.out.params & cast.trained:
                continue
            own = self._taint.mask(call.module.parameters()) & cast.trained & ~teacher
            if not own:
                continue
            beside = any(c.module is call.module and c.fed.params & student for c in raw.calls)
            targets = [
                t
                for f in cast.soft
                for t, made, _ in f.operands[:2]
                if t is not None and made.calls >> call.index & 1 and not made.params & student
            ]
            if beside and targets and not any(t.requires_grad for t in targets):
                return self._names.params(own)[0].rpartition(".")[0]
        return ""

    def _tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            f"{self._names.head(group)}.{name}": (value, copy)
            for group in self._known.teachers
            for name, value in (_state(group.module) if group.module is not None else ())
            if (copy := copy_of(value)) is not None and (not group.is_base or self._taint.bit(value) & group.mask)
        }

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Say what of the teacher an optimizer stepped, and what changed."""
        if not self._known.started:
            return
        teacher = self._known.teacher_mask
        stepped = teacher & self._taint.mask(list(self._known.moved.keys()))
        self._trace.teacher.stepped = self._names.params(stepped)
        if self._averages.shared and self._trace.teacher.shared is None:
            name = self._names.group(self._known.teachers[0])
            self._trace.teacher.shared = name, [self._names.param(p) for p in self._averages.shared]
        self._trace.teacher.change = self._change(bool(stepped), bool(teacher & self._known.labelled))
        if (loaded := self._trace.teacher.loaded) is not None and (loaded.same_start or loaded.began_as_one):
            loaded.student_remade = any(is_remade(m, self._first_student) for m in _modules(self._known.students))

    def _change(self, by_optimizer: bool, has_own_label_loss: bool) -> Change | None:
        if not self._first:
            return None
        params, buffers = [], []
        for name, (live, old) in self._first.items():
            if is_still(live, old) or (bool(old.isnan().any()) and _has_nan(live)):
                continue
            if isinstance(live, nn.Parameter):
                params.append(name)
            elif name.endswith(_STATISTICS):
                buffers.append(name)
        seen, forgotten = self._averages, not params and not by_optimizer and self._is_forgotten()
        rate = sum(seen.rates) / len(seen.rates) if len(seen.rates) > seen.astray else None
        still = seen.still
        return Change(
            params,
            buffers,
            by_optimizer,
            has_own_label_loss,
            rate,
            self._silent(buffers),
            rates=seen.rates,
            updates=0 if by_optimizer else seen.updates,
            unstepped=seen.unstepped,
            astray=seen.astray,
            still=still,
            moved_share=seen.moved_share,
            dtype=str(seen.dtype).removeprefix("torch."),
            forgotten=forgotten,
            copy_beside=self._copy if not params and not by_optimizer else "",
        )

    def _copy_beside(self, cast: Cast) -> str:
        """Return the name of a teacher that is shown what another one makes, and that holds, number by number, what
        this one does and what the student does; an empty one where there is none."""
        for group in cast.teachers:
            for other in cast.teachers:
                shown = any(call.fed.params & other.mask for call in group.calls)
                if group is other or not shown or group.module is None or other.module is None:
                    continue
                own = [*group.module.parameters()]
                if all(hold_the_same(own, [*m.parameters()]) for m in (other.module, *_modules(cast.students))):
                    return self._names.group(group)
        return ""

    def _is_forgotten(self) -> bool:
        """Say whether it is a twin of the student that some of the student's start was copied to, and nothing else."""
        loaded, known = self._trace.teacher.loaded, self._known
        if (
            loaded is None
            or loaded.covered
            or loaded.made_from
            or known.labelled
            or any(g.is_base for g in known.teachers)
        ):
            return False
        twins, copied = True, False
        for name, (live, old) in (self._first or {}).items():
            if not isinstance(live, nn.Parameter):
                continue
            own = [t for n, t in self._first_student.items() if f".{plain_name(name)}".endswith(f".{plain_name(n)}")]
            twins = twins and any(t.shape == old.shape for t in own)
            copied = copied or any(t.shape == old.shape and torch.equal(t, old) and bool(t.std() > 0) for t in own)
        return twins and copied

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
                    if before is not None and full not in moved and not is_still(other, before):
                        found.append(full)
        return found

    def _moving(self) -> list[nn.Module]:
        """Return the modules of the teacher; of several, those that have moved, as an average beside a frozen one."""
        teachers = _modules(self._known.teachers)
        if len(teachers) < 2:
            return teachers
        olds = {id(live): old for live, old in (self._first or {}).values()}
        moved = [t for t in teachers if any(id(p) in olds and not is_still(p, olds[id(p)]) for p in t.parameters())]
        return moved or teachers

    def _pairs(self) -> list[Pair]:
        """Return the parameters in the loss that teacher and student have under one name and in one shape."""
        mask = self._known.teacher_mask
        pairs: list[Pair] = []
        for group in self._known.teachers:
            if group.is_branch and group.module is not None:
                pairs += _beside(group.module, self._taint, mask, self._known.student_mask & ~mask)
        for teacher in self._moving():
            for student in _modules(self._known.students):
                own = {plain_name(n): p for n, p in student.named_parameters()}
                both = [
                    Pair(name, p, other)
                    for name, p in teacher.named_parameters()
                    if self._taint.bit(p) & mask and (other := own.get(plain_name(name))) is not None
                ]
                if any(pair.student.shape != pair.teacher.shape for pair in both):
                    continue  # another architecture: what has one shape in both, as the last bias, is no average
                pairs += [p for p in both if p.student is not p.teacher and p.student.device == p.teacher.device]
        return pairs[:_TENSORS]


def _beside(module: nn.Module, taint: Taint, teacher: int, student: int) -> list[Pair]:
    """Return the parameters of one network that lie beside each other, the one the teacher's and the other the
    student's, as two adapters do: their paths differ in one word, and it is the same two words for all."""
    named = [(n.split("."), p, taint.bit(p)) for n, p in module.named_parameters()]
    found: dict[tuple[str, str], list[Pair]] = {}
    for name, p, bit in named:
        for other, q, its in named if bit & teacher else ():
            if not its & student or q.shape != p.shape or len(name) != len(other):
                continue
            words = [(a, b) for a, b in zip(name, other, strict=True) if a != b]
            if len(words) == 1:
                found.setdefault(words[0], []).append(Pair(".".join(name), p, q))
    return max(found.values(), key=len, default=[])


def _modules(groups: list[Group]) -> list[nn.Module]:
    return [g.module for g in groups if g.module is not None]


def _has_nan(value: Tensor) -> bool:
    here = numbers(value)
    return here is not None and bool(here.isnan().any())


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
