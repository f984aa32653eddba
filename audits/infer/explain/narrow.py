"""A teacher that tells fewer classes apart: the term is over those of the student's that it knows, and no others."""

from dataclasses import replace

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
        layout = Layout((*lead, width), len(lead))
        part = replace(
            rest, z=rest.z[:, cut], kd=rest.kd[:, cut], columns=[c[:, cut] for c in rest.columns], layout=layout
        )
        mine = [Answer(kind, value) for w, kind, value in narrower if w == width]
        softened = softening(raw, cast, student, part, mine)
        own = replace(blank, classes=width, labels=None)
        for attempt in (seen_fit, forward_searched, searched_fit):
            found = attempt(part, softened, own)
            if found is not None and fits(part, found):
                return found
    return None
