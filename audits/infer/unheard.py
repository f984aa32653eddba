"""Is a divergence between student and teacher computed with a gradient, and in no loss? Or is a loss added to as a mere
number, made into a tensor anew?"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.targets import looks_like_labels
from kdbench.audits.lost import Remade, Unheard
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.flow import LOG_SUM, PRODUCTS
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.windows import DIFFERENCES, FunctionCall, RawWindow
from kdbench.audits.trace import Sight, Trace

_MOST = 50
"Places that are kept: a script writes few divergences."
_LOOKED_AT = 16
"Rows that tell whether they are log-probabilities."
_SUMS = ("Add", "Mul", "Sub", "Div", "Neg", "Sum", "Mean", "Stack", "Squeeze", "View", "ToCopy")
"What torch's nodes are called by which terms are weighed and added up."
_DEEP = 12
"Of them one after another, at most."


@dataclass
class _Place:
    windows: int = 0
    heard: bool = False
    where: Any = None
    last: int = -1


class Divergences(Observer):
    """Counts, by the line that computes it, how often a divergence could have been learned from and was not."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._remade, self._value = 0, 0.0
        self.restart()

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Note the divergences of this window that reach its backward, and those that do not."""
        for f in raw.functions:
            sides = [made.params for _, made, _ in f.operands[:2]]
            met = any(s & cast.student_mask for s in sides) and any(s & cast.teacher_mask for s in sides)
            if met and (f.name == "kl_div" or _is_by_hand(f)):
                self._note(raw, f)

    def closed(self, raw: RawWindow) -> None:
        """Note a number that was made into a tensor and added to the loss, whatever training it is."""
        for root in raw.roots:
            for leaf in _added(root):
                if leaf.numel() != 1 or leaf in self._leaves or isinstance(leaf, nn.Parameter) or not is_readable(leaf):
                    continue
                self._leaves[leaf], value = True, float(leaf.detach())
                if value not in (0.0, self._value):  # sums begin at 0, and a constant is no loss
                    self._remade, self._remade_at, self._value = self._remade + 1, raw.where, value

    def alone(self, raw: RawWindow) -> None:
        """Note those of a window that is none of a distillation: it would be one if they reached its backward."""
        trained = raw.root.params
        for f in raw.functions:
            if f.name == "kl_div" and len(f.operands) > 1 and _is_taught(f, trained):
                self._note(raw, f)

    def _note(self, raw: RawWindow, f: FunctionCall) -> None:
        if f.where is None or not f.requires_grad or len(self._places) >= _MOST:
            return
        place = self._places.setdefault((f.where["file"], f.where["line"]), _Place(where=f.where))
        # What a module is handed counts as heard by its answer, though it may leave it out: a balancer of losses.
        whole = not f.made.params & ~raw.root.params
        place.heard |= whole and bool(raw.root.calls >> f.index & 1)
        if raw.number != place.last:
            place.windows, place.last = place.windows + 1, raw.number

    def restart(self) -> None:
        """Forget what was seen of another training."""
        self._places: dict[Any, _Place] = {}
        self._leaves: Any = WeakTensorKeyDictionary()
        "Numbers in a loss that nothing made: one that is learned comes back."
        self._remade, self._remade_at, self._value = 0, None, 0.0

    def finish(self, optimizers: list[Any]) -> None:
        """Say which were never heard."""
        silent = [p for p in self._places.values() if not p.heard]
        self._trace.losses.remade = Remade(self._remade, self._remade_at) if self._remade else None
        self._trace.losses.unheard = [Unheard(p.windows, p.where) for p in silent]


def _is_by_hand(f: FunctionCall) -> bool:
    """Say whether a divergence is written out here: a difference of log-probabilities over the classes, or a product of
    the ones' probabilities with the others' logarithms."""
    sides = [t for t, _, _ in f.operands[:2]]
    if not f.requires_grad or len(sides) != 2 or f.name not in DIFFERENCES | PRODUCTS:
        return False
    if any(t is None or t.ndim < 2 or t.shape[-1] < 2 or not t.numel() or not is_readable(t) for t in sides):
        return False
    logs = [_are_logs(t) for t in sides]
    if f.name in DIFFERENCES:
        return all(logs)
    return any(logs) and any(_are_logs(t, raised=True) for t in sides)


def _are_logs(t: Tensor, raised: bool = False) -> bool:
    """Say whether some rows (..., C) are log-probabilities, or, where they are raised, probabilities."""
    rows = t.detach().reshape(-1, t.shape[-1])[:_LOOKED_AT].double()
    if raised:
        return bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < LOG_SUM).all())
    return bool((rows.logsumexp(1).abs() < LOG_SUM).all())


def _is_taught(f: FunctionCall, trained: int) -> bool:
    """Say whether what is trained is held against what is not: another network's answer, or numbers that spread out
    over the classes as stored answers do."""
    (x, made_x, _), (target, made_t, _) = f.operands[:2]
    own = made_x.params & ~made_t.params  # adapters learn from the very network that they sit on
    if x is None or target is None or not x.requires_grad or target.requires_grad or not own & trained:
        return False
    return bool(made_t.params) or not looks_like_labels(target.exp() if f.arg(5, "log_target", False) else target)


def _added(root: Tensor) -> list[Tensor]:
    """Return the leaves that a loss is a weighed sum of."""
    if root.grad_fn is None:
        return [root] if root.requires_grad else []
    found, level = [], [root.grad_fn]
    for _ in range(_DEEP):
        below = [n for node in level for n, _ in node.next_functions if n is not None]
        found += [leaf for n in below if (leaf := getattr(n, torch_internals.LEAF, None)) is not None]
        level = [n for n in dict.fromkeys(below) if n.name().startswith(_SUMS)]  # each once, however often it is added
    return found
