"""What a mask should leave out: places without a label, frames beyond the lengths of a batch."""

from typing import Any

import torch
from torch import Tensor

from kdbench.audits.infer.labels import Label
from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import BlindMask, Sight, Trace

_IGNORED = -100
"What torch's cross-entropy leaves out where nothing else is said."
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
        for label in cast.labels:
            sight.blind_mask = sight.blind_mask or _blind(label, raw, cast)
            if label.call.name == "ctc_loss" and len(raw.roots) == 1:
                sight.frames = sight.frames or _beyond(label, raw, cast)


def _blind(label: Label, raw: RawWindow, cast: Cast) -> BlindMask | None:
    """Return the comparison of an answer with the number that a label loss leaves out, which comes out the same
    everywhere."""
    if label.call.name not in ("cross_entropy", "nll_loss") or label.target is None or not raw.compared:
        return None
    ignored = float(label.call.arg(4, "ignore_index", _IGNORED))
    places = int((label.target == ignored).sum()) if not label.target.is_floating_point() else 0
    for c in raw.compared if places else ():
        answer = c.answer.detach()
        if c.number == ignored and not answer.min() <= ignored <= answer.max():
            whose = "student" if c.params & cast.student_mask else "teacher"
            return BlindMask(whose, c.number, places, c.where)
    return None


def _beyond(label: Label, raw: RawWindow, cast: Cast) -> tuple[int, int] | None:
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
        (g,) = torch.autograd.grad(raw.roots[0], answer, retain_graph=True, allow_unused=True)
        if g is None:
            continue
        by_frame = g.detach().abs().amax(2).cpu()
        by_frame = by_frame if tuple(answer.shape[:2]) == (size, frames) else by_frame.T
        usual = float(by_frame[~beyond].median())
        return int(beyond.sum()), int((by_frame[beyond] > _HEARD * usual).sum())
    return None


def _lengths(value: Any) -> Tensor | None:
    if isinstance(value, tuple | list):
        value = torch.tensor(value)
    return value.detach().cpu() if isinstance(value, Tensor) and value.ndim == 1 else None
