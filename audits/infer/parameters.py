"""Which parameters get a gradient, which are stepped, and which change?"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from kdbench.audits.infer.names import Names
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.roles import Cast, Group
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.living import live_parameters, living
from kdbench.audits.observe.readable import copy_of, is_still, numbers
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import ModuleCall, RawWindow
from kdbench.audits.trace import Sight, Trace
from kdbench.audits.updates import Leaf

_FIRST = 6
"Windows in which it is noted what gets a gradient: as many as alternating losses and phases of one loop need."
_JUDGED = 3
"Steps after which it is judged what stands still: one may be skipped by a scaler, and one taken at rate zero."
_RATES = 5000
"Steps whose learning rates are kept: long enough for any schedule's shape, and small."
_WRAPPER = 16
"Modules in one that wraps a layer, at most: an adapter's two layers, their dropout, and the dictionaries they are in."
_LEAST_GRADIENT = 1e-3
"Of the median size of a gradient: less is rounding, as a bias before a batch norm gets."


class Parameters(Observer):
    """Follows the parameters that the distillation gives a gradient to, and the optimizer that steps them."""

    def __init__(self, trace: Trace, taint: Taint, known: Known, names: Names) -> None:
        self._trace, self._taint, self._known, self._names = trace, taint, known, names
        self.restart()

    def restart(self) -> None:
        """Forget the parameters of a training that was no distillation."""
        self._first: dict[int, tuple[nn.Parameter, Tensor]] | None = None
        "By id, the parameters of students and projectors, and what was in them."
        self._leaves = 0
        "Mask of what got a gradient."
        self._behind = 0
        "Mask of what made an answer that was cut off and got a gradient of its own."
        self._reached = 0
        "Mask of what is in the loss, with or without a gradient."
        self._called: dict[int, tuple[nn.Module, bool]] = {}
        "By id, the modules that were called, and whether what they call was seen."
        self._plain_leaves: Any = WeakTensorKeyDictionary()
        self._unheard: dict[int, nn.Module] = {}
        "By id, layers of the student whose answers no loss heard so far, though it heard one of the same kind beside."
        self._within: Any = WeakTensorKeyDictionary()
        "By parameter of a module that answers for the loss within a function with its own backward, that function."
        self._optimizer: torch.optim.Optimizer | None = None
        "The first that stepped what the distillation gives a gradient to."
        self._steps = 0
        "Of that optimizer."
        self._sizes: dict[int, tuple[nn.Parameter, list[Tensor]]] = {}
        "By id, the parameters stepped first, and the norms of their gradients."

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Note what this backward gives a gradient to."""
        known = self._known
        if self._first is None and known.teachers:
            held = [p for g in (*known.students, *known.projectors) for p in self._taint.parameters(g.mask)]
            self._first = {id(p): (p, copy) for p in held if (copy := copy_of(p)) is not None}
        if len(self._trace.losses.sights) < _FIRST:
            self._leaves |= self._taint.mask(self._lasting(raw))
            self._behind |= self._cut_from(raw) & cast.student_mask
            self._reached |= raw.root.params
            self._within.update(_within(raw))
            # A validation may have called more, and a product with a head's weights is no call of the head.
            mine = [c for c in raw.calls if raw.root.calls >> c.index & 1 and not c.by_hand]
            self._called.update((id(c.module), (c.module, c.has_children)) for c in mine)
            self._heads(raw)
        student = cast.student_mask
        sight.student_frozen = bool(student) and not self._taint.moved_by(raw.leaves) & student

    def _heads(self, raw: RawWindow) -> None:
        """Note the heads that this backward leaves out, and those that one before left out and this one does not."""
        learn = {id(p) for p in raw.leaves}
        self._unheard.update((id(m), m) for m in _beside_heads(raw.calls, raw.leaves))
        self._unheard = {k: m for k, m in self._unheard.items() if not learn & {id(p) for p in m.parameters()}}

    def _cut_from(self, raw: RawWindow) -> int:
        """Return the parameters that made what a backward ends at, where that is no parameter itself."""
        made = [self._taint.of(leaf).params for leaf in raw.leaves if not isinstance(leaf, nn.Parameter)]
        return _union_of(mask for mask in made if mask.bit_count() > 1)

    def _lasting(self, raw: RawWindow) -> list[Tensor]:
        """Return the leaves that are parameters: by their class, or since they come back and are no module's input."""
        shown = {id(t) for c in raw.calls for t in c.given}
        found: list[Tensor] = []
        for leaf in raw.leaves:
            if not isinstance(leaf, nn.Parameter):
                before, self._plain_leaves[leaf] = leaf in self._plain_leaves, True
                # What several parameters made is an answer cut off, whose pieces get a backward each.
                if not before or id(leaf) in shown or self._taint.of(leaf).params.bit_count() > 1:
                    continue
            found.append(leaf)
        return found

    def step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        """Take in what the student's optimizer moved, and at what rates."""
        updates = self._trace.updates
        if self._optimizer is None and any(self._taint.bit(p) & self._leaves for p in params):
            self._optimizer = optimizer
            firsts = [next(iter(group["params"]), None) for group in optimizer.param_groups]
            updates.group_names = ["nothing" if p is None else self._names.param(p) for p in firsts]
        if optimizer is not self._optimizer:
            return
        self._steps += 1
        if len(updates.lr_rows) < _RATES:
            updates.lr_rows.append(tuple(float(group["lr"]) for group in optimizer.param_groups))
        if self._steps <= _JUDGED:
            self._note_sizes(params)
        if self._steps == _JUDGED:
            self._find_stale(optimizer)

    def _note_sizes(self, params: list[nn.Parameter]) -> None:
        dense = [(p, p.grad) for p in params if p.grad is not None and not p.grad.is_sparse]
        if dense:
            for (p, _), size in zip(dense, torch_internals.foreach_norm([grad for _, grad in dense]), strict=True):
                self._sizes.setdefault(id(p), (p, []))[1].append(size)

    def _find_stale(self, optimizer: torch.optim.Optimizer) -> None:
        """Look for parameters of the student's optimizer that no living module holds and no gradient reached."""
        updates, known = self._trace.updates, self._known
        held = [p for group in optimizer.param_groups for p in group["params"]]
        silent = [p for p in held if p.grad is None and not self._taint.bit(p) & self._leaves]
        if not silent:
            updates.stale = []
            return
        updates.cut_off = [
            self._names.param(p) for p in silent if p.requires_grad and self._taint.bit(p) & self._behind
        ]
        updates.unheard_heads = [
            self._names.param(p).rpartition(".")[0]
            for head in self._unheard.values()
            if (p := next(head.parameters())).requires_grad
            if {id(p) for p in head.parameters()} <= {id(p) for p in silent}
        ]
        updates.passed_by = self._passed_by([p for p in silent if p.requires_grad])
        alive = live_parameters()
        updates.stale = [f"shape {tuple(p.shape)}" for p in silent if id(p) not in alive]
        own = {id(p) for g in known.students if g.module is not None for p in g.module.parameters()}
        taught = {id(p) for g in known.teachers if g.module is not None for p in g.module.parameters()}
        updates.frozen = [
            self._names.param(p) for p in silent if not p.requires_grad and id(p) in own and id(p) not in taught
        ]

    def _passed_by(self, silent: list[nn.Parameter]) -> list[str]:
        """Return the names of parameters without a gradient whose module is never called, while another parameter of
        that very module is in the loss, and no module that is called holds it: it is used past its own."""
        wanted = {id(p) for p in silent if not self._taint.bit(p) & self._known.teacher_mask}
        called = [m for m, _ in self._called.values()]
        used = {id(p) for m in called for p in torch_internals.parameters_of(m).values() if p is not None}
        dark = {id(part) for m, seen in self._called.values() if not seen for part in m.modules() if part is not m}
        found: list[str] = []
        for module in living(nn.Module) if wanted and not self._trace.compiled else ():
            own = _own_and_beside(module)
            if id(module) in self._called or id(module) in dark or not wanted & {id(p) for p in own}:
                continue
            if any(self._taint.bit(p) & self._reached and id(p) not in used for p in own):
                found += [self._names.param(p) for p in own if id(p) in wanted]
        return found

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Say what got a gradient and is in no optimizer, what never changed, and what a scheduler sets."""
        updates = self._trace.updates
        updates.optimizers = sorted({type(o).__name__ for o in optimizers})
        if not self._known.started:
            return
        every = [*optimizers, *living(torch.optim.Optimizer)]
        optimised = self._taint.mask(p for o in every for group in o.param_groups for p in group["params"])
        moved_by_hand = {id(p) for p, old in (self._first or {}).values() if not is_still(p, old)}
        # Of peers each is a student as well.
        alone = self._known.teacher_mask & ~(self._known.student_mask if self._trace.peers else 0)
        updates.leaves = [
            Leaf(p, self._names.param(p), bool(self._taint.bit(p) & optimised) or id(p) in moved_by_hand)
            for p in self._taint.parameters(self._leaves & ~alone)
        ]
        stepped = set(map(id, self._known.moved.keys()))
        held_still = (
            leaf for leaf in updates.leaves if leaf.optimised and id(leaf.param) not in stepped | moved_by_hand
        )
        updates.unstepped = [leaf for leaf in held_still if self._taint.bit(leaf.param) & self._known.student_mask]
        updates.ineffective = self._ineffective()
        updates.hidden = self._hidden(optimised) if self._steps >= _JUDGED and not self._trace.compiled else []
        own = self._known.student_mask | _union(self._known.projectors)
        for empty in updates.empty.values():
            empty.names = self._names.params(self._taint.mask(empty.params) & own)
        schedulers = [s for s in living(torch.optim.lr_scheduler.LRScheduler) if s.optimizer is self._optimizer]
        sets = (len(getattr(s, "base_lrs", updates.group_names)) for s in schedulers)
        updates.scheduled_groups = max(sets, default=None)
        backwards = Counter(s.backwards for s in updates.steps if s.distils and s.number > 1)
        for sight in self._trace.losses.sights:
            sight.micro = backwards.most_common(1)[0][0] if backwards else 1

    def _hidden(self, optimised: int) -> list[tuple[str, str]]:
        """Return the parameters of the student that an optimizer holds, whose module answers for the loss within a
        function with a backward of its own, and that never had a gradient when they were stepped; and that function."""
        own = {id(p) for g in self._known.students if g.module is not None for p in g.module.parameters()}
        held = optimised & ~self._known.teacher_mask & ~self._leaves
        never = [(p, name) for p, name in self._within.items() if p not in self._known.moved and p.grad is None]
        return [(self._names.param(p), name) for p, name in never if id(p) in own and self._taint.bit(p) & held]

    def _ineffective(self) -> list[str] | None:
        """Return the parameters that got gradients at non-zero rates and hold their first value still."""
        rows = self._trace.updates.lr_rows
        if self._steps < _JUDGED or self._optimizer is None:
            return None
        rates = {
            id(p): max(row[i] for row in rows)
            for i, group in enumerate(self._optimizer.param_groups)
            for p in group["params"]
            if all(i < len(row) for row in rows)
        }
        found = []
        means = {key: max(float(s) for s in sizes) / p.numel() ** 0.5 for key, (p, sizes) in self._sizes.items()}
        usual = sorted(means.values())[len(means) // 2] if means else 0.0
        for key, (p, _) in self._sizes.items():
            first = (self._first or {}).get(key)
            if first is None or not rates.get(key) or not means[key] > _LEAST_GRADIENT * usual:
                continue
            if numbers(p) is not None and is_still(p, first[1]):
                found.append(self._names.param(p))
        return found


def _beside_heads(calls: list[ModuleCall], leaves: Iterable[Tensor]) -> list[nn.Module]:
    """Return layers that get no gradient, where a layer of their kind does that the same module called and whose answer
    has the same shape: a head beside another head."""
    learn = {id(p) for p in leaves}
    heads = [c for c in calls if c.grad and c.parent is not None and not c.has_children and c.shape is not None]
    own = [({id(p) for p in c.module.parameters() if p.requires_grad}, c) for c in heads]
    heard = {(c.parent, c.shape, type(c.module)) for ids, c in own if ids & learn}
    return [c.module for ids, c in own if ids and not ids & learn and (c.parent, c.shape, type(c.module)) in heard]


def _own_and_beside(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module; of one that wraps a layer, those of the layer and of what is learned beside.

    So adapters are built: the wrapper has none of its own, a layer as a child, and small ones in a list or dictionary.
    """
    own = [p for p in torch_internals.parameters_of(module).values() if p is not None]
    if own or sum(1 for _ in module.modules()) > _WRAPPER:
        return own
    return list(module.parameters())


def _within(raw: RawWindow) -> list[tuple[nn.Parameter, str]]:
    """Return the parameters that require a gradient, of modules called within a function with a backward of its own for
    what is in the loss, and that function's name."""
    calls = {c.index: c for c in raw.calls}
    found: list[tuple[nn.Parameter, str]] = []
    for call in raw.calls:
        above = calls.get(call.parent) if call.parent is not None else None
        if not call.within or above is None or above.within or not above.grad:
            continue
        if raw.root.calls >> above.index & 1:
            found += [(p, call.within) for p in call.module.parameters() if p.requires_grad]
    return found


def _union(groups: list[Group]) -> int:
    return _union_of(group.mask for group in groups)


def _union_of(masks: Iterable[int]) -> int:
    whole = 0
    for mask in masks:
        whole |= mask
    return whole
