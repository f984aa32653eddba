"""The explanation of each head's gradient in a window: the parts put together."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.explain.across import across_fit
from kdbench.audits.infer.explain.correlated import correlated_fit
from kdbench.audits.infer.explain.decoupled import decoupled_fit, leaves_nothing_out
from kdbench.audits.infer.explain.events import at_events
from kdbench.audits.infer.explain.fit import Explanation, beside_each_other, fits, seen_fit
from kdbench.audits.infer.explain.forms import Try
from kdbench.audits.infer.explain.heads import Answer, Head, heads, mixed_label, softmax_heads, teacher_answers
from kdbench.audits.infer.explain.narrow import narrow_fit
from kdbench.audits.infer.explain.parts import Gradients, gradients_at
from kdbench.audits.infer.explain.permutation import (
    halves_fit,
    order_of_parts,
    order_searched,
    ordered_fit,
    permutation_of,
)
from kdbench.audits.infer.explain.pieces import answers_to, piece_of
from kdbench.audits.infer.explain.rest import Rest, rest_of
from kdbench.audits.infer.explain.rows import Layout
from kdbench.audits.infer.explain.search import forward_searched, searched_fit
from kdbench.audits.infer.explain.softening import Softening, softening
from kdbench.audits.infer.explain.support import support_of
from kdbench.audits.infer.explain.topk import topk_fit
from kdbench.audits.infer.explain.vocabulary import cut_fit
from kdbench.audits.infer.labels import Label
from kdbench.audits.infer.reindexed import reindexed
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.still import are_one
from kdbench.audits.observe.windows import LABEL_LOSSES, RawWindow


def explain(raw: RawWindow, cast: Cast, hints: tuple[Try, ...] = ()) -> list[Explanation]:
    """Explain the gradient at each head of each student that is taught in this window; `hints` are tried first."""
    if len(raw.roots) != 1 or raw.roots[0].numel() != 1 or not raw.roots[0].requires_grad:
        return []
    found = []
    for group in cast.students:
        answers = teacher_answers(raw, cast, group.mask)
        if not answers and not cast.self_taught:
            continue
        is_told = False
        for head in heads(raw, cast, group.mask, answers):
            if is_told and head.upstream:
                continue  # what was said of the logits made of it holds for it too
            own = answers
            if (piece := piece_of(raw, group.mask, head)) is not None:
                head, own = head._replace(is_piece=True), answers_to(piece, head, answers)
            explanation = _explain_head(raw, cast, group.mask, head, own, hints)
            if explanation is not None:
                if cast.self_taught:
                    explanation.teacher_logits = None  # its own answer is no teacher's, to be held against the labels
                found.append(explanation)
                is_told = is_told or explanation.form != "nothing" or explanation.vanishes
        if all(e.form in ("nothing", "unknown") for e in found) and (told := _at_softmaxes(raw, cast, group.mask)):
            found = [*(e for e in found if e.form == "nothing"), *told]
        unread = bool(found) and all(e.form == "unknown" for e in found)
        if unread and (read := at_events(raw, cast, group.mask)):
            found = [replace(e, label_weight=found[0].label_weight, sequence=found[0].sequence) for e in read]
    # Of several heads the one that is distilled speaks; the others have no distillation term to explain.
    telling = [e for e in found if e.form != "nothing"]
    if telling:
        label_weights = [e.label_weight for e in found if e.label_weight]
        for e in telling:
            if not e.label_weight and label_weights:
                e.label_weight = label_weights[0]
    return telling or found[:1]


def _at_softmaxes(raw: RawWindow, cast: Cast, student: int) -> list[Explanation]:
    """Explain the gradient where softmaxes of the student's were taken, where that at its layers says nothing.

    As of a student that learns from its own answers, and of scores that a script makes of answers: how like each other
    they are, or how like those in a queue. What was softened cannot be told there, so neither temperature nor weight is
    read; nor can the order of rows, so where an index turns the teacher's, they have no known place.
    """
    found, turned = [], reindexed(raw, cast)
    for head, answers in softmax_heads(raw, cast, student):
        e = _explain_head(raw, cast, student, head, answers, ())
        if e is not None and e.form in _KNOWN_AT_SOFTMAXES:
            found.append(replace(e, temperature=None, weight=None, coefficients=None, coefficient_rows=None))
            found[-1].teacher_logits = found[-1].attempt = None
            found[-1].placed = not turned
    return found


_KNOWN_AT_SOFTMAXES = ("forward", "reversed", "jsd")
"Forms that are told at a softmax's argument: they need nothing but both sides' probabilities."


def _explain_head(
    raw: RawWindow, cast: Cast, student: int, head: Head, answers: list[Answer], hints: tuple[Try, ...]
) -> Explanation | None:
    if (mixed := mixed_label(raw, head)) is not None:
        beside = _explained_with(raw, cast, student, head._replace(labels=[mixed]), answers, hints, by_hand=False)
        if beside is not None and beside.form != "unknown":
            return beside
    found = _explained_with(raw, cast, student, head, answers, hints, by_hand=False)
    written = any(label.call.name not in LABEL_LOSSES for label in head.labels)
    if not written or (found is not None and found.form != "unknown"):
        return found
    better = _explained_with(raw, cast, student, head, answers, hints, by_hand=True)
    own = [label for label in head.labels if label.call.name in LABEL_LOSSES]
    if own and (better is None or better.form == "unknown"):  # what picks by labels may be a part of the distillation
        better = _explained_with(raw, cast, student, head._replace(labels=own), answers, hints, by_hand=False)
    return found if better is None or (found is not None and better.form == "unknown") else better


def _explained_with(
    raw: RawWindow,
    cast: Cast,
    student: int,
    head: Head,
    answers: list[Answer],
    hints: tuple[Try, ...],
    by_hand: bool,
) -> Explanation | None:
    """Explain the gradient at one head, from which torch's label losses are taken away, or those by hand as well."""
    gradients = gradients_at(raw, head, by_hand)
    if gradients is None:
        return None
    rest = rest_of(head, gradients)
    if rest is None or not math.isfinite(rest.sizes.norm):
        return None
    layout = rest.layout
    n, ndim = layout.rows, head.value.ndim
    blank = Explanation(
        "nothing", 0.0, 0.0, n, layout.classes, head.value.shape[0], sequence=ndim >= 3 or _is_of_words(cast)
    )
    blank.pictures = ndim == 4
    blank.largest, blank.tolerance = float(rest.z.abs().max()), rest.tolerance
    is_nothing = rest.is_nothing
    if is_nothing and not rest.known:
        return blank
    blank = replace(blank, share=rest.share, label_weight=rest.label_weight, looked_at=len(rest.z))
    targets = (label.target for label in head.labels if label.target is not None)
    blank.labels = next((t for t in targets if not t.is_floating_point() and t.numel() == n), None)
    if is_nothing:
        blank.vanishes = rest.share < _CANCELLED and _vanishes(raw, cast, head, layout.classes)
        return blank
    if blank.sequence and not blank.pictures:
        blank.support = support_of(head, rest)
        call = next((c for c in raw.calls if c.output is not None and c.output[0] is head.z), None)
        blank.call, blank.source = (call.index, id(call.module)) if call is not None else (None, 0)
    softened = softening(raw, cast, student, rest, answers, hints)
    found = _explained(raw, cast, student, head, gradients, rest, answers, softened, blank)
    if found.classes == layout.classes and any(_is_of_some(label, layout.classes) for label in head.labels):
        found.labels = None  # the labels of one task's classes say nothing of an answer over those of all
    found.factors = _factors(raw, cast, student, layout.classes, found.call if head.is_piece else None)
    found.factors_known = bool(cast.teacher_mask) or any(f.name == "kl_div" for f in cast.soft)
    if found.labels is not None and found.teacher_logits is not None and len(found.teacher_logits) != n:
        found.labels = found.labels.reshape(-1)[rest.index.to(found.labels.device)]
    return found


