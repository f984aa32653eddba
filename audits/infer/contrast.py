"""Contrastive terms: the student finds its teacher's answer to the same sample among those to others.

However it is written, such a term is a cross-entropy over scores, which are products of two networks' answers. Its
gradient at the scores of one sample sums to zero: what draws the positive nearer is what drives the others away.
"""

from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.targets import MATRIX_PRODUCTS, are_scores, is_a_place
from kdbench.audits.observe.custom import holds_custom
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import LABEL_LOSSES, FunctionCall, RawWindow

_TIMES = frozenset({"mul", "__mul__", "__rmul__", "multiply"})
_EVEN = 1e-3
"Part of the gradients by which the sums of rows, or shares, may be off: single precision leaves 1e-5."
_FOUND = 1e-2
"Part of the largest pull on a positive from which one is read."
_APART = 1e-5
"Part by which pulls on positives differ that go with how well each is found already: a hundred roundings."
_FEWEST = 4
"Samples from which a rule of every row is one."


def contrast_of(raw: RawWindow, cast: Cast, taint: Taint, f: FunctionCall) -> float | None:
    """Return what scores against others are multiplied by, relative to the positive's, if a term is contrastive.

    1 where it is right: then one temperature divides all scores. None where the term is none, or not read.
    """
    if f.name in LABEL_LOSSES:
        scores, target = f.arg(0, "input"), f.arg(1, "target")
        if not isinstance(scores, Tensor) or not isinstance(target, Tensor) or not are_scores(scores, raw, taint):
            return None
        return 1.0 if scores.ndim == 2 and is_a_place(target, scores.shape[1]) else None
    if f.name not in MATRIX_PRODUCTS or not _is_between(f, cast) or not isinstance(f.out, Tensor) or f.out.ndim < 2:
        return None
    if not f.out.requires_grad or len(raw.roots) != 1 or holds_custom(raw.roots[0].grad_fn):
        return None
    own = _gradient(raw, f)
    if own is None:
        return None
    own = own.squeeze(-1) if own.shape[-1] == 1 and own.ndim > 2 else own  # a batch of matrices with one vector each
    own = own.reshape(-1, own.shape[-1])
    sums, size = own.sum(1), own.abs().sum(1)
    live = size > 0
    if int(live.sum()) < _FEWEST or own.shape[1] < 2:
        return None
    own, sums, size = own[live], sums[live], size[live]
    if bool((sums.abs() <= _EVEN * size).all()):
        return 1.0 if bool(((own < 0).sum(1) == 1).all()) else None
    return _beside_positives(raw, cast, f, sums) if bool((own >= 0).all()) else None


def _beside_positives(raw: RawWindow, cast: Cast, others: FunctionCall, sums: Tensor) -> float | None:
    """Return the same where the positives' scores are sums of products of their own.

    A temperature may divide what is multiplied or what comes of it, so gradients are held against vectors of length 1.
    """
    length = _length(others)
    for f in raw.functions if length is not None else ():
        heard = f.name in _TIMES and raw.root.calls >> f.index & 1 and isinstance(f.out, Tensor) and f.out.requires_grad
        if not heard or not _is_between(f, cast) or f.out.ndim != 2 or len(f.out) != len(sums):
            continue
        at = _gradient(raw, f)
        if at is None or float((at - at[:, :1]).abs().max()) > _EVEN * float(at.abs().max()) or bool((at > 0).any()):
            continue
        drawn = -at[:, 0]
        far = drawn > _FOUND * float(drawn.max())  # of a positive that is found already rounding alone is left
        its = _length(f)
        if its is None or length is None:
            continue
        share = sums[far] * length / (drawn[far] * its)
        middle = float(share.median())
        if not bool(((share - middle).abs() <= _EVEN * middle).all()):
            continue
        if abs(middle - 1) <= _EVEN:
            return 1.0
        # One pull on all positives is a term of its own, which may have a weight of its own.
        return middle if float(drawn.min()) < (1 - _APART) * float(drawn.max()) else None
    return None


def _length(f: FunctionCall) -> float | None:
    """Return the product of the lengths of what is multiplied, where each side's rows have one length."""
    whole = 1.0
    for t, *_ in f.operands[:2]:
        if t is None or t.ndim != 2:
            return None
        lengths = [t.detach().double().norm(dim=dim) for dim in (1, 0)]
        even = [n for n in lengths if float(n.max() - n.min()) <= _EVEN * float(n.max())]  # keys may stand as columns
        if not even:
            return None
        whole *= float(even[0].mean())
    return whole


def _is_between(f: FunctionCall, cast: Cast) -> bool:
    """Say whether a product is one of the student's answers with a teacher's."""
    mine = [bool(made.params & cast.student_mask) for _, made, _ in f.operands[:2]]
    its = [bool(made.params & ~cast.student_mask) for _, made, _ in f.operands[:2]]
    return any(mine) and any(other and not own for own, other in zip(mine, its, strict=True))


def _gradient(raw: RawWindow, f: FunctionCall) -> Tensor | None:
    (w,) = gradients_of(raw.roots[0], f.out)
    return None if w is None or not bool((w != 0).any()) else w.detach().double()
