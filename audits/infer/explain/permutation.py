"""Whether each row is taught by another row of the teacher's, and by which."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.explain.correlated import correlated_fit
from kdbench.audits.infer.explain.decoupled import decoupled_fit
from kdbench.audits.infer.explain.fit import Explanation, fits, seen_fit
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.search import forward_searched, searched_fit
from kdbench.audits.infer.explain.softening import Said, Softening
from kdbench.audits.infer.explain.topk import topk_fit

_MOST_PAIRS = 6
"Temperatures tried: each compares all rows anew, and the likeliest come first."
_MOST_NUMBERS = 2**27
"Numbers of an answer whose rows are all compared with those explained: they are gone through piece by piece."
_PIECE = 2**22
"Numbers worked on at once."
_MOST_COMPARED = 4096
"Rows among which one is looked for: by chance among more, another would fit."
_ALONG = 0.999
"Cosine from which a row's gradient points along a difference; in four and more dimensions chance stays far below."
_BY_CHANCE = 0.1
"Rows that may fit another by chance, of all that it is compared with, in the two or three dimensions of few classes."
_MOST = 0.9
"Part of the rows that must be explained, and part of the answers that must be different: some rows may be alike."
_BY_FAR = 1e-3
"By how much another row must point better than the row's own: all that _ALONG leaves."
_LEAST_MOVED = 0.1
"Part of the rows that must be moved: a few whose neighbour fits by chance make no permutation."
_LEAST_ROWS = 4
"Rows that must be left to look at where the answers are shifted."
_SEARCHED = 2**19
"Numbers in an answer up to which each order is tried at temperatures that were not seen, too."
_LARGE = 2**22
"Numbers from which rows are compared in single precision: what it leaves of a cosine is far below _BY_FAR."
_TINIEST = 1e-30
"Kept from dividing by zero, where two rows are equal."


Attempt = Callable[[Rest, Softening, Explanation], Explanation | None]


class Order(NamedTuple):
    """Another order of the teacher's rows."""

    taught: Callable[[Tensor], Tensor]
    "By row number, the row that teaches it; -1 where there is none."
    shift: int | None = None
    "By how many positions of a sequence it is ahead."