def _explained(
    raw: RawWindow,
    cast: Cast,
    student: int,
    head: Head,
    gradients: Gradients,
    rest: Rest,
    answers: list[Answer],
    softened: Softening,
    blank: Explanation,
) -> Explanation:
    """Return the likeliest form that explains the gradient, from the plainest question to the dearest."""
    best = seen_fit(rest, softened, blank)
    if (wider := cut_fit(raw, cast, student, rest, answers, softened, best, blank)) is not None:
        return wider
    if best is not None and fits(rest, best):
        return best
    across = across_fit(raw, cast, student, head, gradients, rest, answers)
    if across is not None:
        return across
    if (narrow := narrow_fit(raw, cast, student, rest, answers, blank)) is not None:
        return narrow
    if _in_halves(cast, student, rest.layout) and (crossed := halves_fit(rest, softened, blank)) is not None:
        return crossed
    for attempt in (
        forward_searched,
        topk_fit,
        ordered_fit,
        decoupled_fit,
        correlated_fit,
        order_of_parts,
        searched_fit,
        beside_each_other,
        order_searched,
        _permuted,
    ):
        found = attempt(rest, softened, blank)
        if found is not None and fits(rest, found):
            if found.form == "undivided" and not leaves_nothing_out(raw, rest.layout.classes):
                return replace(found, form="sum", parts=["forward", "weighed-labels"])
            return found
        if found is not None and (best is None or found.residual < best.residual):
            best = found
    if best is None:
        return replace(blank, form="unknown", residual=1.0)
    return replace(best, form="unknown")


