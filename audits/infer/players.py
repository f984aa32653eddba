"""Is there a distillation, and who plays which part in it?"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from kdbench.audits.infer.names import Names, named_module, names_of_modules
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.roles import Cast, Declared, Group, cast
from kdbench.audits.infer.stored import Stored
from kdbench.audits.lost import Asked
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import DISTANCES, LABEL_LOSSES, ModuleCall, RawWindow, learns
from kdbench.audits.trace import Sight, Trace

_LOSSES = DISTANCES | LABEL_LOSSES | {"kl_div"}
STORED = "stored-answers"
"What is declared as the teacher where no network is: no variable has this name."
_NAMED = 12
"Networks that a report names where no distillation was seen: more than that is no help to a reader."
_REMEMBERED, _RECENT = 30, 8
"""Modules that answered data and may hold a teacher whose parameters alone are seen later; and those among them in
which a call is looked up, since it mostly comes from one that answered just before."""
_SMALL_PART = 0.5
"Of a network's numbers, those that may be trained where they are adapters on a base."
_LOOKED_FOR = 10
"Backwards from one search through all living modules for a class of a declared name to the next: each takes long."


class Players(Observer):
    """Casts the roles in each window, remembers them, and says how often a network taught nothing."""

    def __init__(
        self, trace: Trace, taint: Taint, known: Known, names: Names, declared: Declared, stored: Stored
    ) -> None:
        self._trace, self._taint, self._known, self._names = trace, taint, known, names
        self._declared, self._stored = declared, stored
        self._answered: list[nn.Module] = []
        self.optimizers: Callable[[], list[torch.optim.Optimizer]] = list
        self.learned: Callable[[], list[nn.Parameter]] = list
        "Parameters that were trained or read before the distillation."
        self.learns: Callable[[nn.Module], None] = lambda _: None
        "Is told of a network that answers with a gradient for the first time."
        self._stepped: WeakKeyDictionary[torch.optim.Optimizer, bool] = WeakKeyDictionary()
        self._is_new = True
        "Whether a network answered for the first time since the declared names were looked for."

    def declare(self, student: str | None, teacher: str | None) -> None:
        """Find the modules that the user named: by their variable, their attribute, their path or their class.

        Until both are found no window is a distillation's: what is declared binds from the start.
        """
        if self._known.started:
            return
        self._declared.stored = teacher == STORED
        thorough = self._is_new or self._trace.losses.windows_seen % _LOOKED_FOR == 0
        self._is_new = False
        for role, name in (("student", student), ("teacher", teacher)):
            if name is None or name == STORED:
                continue
            # Each time anew: the same name may hold another network in the phase before.
            found = named_module(name, thorough)
            if found is not None:
                setattr(self._declared, role, found)
                self._trace.not_found.pop(role, None)
            elif getattr(self._declared, role) is None:
                self._trace.not_found[role] = name
        if thorough and self._trace.not_found:
            self._trace.names_there = sorted(
                {*self._trace.names_there, *names_of_modules()}, key=lambda name: (name.count("."), name)
            )[:_NAMED]

    def answered(self, raw: RawWindow, call: ModuleCall) -> None:
        """Remember a network that answered data."""
        networks = self._trace.networks
        if len(networks) < _NAMED:
            name = type(call.module).__name__  # its variable may be another's by the time it matters
            networks.setdefault(name, "learning" if call.grad else "asked without a gradient")
        is_new = all(call.module is not m for m in self._answered)
        self._is_new = self._is_new or is_new
        if is_new and call.grad:
            self.learns(call.module)
        if all(call.module is not m for m in self._answered[-_RECENT:]):
            self._answered = [*self._answered[-_REMEMBERED:], call.module]

    def cast(self, raw: RawWindow) -> Cast | None:
        """Return the roles in the window that a backward closes; None if it is none of a distillation."""
        losses, known = self._trace.losses, self._known
        losses.windows_seen += 1
        if self._trace.not_found:
            return None
        found = cast(raw, self._taint, self._declared, self._answered, self._trainee(raw), self._learned)
        self._stored.recognise(raw, found)
        others = not found.student_mask & known.student_mask
        if found.doubtful and found.stored_rows is None and (others or not known.settled):
            found.cached = False  # numbers that nobody was seen to say are labels, also beside a distillation
        reaching = {f.name for f in raw.functions if raw.root.calls >> f.index & 1 and f.name in _LOSSES}
        losses.functions = sorted({*losses.functions, *reaching})
        if known.started:
            self._note_labels(found)
            self._note_own_training(raw, found.trained)
        in_its_place = found.cached and known.started and bool(losses.sights) and not losses.sights[0].cached
        if found.idle and found.students and (in_its_place or not found.is_distillation):
            if known.started:
                losses.lost_windows += 1
            else:
                losses.idle_windows += 1
            losses.idle_name = self._names.group(found.idle[0])
            known.idle |= found.idle[0].mask | found.student_mask
            losses.idle_where = raw.where
            return None
        if not found.is_distillation:
            if not known.started:
                self._note_asked(raw, found.trained)
            return None
        if self._trace.script and known.started and not known.settled and found.strength > 1:
            known.restarts += 1
            return found
        self.begin(found)
        return found

    def _note_asked(self, raw: RawWindow, trained: int) -> None:
        """Note a network that was asked without a gradient for nothing: of its answer nothing is in the loss, and
        nothing else was made of it that is not seen, as a choice, a look-up or a number that is printed."""
        if not trained:
            return
        used = trained | raw.root.params | raw.left
        for call in raw.calls:
            if call.parent is not None or learns(call) or call.fed.params or call.heard:
                continue
            mask = self._taint.mask(call.module.parameters())
            if mask and not mask & used:
                losses, name = self._trace.losses, self._names.group(Group(mask, call.module))
                losses.asked = Asked(1 + (losses.asked.windows if losses.asked else 0), name, call.where)
                return

    def _trainee(self, raw: RawWindow) -> int:
        """Return the parameters that are trained now: of the students known, else of optimizers yet to step.

        A student that may be none is one no longer where a backward leaves it out.
        """
        known, own = self._known, self._known.student_mask
        if known.started and (known.settled or own & self._taint.moved_by(raw.leaves)):
            return own
        new = [o for o in self.optimizers() if o not in self._stepped]
        return self._taint.mask(p for o in new for group in o.param_groups for p in group["params"]) or own

    def _learned(self) -> int:
        return self._taint.mask(self.learned())

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Note an optimizer that steps, in whatever training."""
        self._stepped[optimizer] = True

    def begin(self, found: Cast) -> None:
        """Take in that a window is one of a distillation."""
        self._trace.losses.lost_windows = 0
        self._known.started = True
        self._known.strength = max(self._known.strength, found.strength)
        self._note_labels(found)

    def _note_labels(self, found: Cast) -> None:
        for label in found.labels:
            self._known.labelled |= label.made & found.trained

    def _note_own_training(self, raw: RawWindow, trained: int) -> None:
        """Note a teacher that is trained beside the distillation, as an agent is whose policy is distilled while it
        learns: by a loss that nothing of the student is in, and by an optimizer that holds nothing of the student."""
        teacher, student = self._known.teacher_mask, self._known.student_mask
        if not trained & teacher or student & (teacher | trained | raw.root.params):
            return
        for optimizer in self.optimizers():
            held = self._taint.mask(p for group in optimizer.param_groups for p in group["params"])
            if held & trained & teacher and not held & student:
                self._known.labelled |= trained & held

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Remember who played which part."""
        known, names = self._known, self._names
        for group in cast.students:
            _remember(known.students, group)
        for group in (*cast.teachers, *cast.idle):
            if group.module is not None or group.calls or cast.cached:
                _remember(known.teachers, group)
        for group in cast.projectors:
            _remember(known.projectors, group)
        if cast.shared is not None and self._trace.teacher.shared is None:
            module, mask = cast.shared
            self._trace.teacher.shared = names.group(Group(mask, module)), names.params(mask)
        if cast.moving_base is not None and self._trace.teacher.moving_base is None:
            module, mask = cast.moving_base
            self._trace.teacher.moving_base = names.group(Group(mask, module)), names.params(mask)
        known.along |= cast.along & cast.teacher_mask
        sight.student = names.groups(cast.students)
        sight.teacher = names.groups([*cast.teachers, *cast.idle])
        sight.cached = cast.cached
        sight.idle = bool(cast.idle) and not cast.teachers
        sight.self_taught, sight.own_target = cast.self_taught, cast.own_target
        sight.unanchored = _is_unanchored(cast)

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Say who is who, and whether the networks teach each other."""
        known, names = self._known, self._names
        teacher = known.teacher_mask
        several = len({g.mask for g in known.students}) > 1
        # A loss of its own makes no peer of a teacher that the student's loss moves too, if no label moves the student.
        along = teacher & known.along and not known.labelled & known.student_mask
        both = bool(teacher & known.labelled) or (several and bool(teacher & known.student_mask))
        self._trace.peers = both and not along
        self._trace.roles = {
            "student": sorted({names.group(g) for g in known.students}),
            "teacher": sorted({names.group(g) for g in known.teachers}),
            "projectors": sorted({names.group(g) for g in known.projectors}),
        }


