"""Temperatures and mixtures that no softmax shows, read off the gradient: a coarse grid, and then Gauss and Newton."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.audits.infer.explain.fit import Explanation, confirmed, cut, eligible, screened
from kdbench.audits.infer.explain.forms import FORWARD, JSD, MIXED, REVERSED, Sides, Try
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.softening import Said, Softening, as_written

_COARSE = (0.04, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0)
"Temperatures to start from: those below 1 are of self-distillation without labels."
_TWO = (0.04, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
"Where two temperatures are tried against each other."
_BETAS = (0.1, 0.3, 0.5, 0.7, 0.9)
"Mixtures to start from."
_STARTS = 6
"Starts that are followed to their end: one of them is the right one where the grid is this fine."
_HOPELESS = 0.9
"Residual from which a start is not followed."
_ITERATIONS, _STEP, _LARGEST_STEP, _DONE = 12, 1e-5, 0.7, 1e-9
"Of the iteration: how often, the step of its derivatives, the largest step in a logarithm, and where it ends."
_MOST_ANSWERS = 4
"Answers that are searched: the likeliest come first."
_TINIEST = 1e-30
"Kept from dividing by zero."
_FEW_CLASSES = 4
"With fewer classes than these, rows of any form point the same way, and one coefficient is fitted to all."
_ROUND = 10.0
"By how much a rounder temperature may fit worse and still be taken: rounding of what was read."


def searched_fit(rest: Rest, softening: Softening, blank: Explanation, usual: bool = False) -> Explanation | None:
    """Return the form that explains best what is left, whatever its temperatures and mixture; or of the usual ones."""
    if rest.is_invariant is False or not rest.known:
        return None
    small = screened(rest)
    ranked: list[tuple[float, int, Said, Try]] = []
    for said in softening.answers[:_MOST_ANSWERS]:
        part = cut(rest, small, said)
        seen = softening.pairs(said) if softening.is_seen else []
        starts = sorted(_starts(small, part, seen, usual), key=lambda s: s[0])
        for residual, one in _various(starts):
            if residual < _HOPELESS:
                end, refined = _refined(small, part, one)
                ranked.append((end, len(ranked), said, refined))
        if ranked and min(r[0] for r in ranked) <= rest.tolerance:
            break
    return confirmed(rest, ranked, blank) if ranked else None


def forward_searched(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the canonical form at whatever temperature, if that is what it is: the likeliest, and soon found."""
    if rest.is_invariant is False or not rest.known:
        return None
    small = screened(rest)
    for said in softening.answers[:_MOST_ANSWERS] if not softening.is_seen else []:
        part = cut(rest, small, said)
        tries = [Try(FORWARD, t, 1.0 if said.argument else t) for t in _COARSE]
        starts = [(residual(small, one.gradient(small.z, part.rows, part.kind)), one) for one in tries]
        left, start = min(starts, key=lambda s: s[0])
        if left < _HOPELESS:
            end, one = _refined(small, part, start)
            e = confirmed(rest, [(end, 0, said, one)], blank) if end <= rest.tolerance else None
            if e is not None and e.residual <= rest.tolerance:
                return e
    return None


def _various(starts: list[tuple[float, Try]]) -> list[tuple[float, Try]]:
    """Return the best start of each form, with one temperature and with two, the best of these first."""
    best: dict[tuple[str, bool], tuple[float, Try]] = {}
    for residual, one in starts:
        best.setdefault((one.form.name, one.ts == one.tt), (residual, one))
    return sorted(best.values(), key=lambda s: s[0])[:_STARTS]


def _starts(small: Rest, said: Said, seen: list[tuple[float, float]], usual: bool) -> list[tuple[float, Try]]:
    """Return how well each form fits on a coarse grid, beginning with the temperatures that were seen."""
    found: list[tuple[float, Try]] = []
    if usual:
        pairs = seen or [(t, 1.0 if said.argument else t) for t in (1.0, 2.0, 4.0)]
        tries = [Try(form, *pair) for form in (FORWARD, REVERSED) for pair in pairs]
        tries += [Try(JSD, *pair, beta) for pair in pairs for beta in _BETAS]
        return [(residual(small, one.gradient(small.z, said.rows, said.kind)), one) for one in tries]
    forms = [f for f in eligible(small, said) if f.softens and f.name != "standardised"]
    own = 1.0 if said.argument else None
    pairs = [*seen, *((t, own or t) for t in _COARSE)]
    for ts, tt in dict.fromkeys(pairs):
        sides = Sides(small.z, said.rows, said.kind, ts, tt)
        tries = [Try(form, ts, tt) for form in forms]
        tries += [Try(JSD, ts, tt, beta) for beta in _BETAS]
        if (ts, tt) in seen or ts in (1.0, 2.0, 4.0):
            tries += [Try(form, ts, tt, beta) for form in MIXED[1:] for beta in _BETAS[::2]]
            tries += [Try(form, ts, tt) for form in eligible(small, said) if form.name == "standardised"]
        found += [(residual(small, one.gradient(small.z, said.rows, said.kind, sides)), one) for one in tries]
    if said.kind == "logits":
        for ts in _TWO:
            for tt in (t for t in _TWO if t != ts):
                sides = Sides(small.z, said.rows, said.kind, ts, tt)
                found += [(residual(small, form.gradient(sides)), Try(form, ts, tt)) for form in (FORWARD, REVERSED)]
                found.append((residual(small, JSD.gradient(sides, 0.5)), Try(JSD, ts, tt, 0.5)))
    return [(r, one) for r, one in found if math.isfinite(r)]


