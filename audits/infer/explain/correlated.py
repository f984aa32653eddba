"""Terms of correlations (DIST): of each row's probabilities with the teacher's, and of each class's over the batch.

Pearson's coefficient is the cosine of what is centred, so its gradient is known for each, and the two are added.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.audits.infer.explain.fit import Explanation, Fitted, described
from kdbench.audits.infer.explain.forms import Sides
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.softening import Softening

_LEAST_CLASSES = 3
"Two probabilities that sum to one are always correlated by 1 or -1."
_LEAST_ROWS = 4
"Rows below which a class's numbers are as many as the unknown ones."
_LEAST_PART = 1e-3
"Part of the whole down to which a part may be negative by rounding, and that the larger one must take."
_MOST_ANSWERS = 4
"Answers that are tried: the likeliest come first."
_TINIEST = 1e-30
"Kept from dividing by zero."


def correlated_fit(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return what is left as correlations of the probabilities with the teacher's, along classes, along rows, or both.

    All rows must be there: how a class is correlated over the batch depends on each of them.
    """
    rows, classes = rest.z.shape
    whole = rows == rest.layout.rows and rest.through is None
    if not rest.known or not whole or classes < _LEAST_CLASSES or rows < _LEAST_ROWS:
        return None
    size = float(rest.kd.norm())
    for said in softening.answers[:_MOST_ANSWERS]:
        if said.rows.shape != rest.z.shape:
            continue
        for ts, tt in softening.pairs(said):
            sides = Sides(rest.z, said.rows, said.kind, ts, tt)
            for name, p, q in _held(sides, rest.is_invariant is not False):
                parts = [_apart(p, q), _apart(p.T, q.T).T]
                if p is not sides.z:
                    parts = [_through(sides, g) for g in parts]
                found = _fitted(rest, parts, size)
                if found is not None:
                    e = described(rest, found, blank, said, name, temperature=(ts, tt))
                    e.weight = e.coefficients = e.coefficient_rows = None
                    return e
    return None


def _held(sides: Sides, of_probabilities: bool) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield what of the student is held against what of the teacher, by the form's name."""
    if of_probabilities:
        yield "correlated", sides.ps, sides.pt
    if sides.kind == "logits":
        yield "correlated-logits", sides.z, sides.t
        if of_probabilities:
            yield "correlated-unlike", sides.ps, sides.t


def _fitted(rest: Rest, parts: list[Tensor], size: float) -> Fitted | None:
    """Return the sum of the parts that is what is left, if all draw together, or all drive apart."""
    stack = torch.stack([p.reshape(-1) for p in parts], 1)
    stack = stack / stack.norm(dim=0).clamp_min(_TINIEST)
    if not bool(stack.isfinite().all()):
        return None
    solution = torch.linalg.lstsq(stack, rest.kd.reshape(-1, 1)).solution.reshape(-1)
    left = float((rest.kd.reshape(-1) - stack @ solution).norm())
    if left > rest.tolerance * size:
        return None
    sign = 1.0 if float(solution.sum()) > 0 else -1.0
    one_way = bool((sign * solution > -_LEAST_PART * size).all() and (sign * solution > _LEAST_PART * size).any())
    return Fitted(sign, left / size, rest.share, rest.label_weight, solution) if one_way else None


def _apart(p: Tensor, q: Tensor) -> Tensor:
    """Return the gradient at p of the sum over the rows of one minus their correlation with those of q."""
    p, q = (x - x.mean(1, keepdim=True) for x in (p, q))
    length = p.norm(dim=1, keepdim=True).clamp_min(_TINIEST)
    p, q = (F.normalize(x, dim=1, eps=_TINIEST) for x in (p, q))
    return ((p * q).sum(1, keepdim=True) * p - q) / length


def _through(sides: Sides, gradient: Tensor) -> Tensor:
    """Return the gradient at the logits of a loss whose gradient at the student's probabilities this is."""
    weighed = sides.ps * gradient
    return weighed - sides.ps * weighed.sum(1, keepdim=True)
