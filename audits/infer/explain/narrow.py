"""A term over some classes alone: those that a teacher knows which tells fewer apart, or those before a task's own."""

from dataclasses import replace

import torch
from torch import Tensor

from kdbench.audits.infer.explain.fit import Explanation, fits, seen_fit
from kdbench.audits.infer.explain.heads import Answer, Kind
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.rows import Layout
from kdbench.audits.infer.explain.search import forward_searched, searched_fit
from kdbench.audits.infer.explain.softening import softening
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow

_SILENT = 1e-6
"Part of the largest number of a gradient up to which classes get none: rounding of single precision."
_SAME = 1e-5
"Part of the largest answer by which a copy's may differ: a wider layer sums in another order."
_FEWEST = 2
"Classes that a softmax tells apart."


def narrow_fit(
    raw: RawWindow, cast: Cast, student: int, rest: Rest, answers: list[Answer], blank: Explanation
) -> Explanation | None:
    """Return the form over the first or the last classes that explains the gradient, where a teacher knows as many."""
    classes, lead = rest.layout.classes, rest.layout.lead
    if not rest.known or rest.is_invariant is False:
        return None
    live = (rest.kd.abs().amax(0) > _SILENT * rest.kd.abs().max()).nonzero().flatten().tolist()
    some = _of_some(raw, cast, student, rest, answers, blank, (live[0], live[-1] + 1))
    if some is not None:
        return some
    narrower: list[tuple[int, Kind, Tensor]] = []
    for kind, value in [(a.kind, a.values) for a in answers if a.among is None]:
        width = value.shape[-1]
        if tuple(value.shape[:-1]) == lead and _FEWEST <= width < classes:
            narrower.append((width, kind, value))
    for width in dict.fromkeys(w for w, *_ in narrower):
        first = 0 if live[-1] < width else classes - width
        if live[0] < first:
            continue
        cut = slice(first, first + width)
        mine = [Answer(kind, value) for w, kind, value in narrower if w == width]
        found = _over(raw, cast, student, rest, mine, cut, replace(blank, classes=width, labels=None))
        if found is not None:
            own = next((at for a in mine if (at := _grown_from(rest, a.values)) is not None), None)
            return found if own is None else replace(found, block=(first, own))
    return None


def _grown_from(rest: Rest, value: Tensor) -> int | None:
    """Return from which class on the student's answers are a teacher's, number by number; None where from none."""
    width = value.shape[-1]
    its = value.detach().reshape(-1, width)[rest.index.to(value.device)].to(rest.z.dtype)
    z, near = rest.z.detach(), _SAME * float(its.abs().max())
    places = range(rest.layout.classes - width + 1)
    return next((at for at in places if float((z[:, at : at + width] - its).abs().max()) <= near), None)


def _of_some(
    raw: RawWindow,
    cast: Cast,
    student: int,
    rest: Rest,
    answers: list[Answer],
    blank: Explanation,
    block: tuple[int, int],
) -> Explanation | None:
    """Return the form over neighbouring classes that explains the gradient, where the teacher knows others as well."""
    (first, end), classes, lead = block, rest.layout.classes, rest.layout.lead
    cut = slice(first, end)
    whole = [a for a in answers if a.among is None and a.kind == "logits" and tuple(a.values.shape) == (*lead, classes)]
    if not whole or len(lead) != 1 or not _FEWEST <= end - first < classes:
        return None
    own = blank
    if blank.labels is not None:
        own = replace(blank, labels=torch.where(blank.labels < end, blank.labels - first, -1))
    mine = [Answer(a.kind, a.values[:, cut]) for a in whole]
    mine += [a for a in answers if a.among is None and tuple(a.values.shape) == (*lead, end - first)]
    return _over(raw, cast, student, rest, mine, cut, replace(own, classes=end - first))


def _over(
    raw: RawWindow, cast: Cast, student: int, rest: Rest, mine: list[Answer], cut: slice, blank: Explanation
) -> Explanation | None:
    """Return the form over the classes of a cut that explains the gradient there; the answers are of these alone."""
    layout = Layout((*rest.layout.lead, blank.classes), len(rest.layout.lead))
    part = replace(rest, z=rest.z[:, cut], kd=rest.kd[:, cut], columns=[c[:, cut] for c in rest.columns], layout=layout)
    softened = softening(raw, cast, student, part, mine)
    for attempt in (seen_fit, forward_searched, searched_fit):
        found = attempt(part, softened, blank)
        if found is not None and fits(part, found):
            return found
    return None
