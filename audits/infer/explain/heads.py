"""The student's logits that a loss went through, and the teacher's answers beside them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.explain.rows import Layout, spread
from kdbench.audits.infer.labels import Label
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.targets import (
    are_log_probabilities,
    is_against_itself,
    lookup_of,
    probabilities_in,
    stored_probabilities,
)
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.outline import Outline
from kdbench.audits.observe.windows import SMALL, SOFTMAXES, FunctionCall, RawWindow

_MOST = 6
"Heads looked at in a window: each costs a backward of its own, and self-distilling networks have about four."
_SUM = 1e-3
"By how much a row of probabilities may miss 1: half precision rounds a probability by up to 5e-4."
_SAME_HALF = 2e-2
"Part of the largest logit by which copies may differ where one went through half precision: a few of its roundings."
_SAME = 1e-5
"The same in single precision: some hundred roundings, as a reshaped or re-ordered copy has none."
_SAME_LOG = 1e-4
"The same after a log-softmax, whose sum over classes and logarithm round more."
_FEWEST_CLASSES = 2
"Classes that a label tells apart."
_TINY = 1e-12
"Kept from dividing by zero; no logits are this small."


Kind = Literal["logits", "argument", "probabilities"]


class Answer(NamedTuple):
    """What could be the teacher's answer to the student's batch."""

    kind: Kind
    "Logits, what a softmax was taken of (logits over a temperature), or probabilities."
    values: Tensor
    among: Tensor | None = None
    "The classes that they are of (..., K), where they are of some classes alone."
    classes: int = 0
    "Of how many."


class Head(NamedTuple):
    """Logits of the student's."""

    z: Tensor
    "As they stand in the graph."
    value: Tensor
    "Their values when they were made."
    labels: list[Label]
    "The label losses computed from them."
    dim: int = -1
    "The dimension of the classes."
    upstream: bool = False
    "Whether the labels were held against something made of it, as where it is scaled afterwards."
    source: int = 0
    "The id of the module that answered it; 0 where none did."
    is_piece: bool = False
    "Whether it is a piece of a longer answer."

    @property
    def layout(self) -> Layout:
        """Their shape, and where the classes lie in it."""
        return Layout.of(self.value, self.dim)


def _reaches(raw: RawWindow, index: int) -> bool:
    return bool(raw.root.calls >> index & 1)


def teacher_answers(raw: RawWindow, cast: Cast, student: int) -> list[Answer]:
    """Return what could be the teacher's logits or probabilities, as they came out of the network or the store."""
    found: list[Answer] = []
    if cast.stored is not None:
        found.append(Answer("logits", cast.stored))
    calls = [c for g in (*cast.teachers, *cast.idle) for c in g.calls]
    inner = [
        c
        for c in raw.calls
        if c.out.params & cast.teacher_mask and not c.out.params & student and _reaches(raw, c.index)
    ]
    for call in [*calls, *reversed(inner)]:
        value = None if (said := call.output) is None else said[1]
        if value is not None and value.shape[-1] > 1 and not any(_are_one(value, a.values) for a in found):
            # A network may answer with probabilities, as a committee whose mean they are.
            found += [Answer("probabilities", value)] if are_probabilities(_some(value)) else []
            found.append(Answer("logits", value))
    for made, value in raw.columns:  # classes that it numbers in its own way, a map of another size
        if made.params & cast.teacher_mask and not made.params & student:
            found.append(Answer("logits", value))
    for f in raw.functions:
        if _reaches(raw, f.index):
            found += _answers_to(f, student, cast.cached)
            if cast.cached and f in cast.soft:
                found += _stored_by_class(raw, f, student)
    found += _at_picks(raw, student)
    if cast.self_taught or cast.kept:
        found += [answer for f in cast.soft for answer in _own_answers(f, student)]
    return found


def _at_picks(raw: RawWindow, student: int) -> list[Answer]:
    """Return probabilities of a few classes a row, which met the student's at these classes, as rows over all."""
    found: list[Answer] = []
    for source, index, out in raw.picks:
        if not are_log_probabilities(source) or index.shape[:-1] != source.shape[:-1] or source.numel() > SMALL:
            continue
        for f in raw.functions:
            sides = [(t, made) for t, made, _ in f.operands[:2] if t is not None]
            told = [t for t, made in sides if not made.params & student and t.shape == out.shape]
            if not told or not _reaches(raw, f.index) or not any(t is out for t, _ in sides):
                continue
            if told[0].is_floating_point() and bool((told[0] >= 0).all()):
                rows = torch.zeros_like(source, dtype=told[0].dtype, requires_grad=False)
                found.append(Answer("probabilities", rows.scatter_add(-1, index, told[0].detach())))
    return found