def _by_row(small: Rest, basis: Tensor) -> Tensor:
    """Return the coefficient of each row (n, 1)."""
    squares, products = (basis * basis).sum(1, keepdim=True), (small.kd * basis).sum(1, keepdim=True)
    if small.layout.classes < _FEW_CLASSES:
        squares, products = squares.sum().expand_as(squares), products.sum().expand_as(products)
    return products / squares.clamp_min(_TINIEST)


def residual(small: Rest, basis: Tensor) -> float:
    """Return what a form with this gradient at the logits (n, C) leaves, where each row has its own coefficient."""
    return _left(small, small.project(basis))


def _left(small: Rest, basis: Tensor) -> float:
    return float((small.kd - _by_row(small, basis) * basis).norm() / small.kd.norm().clamp_min(_TINIEST))


def _refined(small: Rest, said: Said, start: Try) -> tuple[float, Try]:
    """Follow a start to the temperatures and the mixture that fit best, and return what is left there."""
    read, make = _coded(start, said)

    def basis(x: list[float]) -> Tensor:
        return small.project(make(x).gradient(small.z, said.rows, said.kind))

    x, b = read, basis(read)
    left = _left(small, b)
    for _ in range(_ITERATIONS):
        c = _by_row(small, b)
        columns = []
        for k in range(len(x)):
            moved = [v + _STEP * (j == k) for j, v in enumerate(x)]
            d = c * (basis(moved) - b) / _STEP
            along = (d * b).sum(1, keepdim=True) / (b * b).sum(1, keepdim=True).clamp_min(_TINIEST)
            columns.append((d - along * b).reshape(-1))
        stack = torch.stack(columns, 1)
        if not bool(stack.isfinite().all()):
            break
        step = torch.linalg.lstsq(stack, (small.kd - c * b).reshape(-1, 1)).solution.flatten().tolist()
        if not all(math.isfinite(s) for s in step):
            break
        scale = min(1.0, _LARGEST_STEP / max(_TINIEST, *map(abs, step)))
        for _ in range(5):  # halved until it helps
            ahead = [v + scale * s for v, s in zip(x, step, strict=True)]
            new = basis(ahead)
            now = _left(small, new)
            if now < left:
                break
            scale /= 2
        if not now < left:
            break
        ended = left - now < _DONE
        x, b, left = ahead, new, now
        if ended:
            break
    return _rounded(small, said, make(x), left)


def _coded(start: Try, said: Said) -> tuple[list[float], Callable[[list[float]], Try]]:
    """Return the numbers of a try as free ones, and how it is made of them again."""
    two = start.ts != start.tt and said.kind == "logits"
    own = said.argument
    mixed = start.beta is not None
    read = [math.log(start.ts), *([math.log(start.tt)] if two else [])]
    read += [math.log(start.beta / (1 - start.beta))] if start.beta is not None else []

    def make(x: list[float]) -> Try:
        ts = math.exp(max(-6.0, min(6.0, x[0])))
        tt = math.exp(max(-6.0, min(6.0, x[1]))) if two else start.tt if own else ts
        beta = 1 / (1 + math.exp(-max(-12.0, min(12.0, x[-1])))) if mixed else None
        return Try(start.form, ts, tt, beta)

    return read, make


def _rounded(small: Rest, said: Said, one: Try, left: float) -> tuple[float, Try]:
    """Return the same with numbers as people write them, if these fit as well."""
    beta = None if one.beta is None else as_written(one.beta)
    round_one = Try(one.form, as_written(one.ts), as_written(one.tt), beta)
    now = residual(small, round_one.gradient(small.z, said.rows, said.kind))
    return (now, round_one) if now <= max(_ROUND * left, small.tolerance / _ROUND) else (left, one)
