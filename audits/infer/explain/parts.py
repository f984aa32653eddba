"""The gradient at a head, taken apart: what the label losses leave there, exactly, and the rest.

The rest is asked for where the label losses have left the sum: of the branches of the loss that lead to none of them.
So nothing of the labels' is left to round, no backward runs through them, and one gradient stands in memory. Where the
loss has no such branches, it is the gradient of the loss less the label losses, each times its own weight: what reaches
them cancels to the bit before it goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.explain.heads import Head
from kdbench.audits.infer.explain.rows import Layout, peaks_of, spread
from kdbench.audits.infer.labels import Label
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.custom import CHECKPOINT, passes_custom
from kdbench.audits.observe.windows import LABEL_LOSSES, RawWindow

ENTROPIES = frozenset({"cross_entropy", "nll_loss"})
"Label losses over classes, of which the weight of a mean can be told."
_ONE = 1e-3
"Share by which weights that are one may be off each other, and a gradient off the form that it is."
_LEAST_ROWS = 4
"Rows from which one weight is read."


class LabelPart(NamedTuple):
    """What the label losses leave at a head."""

    norm: float
    rows: Tensor
    "The numbers of the rows that get any of it."
    weight: float | None
    "Of the mean cross-entropy; None where it is not known."
    asked: tuple[Tensor, Tensor] = (torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    "Some of these rows, and the class that each is drawn to: its gradient is least there, however labels were handed."


@dataclass(frozen=True)
class Gradients:
    """The gradient at a head; asked for when it is needed, since each is as large as the logits."""

    kd: Callable[[], Tensor | None]
    "Returns it in the head's shape, without the label losses' part where that is known; None where nothing flows."
    labels: Callable[[], LabelPart]
    known: bool = True
    "Whether the labels' part is known."
    scale: float = 1.0
    "By what it is too large: a GradScaler's factor."


def gradients_at(raw: RawWindow, head: Head, by_hand: bool = False) -> Gradients | None:
    """Return the gradient at a head and the label losses' part; None where a hook may change it, or where a fused loss
    or an older checkpoint lies between, whose backward may run but once.

    That part is known where all label losses are torch's; with `by_hand`, also where log-probabilities were picked by
    labels. To these more may be added, as label smoothing by hand does; then it is none of the labels' part.
    """
    root, z, scale = raw.roots[0], head.z, raw.root_scale
    if (
        torch_internals.hooks_of(z)
        or (_is_fused(raw) and passes_custom(root, z))
        or passes_custom(root, z, f"{CHECKPOINT}Backward")
    ):
        return None
    weighed: list[tuple[Label, Tensor, Tensor]] = []
    known = True
    for label in head.labels:
        out = label.call.out
        own = label.call.name in LABEL_LOSSES
        if not isinstance(out, Tensor) or not out.requires_grad or not (own or by_hand):
            known = False
            break
        (w,) = gradients_of(root, out)
        if not own and not _is_even(w):
            known = False  # what weighs the labels row by row may be the teacher
            break
        if w is not None:
            weighed.append((label, out, w))
    outs, weights = ([out for _, out, _ in weighed], [-w for _, _, w in weighed]) if known else ([], [])

    def kd() -> Tensor | None:
        beside = _branches_beside(root, outs)
        if beside:
            into = gradients_of(root, beside)
            heard = [(edge, seed) for edge, seed in zip(beside, into, strict=True) if seed is not None]
            edges, seeds = [edge for edge, _ in heard], [seed for _, seed in heard]
            (g,) = gradients_of(edges, z, seeds)
            return torch.zeros_like(z) if g is None and weights else g
        seeds = [torch.ones_like(root), *weights]
        (g,) = gradients_of([root, *outs], z, seeds)
        return g

    return Gradients(kd, lambda: _of_labels(head, weighed, scale), known, scale)


def _is_fused(raw: RawWindow) -> bool:
    """Say whether a loss with a backward of its own was handed the weights of a head."""
    return any(isinstance(t, nn.Parameter) and t.ndim == 2 for f in raw.functions if f.custom for t in f.args)


def _branches_beside(root: Tensor, outs: list[Tensor]) -> list[GradientEdge]:
    """Return the edges of the graph at which branches begin that lead to none of these, next to those that do."""
    labels = {out.grad_fn for out in outs}
    leads: dict[Any, bool] = dict.fromkeys(labels, True)
    todo: list[Any] = [root.grad_fn] if labels else []
    while todo:  # from the leaves upwards, without recursion: a graph may be thousands of nodes deep
        node = todo[-1]
        below = [parent for parent, _ in node.next_functions if parent is not None]
        if node in leads:
            todo.pop()
        elif missing := [parent for parent in below if parent not in leads and parent is not node]:
            todo += missing
        else:
            leads[todo.pop()] = any(leads[parent] for parent in below)
    found: list[GradientEdge] = []
    inside: list[Any] = [root.grad_fn] if labels and leads[root.grad_fn] and root.grad_fn not in labels else []
    seen = set(inside)
    while inside:
        for parent, place in inside.pop().next_functions:
            if parent is not None and not leads[parent]:
                found.append(GradientEdge(parent, place))
            elif parent is not None and parent not in labels and parent not in seen:
                seen.add(parent)
                inside.append(parent)
    return list(dict.fromkeys(found))


def _is_even(w: Tensor | None) -> bool:
    """Say whether the gradient at what labels picked, by hand, is one number where it is any."""
    heard = w[w != 0].detach().float() if w is not None else torch.empty(0)
    return not heard.numel() or float((heard - heard[0]).abs().max()) <= _ONE * float(heard[0].abs())


def _of_labels(head: Head, weighed: list[tuple[Label, Tensor, Tensor]], scale: float) -> LabelPart:
    """Return what label losses leave at a head, each with the gradient that reaches it."""
    z, layout = head.z, head.layout
    part: Tensor | None = None
    weight: float | None = 0.0
    for label, out, w in weighed:
        (own,) = gradients_of(out, z, w)
        if own is None:
            continue
        if label.call.name not in ENTROPIES and (label.call.name in LABEL_LOSSES or bool((w > 0).any())):
            weight = None
        if weight is not None:
            share = float(w) if label.is_plain else _weight_of(head, label, own)
            weight = None if share is None else weight + share / scale
        part = own if part is None else part + own
    if part is None:
        return LabelPart(0.0, torch.empty(0, dtype=torch.long), weight)
    largest, norm = peaks_of(layout, part)
    taught = largest.nonzero().flatten()
    rows = spread(taught, layout.classes)
    asked = rows.cpu(), layout.take(part, rows).argmin(1).cpu()
    return LabelPart(norm / scale, taught, weight, asked)


def _weight_of(head: Head, label: Label, own: Tensor) -> float | None:
    """Return the weight of a label loss that is no plain mean: its gradient's share of the mean cross-entropy's."""
    layout = head.layout
    taught = layout.taught(own)
    index = spread(taught, layout.classes)
    ce = label_gradient(layout, head.value, label, index, taught)
    if ce is None or not float(ce.norm()) > 0:
        return _weight_as_read(layout.take(head.value, index), layout.take(own, index), label) * len(taught) or None
    return float((layout.take(own, index) * ce).sum() / (ce * ce).sum())


def _weight_as_read(z: Tensor, own: Tensor, label: Label) -> float:
    """Return what each row of a label loss's gradient (n, C) is times, where all have one weight; else 0.

    A row is drawn to the class at which its gradient is least, whichever of the rows the labels were handed for.
    """
    if len(z) < _LEAST_ROWS:
        return 0.0
    y = F.one_hot(own.argmin(1), z.shape[1]).to(z.dtype) * (1 - label.smoothing) + label.smoothing / z.shape[1]
    basis = z.softmax(1) - y
    weight = float((own * basis).sum() / (basis * basis).sum())
    return weight if float((own - weight * basis).norm()) <= _ONE * float(own.norm()) else 0.0


def label_gradient(layout: Layout, value: Tensor, label: Label, index: Tensor, taught: Tensor) -> Tensor | None:
    """Return the gradient of the mean cross-entropy at these rows of logits; None where the labels are of other rows.

    `taught` are the rows that the label loss gives a gradient to: it may have been handed these alone, in order.
    """
    target, classes = label.target, layout.classes
    if target is None:
        return None
    z = layout.take(value, index)
    if target.is_floating_point() or (
        target.ndim > 1 and target.shape[-1] == classes and target.numel() == value.numel()
    ):
        if target.numel() != value.numel():
            return None
        dim = layout.dim if target.shape == value.shape else -1
        y = Layout.of(target, dim).take(target, index)
        return None if y.shape != z.shape else (z.softmax(1) - y) / layout.rows
    flat = target.reshape(-1).to(z.device)
    is_class = (flat >= 0) & (flat < classes)
    if len(flat) != layout.rows:  # a loss over some of the rows: they come in order
        flat = flat[is_class]
        if len(flat) != len(taught):
            return None
        place = torch.full((layout.rows,), -1, dtype=flat.dtype, device=flat.device)
        place[taught.to(flat.device)] = flat
        flat = place
        is_class = flat >= 0
    own, valid = flat[index.to(z.device)].long(), is_class[index.to(z.device)]
    y = torch.zeros_like(z)
    y[valid] = F.one_hot(own[valid], classes).to(z.dtype)
    if label.smoothing:
        y[valid] = y[valid] * (1 - label.smoothing) + label.smoothing / classes
    basis = (z.softmax(1) - y) / max(1, int(is_class.sum()))
    basis[~valid] = 0
    return basis