def _remember(groups: list[Group], group: Group) -> None:
    """Add a group to those known, or widen the one that it is a part of."""
    for i, old in enumerate(groups):
        if (old.module is group.module and group.module is not None) or old.mask & group.mask:
            wider = group.module is not None and (old.module is None or group.mask | old.mask == group.mask)
            module = group.module if wider else old.module
            groups[i] = Group(old.mask | group.mask, module, is_base=group.is_base, is_branch=group.is_branch)
            return
    groups.append(Group(group.mask, group.module, is_base=group.is_base, is_branch=group.is_branch))


def _is_unanchored(cast: Cast) -> bool:
    """Say whether adapters on a frozen base learn from nothing but what the network says with them on."""
    told = [
        made.params
        for f in cast.soft
        for t, made, _ in f.operands[:2]
        if t is not None and not t.requires_grad and made.params & cast.student_mask
    ]
    itself = cast.self_taught and not cast.labels and bool(told) and all(params & cast.trained for params in told)
    return itself and any(_is_adapted(g.module) for g in cast.students)


def _is_adapted(module: nn.Module | None) -> bool:
    """Say whether most of a network is frozen, and what is trained of it is a small part, as adapters are."""
    params = list(module.parameters()) if module is not None else []
    trained = sum(p.numel() for p in params if p.requires_grad)
    return 0 < trained < _SMALL_PART * sum(p.numel() for p in params)
