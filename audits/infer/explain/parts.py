"""The gradient at a head, taken apart: what the label losses leave there, exactly, and the rest."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.audits.infer.explain.heads import Head
from kdbench.audits.infer.explain.rows import Layout, spread
from kdbench.audits.infer.roles import Label
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.windows import RawWindow


class Gradients(NamedTuple):
    """The gradient at a head in its shape, the label losses' part of it, and their weight; None where unknown."""

    whole: Tensor
    of_labels: Tensor | None
    label_weight: float | None
    scale: float = 1.0
    "By what both are too large: a GradScaler's factor."


def gradients_at(raw: RawWindow, head: Head) -> Gradients | None:
    """Return the gradient at a head and the label losses' part; None where nothing flows or a hook may change it."""
    root, z = raw.roots[0], head.z
    if torch_internals.hooks_of(z):
        return None
    (whole,) = torch.autograd.grad(root, z, retain_graph=True, allow_unused=True)
    if whole is None:
        return None
    part: Tensor | None = None
    weight: float | None = 0.0
    for label in head.labels:
        out = label.call.out
        if not isinstance(out, Tensor) or not out.requires_grad or label.call.name not in ("cross_entropy", "nll_loss"):
            return Gradients(whole, None, None, raw.root_scale)
        (w,) = torch.autograd.grad(root, out, retain_graph=True, allow_unused=True)
        if w is None:
            continue
        (own,) = torch.autograd.grad(out, z, grad_outputs=w, retain_graph=True, allow_unused=True)
        if own is None:
            return Gradients(whole, None, None, raw.root_scale)
        part = own if part is None else part + own
        if weight is not None:
            share = float(w) if label.is_plain else _weight_of(head, label, own)
            weight = None if share is None else weight + share / raw.root_scale
    if part is None:
        part = torch.zeros((), dtype=whole.dtype, device=whole.device).expand_as(whole)
    return Gradients(whole, part, weight, raw.root_scale)


def _weight_of(head: Head, label: Label, own: Tensor) -> float | None:
    """Return the weight of a label loss that is no plain mean: its gradient's share of the mean cross-entropy's."""
    layout = head.layout
    taught = (
        torch.linalg.vector_norm(own.detach().float(), float("inf"), layout.dim).flatten().cpu().nonzero().flatten()
    )
    index = spread(taught, layout.classes)
    ce = label_gradient(layout, head.value, label, index, taught)
    if ce is None or not float(ce.norm()) > 0:
        return None
    return float((layout.take(own, index) * ce).sum() / (ce * ce).sum())


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
