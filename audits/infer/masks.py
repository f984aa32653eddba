"""What a mask should leave out: places without a label, frames beyond the lengths of a batch, empty places."""

from typing import Any

import torch
from torch import Tensor

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.labels import Label
from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.lost import Frames
from kdbench.audits.observe.windows import IGNORED, FunctionCall, RawWindow
from kdbench.audits.trace import BlindMask, EmptyPlaces, Sight, Trace

_HEARD = 1e-3
"Part of the usual gradient from which a frame gets any: as for rows of tokens."


class Masks(Observer):
    """Notes masks that leave out nothing, and gradients of frames that are none."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Look at the first windows, before their graph is gone."""
        if len(self._trace.losses.sights) >= EXPLAINED:
            return
        if len(raw.roots) == 1:
            sight.empty_places = _empty(raw, cast)
        for label in cast.labels:
            sight.blind_mask = sight.blind_mask or _blind(label, raw, cast)
            if label.call.name == "ctc_loss" and len(raw.roots) == 1:
                sight.frames = sight.frames or _beyond(label, raw, cast)
        if sight.frames is None and len(raw.roots) == 1:
            sight.frames = _past_lengths(raw, cast)


def _blind(label: Label, raw: RawWindow, cast: Cast) -> BlindMask | None:
    """Return the comparison of an answer with the number that a label loss leaves out, which comes out the same
    everywhere."""
    if label.call.name not in ("cross_entropy", "nll_loss") or label.target is None or not raw.compared:
        return None
    ignored = float(label.call.arg(4, "ignore_index", IGNORED))
    places = int((label.target == ignored).sum()) if not label.target.is_floating_point() else 0
    for c in raw.compared if places else ():
        answer = c.answer.detach()
        if c.number == ignored and not answer.min() <= ignored <= answer.max():
            whose = "student" if c.params & cast.student_mask else "teacher"
            return BlindMask(whose, c.number, places, c.where)
    return None


def _past_lengths(raw: RawWindow, cast: Cast) -> Frames | None:
    """Return the same of frames beyond the lengths that the student is told of, where it answers fewer frames than it
    is shown, as behind a convolution with a stride."""
    for call in (c for g in cast.students for c in g.calls if c.output is not None and len(c.given) > 1):
        x, answer = call.given[0], call.output[0]  # type: ignore[index]
        if x.ndim != 3 or not x.is_floating_point() or answer.ndim != 3 or not answer.requires_grad:
            continue
        size, shown, frames = *x.shape[:2], answer.shape[1]
        if len(answer) != size or not 1 < frames <= shown // 2:
            continue
        ends = shown - (x.detach() == 0).all(-1).flip(1).int().cumprod(1).sum(1)
        told = [t for t in call.given[1:] if t.shape == ends.shape and not t.is_floating_point()]
        if not any(torch.equal(t.to(ends.dtype), ends) for t in told):
            continue
        # A frame is made of several, and what it is made of may reach over the edge: one more is none to speak of.
        beyond = torch.arange(frames)[None] >= (ends.cpu()[:, None] * frames / shown).ceil() + 1
        (g,) = gradients_of(raw.roots[0], answer)
        if g is None or not bool(beyond.any()) or bool(beyond.all()):
            continue
        by_frame = g.detach().abs().amax(2).cpu()
        usual = float(by_frame[~beyond].median())
        return Frames(int(beyond.sum()), int((by_frame[beyond] > _HEARD * usual).sum()), "the student")
    return None


def _beyond(label: Label, raw: RawWindow, cast: Cast) -> Frames | None:
    """Return how many frames lie beyond the lengths that CTC is given, which get nothing of it, and how many of these
    get a gradient all the same; None where the student's answer by frame was not seen."""
    scores, lengths = label.call.arg(0, "log_probs"), _lengths(label.call.arg(2, "input_lengths"))
    if not isinstance(scores, Tensor) or scores.ndim != 3 or lengths is None or len(lengths) != scores.shape[1]:
        return None
    frames, size, classes = scores.shape
    beyond = torch.arange(frames)[None] >= lengths[:, None]
    answers = [c.output[0] for g in cast.students for c in g.calls if c.output is not None]
    for answer in answers if bool(beyond.any()) else ():
        if not answer.requires_grad or tuple(answer.shape) not in ((size, frames, classes), (frames, size, classes)):
            continue
        (g,) = gradients_of(raw.roots[0], answer)
        if g is None:
            continue
        by_frame = g.detach().abs().amax(2).cpu()
        by_frame = by_frame if tuple(answer.shape[:2]) == (size, frames) else by_frame.T
        usual = float(by_frame[~beyond].median())
        return Frames(int(beyond.sum()), int((by_frame[beyond] > _HEARD * usual).sum()), "ctc_loss")
    return None


def _empty(raw: RawWindow, cast: Cast) -> EmptyPlaces | None:
    """Return how many places of sequences (B, L, F) hold zeros alone and get nothing of the losses without a teacher.

    And how many of these get a gradient of one with it; None where no other loss leaves such places out.
    """
    terms = [
        f
        for f in cast.soft
        if isinstance(f.out, Tensor)
        and f.out.requires_grad
        and f.made.params & cast.teacher_mask
        and raw.root.calls >> f.index & 1
    ]
    for call in (c for g in cast.students for c in g.calls if terms and c.given and c.output is not None):
        x, answer = call.given[0], call.output[0]  # type: ignore[index]
        if x.ndim != 3 or not x.is_floating_point() or not answer.requires_grad or answer.shape[:2] != x.shape[:2]:
            continue
        empty = (x.detach() == 0).all(-1).cpu()
        if not bool(empty.any()) or bool(empty.all()):
            continue
        (whole,) = gradients_of(raw.roots[0], answer)
        own = _through(raw, terms, answer)
        if whole is None or own is None:
            continue
        rest, soft = ((g.detach().float().flatten(2).abs().amax(2).cpu()) for g in (whole - own, own))
        if float(rest.max()) <= _HEARD * float(soft.max()) or bool((rest[empty] > _HEARD * rest.max()).any()):
            continue
        heard = soft[empty] > _HEARD * soft.max()
        return EmptyPlaces(int(empty.sum()), int(heard.sum()), terms[0].where)
    return None


def _through(raw: RawWindow, terms: list[FunctionCall], answer: Tensor) -> Tensor | None:
    """Return the part of the gradient at an answer that comes through these terms."""
    found: Tensor | None = None
    for f in terms:
        (w,) = gradients_of(raw.roots[0], f.out)
        if w is None:
            continue
        (own,) = gradients_of(f.out, answer, w)
        if own is not None:
            found = own if found is None else found + own
    return found


def _lengths(value: Any) -> Tensor | None:
    if isinstance(value, tuple | list):
        value = torch.tensor(value)
    return value.detach().cpu() if isinstance(value, Tensor) and value.ndim == 1 else None
