"""From raw windows to what the checks read: who played which part, and what the distillation did, window by window."""

import gc
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from audits.infer.explain import Explanation, explain
from audits.infer.roles import Cast, Declared, Group, cast
from audits.observe import hooks
from audits.observe.loads import Loads
from audits.observe.taint import Taint
from audits.observe.windows import (
    DISTANCES,
    LABEL_LOSSES,
    MOODY,
    SOFTMAXES,
    FunctionCall,
    ModuleCall,
    RawWindow,
    leaves_of,
)
from audits.trace import Change, Hits, Inputs, Leaf, Sight, Spatial, Term, Trace

T = TypeVar("T")

_LOSSES = DISTANCES | LABEL_LOSSES | {"kl_div"}
_LABELS = 1000
"Of the labels that the teacher's answers are held against; they decide nearly always."
_FIRST = 6
"Windows in which it is seen what gets a gradient, and whether the teacher follows the student."
EXPLAINED = 3
"Windows in which the gradient is explained: each costs a second backward through the loss."
_ROWS_KEPT = 100_000
_SETTLED = 30
"Batches after which a batch norm's running statistics are those of the data."
_FARTHEST, _WIDEST = 1.0, 2.0
"Deviations by which what a batch norm is given may be shifted, and the factor by which it may be wider or narrower."