def softmax_heads(raw: RawWindow, cast: Cast, student: int) -> list[tuple[Head, list[Answer]]]:
    """Return what softmaxes over the last dimension were taken of, of the student's, and what it was held against."""
    met = [
        Answer("probabilities", said.detach())
        for f in cast.soft
        for side, made, _ in f.operands[:2]
        if side is not None and side.ndim > 1 and side.is_floating_point()
        for said in (side.exp() if f.name == "kl_div" and f.arg(5, "log_target", False) else side,)
        if made.params and are_probabilities(_some(said))
    ]
    softmaxes = [f for f in raw.functions if f.name in ("softmax", "log_softmax") and f.operands]
    for f in softmaxes:
        if f.made.params and not f.made.params & student and isinstance(f.out, Tensor) and f.out.ndim > 1:
            said = f.out.detach() if f.name == "softmax" else f.out.detach().exp()
            met += [Answer("probabilities", said)] if are_probabilities(_some(said)) else []
    found: list[tuple[Head, list[Answer]]] = []
    for f in softmaxes:
        if not _reaches(raw, f.index):
            continue
        z, made, shape = f.operands[0]
        over = f.arg(1, "dim", -1)
        if z is None or not z.requires_grad or not made.params & student or over not in (-1, len(shape) - 1):
            continue
        answers = [a for a in met if a.values.shape == z.shape]
        if answers and all(head.z is not z for head, _ in found):
            found.append((Head(z, z.detach(), []), answers))
    return found[:_MOST]


def _own_answers(f: FunctionCall, student: int) -> list[Answer]:
    """Return what a divergence or a distance holds the student's answer against that is the student's as well."""
    if f.name not in ("kl_div", "mse_loss") or not is_against_itself(f, student):
        return []
    target = f.operands[1][0]
    if target is None or target.ndim < 2 or not target.is_floating_point():
        return []
    if f.name == "mse_loss":
        return [Answer("logits", target.detach())]
    said = target.detach().exp() if f.arg(5, "log_target", False) else target.detach()
    return [Answer("probabilities", said)] if are_probabilities(_some(said)) else []


def _are_one(a: Tensor, b: Tensor) -> bool:
    """Say whether two answers are one: a network's is that of its last layer, too."""
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or (a.numel() <= SMALL and torch.equal(a, b)))


def _answers_to(f: FunctionCall, student: int, cached: bool) -> list[Answer]:
    """Return what a softmax or a loss was given that is not the student's."""
    found: list[Answer] = []
    if f.name in SOFTMAXES and f.operands:
        t, made, _ = f.operands[0]
        if t is not None and not made.params & student and (made.params or cached):
            found.append(Answer("argument", t.detach()))
    if f.name in ("kl_div", "mse_loss", "cross_entropy", "binary_cross_entropy_with_logits") and cached:
        for t, made, shape in f.operands[:2]:
            if t is not None and not made.params & student and t.is_floating_point() and len(shape) >= 2:
                is_sum = f.name != "mse_loss" and are_probabilities(_some(t))
                found.append(Answer("probabilities" if is_sum else "logits", t.detach()))
    return found


def _stored_by_class(raw: RawWindow, f: FunctionCall, student: int) -> list[Answer]:
    """Return the probabilities that a loss over the likeliest classes, or one written by hand, was given."""
    lookup = lookup_of(f, raw)
    if f.name == "kl_div" and lookup is not None:
        target, made, _ = f.operands[1]
        said = None if target is None or made.params else probabilities_in(target.detach())
    else:
        said = stored_probabilities(f, raw, student)
    if said is None:
        return []
    if lookup is None:
        return [Answer("probabilities", said)]
    among, classes = lookup.operands[1][0], lookup.operands[0][2][-1]
    return [] if among is None else [Answer("probabilities", said, among, classes)]


def mixed_label(raw: RawWindow, head: Head) -> Label | None:
    """Return the labels (B) that a head without a label loss may have in its target, mixed with the teacher's answer:
    rows of ones and zeros that were made of labels beside it."""
    if head.labels or head.value.ndim != 2:
        return None
    for f in raw.functions:
        if f.name != "cross_entropy" or len(f.operands) < 2 or not _reaches(raw, f.index):
            continue
        of_target = f.operands[1][2]
        hot = next((h for h in raw.one_hot if tuple(h.shape) == of_target == tuple(head.value.shape)), None)
        if hot is not None:
            return Label(replace(f, name=_MIXED), 0, None, hot.detach().argmax(1), 0.0, False)
    return None


