"""Whether the teacher's rows are read by an index that moves them, on every way to where they meet the student's.

Relations between samples, maps without channels and embeddings hold no row of an answer any more, so that nothing can
be looked up in them: what is left to see is the index itself.
"""

from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import FunctionCall, RawWindow

_FEWEST = 8
"Rows below which an order of rows may be chance."


def reindexed(raw: RawWindow, cast: Cast) -> bool:
    """Say whether the teacher's answers are turned to another order by an index, and the student's are not.

    Not where the teacher's own order meets the student too, as where other samples' answers are what to keep away from.
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
    met: list[tuple[Made, int]] = []
    for f in cast.soft:
        for t, made, _ in f.operands[:2]:
            told = any(made.calls >> c.index & 1 for c in calls)
            if told and made.params & teacher and not made.params & student:
                met.append((made, t.numel() if t is not None else 0))
    largest = max(t.numel() for f in turned if (t := f.operands[0][0]) is not None)
    # Twice as many numbers as were turned: both orders may stand beside each other.
    whole = any(0 < numbers <= largest for _, numbers in met)
    return whole and all(any(made.calls >> f.index & 1 for f in turned) for made, _ in met)


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
