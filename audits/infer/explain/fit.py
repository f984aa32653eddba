"""Fitting the closed forms to what the label losses leave of a gradient: which form, with which weight, how well."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from kdbench.audits.infer.explain.forms import GRID, Kind, Softening, flat, gradients_of_forms
from kdbench.audits.infer.explain.heads import Gradients, Head, label_gradient

Try = tuple[Kind, Tensor, tuple[float, float]]
"The teacher's answer (N, C), and the temperatures of student and teacher."

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Residuals up to which a form is taken for the right one. In single precision right ones leave 1e-7, one in a hundred
2e-6, and wrong ones 1e-2 or more; in the others it is some five roundings (5e-4 and 4e-3)."""
_LOOSEST = 0.05
"A residual above this is another form's, in whatever precision."
_CLEAR = 0.1
"Part of the tolerance at which the canonical form is taken without a look at the rest: nothing else fits this well."
_BETTER = 0.5
"A form replaces another where it halves the residual: forms that agree to rounding leave the first, the likelier."
_BETTER_CANONICAL = 0.999
"The canonical form replaces another where it fits better at all: it is the likeliest."
_LEAST_SHARE = 1e-6
"A gradient of this norm counts as none where no label term is there to compare it with."
_NOISE = {torch.float16: 1e-2, torch.bfloat16: 4e-2}
"Part of the label term's gradient that its rounding can leave: twenty roundings of float16, ten of bfloat16."
_NOISE_ELSE = 1e-5
"The same in single precision: a hundred roundings, as softmax, mean and a scaler's factor add up to."
_SILENT = 1e-12
"Part of the largest gradient below which a row gets none: rows that a mask leaves out get exactly 0, or underflow."
_TINY, _TINIEST = 1e-12, 1e-30
"Sizes that count as nothing, and what is kept from dividing by zero: gradients in use are above 1e-9."
_LEAST_BESIDE = 1e-4
"Part of the label term below which a term fitted beside it is left out: the tolerance lets the labels leave as much."
_TOLERANCE_BESIDE, _SHARE_BESIDE = 3e-3, 0.01
"""Beside labels that are fitted too, the residual at which the canonical form still stands, where its term is at least
so large: a label loss by hand (class weights, mixtures of labels) has other gradients by a little."""


@dataclass
class Explanation:
    """What the gradient at one set of logits says of the distillation term."""

    form: str
    """forward, one-sided, reversed, probabilities, logits-as-target, log-target, mse-logits, mse-probabilities,
    hard-labels, permuted, nothing (no gradient at all), or unknown."""
    residual: float
    share: float
    "Size of the distillation term's gradient, relative to the label term's."
    rows: int
    classes: int
    batch: int
    temperature: tuple[float, float] | None = None
    "Of the student and of the teacher."
    weight: float | None = None
    "With which the canonical term acts."
    label_weight: float | None = None
    permutation: list[int] | None = None
    partial: bool = False
    "Whether only some rows are distilled."
    sequence: bool = False
    factors_known: bool = False
    factors: list[float] = field(default_factory=list)
    "Numbers that the term was multiplied by on its way to the sum, as written."
    teacher_logits: Tensor | None = None
    "The teacher's answers to the rows, to be held against labels."
    labels: Tensor | None = None