class Analyst:
    """Reads windows as they close, and keeps of them only what the checks need."""

    def __init__(
        self, trace: Trace, taint: Taint, loads: Loads, declared: Declared, windows: int, raw: Callable[[], RawWindow]
    ) -> None:
        self.trace, self.taint, self.loads, self.declared = trace, taint, loads, declared
        self.windows = windows
        self._raw = raw
        self._known: list[nn.Module] = []
        self._answers: list[tuple[nn.Module, dict[bytes, Tensor]]] = []
        "By network that learned nothing then, what it said of each sample."
        self._moods: dict[int, list[str]] = {}
        "By network, the layers that answered in training mode then."
        self._trained_on: Any = WeakKeyDictionary()
        "By network, mean and deviation of what it was shown when it learned for itself."
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []
        self.students: dict[int, Group] = {}
        self.teachers: dict[int, Group] = {}
        self.projectors: dict[int, Group] = {}
        self.label_masks: list[int] = []
        self._first: dict[str, tuple[Tensor, Tensor]] | None = None
        self._first_student: dict[str, Tensor] = {}
        self._first_params: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self._leaf_mask = 0
        self._moved: Any = WeakTensorKeyDictionary()
        self._plain_leaves: Any = WeakTensorKeyDictionary()
        self._student_optimizer: torch.optim.Optimizer | None = None
        self._steps_seen = 0
        self._sizes: dict[int, tuple[nn.Parameter, list[Tensor]]] = {}
        self._roots: list[Tensor] = []
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._rates: list[float] = []
        self.started = False

    def declare(self, student: str | None, teacher: str | None) -> None:
        """Find the modules that the user named, by their variable or their class."""
        for role, name in (("student", student), ("teacher", teacher)):
            if name is not None and not self.started:
                # Each time anew: the same name may hold another network in the phase before.
                found = _named_module(name, self.trace.losses.windows_seen % 10 == 0)
                if found is not None:
                    setattr(self.declared, role, found)

    # -- windows

    def answered(self, call: ModuleCall) -> None:
        """Take in the answer of a module that nothing called: what it says of each sample, if it learns nothing."""
        if call.fed.params or not any(True for _ in call.module.parameters()):
            return
        if len(self.trace.networks) < 12:
            name = type(call.module).__name__  # its variable may be another's by the time it matters
            self.trace.networks.setdefault(name, "learning" if call.grad else "asked without a gradient")
        if all(call.module is not m for m in self._known[-8:]):
            self._known = [*self._known[-30:], call.module]
        if call.grad and call.training and call.given and call.given[0].is_floating_point():
            self._trained_on.setdefault(call.module, _spread(call.given[0]))
        if call.grad or call.value is None or call.value.ndim != 2 or not call.given:
            return
        rows = call.given[0]
        if len(rows) != len(call.value) or rows.numel() > 2**25:
            return
        table = next((t for m, t in self._answers if m is call.module), None)
        if table is None:
            self._answers = [*self._answers[-7:], (call.module, table := {})]
        if len(table) < _ROWS_KEPT:
            table.update(zip(row_keys(rows), call.value.cpu().unbind(0), strict=True))
        self._moods[id(call.module)] = self._in_training(self._raw(), [call])

    def window(self, raw: RawWindow) -> None:
        """Judge the window that this backward closes."""
        self.trace.losses.windows_seen += 1
        self._roots = raw.roots
        cast_ = cast(raw, self.taint, self.declared, self._known)
        if self.started:
            self.label_masks += [label.made for label in cast_.labels]
        reaching = {f.name for f in raw.functions if raw.root.calls >> f.index & 1 and f.name in _LOSSES}
        self.trace.losses.functions = sorted({*self.trace.losses.functions, *reaching})
        if cast_.cached and len(self.trace.losses.sights) < EXPLAINED:
            self._recognise(raw, cast_)
        in_its_place = cast_.cached and self.started and not self.trace.losses.sights[0].cached
        if cast_.idle and cast_.students and (in_its_place or not cast_.is_distillation):
            if self.started:
                self.trace.losses.lost_windows += 1
            else:
                self.trace.losses.idle_windows += 1
            self.trace.losses.idle_name = self.name_of(cast_.idle[0])
            self.trace.losses.idle_where = raw.where
            return
        if not cast_.is_distillation:
            return
        self.trace.losses.lost_windows = 0
        if not self.started:
            self.started = True
            self.label_masks += [label.made for label in cast_.labels]
        for group in cast_.students:
            self._remember(self.students, group)
        for group in (*cast_.teachers, *cast_.idle):
            if group.module is not None or group.calls or cast_.cached:
                self._remember(self.teachers, group)
        for group in cast_.projectors:
            self._remember(self.projectors, group)
        if self._first is None and self.teachers:
            self._snapshot()
        if cast_.shared is not None and self.trace.teacher.shared is None:
            module, mask = cast_.shared
            self.trace.teacher.shared = self.name_of(Group(mask, module)), self.param_names(mask)
        if len(self.trace.losses.sights) < _FIRST:
            self._follow()
            self._leaf_mask |= self.taint.mask(self._lasting(raw))
        self.trace.losses.sights.append(self._sight(raw, cast_))

    def _recognise(self, raw: RawWindow, cast_: Cast) -> None:
        """Find the network that stored answers came from: each is what it was seen to say of some sample."""
        used = [
            t.detach().cpu().float()
            for f in raw.functions
            if raw.root.calls >> f.index & 1 and f.name in (*SOFTMAXES, "kl_div", "mse_loss", "cross_entropy")
            for t, made, shape in f.operands[:2]
            if t is not None and t.is_floating_point() and not made.params & cast_.student_mask and len(shape) == 2
        ]
        for module, table in self._answers:
            mask = self.taint.mask(module.parameters())
            if mask & cast_.student_mask or not table:
                continue
            said = torch.stack(list(table.values())).float()
            places = {key: i for i, key in enumerate(table)}
            for x in self._shown(raw, cast_.student_mask):
                own = [places.get(key, -1) for key in row_keys(x)] if x.ndim else []
                for t in used:
                    if len(own) != len(t) or t.shape[1] != said.shape[1] or len(own) < 8:
                        continue
                    match = _matches(t, said)
                    known = [i for i, place in enumerate(own) if place >= 0 and bool(match[i].any())]
                    if len(known) < 0.9 * len(own):
                        continue
                    differ = sum(not bool(match[i, own[i]]) for i in known)
                    cast_.stored_rows = (len(known), differ)
                    if not any(g.mask & mask for g in cast_.teachers):
                        cast_.teachers.append(Group(mask, module))
                    if all(place >= 0 for place in own):
                        cast_.stored = said[own]
                    return

    def _lasting(self, raw: RawWindow) -> list[Tensor]:
        """Return the leaves that are parameters: by their class, or since they come back and are no module's input."""
        shown = {id(t) for c in raw.calls for t in c.given}
        found: list[Tensor] = []
        for leaf in raw.leaves:
            if not isinstance(leaf, nn.Parameter):
                before, self._plain_leaves[leaf] = leaf in self._plain_leaves, True
                if not before or id(leaf) in shown:
                    continue
            found.append(leaf)
        return found

    def _remember(self, table: dict[int, Group], group: Group) -> None:
        for key in list(table):
            old = table[key]
            if (old.module is group.module and group.module is not None) or old.mask & group.mask:
                wider = group.module is not None and (old.module is None or group.mask | old.mask == group.mask)
                table[key] = Group(old.mask | group.mask, group.module if wider else old.module)
                return
        table[len(table) + id(group)] = Group(group.mask, group.module)

    def modes(self, modes: list[bool], step: int) -> None:
        """Note a backward before which the student answered in evaluation mode only."""
        if not any(modes) and any(s.student_is_moody for s in self.trace.losses.sights[-1:]):
            self.trace.losses.eval_steps.append(step)
            self.trace.losses.eval_where = self.trace.losses.eval_where or hooks.call_site()

    def stepped(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        """Take in a step: what it moved, and at what rates."""
        if not self.started:
            self.loads.stepped(params)
            return
        for p in params:
            self._moved[p] = True
        trace = self.trace
        if self._student_optimizer is None and any(self.taint.bit(p) & self._leaf_mask for p in params):
            self._student_optimizer = optimizer
            names = []
            for group in optimizer.param_groups:
                first = next(iter(group["params"]), None)
                names.append("nothing" if first is None else self.param_name(first))
            trace.updates.group_names = names
        if optimizer is self._student_optimizer:
            self._steps_seen += 1
            if len(trace.updates.lr_rows) < 5000:
                trace.updates.lr_rows.append(tuple(float(group["lr"]) for group in optimizer.param_groups))
            if self._steps_seen <= 3:
                self._note_sizes(params)
            if self._steps_seen == 3:
                self._find_stale()

    def _note_sizes(self, params: list[nn.Parameter]) -> None:
        dense = [(p, p.grad) for p in params if p.grad is not None and not p.grad.is_sparse]
        if dense:
            for (p, _), size in zip(dense, torch._foreach_norm([grad for _, grad in dense]), strict=True):
                self._sizes.setdefault(id(p), (p, []))[1].append(size)

    def _find_stale(self) -> None:
        """Look for parameters of the student's optimizers that no living module holds and no gradient reached."""
        assert self._student_optimizer is not None
        held = [p for group in self._student_optimizer.param_groups for p in group["params"]]
        silent = [p for p in held if p.grad is None and not self.taint.bit(p) & self._leaf_mask]
        if not silent:
            self.trace.updates.stale = []
            return
        alive = live_parameters()
        self.trace.updates.stale = [f"shape {tuple(p.shape)}" for p in silent if id(p) not in alive]
        modules = [g.module for g in self.students.values() if g.module is not None]
        own = {id(p) for module in modules for p in module.parameters()}
        taught = {id(p) for g in self.teachers.values() if g.module is not None for p in g.module.parameters()}
        self.trace.updates.frozen = [
            self.param_name(p) for p in silent if not p.requires_grad and id(p) in own and id(p) not in taught
        ]

    # -- one window

    def _sight(self, raw: RawWindow, cast_: Cast) -> Sight:
        student = cast_.student_mask
        teacher_calls = [c for g in (*cast_.teachers, *cast_.idle) for c in g.calls]
        training = self._in_training(raw, teacher_calls)
        if cast_.cached:
            training += [m for g in cast_.teachers for m in self._moods.get(id(g.module), [])]
        leaf_mask = self.taint.moved_by(raw.leaves)
        teacher_leaves = leaf_mask & cast_.teacher_mask
        student_calls = [c for g in cast_.students for c in g.calls if c.grad]
        student_calls = [c for c in student_calls if raw.root.calls >> c.index & 1]
        moody = [m for g in cast_.students if g.module is not None for m in g.module.modules() if isinstance(m, MOODY)]
        below = [c for c in _descendants(raw, student_calls) if isinstance(c.module, MOODY) and _acts(c.module)]
        in_eval = bool(student_calls) and all(not c.training for c in student_calls)
        if below:
            in_eval = in_eval and all(not c.training for c in below)
        if self.trace.script:
            self._note_stems(raw, cast_)
        explanations = (
            explain(raw, cast_, self.taint)
            if len(self.trace.losses.sights) < EXPLAINED or self._awaits_labels()
            else []
        )
        for e in explanations:
            self._count_hits(e)
        twice = _squashed_twice(raw, cast_) if len(self.trace.losses.sights) < EXPLAINED else ("", "softmax")
        return Sight(
            number=raw.number,
            where=raw.where,
            student=", ".join(self.name_of(g) for g in cast_.students),
            teacher=", ".join(self.name_of(g) for g in (*cast_.teachers, *cast_.idle)),
            teacher_training=training,
            teacher_leaves=self.param_names(teacher_leaves),
            teacher_grad=any(c.answer is not None and c.answer.requires_grad for c in teacher_calls),
            student_eval=in_eval,
            student_is_moody=any(_acts(m) for m in moody) or bool(below),
            student_frozen=bool(student) and not leaf_mask & student,
            inputs=self._inputs(raw, cast_),
            terms=self._terms(raw, cast_),
            explanations=explanations,
            cached=cast_.cached,
            cached_rows=cast_.stored_rows,
            idle=bool(cast_.idle) and not cast_.teachers,
            self_taught=cast_.self_taught,
            overwritten=self._overwritten(raw, cast_),
            asked_twice=_asked_twice(raw, cast_),
            probabilities=twice[0],
            squashed_by=twice[1],
        )

    def _in_training(self, raw: RawWindow, calls: list[ModuleCall]) -> list[str]:
        """Return the layers below these calls that answered in training mode and answer otherwise in it."""
        seen = {
            self._describe(c, calls)
            for c in _descendants(raw, calls)
            if (isinstance(c.module, MOODY) and c.training and _acts(c.module)) or c.moody
        }
        inside = {  # where nothing below was seen, as in compiled code
            type(m).__name__
            for c in calls
            if not c.has_children
            for m in c.module.modules()
            if isinstance(m, MOODY) and getattr(m, "training", False) and _acts(m)
        }
        return sorted(seen | inside)

    def _note_stems(self, raw: RawWindow, cast_: Cast) -> None:
        """Take down the first three calls of convolutions or pools in student and teacher."""
        for role, groups in (("student", cast_.students), ("teacher", cast_.teachers)):
            if role in self.trace.data.spatial:
                continue
            calls = [c for g in groups for c in g.calls]
            under = _descendants(raw, calls)
            if not under:  # the network was never called as a whole
                mask = cast_.student_mask if role == "student" else cast_.teacher_mask
                under = [c for c in raw.calls if self.taint.mask(c.module.parameters()) & mask]
            shapes = [(c, tuple(c.given[0].shape) if c.given else None) for c in under]
            found = [
                (c.index, s)
                for c, given in shapes
                if (s := spatial_call(self._describe_path(c, calls), c.module, given, c.shape)) is not None
            ]
            inside = {c.index for c in under}
            found += [
                (number, Spatial("max_pool2d", "pool", kernel, stride, before, after))  # type: ignore[arg-type]
                for number, within, kernel, stride, before, after in raw.pools
                if within in inside
            ]
            first = [s for _, s in sorted(found, key=lambda item: item[0])][:3]
            if first:
                self.trace.data.spatial[role] = first

    def _describe_path(self, call: ModuleCall, roots: list[ModuleCall]) -> str:
        for root in roots:
            for name, module in root.module.named_modules():
                if module is call.module and name:
                    return name
        return type(call.module).__name__

    def _awaits_labels(self) -> bool:
        if not self.trace.script or len(self.trace.losses.sights) >= self.windows:
            return False
        read = any(e.form not in ("unknown", "nothing") for s in self.trace.losses.sights for e in s.explanations)
        counted = 0 if self.trace.teacher.hits is None else int(self.trace.teacher.hits.by_class.sum())
        return read and 0 < counted < _LABELS

    def _describe(self, call: ModuleCall, roots: list[ModuleCall]) -> str:
        for root in roots:
            for name, module in root.module.named_modules():
                if module is call.module:
                    return f"{name or type(module).__name__} ({type(module).__name__ if name else 'functional'})"
        return type(call.module).__name__

    def _count_hits(self, e: Explanation) -> None:
        """Hold the teacher's answers against the labels of the label loss."""
        if (
            not self.trace.script
            or e.teacher_logits is None
            or e.labels is None
            or e.sequence
            or e.form in ("permuted",)
        ):
            return
        labels, logits = e.labels.reshape(-1).cpu(), e.teacher_logits
        if len(labels) != len(logits) or labels.dtype.is_floating_point:
            return
        counts = (labels >= 0) & (labels < logits.shape[1])
        right = ((logits.argmax(1) == labels) & counts).sum()
        by_class = torch.bincount(labels[counts].long(), minlength=logits.shape[1])
        old = self.trace.teacher.hits
        if old is not None and len(old.by_class) == len(by_class):
            right, by_class = right + old.right, by_class + old.by_class
        self.trace.teacher.hits = Hits(right, by_class)
        self.trace.teacher.labels_shown = True

    # -- terms

    def _terms(self, raw: RawWindow, cast_: Cast) -> list[Term]:
        if len(self.trace.losses.sights) >= EXPLAINED:
            return []
        student, teacher = cast_.student_mask, cast_.teacher_mask
        projectors = [(self.name_of(g), g.mask) for g in cast_.projectors]
        classes = {label.classes for label in cast_.labels if label.classes}
        terms = []
        done: set[Any] = set()
        for f in cast_.soft:
            masks = [made.params for _, made, _ in f.operands]
            has_student = any(m & student for m in masks)
            key = f.name if f.where is None else (f.where["file"], f.where["line"], f.name)
            if not has_student or key in done or not f.operands:
                continue
            shapes = [shape for _, _, shape in f.operands[:2]]
            if max(len(s) for s in shapes) == 0:
                continue
            done.add(key)
            leaves = self.taint.mask(leaves_of([f.grad_fn])) if f.grad_fn is not None else 0
            mine = [(t, made) for t, made, _ in f.operands if made.params & student]
            soft = f.name == "kl_div" or self._is_logit_shaped(shapes, cast_)
            feature = not soft and max(len(s) for s in shapes) >= 2
            if not soft and not feature:
                continue
            missed = [
                name
                for name, mask in projectors
                if any(made.params & mask for _, made, _ in f.operands) and not leaves & mask
            ]
            term = Term(
                "soft" if soft else "feature",
                f.name,
                f.where,
                bool(leaves & student),
                all(t is not None and not t.requires_grad for t, _ in mine) and not f.requires_grad,
                missed if f.name in DISTANCES or f.name in ("sub", "__sub__", "rsub") else [],
                shapes,
                against_itself=not any(m & ~student for m in masks) and not cast_.cached,
            )
            self._read_operands(term, f, student, teacher, classes)
            if feature:
                term.permutation = self._rows_moved(raw, cast_, f)
            terms.append(term)
        return [*terms, *_of_teacher_alone(raw, cast_)]

    def _overwritten(self, raw: RawWindow, cast_: Cast) -> tuple[str, str] | None:
        """Return a hooked module whose output is compared as a feature, and what overwrote it since the hook."""
        if len(self.trace.losses.sights) >= EXPLAINED:
            return None
        compared = [t for f in cast_.soft for t, *_ in f.operands]
        compared += [t for g in cast_.projectors for c in g.calls for t in c.given]
        for call in raw.calls:
            if not _is_hooked(call.module) or call.outputs is None:
                continue
            out = call.outputs()
            if out is None or out.is_inference() or out._version == call.version:
                continue
            later = [c for c in raw.calls if c.index > call.index and c.outputs is not None and c.outputs() is out]
            if any(t is out for t in compared) and not any(_is_hooked(c.module) for c in later):
                by = next((c for c in later if not c.has_children), None)
                return self._describe(call, self._roots_of(cast_)), type(by.module).__name__ if by else "an operation"
        return None

    def _roots_of(self, cast_: Cast) -> list[ModuleCall]:
        return [c for g in (*cast_.students, *cast_.teachers) for c in g.calls]

    def _is_logit_shaped(self, shapes: list[tuple[int, ...]], cast_: Cast) -> bool:
        widths = {
            tuple(label.logits.shape) for label in cast_.labels if label.logits is not None and label.logits.ndim >= 2
        }
        return any(s in widths for s in shapes)

    def _read_operands(self, term: Term, f: FunctionCall, student: int, teacher: int, classes: set[int]) -> None:
        if f.name != "kl_div" or len(f.operands) < 2:
            return
        (x, made_x, _), (target, made_t, _) = f.operands[:2]
        term.reduction = str(f.arg(4, "reduction", "mean"))
        log_target = bool(f.arg(5, "log_target", False))
        if target is not None and target.requires_grad and not made_t.params & student:
            term.target_grad = bool(self.taint.moved_by(leaves_of([target.grad_fn])) & teacher)
        term.log_target = log_target
        term.swapped = bool(made_t.params & student and not made_x.params & student)
        with torch.no_grad():
            if target is not None and target.numel():
                rows = target.detach().double().exp() if log_target else target.detach().double()
                term.target_sum = _least_even_sum(rows)
                term.target_least = float(rows.min())
            if x is not None and x.numel():
                probabilities = x.detach().double().exp()
                term.input_sum = _least_even_sum(probabilities)
                term.across = _across(probabilities, classes)
        out = f.out
        if isinstance(out, Tensor) and out.ndim == 0 and out.requires_grad and len(self._roots) == 1:
            (w,) = torch.autograd.grad(self._roots[0], out, retain_graph=True, allow_unused=True)
            term.weight = None if w is None else float(w)

    def _rows_moved(self, raw: RawWindow, cast_: Cast, f: FunctionCall) -> bool:
        """Say whether the teacher's operand is the rows of one of its answers in another order."""
        for t, made, _ in f.operands[:2]:
            if t is None or not made.params & cast_.teacher_mask or made.params & cast_.student_mask or len(t) < 8:
                continue
            for call in raw.calls:
                out = call.outputs() if call.outputs is not None else None
                if out is None or out.shape != t.shape or not call.out.params & cast_.teacher_mask:
                    continue
                if torch.equal(out, t):
                    return False
                if torch.equal(
                    out.detach().flatten(1).sum(1).sort().values, t.detach().flatten(1).sum(1).sort().values
                ):
                    return True
        return False

    # -- inputs

    def _inputs(self, raw: RawWindow, cast_: Cast) -> Inputs | None:
        if len(self.trace.losses.sights) >= EXPLAINED:
            return None
        of_student = self._shown(raw, cast_.student_mask)
        of_teacher = [c.given[0] for g in cast_.teachers for c in g.calls if c.given and not c.fed.params]
        of_teacher = [t for t in of_teacher if t.is_floating_point() or t.dtype in (torch.long, torch.int)]
        if not of_student or not of_teacher:
            return None
        best: Inputs | None = None
        order = ("same", "permuted", "flipped", "affine", "differ", "shapes")
        for t in of_teacher:
            for s in of_student:
                found = _relation(s, t)
                if best is None or order.index(found.relation) < order.index(best.relation):
                    best = found
        if best is not None and best.relation in ("same", "shapes"):
            best = self._untrained_on(cast_) or self._unknown_to_its_norms(raw, cast_) or best
        return best

    def _untrained_on(self, cast_: Cast) -> Inputs | None:
        """Say how what the teacher is shown differs in mean or deviation from what it learned on."""
        for group in cast_.teachers:
            learned = self._trained_on.get(group.module)
            given = [c.given[0] for c in group.calls if c.module is group.module and c.given and not c.fed.params]
            if learned is None or not given or not given[0].is_floating_point():
                continue
            (mean, deviation), (now, spread) = learned, _spread(given[0])
            if deviation > 0 and (abs(now - mean) > 0.5 * deviation or not 0.6 < spread / deviation < 1.7):
                trained = f"{mean:.3g} and {deviation:.3g}"
                return Inputs(
                    "untrained", f"mean {now:.3g} and deviation {spread:.3g}, where it was trained on {trained}"
                )
        return None

    def _unknown_to_its_norms(self, raw: RawWindow, cast_: Cast) -> Inputs | None:
        """Say how what the teacher's first batch norm is given differs from what it learned to expect."""
        for group in cast_.teachers:
            below = sorted(_descendants(raw, group.calls), key=lambda c: c.index)
            first = next((c for c in below if isinstance(c.module, nn.modules.batchnorm._BatchNorm)), None)
            if first is None or first.training or not first.given:
                continue
            assert isinstance(first.module, nn.modules.batchnorm._BatchNorm)
            norm, x = first.module, first.given[0].detach().float()
            mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
            if mean is None or var is None or count is None or int(count) < _SETTLED or x.numel() < 16 * len(mean):
                continue
            rows = x.transpose(0, 1).flatten(1)
            deviation = (var + norm.eps).sqrt()
            shift = float(((rows.mean(1) - mean).abs() / deviation).median())
            spread = float((rows.std(1) / deviation).median())
            if shift > _FARTHEST or not 1 / _WIDEST < spread < _WIDEST:
                name = self._describe(first, group.calls)
                return Inputs(
                    "untrained",
                    f"its first batch norm, {name}, is given {spread:.2g} times the deviation that it learned, and a "
                    f"mean {shift:.2g} deviations away",
                )
        return None

    def _shown(self, raw: RawWindow, mask: int) -> list[Tensor]:
        found: list[Tensor] = []
        for call in raw.calls:
            fed_data = raw.root.calls >> call.index & 1 and not call.fed.params and call.given
            if not fed_data or not self.taint.mask(call.module.parameters()) & mask:
                continue
            if all(call.given[0] is not t for t in found):
                found.append(call.given[0])
        return found[:12]

    # -- names

    def name_of(self, group: Group) -> str:
        """Return how a report calls a group: its class and the name of the variable that holds it."""
        module = group.module
        if module is None:
            count = group.mask.bit_count()
            return f"{count} parameters"
        if id(module) not in self._names:
            variable = _variable_of(module)
            kind = type(getattr(module, "_orig_mod", module)).__name__
            self._names[id(module)] = f"{kind} ({variable})" if variable else kind
            self._kept.append(module)
        return self._names[id(module)]

    def param_names(self, mask: int) -> list[str]:
        """Return the names of parameters, by the modules that were seen to hold them."""
        return [self.param_name(p) for p in self.taint.parameters(mask)]

    def param_name(self, param: Tensor) -> str:
        """Return a parameter's dotted name under the module that plays a role, or its shape."""
        if id(param) in self.trace.names:
            return self.trace.names[id(param)]
        for table in (self.students, self.teachers, self.projectors):
            for group in table.values():
                if group.module is None:
                    continue
                for name, own in group.module.named_parameters():
                    if own is param:
                        return f"{self.name_of(group)}.{name}"
        owner = _owner_of(param)
        return owner or f"unnamed parameter of shape {tuple(param.shape)}"

    # -- the beginning and the end

    def _snapshot(self) -> None:
        self._first = {}
        for group in self.teachers.values():
            if group.module is None:
                continue
            for name, value in _state(group.module):
                if value.is_meta:
                    continue
                self._first[f"{self.name_of(group)}.{name}"] = (value, value.detach().clone())
        for group in self.students.values():
            if group.module is not None:
                self._first_student.update((n, v.detach().clone()) for n, v in _state(group.module))
        for table in (self.students, self.projectors):
            for group in table.values():
                for p in self.taint.parameters(group.mask):
                    self._first_params[id(p)] = (p, p.detach().clone())
        self.trace.teacher.loaded = self.loads.judge(self)

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Draw the conclusions that need the whole of what was seen."""
        trace = self.trace
        every = [*optimizers, *_living(torch.optim.Optimizer)]
        trace.updates.optimizers = sorted({type(o).__name__ for o in optimizers})
        optimised = [p for o in every for group in o.param_groups for p in group["params"]]
        stepped = list(self._moved.keys())
        optimised_mask = self.taint.mask(optimised)
        stepped_mask = self.taint.mask(stepped)
        teacher = 0
        for group in self.teachers.values():
            teacher |= group.mask
        labels = 0
        for mask in self.label_masks:
            labels |= mask
        student = 0
        for group in self.students.values():
            student |= group.mask
        trace.peers = bool(teacher & labels) or (
            len({g.mask for g in self.students.values()}) > 1 and bool(teacher & student)
        )
        trace.roles = {
            "student": sorted({self.name_of(g) for g in self.students.values()}),
            "teacher": sorted({self.name_of(g) for g in self.teachers.values()}),
            "projectors": sorted({self.name_of(g) for g in self.projectors.values()}),
        }
        if not self.started:
            return
        moved_by_hand = {id(p) for p, old in self._first_params.values() if not torch.equal(p.detach(), old)}
        trace.updates.leaves = [
            Leaf(p, self.param_name(p), bool(self.taint.bit(p) & optimised_mask) or id(p) in moved_by_hand)
            for p in self.taint.parameters(self._leaf_mask & ~teacher)
        ]
        trace.teacher.stepped = self.param_names(teacher & stepped_mask)
        trace.teacher.change = self._change(teacher, stepped_mask, labels)

        trace.updates.ineffective = self._ineffective()
        schedulers = [
            s for s in _living(torch.optim.lr_scheduler.LRScheduler) if s.optimizer is self._student_optimizer
        ]
        trace.updates.scheduled_groups = max(
            (len(getattr(s, "base_lrs", trace.updates.group_names)) for s in schedulers), default=None
        )
        if trace.script:
            self._name_parameters()
        backwards = Counter(s.backwards for s in trace.updates.steps if s.distils and s.number > 1)
        for sight in trace.losses.sights:
            sight.micro = backwards.most_common(1)[0][0] if backwards else 1

    def _name_parameters(self) -> None:
        names: dict[int, str] = {}
        for table in (self.projectors, self.teachers, self.students):
            for group in table.values():
                if group.module is not None:
                    names.update((id(p), f"{self.name_of(group)}.{n}") for n, p in group.module.named_parameters())
        self.trace.names = {**self.trace.names, **names}

    def _ineffective(self) -> list[str] | None:
        """Return the parameters that got gradients at non-zero rates and hold their first value still."""
        if self._steps_seen < 3 or self._student_optimizer is None:
            return None
        rates = {
            id(p): max(row[i] for row in self.trace.updates.lr_rows)
            for i, group in enumerate(self._student_optimizer.param_groups)
            for p in group["params"]
            if all(i < len(row) for row in self.trace.updates.lr_rows)
        }
        found = []
        means = {key: max(float(s) for s in sizes) / p.numel() ** 0.5 for key, (p, sizes) in self._sizes.items()}
        usual = sorted(means.values())[len(means) // 2] if means else 0.0
        for key, (p, _) in self._sizes.items():
            first = self._first_params.get(key)
            # A bias before a batch norm gets rounding errors for a gradient: too small to count as one.
            if first is None or not rates.get(key) or not means[key] > 1e-3 * usual:
                continue
            if torch.equal(p.detach(), first[1]):
                found.append(self.param_name(p))
        return found

    def _change(self, teacher: int, stepped: int, labels: int) -> Change | None:
        if not self._first:
            return None
        params, buffers = [], []
        for name, (live, old) in self._first.items():
            if torch.equal(live.detach(), old) or (bool(live.isnan().any()) and bool(old.isnan().any())):
                continue
            if isinstance(live, nn.Parameter):
                params.append(name)
            elif name.endswith(("running_mean", "running_var")):  # others may be queues and caches
                buffers.append(name)
        rate = sum(self._rates) / len(self._rates) if self._rates else None
        return Change(params, buffers, bool(teacher & stepped), bool(teacher & labels), rate, self._silent(buffers))

    def _silent(self, moved: list[str]) -> list[str]:
        """Return the teacher's running statistics that stood still while the student's of the same name moved."""
        found: list[str] = []
        for student in (g.module for g in self.students.values() if g.module is not None):
            now = {plain_name(n): b for n, b in student.named_buffers()}
            then = {plain_name(n): b for n, b in self._first_student.items()}
            for group in self.teachers.values():
                for name, own in group.module.named_buffers() if group.module is not None else ():
                    key, full = plain_name(name), f"{self.name_of(group)}.{name}"
                    other, before = now.get(key), then.get(key)
                    if not name.endswith(("running_mean", "running_var")) or other is None or other is own:
                        continue
                    if before is not None and full not in moved and not torch.equal(other, before):
                        found.append(full)
        return found

    def _follow(self) -> None:
        """See whether the teacher moved towards the student, all parameters by one share: a moving average does."""
        pairs: list[tuple[str, nn.Parameter, nn.Parameter]] = []
        for teacher in self.teachers.values():
            for student in self.students.values():
                if teacher.module is None or student.module is None:
                    continue
                own = {plain_name(n): p for n, p in student.module.named_parameters()}
                for name, p in teacher.module.named_parameters():
                    other = own.get(plain_name(name))
                    if other is not None and other.shape == p.shape and other is not p and other.device == p.device:
                        pairs.append((name, p, other))
        pairs = pairs[:6]
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
                    if size and 0 < q <= 1 and float((m - q * w).norm()) <= 2e-2 * float(m.norm()):
                        self._rates.append(q)
                        break
        self._before = {name: (p.detach().clone(), s.detach().clone()) for name, p, s in pairs}


def spatial_call(
    name: str, module: nn.Module, given: tuple[int, ...] | None, returned: tuple[int, ...] | None
) -> Spatial | None:
    """Return what a convolution or pool did to the size of an image, from the shapes of its input and output."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) or given is None or returned is None:
        return None
    kernel, stride = (max(v) if isinstance(v, tuple) else int(v) for v in (module.kernel_size, module.stride))
    before, after = given[-2:], returned[-2:]
    kind: Literal["conv", "pool"] = "conv" if isinstance(module, nn.Conv2d) else "pool"
    return Spatial(name, kind, kernel, stride, (int(before[0]), int(before[1])), (int(after[0]), int(after[1])))


def _squashed_twice(raw: RawWindow, cast_: Cast) -> tuple[str, str]:
    """Say whose answers are probabilities already where a softmax over the classes or a sigmoid is taken, and which."""
    classes = {label.classes for label in cast_.labels if label.classes}
    arguments = [
        (f.operands[0][0], f.operands[0][1].params)
        for f in raw.functions
        if f.name in ("softmax", "log_softmax") and f.operands and raw.root.calls >> f.index & 1
    ]
    arguments += [
        (label.logits, label.made) for label in cast_.labels if label.call.name == "cross_entropy" and label.is_plain
    ]
    sigmoids = [f.out for f in raw.functions if f.name == "sigmoid"]
    for f in raw.functions:
        if f.name == "binary_cross_entropy_with_logits" and f.operands and raw.root.calls >> f.index & 1:
            x, of, _ = f.operands[0]
            if x is not None and any(x is out for out in sigmoids) and of.params & cast_.student_mask:
                return "student's", "sigmoid"
    for x, made in arguments:
        if x is None or x.ndim != 2 or x.shape[1] not in classes or len(x) < 2:
            continue
        rows = x.detach().double()
        sums = rows.sum(1)
        # Divided by a temperature they still sum to one number.
        even = bool((rows >= 0).all()) and float(sums.max() - sums.min()) <= 1e-4 * float(sums.max())
        if even and float(rows.max() - rows.min()) > 1e-2 * float(sums.max()):
            if made & cast_.student_mask:
                return "student's", "softmax"
            if made & cast_.teacher_mask:
                return "teacher's", "softmax"
    return "", "softmax"


def _of_teacher_alone(raw: RawWindow, cast_: Cast) -> list[Term]:
    """Return the distances in the loss both sides of which are one answer of a teacher's: they are constant."""
    found = []
    for f in raw.functions:
        if f.name not in DISTANCES or not raw.root.calls >> f.index & 1 or f.made.params & ~cast_.teacher_mask:
            continue
        sides = [(t, shape) for t, made, shape in f.operands[:2] if t is not None and made.params and t.ndim > 1]
        if len(sides) == 2 and sides[0][1] == sides[1][1] and torch.equal(sides[0][0], sides[1][0]):
            shapes = [shape for _, shape in sides]
            found.append(Term("feature", f.name, f.where, False, False, [], shapes, of_teacher_alone=True))
    return found


def _is_hooked(module: nn.Module) -> bool:
    """Say whether somebody other than torch is told of what the module answers."""
    return any(not str(getattr(h, "__module__", "")).startswith("torch") for h in module._forward_hooks.values())


def _spread(values: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over all numbers."""
    values = values.detach().double()
    return float(values.mean()), float(values.std()) if values.numel() > 1 else 0.0


def _across(probabilities: Tensor, classes: set[int]) -> int | None:
    """Return the dimension over which probabilities sum to one, if it is not that of the classes.

    `classes` are the widths of the label losses' logits; where none is known, rows of a batch are over the last.
    """
    shape = probabilities.shape
    if probabilities.ndim not in (2, 3) or len(set(shape)) < probabilities.ndim or min(shape) < 2:
        return None
    even = [d for d in range(probabilities.ndim) if bool(((probabilities.sum(d) - 1).abs() < 2e-2).all())]
    if len(even) != 1 or even[0] == probabilities.ndim - 1:
        return None
    if not classes:
        return even[0] if probabilities.ndim == 2 else None
    return even[0] if shape[-1] in classes and shape[even[0]] not in classes else None


def _least_even_sum(values: Tensor) -> float | None:
    """Return, for the dimension whose sums are nearest to one, the sum farthest from it; rows of zeros are masked."""
    best: float | None = None
    for dim in range(values.ndim):
        if values.shape[dim] < 2:
            continue
        sums = values.sum(dim).flatten()
        sums = sums[sums != 0]
        if not sums.numel():
            continue
        worst = float(sums[(sums - 1).abs().argmax()])
        if best is None or abs(worst - 1) < abs(best - 1):
            best = worst
    return best


def plain_name(name: str) -> str:
    """Return a tensor's name without what DataParallel and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _asked_twice(raw: RawWindow, cast_: Cast) -> bool:
    calls = [c for g in cast_.students for c in g.calls if c.given and raw.root.calls >> c.index & 1]
    return any(
        not a.grad and b.grad and a.given[0] is b.given[0] and a.module is b.module for a in calls for b in calls
    )


def _matches(used: Tensor, said: Tensor) -> Tensor:
    """Say which of the answers (M, C) each stored row (N, C) is, be it divided by T or the softmax of that."""

    def unit(rows: Tensor) -> Tensor:
        rows = rows - rows.mean(1, keepdim=True)
        return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)

    forms = [used, used.log()] if bool((used > 0).all()) else [used]
    return torch.stack([unit(form) @ unit(said).T > 0.999 for form in forms]).any(0)


def _acts(module: nn.Module) -> bool:
    """Say whether training mode changes what the module answers."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return bool(module.track_running_stats)
    return not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.track_running_stats


def _descendants(raw: RawWindow, roots: list[ModuleCall]) -> list[ModuleCall]:
    inside = {c.index for c in roots}
    found = list(roots)
    for call in raw.calls:
        if call.parent in inside:
            inside.add(call.index)
            found.append(call)
    return found


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *((n, b) for n, b in module.named_buffers())]


def row_keys(rows: Tensor) -> list[bytes]:
    """Return a key for each row of a batch: equal rows have equal keys."""
    flat = rows.detach().reshape(len(rows), -1).cpu().contiguous()
    if flat.dtype == torch.bfloat16:
        flat = flat.float()
    return [hash_row.tobytes() if hash_row.nbytes <= 64 else _digest(hash_row.tobytes()) for hash_row in flat.numpy()]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _relation(s: Tensor, t: Tensor) -> Inputs:
    s, t = s.detach(), t.detach()
    rounded = s.to(t.device, t.dtype) if s.is_floating_point() else s.to(t.device)
    if s is t or (s.shape == t.shape and torch.allclose(rounded, t.to(rounded.dtype), 0, 0, equal_nan=True)):
        return Inputs("same")
    if s.shape != t.shape or s.ndim < 2:
        return Inputs("shapes", f"{tuple(s.shape)} and {tuple(t.shape)}")
    if s.is_floating_point() and not (bool(s.isfinite().all()) and bool(t.isfinite().all())):
        return Inputs("shapes", "numbers that are not finite")
    keys_s, keys_t = row_keys(s), row_keys(t.to(s.dtype))
    if Counter(keys_s) == Counter(keys_t):
        place: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys_s):
            place.setdefault(key, []).append(i)
        return Inputs("permuted", "the same rows in another order", [place[key].pop(0) for key in keys_t])
    if not s.is_floating_point():
        return Inputs("differ", "other values")
    a, b = s.double().cpu(), t.double().cpu()
    scale = float(b.abs().max()) + 1e-12
    if s.ndim == 4:
        for dims, word in (((3,), "mirrored left to right"), ((2,), "mirrored top to bottom")):
            moved = (a.flip(dims) - b).flatten(1).abs().amax(1) <= 1e-5 * scale
            still = (a - b).flatten(1).abs().amax(1) <= 1e-5 * scale
            if bool((moved | still).all()):
                return Inputs("flipped", f"{int((moved & ~still).sum())} of {len(s)} images {word}")
    channels = a.transpose(0, 1).flatten(1) if s.ndim >= 3 else a.reshape(1, -1)
    others = b.transpose(0, 1).flatten(1) if s.ndim >= 3 else b.reshape(1, -1)
    x, y = channels - channels.mean(1, keepdim=True), others - others.mean(1, keepdim=True)
    slope = (x * y).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True).clamp_min(1e-30)
    if float((y - slope * x).abs().max()) <= 1e-4 * scale:
        return Inputs(
            "affine",
            "the teacher's pixels are the student's, scaled by "
            + ", ".join(f"{float(v):.3g}" for v in slope.flatten()[:4]),
        )
    equal = int((a == b).flatten(1).all(1).sum())
    return Inputs("differ", f"{len(s) - equal} of {len(s)} rows differ")


def _variable_of(module: nn.Module) -> str | None:
    """Return the name under which the user's code holds a module: in the frames on the stack, or in the script."""
    frame = sys._getframe(1)
    places: list[dict[str, Any]] = []
    while frame is not None:
        if not frame.f_code.co_filename.startswith(sys.prefix) and "audits" not in frame.f_globals.get("__name__", ""):
            places.append(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    main = sys.modules.get("__main__")
    if main is not None:
        places.append(vars(main))
    best: str | None = None
    for place in places:
        for name, value in list(place.items()):
            if value is module and not name.startswith("_") and name not in ("module", "model", "m", "net"):
                return name
            if value is module:
                best = best or name
            inside = getattr(value, "__dict__", None)
            if name == "self" and isinstance(inside, dict):
                for key, part in [*inside.items(), *inside.get("_modules", {}).items()]:
                    if part is module:
                        return f"self.{key}"
    return best


def _named_module(name: str, by_class: bool) -> nn.Module | None:
    """Return the module that a variable of this name holds, or the only living one of a class of this name."""
    frame = sys._getframe(1)
    tail = name.removeprefix("self.")
    while frame is not None:
        for place in (
            frame.f_locals,
            vars(frame.f_locals["self"]) if hasattr(frame.f_locals.get("self"), "__dict__") else {},
        ):
            for value in (
                place.get(tail),
                place.get("_modules", {}).get(tail) if isinstance(place.get("_modules"), dict) else None,
            ):
                if isinstance(value, nn.Module):
                    return value
        frame = frame.f_back  # type: ignore[assignment]
    main = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    if isinstance(main.get(tail), nn.Module):
        found: nn.Module = main[tail]
        return found
    if not by_class:
        return None
    of_class = [m for m in _living(nn.Module) if type(m).__name__ == name]
    return of_class[0] if len(of_class) == 1 else None


def _owner_of(param: Tensor) -> str | None:
    for module in _living(nn.Module):
        for name, own in module._parameters.items():
            if own is param:
                return f"{type(module).__name__}.{name}"
    return None


def _living(kind: type[T]) -> Iterator[T]:
    """Yield the living objects of a class; by their type, since to ask them for it can run code of theirs."""
    kinds, new = {kind}, [kind]
    while new:
        new = [sub for one in new for sub in type.__subclasses__(one) if sub not in kinds]
        kinds.update(new)
    for thing in gc.get_objects():
        if type(thing) in kinds:
            yield thing


def live_parameters() -> set[int]:
    """Return the ids of the parameters that some living module holds."""
    found: set[int] = set()
    for module in _living(nn.Module):
        found.update(id(p) for p in module._parameters.values() if p is not None)
    return found
