"""A softmax that runs over something else than the classes, however it is written.

A softmax does not see a constant added to all that it runs over, so the gradient sums to zero there; and where that is
not over the classes, it is held against the same forms in that direction.
"""

from dataclasses import replace

from torch import Tensor

from kdbench.audits.infer.explain.fit import Explanation, fits, seen_fit
from kdbench.audits.infer.explain.heads import Answer, Head
from kdbench.audits.infer.explain.parts import Gradients
from kdbench.audits.infer.explain.rest import Rest, rest_of
from kdbench.audits.infer.explain.rows import Layout
from kdbench.audits.infer.explain.search import searched_fit
from kdbench.audits.infer.explain.softening import softening
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow

_ZERO = 1e-3
"Sums along a dimension, relative to the numbers' size, that count as none: rounding of half precision."
_NO_SOFTMAX = ("mse-logits", "cosine", "sigmoids", "sigmoids-to-softmax", "sum", "hard-labels")
"Forms without a softmax over the dimension, which prove nothing of it."


def across_fit(
    raw: RawWindow, cast: Cast, student: int, head: Head, gradients: Gradients, rest: Rest, answers: list[Answer]
) -> Explanation | None:
    """Return what a softmax runs over instead of the classes, if the gradient says that it does."""
    if rest.is_invariant is not False or not rest.known or head.value.ndim < 2:
        return None
    layout = rest.layout
    found: Explanation | None = None
    if layout.dim != head.value.ndim - 1 and rest.sizes.cut < _ZERO:
        value = head.value.reshape(-1, layout.classes)
        other = Head(head.z, value, head.labels, -1)
        mixed = [Answer(a.kind, _cut(a.values, layout)) for a in answers if a.among is None]
        words = f"rows that mix {'pixels' if len(layout.shape) == 4 else 'positions'} and classes: {layout.shape} is "
        words += f"reshaped to rows of {layout.classes} without moving the classes to the end"
        whole = gradients.kd()
        of_cut = replace(gradients, kd=lambda: None if whole is None else whole.reshape(-1, layout.classes))
        found = _confirmed(raw, cast, student, other, of_cut, mixed, words, False)
    for dim in range(head.value.ndim):
        if found is None and dim != layout.dim and layout.shape[dim] > 1 and rest.sizes.sums[dim] < _ZERO:
            other = Head(head.z, head.value, head.labels, dim)
            words = f"the {_word(dim, layout)} (dimension {dim} of {layout.shape})"
            shown = _is_shown(raw, student, layout, dim)
            found = _confirmed(raw, cast, student, other, gradients, answers, words, shown)
    return found


def _confirmed(
    raw: RawWindow,
    cast: Cast,
    student: int,
    head: Head,
    gradients: Gradients,
    answers: list[Answer],
    words: str,
    shown: bool,
) -> Explanation | None:
    """Return the finding, where a form in that direction explains the gradient or a softmax over it was seen."""
    rest = rest_of(head, gradients)
    if rest is None or rest.is_nothing:
        return None
    layout = rest.layout
    blank = Explanation("across", 0.0, rest.share, layout.rows, layout.classes, head.value.shape[0], across=words)
    softened = softening(raw, cast, student, rest, answers)
    for attempt in (seen_fit, searched_fit):
        found = attempt(rest, softened, blank)
        if found is not None and fits(rest, found) and found.term not in _NO_SOFTMAX:
            return replace(found, form="across", weight=None)
    return blank if shown else None


def _is_shown(raw: RawWindow, student: int, layout: Layout, dim: int) -> bool:
    """Say whether a softmax of the student's answer over this dimension was seen."""
    for f in raw.functions:
        if f.name not in ("softmax", "log_softmax") or not f.operands or not raw.root.calls >> f.index & 1:
            continue
        _, made, shape = f.operands[0]
        said = f.arg(1, "dim")
        same = len(shape) == len(layout.shape) and shape[layout.dim] == layout.classes
        if same and made.params & student and isinstance(said, int) and said % len(shape) == dim:
            return True
    return False


def _word(dim: int, layout: Layout) -> str:
    if dim == 0:
        return "batch"
    return "sequence" if len(layout.shape) == 3 else "picture's rows" if dim == 2 else "picture's columns"


def _cut(value: Tensor, layout: Layout) -> Tensor:
    return value.reshape(-1, layout.classes) if value.shape == layout.shape else value