def ordered_fit(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the form that explains what is left by the teacher's answers in an order that code goes wrong by."""
    return _in_order(rest, softening, blank, (seen_fit, forward_searched, topk_fit))


def order_of_parts(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the same of forms that are made of two parts."""
    return _in_order(rest, softening, blank, (decoupled_fit, correlated_fit)) if rest.z.numel() <= _SEARCHED else None


def order_searched(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the same at temperatures and mixtures that no softmax shows."""
    usual = partial(searched_fit, usual=True)
    return _in_order(rest, softening, blank, (usual,)) if rest.z.numel() <= _SEARCHED else None


def halves_fit(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the form that explains what is left where each view of a batch is taught by the answer to the other."""
    half = rest.layout.rows // 2
    if not rest.known or not softening.answers or len(rest.layout.lead) != 1:
        return None
    moved = softening.of([_moved(s, (rest.index.cpu() + half) % (2 * half)) for s in softening.answers])
    for attempt in (seen_fit, forward_searched, searched_fit):
        found = attempt(rest, moved, blank)
        if found is not None and fits(rest, found) and not found.uneven:
            return found
    return None


def _in_order(
    rest: Rest, softening: Softening, blank: Explanation, attempts: tuple[Attempt, ...]
) -> Explanation | None:
    if not rest.known or not softening.answers or len(rest.z) < _LEAST_ROWS:
        return None
    for order in _orders(rest.layout.lead):
        taught = order.taught(rest.index.cpu())
        valid = (taught >= 0).nonzero().flatten()
        if len(valid) < max(_LEAST_ROWS, len(taught) // 2) or bool((taught == rest.index.cpu())[valid].all()):
            continue
        part = rest if len(valid) == len(taught) else _of(rest, valid)
        moved = softening.of([_moved(s, taught[valid]) for s in softening.answers])
        for attempt in attempts:
            found = attempt(part, moved, blank)
            if found is not None and fits(rest, found) and not found.uneven:
                return _permuted(rest, found, order)
    return None


def _permuted(rest: Rest, found: Explanation, order: Order) -> Explanation:
    """Return an explanation by another order, with the rows that each is taught by."""
    everyone = torch.arange(rest.layout.rows)
    taught = order.taught(everyone)
    live = torch.zeros(rest.layout.rows, dtype=torch.bool)
    live[rest.live] = True
    rows = torch.where(live & (taught >= 0), taught, everyone)
    if len(rows) > _MOST_COMPARED:
        at = rest.index.cpu()
        return replace(
            found, form="permuted", permutation=rows[at].tolist(), permuted_rows=at.tolist(), shift=order.shift
        )
    return replace(found, form="permuted", permutation=rows.tolist(), shift=order.shift)


def _of(rest: Rest, at: Tensor) -> Rest:
    """Return the same of some of the rows."""
    columns = [c[at] for c in rest.columns]
    return replace(rest, z=rest.z[at], kd=rest.kd[at], columns=columns, index=rest.index[at])


def _moved(said: Said, taught: Tensor) -> Said:
    return replace(said, rows=said.at(taught).to(said.rows.device), whole=None)


def _orders(lead: tuple[int, ...]) -> Iterator[Order]:
    """Yield the orders that code goes wrong by: one position off, and the batch turned round or moved on by one."""
    rows, first = math.prod(lead), lead[0] if lead else 1
    below = rows // max(1, first)
    if len(lead) == 2:
        for by in (1, -1):
            yield Order(_shifted(lead[1], by), by)
    if first > 1:
        for move in (lambda b: first - 1 - b, lambda b: (b + 1) % first, lambda b: (b - 1) % first):
            yield Order(lambda i, move=move: move(i // below) * below + i % below)  # type: ignore[misc]
    if len(lead) == 3:  # pictures mirrored, on one side only
        height, width = lead[1:]
        yield Order(lambda i: i - i % width + (width - 1 - i % width))
        yield Order(lambda i: i // below * below + (height - 1 - i % below // width) * width + i % width)


def _shifted(length: int, by: int) -> Callable[[Tensor], Tensor]:
    def taught(i: Tensor) -> Tensor:
        place = i % length + by
        return torch.where((place >= 0) & (place < length), i + by, -1)

    return taught


def permutation_of(rest: Rest, softening: Softening) -> tuple[list[int], list[int]] | None:
    """Return the rows looked at and which row of the teacher's each is taught by, if that is another order.

    For forms whose gradient points along a difference: of probabilities at seen temperatures, or of logits.
    """
    kd = rest.kd
    size = kd.norm(dim=1, keepdim=True)
    n = rest.layout.rows
    if not rest.known or n > _MOST_COMPARED or rest.layout.classes * n > _MOST_NUMBERS or not bool((size > 0).all()):
        return None
    unit = kd / size
    for said in softening.answers:
        tries: list[tuple[Tensor, Callable[[Tensor], Tensor], int]] = []
        if said.kind == "logits" and rest.is_invariant is not True:
            tries.append((rest.z, said.at, rest.layout.classes))
        if rest.is_invariant is not False:
            for ts, tt in softening.pairs(said)[:_MOST_PAIRS]:
                tries.append(((rest.z / ts).softmax(1), _softened(said, tt), rest.layout.classes - 1))
        for own, of_teacher, dimensions in tries:
            found = _matched(own, of_teacher, unit, rest, _along(dimensions, n))
            if found is not None:
                return rest.index.tolist(), found
    return None


def _softened(said: Said, tt: float) -> Callable[[Tensor], Tensor]:
    return said.at if said.kind == "probabilities" else lambda index: (said.at(index) / tt).softmax(1)


def _along(dimensions: int, rows: int) -> float:
    """Return the cosine from which one of so many rows fits by no chance."""
    if dimensions < _PLANE:
        return 1.0  # on a line every row fits
    if dimensions == _PLANE:
        return max(_ALONG, math.cos(_BY_CHANCE * math.pi / rows))
    return max(_ALONG, 1 - 2 * _BY_CHANCE / rows) if dimensions == _PLANE + 1 else _ALONG


_PLANE = 2


def _matched(
    own: Tensor, of_teacher: Callable[[Tensor], Tensor], unit: Tensor, rest: Rest, along_from: float
) -> list[int] | None:
    """Return for each row the teacher's row that its gradient's direction points away from, if rows are moved."""
    n, classes = rest.layout.rows, rest.layout.classes
    dtype = torch.float32 if n * classes > _LARGE else torch.float64
    a, u = own.to(dtype), unit.to(dtype)
    along, square = (a * u).sum(1, keepdim=True), (a * a).sum(1, keepdim=True)
    pieces: list[Tensor] = []
    for start in range(0, n, max(1, _PIECE // classes)):
        b = of_teacher(torch.arange(start, min(n, start + max(1, _PIECE // classes)))).to(u.device, dtype)
        distance = (square + (b * b).sum(1) - 2 * a @ b.T).clamp_min(_TINIEST).sqrt()
        pieces.append((along - u @ b.T) / distance)
    cosine = torch.cat(pieces, 1)
    top, which = cosine.max(1)
    if not bool((top > along_from).double().mean() > _MOST):
        return None
    if len(set(which.tolist())) < _MOST * len(which):
        return None  # many rows with one answer: nobody's order can be read off
    index = rest.index.to(which.device)
    moved = which != index
    better = top > cosine.gather(1, index[:, None]).squeeze(1) + _BY_FAR
    return [int(i) for i in which] if bool((moved & better).double().mean() > _LEAST_MOVED) else None
