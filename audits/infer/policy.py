"""Sampled words that are weighed by how much likelier the teacher finds them: a policy gradient, as on-policy
distillation has it.

The weight is a number of its own, cut from the graph. What reaches the student's logits z for a word y is then the
weight times softmax(z) - onehot(y): so the weight is what the gradient of most classes is over their probability.
"""

import torch
from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.words import are_words
from kdbench.audits.observe.custom import holds_custom
from kdbench.audits.observe.windows import DIFFERENCES, SMALL, FunctionCall, RawWindow

_FEWEST = 8
"Words below which a direction may be chance, and classes below which most of them say nothing."


def weighs_words(cast: Cast, f: FunctionCall) -> bool:
    """Say whether a function takes the difference of two networks' log-probabilities of words, cut from the graph."""
    sides = f.operands[:2]
    if f.name not in DIFFERENCES or f.requires_grad or len(sides) < 2 or sides[0][2] != sides[1][2]:
        return False
    if any(t is None or t.ndim > 2 or t.numel() < _FEWEST or bool((t > 0).any()) for t, *_ in sides):
        return False
    mine = [bool(made.params & cast.student_mask) for _, made, _ in sides]
    shown = [t for g in cast.students for c in g.calls for t in c.given if are_words(t)]
    return sorted(mine) == [False, True] and any(t.numel() >= sides[0][0].numel() for t in shown)


def policy_of(raw: RawWindow, cast: Cast, f: FunctionCall) -> float | None:
    """Return the cosine of the weights with which words are made likelier, with the teacher's log-probabilities less
    the student's: 1 where that is right, -1 where what the teacher finds likelier is driven away.

    None where the student's logits were not seen whole, or get a gradient of another kind.
    """
    if len(raw.roots) != 1 or holds_custom(raw.roots[0].grad_fn):
        return None
    (a, of_a, _), (b, _, _) = f.operands[:2]
    wanted = (b - a if of_a.params & cast.student_mask else a - b).detach().double()
    for call in reversed(raw.calls):
        said = call.output if call.out.params & cast.student_mask else None
        if said is None or not said[0].requires_grad or said[0].ndim < 2 or said[0].numel() > SMALL:
            continue
        z = said[0]
        if z.shape[-1] < _FEWEST or z[..., 0].numel() < wanted.numel():
            continue
        (w,) = gradients_of(raw.roots[0], z)
        if w is not None:
            return _along(w.detach().double(), said[1].double().softmax(-1), wanted)
    return None


def _along(w: Tensor, q: Tensor, wanted: Tensor) -> float | None:
    """Hold the weight of each row of a gradient (B, M, C) against what is wanted (B, L), wherever in the rows it is."""
    weights = (w / q.clamp_min(1e-30)).median(-1).values
    live = (w != 0).any(-1)
    if weights.shape[0] != wanted.shape[0] or weights.ndim != 2 or wanted.ndim != 2:
        weights, live, wanted = weights.reshape(1, -1), live.reshape(1, -1), wanted.reshape(1, -1)
    width, best = wanted.shape[1], None
    for first in range(weights.shape[1] - width + 1):
        part = slice(first, first + width)
        here = live[:, part]
        if int(here.sum()) < _FEWEST or int(here.sum()) < int(live.sum()):
            continue
        own, other = weights[:, part][here], wanted[here]
        for mean in (0.0, 1.0):  # weights are often taken less their mean
            pair = own - mean * own.mean(), other - mean * other.mean()
            cosine = float(torch.nn.functional.cosine_similarity(*pair, dim=0))
            best = cosine if best is None or abs(cosine) > abs(best) else best
    return best
