"""Losses with a backward of their own, of logits, or of hidden states and the heads' weights: no logits stand whole.

Such a backward may run but once, so what it leaves is heard in the training's own. The logits of some rows are made
anew there, and the gradient of each form is sent through the head to some numbers of the hidden states.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.audits.infer.explain.fit import Explanation, Handed, fits, seen_fit
from kdbench.audits.infer.explain.forms import Try
from kdbench.audits.infer.explain.rest import SILENT, Rest
from kdbench.audits.infer.explain.rows import Layout, Sizes, norms, spread
from kdbench.audits.infer.explain.search import forward_searched, searched_fit
from kdbench.audits.infer.explain.softening import Said, Softening
from kdbench.audits.infer.meeting import places_of
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.torch_internals import DisableTorchFunction
from kdbench.audits.observe.windows import FunctionCall, RawWindow

_MOST = 2
"Such losses listened to in a window."
_FEWEST, _CHANCE, _MOSTLY, _MOST_SHIFTED = 8, 0.1, 0.9, 4
"""Rows below which their order says nothing, the part of them that may be alike by chance, the part that must be moved
by one number of places where that is a shift, and how far."""
_THROUGH = 64
"Numbers of a hidden state that its gradient is compared in."


class Side(NamedTuple):
    """What one network hands to the loss."""

    place: int
    "Among the tensors that the loss is given."
    hidden: Tensor
    "Hidden states (..., H), or logits (..., C) where there is no weight."
    weight: Tensor | None
    "Of the head (C, H)."
    bias: Tensor | None

    @property
    def classes(self) -> int:
        """How many classes its logits tell apart."""
        return self.hidden.shape[-1] if self.weight is None else len(self.weight)

    def logits(self, index: Tensor) -> Tensor:
        """Return the logits (n, C) of these rows, in double precision where their device has that."""
        rows = self.hidden.detach().reshape(-1, self.hidden.shape[-1])[index.to(self.hidden.device)]
        if self.weight is not None:
            rows = rows.to(self.weight.dtype) @ self.weight.detach().T
        if self.bias is not None:
            rows = rows + self.bias.detach()
        return rows.to("cpu", torch.float64) if rows.device.type == "mps" else rows.double()


def listen(raw: RawWindow, cast: Cast, hints: tuple[Try, ...], tell: Callable[[Explanation], None], err: Any) -> None:
    """Tell of each such loss in this window, once its backward has run, what explains the gradient that it leaves.

    An exception on the way is handed to `err`: nothing of it may reach the backward.
    """
    count = 0
    for f in raw.functions:
        if not f.custom or f.grad_fn is None or not raw.root.calls >> f.index & 1 or count >= _MOST:
            continue
        sides = sides_of(f, cast.student_mask)
        if sides is None:
            continue
        count += 1
        texts = next((len(c.given[0]) for g in cast.students for c in g.calls if c.given and c.given[0].ndim > 1), 0)
        blank = Explanation("nothing", 0.0, 0.0, 0, sides[0].classes, 0, sequence=True)
        blank.label_weight = None if cast.labels else 0.0
        met = _met(raw, cast, *sides)
        known = partial(_explained, *sides, met, texts, raw.root_scale, hints, blank, _labels(f, sides[0]))
        _hear(f.grad_fn, known, sides[0].place, tell, err)


def _met(raw: RawWindow, cast: Cast, mine: Side, its: Side) -> list[tuple[int, int]]:
    """Return of some rows which row of the student's answer meets which one of the teacher's; none where that is not
    known."""
    of_student = list(places_of(raw, mine.hidden, cast.student_mask))
    of_teacher = list(places_of(raw, its.hidden, cast.teacher_mask))
    pair = next(((a, b) for a in of_student for b in of_teacher if a.among == b.among), None)
    met = [] if pair is None else list(zip(pair[0].rows, pair[1].rows, strict=False))
    known = [(i, j) for i, j in met if i >= 0 and j >= 0]
    return known if len(known) >= _FEWEST else []


def _labels(f: FunctionCall, mine: Side) -> Tensor | None:
    """Return the labels (N,) that a loss was handed, one a row, some of which say that there is none."""
    rows = mine.hidden.numel() // mine.hidden.shape[-1]
    for t in f.args:
        if isinstance(t, Tensor) and t.dtype == torch.long and t.numel() == rows and bool((t < 0).any()):
            return t.detach().reshape(-1).cpu()
    return None


def _handed(labels: Tensor, rest: Rest) -> Handed:
    taught = torch.zeros(len(labels), dtype=torch.bool)
    taught[rest.live] = True
    has = labels >= 0
    return Handed(int(has.sum()), int((has & ~taught).sum()), int((~has).sum()), int((~has & taught).sum()))


def _in_places(found: Explanation, met: list[tuple[int, int]]) -> Explanation:
    """Add which rows met: those that a loss was handed may be others than those that belong together."""
    moved = [(i, j) for i, j in met if i != j]
    if len(moved) <= _CHANCE * len(met):
        return replace(found, placed=bool(met))
    by = Counter(j - i for i, j in moved).most_common(1)[0]
    shift = by[0] if by[1] >= _MOSTLY * len(moved) and abs(by[0]) <= _MOST_SHIFTED else None
    rows, taught = [i for i, _ in met], [j for _, j in met]
    return replace(found, form="permuted", permutation=taught, permuted_rows=rows, shift=shift)


def _hear(
    node: Any,
    explained: Callable[[Tensor], Explanation | None],
    place: int,
    tell: Callable[[Explanation], None],
    err: Any,
) -> None:
    """Listen at a node of the graph until a backward has come by once."""

    def heard(got: Any, given: Any) -> None:
        handle.remove()
        try:
            with torch.no_grad(), DisableTorchFunction():
                found = None if got[place] is None else explained(got[place])
                if found is not None:
                    tell(replace(found, teacher_logits=None, labels=None))
        except Exception as error:
            err(error)

    handle = node.register_hook(heard)


def sides_of(f: FunctionCall, student: int) -> tuple[Side, Side] | None:
    """Return what the student and what the teacher hand to a loss; None where that is not seen."""
    tensors = [t for t in f.args if isinstance(t, Tensor)]
    if len(tensors) != len(f.operands):
        return None
    made = [m for _, m, _ in f.operands]
    heads = [isinstance(t, nn.Parameter) or bool(m.params and not m.calls) for t, m in zip(tensors, made, strict=True)]

    def of(place: int) -> Side:
        after = list(zip(tensors, heads, strict=True))[place + 1 :]
        width = tensors[place].shape[-1]
        at = next((i for i, (w, head) in enumerate(after) if head and w.ndim == 2 and w.shape[1] == width), None)
        if at is None or not all(head for _, head in after[:at]):
            return Side(place, tensors[place], None, None)
        weight = after[at][0]
        more = after[at + 1 : at + 2]
        bias = next((b for b, head in more if head and b.ndim == 1 and len(b) == len(weight)), None)
        return Side(place, tensors[place], weight, bias)

    answers = [
        (of(i), m)
        for i, (t, m, head) in enumerate(zip(tensors, made, heads, strict=True))
        if not head and t.is_floating_point() and t.ndim > 1 and m.params
    ]
    mine = [side for side, m in answers if m.params & student and side.hidden.requires_grad]
    its = [side for side, m in answers if not m.params & student]
    rows = {side.hidden.numel() // side.hidden.shape[-1] for side in (*mine[:1], *its[:1])}
    if len(mine) != 1 or len(its) != 1 or len(rows) != 1 or mine[0].classes != its[0].classes:
        return None
    return mine[0], its[0]


def _explained(
    mine: Side,
    its: Side,
    met: list[tuple[int, int]],
    texts: int,
    scale: float,
    hints: tuple[Try, ...],
    blank: Explanation,
    labels: Tensor | None,
    gradient: Tensor,
) -> Explanation | None:
    """Return what explains the gradient that a loss leaves at what the student handed it; None where nothing does."""
    rest = _rest(mine, texts, scale, gradient)
    layout = rest.layout
    blank = replace(blank, share=rest.share, rows=layout.rows, batch=layout.lead[0], looked_at=len(rest.z))
    blank.fused, blank.largest, blank.tolerance = mine.weight is not None, float(rest.z.abs().max()), rest.tolerance
    if rest.is_nothing:
        return blank
    if labels is not None:
        blank.handed = _handed(labels, rest)
    said = Said("logits", its.logits(rest.index), its.logits)
    softened = Softening([], [], [said], hints)
    for attempt in (seen_fit, forward_searched, searched_fit):
        found = attempt(rest, softened, blank)
        if found is not None and fits(rest, found):
            return _in_places(found, met)
    return None


def _rest(mine: Side, texts: int, scale: float, gradient: Tensor) -> Rest:
    """Return what is to be explained: some rows of the gradient, and of each some numbers."""
    width = gradient.shape[-1]
    g = gradient.detach().reshape(-1, width)
    if mine.hidden.ndim > 2:
        lead = tuple(mine.hidden.shape[:-1])
    else:
        lead = (texts, len(g) // texts) if texts and len(g) % texts == 0 else (len(g),)
    layout = Layout((*lead, mine.classes), len(lead))
    largest = torch.linalg.vector_norm(g, float("inf"), 1).cpu().double()
    sizes = Sizes(largest, norms(g)[0] / scale, [1.0] * len(layout.shape))
    live = (largest > SILENT * (float(largest.max()) or 1.0)).nonzero().flatten()
    index = spread(live if len(live) else torch.arange(layout.rows), layout.classes)
    kd = g[index.to(g.device)]
    z = mine.logits(index)
    through = None
    if mine.weight is not None:
        columns = torch.linspace(0, width - 1, min(width, _THROUGH)).round().long().to(g.device)
        kd, through = kd[:, columns], mine.weight.detach()[:, columns].to(z.device, z.dtype)
    kd = kd.to(z.device, z.dtype) / scale
    return Rest(z, kd, [], layout, index, live, sizes, mine.hidden.dtype, through=through)
