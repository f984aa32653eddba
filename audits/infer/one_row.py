"""Is the student shown one row again and again, where rows of many kinds are meant?"""

import torch
from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.windows import RawWindow

_FEWEST = 8
"Rows that are no chance: a batch of a few may well be of one sample."
_APART = 1e-3
"Of the largest number taught: differences up to which the answers are one."


def one_row(raw: RawWindow, cast: Cast) -> int | None:
    """Return how many rows the student is shown that are one row, though what teaches them differs; None where they are
    not."""
    calls = [c for g in cast.students for c in g.calls if not c.fed.params and raw.root.calls >> c.index & 1]
    shown = [c.given for c in calls if c.given]
    if not shown or not all(len(t) >= _FEWEST and _is_one(t) for given in shown for t in given if t.ndim):
        return None
    rows = len(shown[0][0]) if shown[0][0].ndim else 0
    for f in cast.soft:
        for target, made, _ in f.operands[:2]:
            told = target is not None and not made.params & cast.student_mask and target.ndim and len(target) == rows
            if told and is_readable(target) and _differs(target):
                return rows
    return None


def _is_one(t: Tensor) -> bool:
    return is_readable(t) and bool((t == t[:1]).all())


def _differs(t: Tensor) -> bool:
    some = t.detach().reshape(len(t), -1).double()
    return bool(torch.isfinite(some).all()) and float((some - some[:1]).abs().max()) > _APART * float(some.abs().max())
