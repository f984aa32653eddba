"""Terms over the k classes that the teacher finds likeliest, read off the gradient: which, and what of the rest.

Outside the k classes the gradient is a times the student's probability, with one a for a row: 0 where the student is
renormalised over the k, positive where its whole softmax is used. So the k are those where it is anything else.
"""

import torch
from torch import Tensor

from kdbench.audits.infer.explain.fit import Explanation, described, fit, screened
from kdbench.audits.infer.explain.forms import Sides
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.softening import Said, Softening

_MOST_KEPT = 0.5
"Part of the classes that k may be: the rest must be the rule of which the k are the exception."
_LEAST_CLASSES = 8
"Classes below which a rest says nothing."
_APART = 1e-3
"Part of a row's largest ratio of gradient and probability by which the k must differ from the rest."
_ZERO = 1e-7
"Part of a row's largest number that counts as no gradient: single precision."
_LIKELY = 1e-6
"Probability from which the ratio of gradient and probability can be read: below, rounding is as large."
_SAME = 0.98
"Part of the k classes that must be the teacher's likeliest: some are as likely as the next."
_USUAL = (1.0, 2.0, 4.0)
"Temperatures tried where no softmax shows one: stored answers of the k likeliest are mostly at 1."
_TINIEST = 1e-30
"Kept from dividing by zero."


def topk_fit(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the term over the k likeliest classes that explains what is left, if there is one."""
    if not rest.known or rest.through is not None or rest.is_invariant is False or rest.layout.classes < _LEAST_CLASSES:
        return None
    for said in softening.answers:
        if said.kept is not None:
            for ts in dict.fromkeys([*softening.student, *_USUAL]):
                if (e := _among(rest, said, said.kept, ts, blank)) is not None:
                    return e
    small = screened(rest)
    for ts in dict.fromkeys([*softening.student, *softening.teacher]) or _USUAL:
        support = None if _support(small, ts) is None else _support(rest, ts)
        if support is None:
            continue
        for said in softening.answers:
            e = _with_support(rest, said, support, ts, blank)
            if e is not None:
                return e
    return None


def _support(rest: Rest, ts: float) -> Tensor | None:
    """Return which classes (n, C) are the exception, as many in each row; None where there is no rule."""
    q = (rest.z / ts).softmax(1)
    largest = rest.kd.abs().amax(1, keepdim=True)
    zero = rest.kd.abs() <= _ZERO * largest
    counts = (~zero).sum(1)
    if bool((counts == counts[0]).all()) and 1 < int(counts[0]) <= _MOST_KEPT * rest.layout.classes:
        return ~zero
    ratio = rest.kd / q.clamp_min(_TINIEST)
    usual = ratio.median(1, keepdim=True).values
    likely = q > _LIKELY
    support = ((ratio - usual).abs() > _APART * ratio.abs().masked_fill(~likely, 0).amax(1, keepdim=True)) & likely
    counts = support.sum(1)
    k = int(counts.max())
    if not 1 < k <= _MOST_KEPT * rest.layout.classes or float((counts == k).double().mean()) < _SAME / 2:
        return None
    top = (ratio - usual).abs().masked_fill(~likely, 0).topk(k, 1).indices
    return torch.zeros_like(support).scatter_(1, top, True)


def _among(rest: Rest, said: Said, kept: Tensor, ts: float, blank: Explanation) -> Explanation | None:
    """Return which form it is over the classes that stored answers name, as many in a row as there are."""
    s = Sides(rest.z, said.rows, said.kind, ts, 1.0)
    fitted = [(name, fit(rest, basis)) for name, basis in _forms(s, kept, s.pt * kept)]
    for name, found in sorted(fitted, key=lambda f: f[1] is not None and f[1].uneven):
        if found is not None and found.residual <= rest.tolerance:
            mass, k = float((s.pt * kept).sum(1).mean()), int(kept.sum(1).max())
            return described(rest, found, blank, said, name, temperature=(ts, 1.0), kept=k, mass=mass)
    return None


def _with_support(rest: Rest, said: Said, support: Tensor, ts: float, blank: Explanation) -> Explanation | None:
    """Return which form over these classes it is, if they are the likeliest of the teacher's, or of the student's."""
    k = int(support[0].sum())
    for tt in (1.0,) if said.kind == "probabilities" or said.argument else (ts, 1.0):
        s = Sides(rest.z, said.rows, said.kind, ts, tt)
        of_student = torch.zeros_like(support).scatter_(1, rest.z.topk(k, 1).indices, True)
        of_teacher = torch.zeros_like(support).scatter_(1, s.log_t.topk(k, 1).indices, True)
        mine = float((support & of_teacher).sum()) / float(support.sum()) >= _SAME
        if not mine and not float((support & of_student).sum()) / float(support.sum()) >= _SAME:
            return None
        kept = of_teacher if mine else of_student
        fitted = [(name, fit(rest, basis)) for name, basis in _forms(s, kept, s.pt * kept)]
        if not mine:  # the teacher's probabilities in their order, at the student's places
            ranked = torch.zeros_like(s.pt).scatter_(1, rest.z.topk(k, 1).indices, s.pt.topk(k, 1).values)
            fitted += [(name, fit(rest, basis)) for name, basis in _forms(s, kept, ranked)]
        # One form's rows, each with a coefficient of its own, are another form's with one.
        for name, found in sorted(fitted, key=lambda f: f[1] is not None and f[1].uneven):
            if found is None or found.residual > rest.tolerance:
                continue
            name = name if mine else "topk-of-student"
            mass = float((s.pt * kept).sum(1).mean())
            return described(rest, found, blank, said, name, temperature=(ts, tt), kept=k, mass=mass)
    return None


def _forms(s: Sides, kept: Tensor, p: Tensor) -> list[tuple[str, Tensor]]:
    """Return the gradient of each form over the classes kept (n, C), where the teacher has the probabilities p."""
    q = s.ps * kept
    of_p, of_q = p.sum(1, keepdim=True), q.sum(1, keepdim=True)
    norm_p = p / of_p.clamp_min(_TINIEST)
    rest_p, rest_q = (1 - of_p).clamp_min(0), (1 - of_q).clamp_min(_TINIEST)
    return [
        ("topk", s.ts * (q / of_q.clamp_min(_TINIEST) - norm_p)),
        ("topk-tail", s.ts * (q - p + s.ps * ~kept * (1 - rest_p / rest_q))),
        ("topk-scatter", s.ts * (s.ps - norm_p)),
        ("topk-sum", s.ts * (of_p * s.ps - p)),
        ("log-target", s.through(-s.log_t * kept)),
    ]
