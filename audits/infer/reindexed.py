"""Whether the teacher's rows are read by an index that moves them, on every way to where they meet the student's.

Relations between samples, maps without channels and embeddings hold no row of an answer any more, so that nothing can
be looked up in them: what is left to see is the index itself.
"""

import torch
from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import FunctionCall, RawWindow

_FEWEST = 8
"Rows below which an order of rows may be chance."
_ITS_OWN = 0.75
"Correlation with a row's own answer above which it is its own with some of another's; of relations it is near 0."


def reindexed(raw: RawWindow, cast: Cast) -> bool:
    """Say whether the teacher's answers are turned to another order by an index, and the student's are not.

    Not where the teacher's own order meets the student too, as where other samples' answers are what to keep away from,
    or where each answer is mixed with another one.
    """
    student, teacher = cast.student_mask, cast.teacher_mask
    mine = {order for f in raw.functions if (order := _order(raw, f)) and f.operands[0][1].params & student}
    turned = [
        f
        for f in raw.functions
        if f.operands
        and f.operands[0][1].params & teacher
        and not f.operands[0][1].params & student
        and (order := _order(raw, f))
        and order not in mine
    ]
    if not turned:
        return False
    calls = [c for g in cast.teachers for c in g.calls]
    met = []
    for f in cast.soft:
        for t, made, _ in f.operands[:2]:
            told = any(made.calls >> c.index & 1 for c in calls)
            if told and made.params & teacher and not made.params & student:
                met.append((t, made))
    largest = max(t.numel() for f in turned if (t := f.operands[0][0]) is not None)
    # Twice as many numbers as were turned: both orders may stand beside each other.
    whole = any(t is not None and 0 < t.numel() <= largest for t, _ in met)
    return whole and all(_is_turned(t, [f for f in turned if made.calls >> f.index & 1]) for t, made in met)


def _is_turned(t: Tensor | None, by: list[FunctionCall]) -> bool:
    """Say whether what the student meets was turned by these lookups: not there and back, and not as a small part."""
    if not by:
        return False
    before, after = by[0].operands[0][0], by[-1].out
    if before is None or not isinstance(after, Tensor) or before.shape != after.shape:
        return True
    if torch.equal(before, after):
        return False
    if t is None or t.shape != after.shape:
        return True
    own = _likeness(t, before)
    return own < _ITS_OWN or own < _likeness(t, after)


def _likeness(t: Tensor, other: Tensor) -> float:
    """Return the mean over the rows of how two answers are correlated, but for the least of each row of the first: a
    label's own class may be masked there."""
    a, b = (x.detach().double().flatten(1) for x in (t, other))
    kept = torch.ones_like(a).scatter_(1, a.argmin(1, keepdim=True), 0.0)
    a, b = ((x - (x * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)) * kept for x in (a, b))
    return float(torch.cosine_similarity(a, b).mean())


def _order(raw: RawWindow, f: FunctionCall) -> tuple[int, ...] | None:
    """Return the order in which a lookup that reaches the loss reads all rows of an answer, if that is another one."""
    if f.name not in ("__getitem__", "index_select") or not raw.root.calls >> f.index & 1 or len(f.operands) < 2:
        return None
    along, index = (0, f.arg(1, "index")) if f.name == "__getitem__" else (f.arg(1, "dim"), f.arg(2, "index"))
    source, _, shape = f.operands[0]
    rows = shape[0] if shape else 0
    if along != 0 or not isinstance(index, Tensor) or index.ndim != 1 or index.is_floating_point():
        return None
    if source is None or len(index) != rows or rows < _FEWEST or index.element_size() == 1:
        return None
    order = tuple(index.tolist())
    return order if sorted(order) == list(range(rows)) and order != tuple(range(rows)) else None
