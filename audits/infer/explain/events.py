"""A term that is read where the student's log-probabilities of some events stand, if nothing is read at its logits.

The events may be groups of classes, or the likeliest of them and one for the rest; the target may be of any making, as
a mean of teachers by a weight of its own for each row. What the target was made of, and in which order, is not told.
"""

from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.explain.fit import Explanation
from kdbench.audits.infer.explain.heads import are_probabilities
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.flow import LOG_SUM, PRODUCTS
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.windows import DIFFERENCES, FunctionCall, RawWindow

_FITS = 1e-3
"Of the gradient's size: what may be left of it beside the target's, in single precision."


def at_events(raw: RawWindow, cast: Cast, student: int) -> list[Explanation]:
    """Explain the terms whose gradient at the student's log-probabilities (..., K) is a target's, times a number."""
    found = []
    for f in cast.soft:
        if not raw.root.calls >> f.index & 1 or len(f.operands) < 2:
            continue
        residual = _by_torch(raw, f, student) if f.name == "cross_entropy" else _by_hand(raw, f, student)
        if residual is not None:
            shape = f.operands[0][2]
            rows = max(1, f.operands[0][0].numel() // shape[-1])
            found.append(Explanation("forward", residual, 1.0, rows, shape[-1], shape[0], placed=False))
    return found


def _by_torch(raw: RawWindow, f: FunctionCall, student: int) -> float | None:
    """Return 0 for a cross-entropy with probabilities that another network made, in the loss with its own sign."""
    (z, made, _), (target, its, _) = f.operands[:2]
    if z is None or target is None or z.shape != target.shape or z.ndim != 2 or not made.params & student:
        return None
    told = its.params & ~student and not its.params & student and not target.requires_grad and is_readable(target)
    if not told or not are_probabilities(target.detach()) or not isinstance(f.out, Tensor) or f.out.ndim:
        return None
    (weight,) = gradients_of(raw.roots[0], f.out)
    return 0.0 if weight is not None and float(weight) > 0 else None


def _by_hand(raw: RawWindow, f: FunctionCall, student: int) -> float | None:
    """Return what is left of the gradient at the student's side of a difference or a product, beside the target's."""
    if f.name not in DIFFERENCES | PRODUCTS:
        return None
    mine = [t for t, made, _ in f.operands[:2] if made.params & student and not made.params & ~student]
    its = [t for t, made, _ in f.operands[:2] if not made.params & student]
    if len(mine) != 1 or len(its) != 1 or mine[0] is None or its[0] is None or mine[0].shape != its[0].shape:
        return None
    log_q, p = mine[0], its[0].detach()
    if log_q.ndim == 2 and log_q.shape[0] == log_q.shape[1]:
        return None  # how like the samples of a batch are to each other: read as features are
    if (
        log_q.ndim < 2
        or not log_q.requires_grad
        or not is_readable(log_q)
        or not is_readable(p)
        or not _are_logs(log_q)
    ):
        return None
    p = p.exp() if f.name in DIFFERENCES else p
    if not are_probabilities(p.reshape(-1, p.shape[-1])):
        return None
    (g,) = gradients_of(raw.roots[0], log_q)
    if g is None:
        return None
    g, p = g.double(), p.double()
    weight = -float((g * p).sum() / (p * p).sum())
    left = float((g + weight * p).norm() / g.norm()) if weight > 0 else 1.0
    return left if left <= _FITS else None


def _are_logs(t: Tensor) -> bool:
    return bool((t.detach().double().logsumexp(-1).abs() < LOG_SUM).all())
