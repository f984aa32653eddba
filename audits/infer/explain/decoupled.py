"""Terms that hold the label's class and the others apart: decoupled (DKD) and normalised (NKD) distillation.

Both are a sum of a part over the other classes, renormalised among them, and one of the label's class against the rest.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.audits.infer.explain.fit import Explanation, Fitted, described
from kdbench.audits.infer.explain.forms import Sides, forward
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.softening import GRID, Said, Softening
from kdbench.audits.observe.windows import RawWindow

_LEAST_CLASSES = 3
"With two classes there is but one other, and nothing to divide among them."
_LEAST_PART = 1e-3
"Part of the whole that each of two parts must take."
_APART = 1e-8
"Determinant of two unit gradients below which they are one."
_MOST_ANSWERS = 4
"Answers that are tried: the likeliest come first."
_TINIEST = 1e-30
"Kept from dividing by zero."


def decoupled_fit(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the two parts that explain what is left, where the labels are known."""
    classes, labels = rest.layout.classes, blank.labels
    if not rest.known or rest.is_invariant is False or labels is None or classes < _LEAST_CLASSES:
        return None
    own = labels.reshape(-1)[rest.index.to(labels.device)].to(rest.z.device)
    if own.is_floating_point() or bool(((own < 0) | (own >= classes)).any()):
        return None
    hot = F.one_hot(own.long(), classes).to(rest.z.dtype)
    size = float(rest.kd.norm())
    for said in softening.answers[:_MOST_ANSWERS]:
        for t in dict.fromkeys([*softening.student, *GRID]):
            for name, parts in _pairs(rest, said, hot, t):
                stack = torch.stack([p.reshape(-1) for p in parts], 1)
                stack = stack / stack.norm(dim=0).clamp_min(_TINIEST)
                gram = stack.T @ stack
                if not bool(stack.isfinite().all()) or float(torch.linalg.det(gram)) < _APART:
                    continue
                solution = torch.linalg.solve(gram, stack.T @ rest.kd.reshape(-1))
                left = float((rest.kd.reshape(-1) - stack @ solution).norm())
                if left > rest.tolerance * size or not bool((solution > _LEAST_PART * size).all()):
                    continue
                share = Fitted(0.0, left / size, rest.share, rest.label_weight, solution)
                e = described(rest, share, blank, said, name, temperature=(t, t))
                e.weight = e.coefficients = e.coefficient_rows = None
                return e
    return None


def _pairs(rest: Rest, said: Said, hot: Tensor, t: float) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the gradients that are added in each form, where both sides are softened by one temperature."""
    s, plain = Sides(rest.z, said.rows, said.kind, t, t), Sides(rest.z, said.rows, said.kind, 1.0, 1.0)
    p, q = ((hot * x).sum(1, keepdim=True) for x in (s.pt, s.ps))
    others = (1 - hot) * (s.ps / (1 - q).clamp_min(_TINIEST) - s.pt / (1 - p).clamp_min(_TINIEST))
    binary = (q - p) / (1 - q).clamp_min(_TINIEST) * (hot - s.ps)
    weighed = (hot * plain.pt).sum(1, keepdim=True) * (plain.ps - hot)
    yield "decoupled", [others, binary]
    yield "normalised", [others, weighed]
    yield "undivided", [forward(s), weighed]


def leaves_nothing_out(raw: RawWindow, classes: int) -> bool:
    """Say whether a mask over the classes picked of answers, and all of it was true."""
    found = False
    for f in raw.functions:
        if f.name != "__getitem__" or not raw.root.calls >> f.index & 1 or len(f.operands) < 2:
            continue
        mask, shape = f.operands[1][0], f.operands[0][2]
        if mask is not None and mask.dtype == torch.bool and tuple(mask.shape) == shape and shape[-1:] == (classes,):
            found = found or bool(mask.all())
    return found