def _in_halves(cast: Cast, student: int, layout: Layout) -> bool:
    """Say whether the student's answers met others half a batch at a time, as those to two views of one batch do."""
    lead = (layout.rows // 2,)
    halves = [(*lead, layout.classes), lead]
    return layout.rows % 2 == 0 and any(
        made.params & student and shape in halves for f in cast.soft for _, made, shape in f.operands[:2]
    )


def _permuted(rest: Rest, softened: Softening, blank: Explanation) -> Explanation | None:
    """Return the order of the teacher's rows that explains the gradient, if it is another than the student's."""
    found = permutation_of(rest, softened)
    if found is None:
        return None
    rows, taught = found
    said = softened.answers[0]
    known = replace(blank, form="permuted", residual=0.0, rows=rest.rows, permutation=taught)
    known.teacher_logits = said.whole if said.whole is not None else said.rows
    whole = rows == list(range(rest.layout.rows))
    return known if whole else replace(known, permuted_rows=rows)


def _is_of_some(label: Label, classes: int) -> bool:
    return label.classes is not None and label.classes < classes


def _vanishes(raw: RawWindow, cast: Cast, head: Head, classes: int) -> bool:
    """Say whether a difference of the answers at these logits gets a gradient from the loss, and hands none on.

    So it is where the student's probabilities weigh its own log-probabilities and are detached: what they weigh sums to
    a constant.
    """
    for f in cast.soft:
        out, sides = f.out, [t for t, _, shape in f.operands[:2] if shape and shape[-1] == classes]
        if (
            not isinstance(out, Tensor)
            or not out.requires_grad
            or len(sides) < 2
            or sides[0] is None
            or sides[1] is None
        ):
            continue
        first = sides[0].exp() if f.name == "kl_div" and not f.arg(5, "log_target", False) else sides[0]
        if first.shape != sides[1].shape or are_one(first, sides[1]):
            continue  # where the answers are one, there is no gradient to hand on
        (w,) = gradients_of(raw.roots[0], out)
        if w is None or not bool((w != 0).any()):
            continue
        (own,) = gradients_of(out, head.z, w)
        (whole,) = gradients_of(raw.roots[0], head.z)
        size = float(w.float().norm())
        if whole is None or size < _WEIGHED * float(whole.float().norm()):
            continue  # it has next to no weight, which is another matter
        if own is not None and float(own.float().norm()) < _VANISHED * size:
            return True
    return False


_CANCELLED = 5e-7
"Part of the labels' gradient that is left of one that cancels: rounding of single precision leaves a tenth of it."
_WEIGHED = 1e-3
"Part of the whole gradient at the logits that comes in at a difference which has a weight; terms in use have a tenth."
_VANISHED = 1e-5
"Part of a gradient that is left where it should be none: rounding of single precision."


def _is_of_words(cast: Cast) -> bool:
    """Say whether the students are shown numbers of words, whose rows of answers are tokens however they are shaped."""
    given = [t for g in cast.students for c in g.calls for t in c.given[:1]]
    return bool(given) and all(t.ndim == 2 and t.dtype in (torch.long, torch.int) for t in given)


def _factors(raw: RawWindow, cast: Cast, student: int, classes: int, piece: int | None) -> list[float]:
    """Return the numbers that a distillation term was multiplied by before it was added to the label term.

    Of a sequence in pieces, those on the way of the piece that this call answered: each is multiplied anew.
    """
    labels = 0
    for label in cast.labels:
        labels |= 1 << label.call.index
    of_width = [f for f in cast.soft if any(shape and shape[-1] == classes for _, _, shape in f.operands)]
    divergences = [f for f in cast.soft if f.name == "kl_div"]
    if not any(f.name == "kl_div" for f in of_width):  # else those of other widths are other heads'
        of_width += divergences
    soft = 0
    for f in of_width:
        soft |= 1 << f.index
    return [
        factor
        for made, factor in raw.scales
        if not made.calls & labels
        and made.params & student
        and made.calls & soft
        and (piece is None or made.calls >> piece & 1)
        and raw.root.calls | made.calls == raw.root.calls
    ]