@dataclass(frozen=True)
class Rest:
    """What the label losses leave to be explained of the gradient at one head; all of it (N, C) in double precision."""

    z: Tensor
    "The values of the logits."
    gradients: Gradients
    columns: list[Tensor]
    "Where the labels' part is unknown: what it may be made of, to be fitted along."
    dtype: torch.dtype

    @property
    def of_labels(self) -> Tensor | None:
        """The label losses' part, where it is known."""
        return self.gradients.of_labels

    @cached_property
    def kd(self) -> Tensor:
        """The gradient without the labels' part; with it where that is unknown."""
        return self.gradients.whole if self.of_labels is None else self.gradients.whole - self.of_labels

    @cached_property
    def label_size(self) -> float:
        """The norm of the labels' part, or of a mean cross-entropy in its place."""
        return float((self.columns[0] if self.of_labels is None else self.of_labels).norm())

    @cached_property
    def share(self) -> float:
        """The size of what is left, relative to the labels' part."""
        return float(self.kd.norm()) / (self.label_size or 1.0)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing but rounding is left for a distillation term."""
        if self.of_labels is None:
            whole = self.gradients.whole.reshape(-1, 1)
            alone = torch.stack([c.reshape(-1) for c in self.columns], 1)
            fit = alone @ torch.linalg.lstsq(alone, whole).solution
            return float((whole - fit).norm()) <= _TOLERANCE.get(self.dtype, _TOLERANCE[torch.float32]) * float(
                whole.norm()
            )
        noise = _NOISE.get(self.dtype, _NOISE_ELSE)
        return self.share < max(_LEAST_SHARE, noise if self.label_size else 0)

    @cached_property
    def tolerance(self) -> float:
        """The residual up to which a form is the right one."""
        tolerance = _TOLERANCE.get(self.dtype, _TOLERANCE[torch.float32])
        if self.of_labels is None:
            return tolerance
        # The sum of both terms was rounded to the logits' precision, so a small term has the rounding of a large one.
        rounding = torch.finfo(self.dtype).eps / 2 * float(self.gradients.whole.norm()) / float(self.kd.norm())
        return min(_LOOSEST, max(tolerance, rounding))

    @cached_property
    def live(self) -> Tensor:
        """Which rows (N,) get a gradient."""
        return self.kd.abs().amax(1) > _SILENT * float(self.kd.abs().max() or 1.0)

    @cached_property
    def partial(self) -> bool:
        """Whether some rows get a gradient and others none."""
        return self.of_labels is not None and 0 < int(self.live.sum()) < len(self.z)

    @cached_property
    def rows(self) -> int:
        """The number of rows that the term is a mean over."""
        return int(self.live.sum()) if self.partial else len(self.z)

    @cached_property
    def together(self) -> bool:
        """Whether the rows that are not distilled have no label either, so that the terms' weights compare."""
        # A last token that has no next one is neither labelled nor distilled.
        part = self.of_labels
        return self.partial and part is not None and torch.equal(self.live, part.abs().amax(1) > 0)

    def fits(self, best: Explanation) -> bool:
        """Say whether a form explains what is left."""
        if best.residual <= self.tolerance:
            return True
        beside = self.of_labels is None and best.share > _SHARE_BESIDE
        return best.residual <= _TOLERANCE_BESIDE and best.form == "forward" and beside


def rest_of(head: Head, gradients: Gradients) -> Rest | None:
    """Return what is to be explained at a head; None where the labels' part is unknown and cannot be fitted along."""
    z = flat(head.value)
    columns: list[Tensor] = []
    if gradients.of_labels is None:
        bases = [b for label in head.labels if (b := label_gradient(head.value, label)) is not None]
        if not bases:
            return None
        columns = [bases[0], (z.softmax(1) - 1 / z.shape[1]) / len(z)]
    return Rest(z, gradients, columns, head.z.dtype)


