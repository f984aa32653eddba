"""Losses against labels in a window: torch's own, by rows of ones and zeros, or by a lookup of log-probabilities."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.audits.infer.targets import are_log_probabilities, are_scores, is_a_place, looks_like_labels
from kdbench.audits.observe.flow import PRODUCTS
from kdbench.audits.observe.outline import Outline
from kdbench.audits.observe.taint import Made, Taint
from kdbench.audits.observe.windows import LABEL_LOSSES, LOOKUPS, FunctionCall, RawWindow

_LOOKED_AT, _ONE = 64, 1e-3
"Rows that tell whether numbers are labels, and how near to one each row of them sums."


@dataclass(eq=False)
class Label:
    """A loss against labels that reached the root."""

    call: FunctionCall
    made: int
    logits: Tensor | Outline | None
    "What it was computed from: logits, or log-probabilities."
    target: Tensor | None
    "Class indices, flat; or the rows of a smoothed or mixed target."
    smoothing: float
    is_plain: bool
    "Whether it is torch's mean cross-entropy without class weights, so that its weight is the gradient at its output."

    @property
    def classes(self) -> int | None:
        """The number of classes that it tells apart, where that can be seen."""
        if self.logits is None or self.logits.ndim < 2:
            return None
        of_torch = self.call.name in ("cross_entropy", "nll_loss")
        return int(self.logits.shape[1 if of_torch else -1])


def labels_in(raw: RawWindow, taint: Taint) -> list[Label]:
    """Find the losses against labels among the calls that reached the root."""
    found = []
    for call in raw.functions:
        if not raw.root.calls >> call.index & 1 or not call.requires_grad:
            continue
        label = _label(call, raw, taint)
        if label is not None:
            found.append(label)
    return found


def _label(call: FunctionCall, raw: RawWindow, taint: Taint) -> Label | None:
    if call.name in LABEL_LOSSES:
        logits, target = call.arg(0, "input"), call.arg(1, "target")
        if not isinstance(target, Tensor) or taint.of(target, ids=True).params:
            return None
        if not isinstance(logits, Tensor | Outline):
            return None
        scores = isinstance(logits, Tensor) and logits.ndim > 1 and are_scores(logits, raw, taint)
        if is_a_place(target, logits.shape[1] if scores else 0):
            return None
        if target.is_floating_point() and call.name in ("cross_entropy",) and not looks_like_labels(target):
            return None
        plain = call.name == "cross_entropy" and call.kwargs.get("weight") is None and len(call.args) < 3
        plain = plain and call.reduction == "mean"
        smoothing = float(call.kwargs.get("label_smoothing", 0.0))
        made = taint.of(logits) if isinstance(logits, Tensor) else call.operands[0][1]
        return Label(call, made.params, logits, target.detach(), smoothing, plain)
    hot = next((t for t, made, _ in call.operands if t is not None and _are_hot(call, t, made, raw)), None)
    if hot is not None:
        other = next((t for t, made, _ in call.operands if t is not None and made.params), None)
        if other is not None and other.shape == hot.shape and are_log_probabilities(other):
            return Label(call, taint.of(other).params, other, hot.detach(), 0.0, False)
        return None
    if call.name in LOOKUPS:
        source = call.args[0] if call.args else None
        if not isinstance(source, Tensor) or not are_log_probabilities(source):
            return None
        index = [t for t, made, _ in call.operands[1:] if t is not None and not made.params and t.dtype == torch.long]
        if index and (call.name == "gather" or source.ndim == 2):
            rows = source.numel() // source.shape[-1]
            fit = [t for t in index if t.numel() == rows]
            if fit:
                return Label(call, taint.of(source).params, source, fit[-1].detach().reshape(-1), 0.0, False)
    return None


def _are_hot(call: FunctionCall, t: Tensor, made: Made, raw: RawWindow) -> bool:
    """Say whether numbers are rows that hold labels: they were made so, or are multiplied by hand and look like it."""
    if any(t is h for h in raw.one_hot):
        return looks_like_labels(t)
    if call.name not in PRODUCTS or made.params or t.ndim < 2:
        return False
    sums = t.detach().flatten(0, -2)[:_LOOKED_AT].sum(1)  # of a mask they are not all one, or none
    return bool(((sums == 0) | ((sums - 1).abs() < _ONE)).all()) and bool((sums > 0).any()) and looks_like_labels(t)