_MIXED = "mixed"
"The name of a loss of which the labels' part is not known by itself."


def _some(value: Tensor, dim: int = -1) -> Tensor:
    """Return some rows (n, C) of an answer."""
    layout = Layout.of(value, dim)
    return layout.take(value, spread(torch.arange(layout.rows), layout.classes))


def are_probabilities(rows: Tensor) -> bool:
    """Say whether each row of numbers (n, C) is none below zero, and sums to one."""
    return bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < _SUM).all())


def heads(raw: RawWindow, cast: Cast, student: int, answers: list[Answer]) -> list[Head]:
    """Return the logits of the student of this mask: those that labels were held against first."""
    shapes = {(a.values.numel(), a.values.shape[-1]) for a in answers if a.among is None}
    # Stored answers are of the words that are taught alone, or of some classes.
    stored = {a.classes or a.values.shape[-1] for a in answers if cast.cached}
    widths = {w for _, w in shapes}
    calls = [
        (not c.has_children, Head(*said, [], source=id(c.module)))
        for c in raw.calls
        if c.out.params & student
        and _reaches(raw, c.index)
        and (said := c.output) is not None
        and said[0].requires_grad
    ]
    answered = [head for _, head in sorted(calls, key=lambda call: call[0])]  # outermost first
    waiting = [label for label in cast.labels if label.made & student and label.logits is not None]
    labels = list(waiting)
    found: list[Head] = []

    def place(head: Head, belongs: Callable[[Label, Tensor], bool]) -> None:
        mine = [label for label in waiting if belongs(label, head.value) and _flows(label, head.z)]
        if mine:
            waiting[:] = [label for label in waiting if all(label is not m for m in mine)]
            mine = [among_all(label, head.value) for label in mine]
            found.append(head._replace(labels=mine, dim=_class_dim(raw, head.value, mine)))

    for head in answered:
        place(head, _is_of)
    for head in answered:  # language models drop the last position for their labels
        # Whose answers may be padded to more words, or be whole where the student's come in pieces.
        if head.value.ndim == 3 and any(w >= head.value.shape[-1] for w in widths | stored):
            place(head, _is_cut_from)
    for head in answered:  # a learner of tasks that follow each other labels the classes of one task alone
        if any(w <= head.value.shape[-1] for w in widths):  # of a teacher that knows as many classes, or fewer
            place(head, _is_of_some_classes)
    for label in waiting:
        base = _common_source(raw, label)
        if base is not None and base.requires_grad and base.ndim >= 2:
            found.append(Head(base, base.detach(), [label], _class_dim(raw, base, [label])))
    return [*found, *_without_labels(raw, answered, found, shapes, stored, labels)][:_MOST]


def _class_dim(raw: RawWindow, value: Tensor, labels: list[Label]) -> int:
    """Return the dimension of the classes: that of the label loss, else that of the softmaxes, else the last one."""
    for label in labels:
        x, of_torch = label.logits, label.call.name in ("cross_entropy", "nll_loss")
        if x is None or not of_torch:
            continue
        if value.ndim > 2 and x.shape == value.shape:
            return 1
        if value.ndim == 4 and x.ndim == 2 and value.shape[1] == x.shape[1]:
            return 1
    if value.ndim < 4:
        return -1
    shown = [int(f.arg(1, "dim", -1) or -1) for f in raw.functions if f.name in ("softmax", "log_softmax")
             and f.operands and f.operands[0][2] == tuple(value.shape)]  # fmt: skip
    return (
        -1 if shown and all(dim in (-1, 3) for dim in shown) else 1
    )  # of pictures the channels, unless told otherwise


def _without_labels(
    raw: RawWindow,
    answered: list[Head],
    found: list[Head],
    shapes: set[tuple[int, int]],
    stored: set[int],
    labels: list[Label],
) -> list[Head]:
    """Return the answers that could be logits and have no labels: of the teacher's size and of the heads' width, or of
    the width of stored answers."""
    known = {id(head.z) for head in found}
    values = [(head.value, head.source) for head in found]
    # What is narrower or wider lies below: labels teach it too.
    widths = {head.layout.classes for head in found}
    widths = widths or {head.layout.classes for head in answered if mixed_label(raw, head) is not None}
    more: list[Head] = []
    for head in answered:
        value = head.value
        dim = _class_dim(raw, value, [])
        fits = not shapes or (value.numel(), value.shape[-1]) in shapes or value.shape[-1] in stored
        if id(head.z) in known or not fits or (widths and value.shape[dim] not in widths):
            continue
        same = any(  # but for another answer of the same network, as where it is asked once for each term
            (not source or source != head.source)
            and v.shape[-1] == value.shape[-1]
            and v.numel() == value.numel()
            and torch.equal(v.reshape(-1), value.reshape(-1).to(v.dtype))
            for v, source in values
        )
        if not same:
            mine = [label for label in labels if _flows(label, head.z)]
            more.append(head._replace(labels=mine, dim=dim, upstream=bool(mine)))
            known.add(id(head.z))
            values.append((value, head.source))
    return more