def best_fit(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the form that explains best what is left, at the temperatures that were seen; None if none can be tried.

    `blank` holds what is known of the head beforehand.
    """
    tries: list[Try] = [(kind, t, pair) for kind, t in softening.answers for pair in softening.pairs(kind)]
    best = _better(None, fits(rest, tries, blank), rest.tolerance)
    if rest.of_labels is not None and (best is None or best.residual > rest.tolerance):
        # A softmax that is written out by hand shows no temperature.
        logits = [answer for answer in softening.answers if answer.kind == "logits"]
        tries = [(kind, t, (g, g)) for kind, t in logits for g in GRID]
        best = _better(best, (e for e in fits(rest, tries, blank) if e.form == "forward"), rest.tolerance)
    return best


def shifted_fit(rest: Rest, softening: Softening, blank: Explanation, shape: tuple[int, ...]) -> Explanation | None:
    """Return the canonical form of answers that are one position off, in sequences with logits of this (B, L, C)."""
    for by in (-1, 1):
        moved: list[Try] = [
            (kind, t.reshape(shape).roll(by, 1).reshape(rest.z.shape), pair)
            for kind, t in softening.answers
            if t.shape == rest.z.shape
            for pair in softening.pairs(kind)
        ]
        found = _better(None, (e for e in fits(rest, moved, blank) if e.form == "forward"), rest.tolerance)
        if found is not None and found.residual <= rest.tolerance:
            permutation = [i - by if taught else i for i, taught in enumerate(rest.live.tolist())]
            return replace(found, form="permuted", permutation=permutation)
    return None


def fits(rest: Rest, tries: Iterable[Try], blank: Explanation) -> Iterator[Explanation]:
    """Yield how well each form of each answer explains what is left."""
    for kind, t, (ts, tt) in tries:
        if t.shape != rest.z.shape:
            continue
        for form, basis in gradients_of_forms(rest.z, t, kind, ts, tt, rest.rows):
            if rest.partial:
                basis = basis * rest.live[:, None]
            size = float(basis.norm())
            if not size > _TINY or not bool(basis.isfinite().all()):
                continue
            fit = _fit_beside(rest, basis) if rest.of_labels is None else _fit(rest, basis)
            if fit is None:
                continue
            weight, residual, share, label_weight = fit
            yield replace(
                blank,
                form="negative" if form in ("forward", "one-sided") and weight < 0 else form,
                residual=residual,
                share=share,
                rows=rest.rows,
                temperature=(ts, tt),
                weight=weight,
                label_weight=label_weight,
                partial=rest.partial and not rest.together,
                teacher_logits=t.log() if kind == "probabilities" else t,
            )


Fit = tuple[float, float, float, float | None]
"Weight of the term, residual, share, weight of the labels."


def _fit(rest: Rest, basis: Tensor) -> Fit:
    """Fit one form to what the labels leave."""
    weight = float((rest.kd * basis).sum()) / float(basis.norm()) ** 2
    residual = float((rest.kd - weight * basis).norm() / rest.kd.norm())
    return weight, residual, rest.share, rest.gradients.label_weight


def _fit_beside(rest: Rest, basis: Tensor) -> Fit | None:
    """Fit one form and the labels' part at once; None where the form takes next to nothing."""
    whole = rest.gradients.whole
    stack = torch.stack([*(c.reshape(-1) for c in rest.columns), basis.reshape(-1)], 1)
    scale = stack.norm(dim=0).clamp_min(_TINIEST)
    solution = torch.linalg.lstsq(stack / scale, whole.reshape(-1, 1)).solution.squeeze(1) / scale
    weight = float(solution[-1])
    fit = (stack @ solution).reshape_as(whole)
    left = whole - (stack[:, :-1] @ solution[:-1]).reshape_as(whole)
    residual = float((whole - fit).norm() / left.norm().clamp_min(_TINIEST))
    label_weight = float(solution[0] + solution[1])
    share = abs(weight) * float(basis.norm()) / (abs(label_weight) * rest.label_size + _TINIEST)
    return None if share < _LEAST_BESIDE else (weight, residual, share, label_weight)


def _better(best: Explanation | None, found: Iterable[Explanation], tolerance: float) -> Explanation | None:
    """Return the better of what there is and what is found; no more is looked for once the canonical form fits well."""
    for e in found:
        if best is None or e.residual < best.residual * (_BETTER_CANONICAL if e.form == "forward" else _BETTER):
            best = e
        if best.form == "forward" and best.residual <= _CLEAR * tolerance:
            break
    return best
