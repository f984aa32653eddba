"""Vocabularies of different width: at which end the wider answer was cut, and whether before the softmax; or with what
the narrower one was filled up."""

from dataclasses import replace

import torch
from torch import Tensor

from kdbench.audits.infer.explain.fit import Explanation, described, fit, fits, seen_fit
from kdbench.audits.infer.explain.heads import Answer
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.rows import Layout
from kdbench.audits.infer.explain.search import forward_searched
from kdbench.audits.infer.explain.softening import GRID, Softening, is_wider, softening
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow

_WIDER = 2.0
"How many times as wide an answer may be: small vocabularies that are padded to round numbers grow by half."
_BETTER = 0.5
"By what probabilities that are cut must fit better than those renormalised: rounding leaves as much of both."


def cut_fit(
    raw: RawWindow,
    cast: Cast,
    student: int,
    rest: Rest,
    answers: list[Answer],
    softened: Softening,
    best: Explanation | None,
    blank: Explanation,
) -> Explanation | None:
    """Return what explains the gradient by a wider answer that was cut wrongly; None where none was."""
    wide = [a for a in answers if a.kind == "logits" and is_wider(a.values, rest.layout, _WIDER)]
    if not wide or not rest.known or not blank.sequence or blank.pictures:
        return None  # classes of pictures may begin with one for none of them, which is rightly cut
    after = _after(rest, softened, wide, best, blank)
    if after is not None or (best is not None and fits(rest, best)):
        return after
    if (filled := _filled(rest, softened, wide, blank)) is not None:
        return filled
    last = [Answer(a.kind, _last(a.values, rest.layout)) for a in answers if a.among is None]
    moved = softening(raw, cast, student, rest, last)
    for attempt in (seen_fit, forward_searched):
        found = attempt(rest, moved, blank)
        if found is not None and fits(rest, found):
            return replace(found, cut="front", wider=wide[0].values.shape[rest.layout.dim])
    return None


def _filled(rest: Rest, softened: Softening, wide: list[Answer], blank: Explanation) -> Explanation | None:
    """Return the canonical term over the teacher's words, of which those that the student lacks have the logit zero."""
    classes = rest.layout.classes
    for answer in wide:
        rows = Layout.of(answer.values, rest.layout.dim).take(answer.values, rest.index).to(rest.z.device)
        filled = torch.nn.functional.pad(rest.z, (0, rows.shape[1] - classes))
        # No softmax of these logits shows a temperature: it is taken of what they were filled up to.
        pairs = [pair for said in softened.answers[:1] for pair in softened.pairs(said)] or [(t, t) for t in GRID]
        for ts, tt in pairs:
            q = (filled / ts).softmax(1)
            found = fit(rest, ts * (q - (rows / tt).softmax(1))[:, :classes])
            if found is not None and not found.uneven and found.residual <= rest.tolerance and found.weight > 0:
                e = described(rest, found, blank, None, "forward", temperature=(ts, tt))
                mass = float(q[:, classes:].sum(1).mean())
                return replace(e, cut="filled", wider=rows.shape[1], mass=mass)
    return None


def _last(values: Tensor, layout: Layout) -> Tensor:
    if not is_wider(values, layout, _WIDER):
        return values
    return values.narrow(layout.dim, values.shape[layout.dim] - layout.classes, layout.classes)


def _after(
    rest: Rest, softened: Softening, wide: list[Answer], best: Explanation | None, blank: Explanation
) -> Explanation | None:
    """Return the canonical term with probabilities of all words, of which the last were cut off."""
    for answer in wide:
        rows = Layout.of(answer.values, rest.layout.dim).take(answer.values, rest.index).to(rest.z.device)
        for said in softened.answers:
            for ts, tt in softened.pairs(said) if softened.is_seen else [(1.0, 1.0)]:
                p = (rows / tt).softmax(1)[:, : rest.layout.classes]
                mass = p.sum(1, keepdim=True)
                found = fit(rest, ts * (mass * (rest.z / ts).softmax(1) - p))
                if found is None or found.uneven or found.residual > rest.tolerance or found.weight < 0:
                    continue
                # Renormalised, with what was lost as a weight of each row, they fit as well: then all but one are odd.
                if best is not None and not best.uneven and found.residual > _BETTER * best.residual:
                    continue
                e = described(rest, found, blank, said, "forward", temperature=(ts, tt))
                return replace(e, cut="after", wider=rows.shape[1], mass=float(mass.mean()))
    return None