def _common_source(raw: RawWindow, label: Label) -> Tensor | None:
    """Return the tensor that the label loss and the softmaxes start from where no module gave it."""
    if isinstance(label.logits, Outline):
        return label.logits.source
    for f in raw.functions:
        if f.name in ("log_softmax", "softmax") and f.operands and f.out is label.logits:
            source = f.operands[0][0]
            if isinstance(source, Tensor) and source.requires_grad:
                return source
    return label.logits


def _flows(label: Label, z: Tensor) -> bool:
    """Say whether the label loss was computed from this very tensor, and not from one of the same values beside it."""
    out = label.call.out
    if not isinstance(out, Tensor) or not out.requires_grad or torch_internals.hooks_of(z):
        return True
    if isinstance(label.logits, Outline) and label.logits.source is z:
        return True  # a backward through as many numbers would tell no more
    seed = torch.ones_like(out)
    return gradients_of(out, z, seed)[0] is not None


def _is_of(label: Label, value: Tensor) -> bool:
    x = label.logits
    if isinstance(x, Outline):
        return x.numel() == value.numel() and x.source.data_ptr() == value.data_ptr()
    if x is None or x.numel() != value.numel() or x.ndim < 1:
        return False
    at, other = -1, -1
    if x.shape[-1] != value.shape[-1] or (value.ndim > 2 and x.ndim == 2):
        # (B, C, L) of sequences, or pictures (B, C, H, W) as rows of pixels
        if x.ndim == 3 and value.ndim == 3 and x.shape[1] == value.shape[-1]:
            at = 1
        elif x.ndim == 2 and value.ndim == 4 and x.shape[1] == value.shape[1]:
            other = 1
        elif x.shape[-1] != value.shape[-1]:
            return False
    a, b = _some(x, at), _some(value, other)
    scale = float(b.abs().max()) + _TINY
    loose = _SAME_HALF if {x.dtype, value.dtype} & {torch.float16, torch.bfloat16} else _SAME
    if float((a - b).abs().max()) <= loose * scale:
        return True
    return float((a - b.log_softmax(1)).abs().max()) <= max(loose, _SAME_LOG) * scale


def _is_of_some_classes(label: Label, value: Tensor) -> bool:
    """Say whether the label loss takes neighbouring classes of the logits (B, C), and no others."""
    return first_class(label, value) is not None


def first_class(label: Label, value: Tensor) -> int | None:
    """Return the first of the neighbouring classes of the logits (B, C) that a label loss takes alone; None where it
    takes all, or others."""
    x = label.logits
    if label.call.name not in ("cross_entropy", "nll_loss") or not isinstance(x, Tensor):
        return None
    if x.ndim != 2 or value.ndim != 2 or len(x) != len(value) or not _FEWEST_CLASSES <= x.shape[1] < value.shape[1]:
        return None
    said, width = x.detach(), x.shape[1]
    for first in range(value.shape[1] - width + 1):
        own = value[:, first : first + width].to(said.dtype)
        if torch.equal(own, said) or (label.call.name == "nll_loss" and torch.allclose(own.log_softmax(1), said)):
            return first
    return None


def among_all(label: Label, value: Tensor) -> Label:
    """Return a label loss over some classes of the logits (B, C) with its labels counted among all of them."""
    first = first_class(label, value)
    if not first or label.target is None or label.target.is_floating_point():
        return label
    return replace(label, target=torch.where(label.target >= 0, label.target + first, label.target))


def _is_cut_from(label: Label, value: Tensor) -> bool:
    """Say whether the label loss takes fewer rows than the logits (B, L, C) have, be the classes last or second."""
    x = label.logits
    if x is None or x.ndim not in (2, 3) or x.numel() >= value.numel():
        return False
    second = x.ndim == 3 and label.classes == value.shape[-1] and x.shape[0] == len(value)
    return x.shape[-1] == value.shape[-1] or second
