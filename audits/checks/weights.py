"""With which weight the distillation term acts, as its gradient tells."""

import math
from typing import NamedTuple

from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, undecided
from kdbench.audits.checks.reading import declared_form, explained, term_place
from kdbench.audits.infer.explain import Explanation
from kdbench.audits.trace import KD, Sight, Trace
from kdbench.audits.updates import Where

TOLERANCE = 2e-3
"On weights: relative, and on the sum of two that should be one."
_LEAST_WEIGHT = 0.02
"Of a distillation term beside labels: nobody weighs one less, so a slip that would have left less is none."
_TELLING = 1e-3
"Distance from 0, from 1/2 and from 1 at which a weight tells itself from none, from its complement and from all."
_ONE_FACTOR = 1.004
"Ratio up to which two slips leave one factor, and either may be named: twice the tolerance on the sum."
_WRITTEN = 2e-4
"Share by which a number may be off the rounder one that somebody wrote: single precision, and one product."
_ON_THE_WAY = 5e-3
"Tolerance where the weight is held against a product of several factors, each read with its own error."

_COUNTED = 2.0**22
"Rows up to which their number is read off its inverse: single precision tells it from the next one."

_SCALED = ("forward", "reversed", "jsd", "topk", "topk-tail", "topk-scatter", "standardised")
"Forms of which T^2 times the divergence, averaged over the rows, is the canonical scale."
_UNSCALED = (
    "mse-logits",
    "mse-probabilities",
    "hard-labels",
    "cosine",
    "sigmoids",
    "sigmoids-to-softmax",
    "sum",
    "decoupled",
    "normalised",
    "correlated",
    "correlated-logits",
)
"Forms of which no scale is."


def _named(t: float, classes: int, batch: int, rows: int) -> list[tuple[str, float]]:
    """Return the slips that are known, and the factor that each leaves on the term's weight."""
    slips = [
        ("1/C (reduction 'mean' divides by the classes too)", 1 / classes),
        ("B (the sum was not divided by the batch)", float(rows)),
        ("1/B (divided by the batch twice)", 1 / rows),
    ]
    if t != 1:
        slips = [
            ("1/T^2 (T * T is missing)", 1 / t**2),
            ("1/T (T instead of T * T)", 1 / t),
            ("1/(C T^2) (reduction 'mean', and T * T is missing)", 1 / (classes * t**2)),
            *slips,
        ]
    if rows != batch:
        slips.append(("rows/B (divided by the sequences, not by their tokens)", rows / batch))
    return slips


def _names(factor: float, slips: list[tuple[str, float]]) -> str | None:
    """Return the slips that explain a factor; several that are one number are named together."""
    fit = [name for name, value in slips if abs(factor / value - 1) <= 2 * TOLERANCE]
    return ", or ".join(fit) if fit else None


def _digits(x: float) -> int:
    """Return how many significant digits a number as people write it has; 7 for one that nobody wrote."""
    for d in range(1, 7):
        if abs(float(f"{x:.{d}g}") - x) <= _WRITTEN * abs(x):
            return d
    return 7


@audit(
    "KD312",
    severity="error",
    phase="first",
    follows=("KD313", "KD305", "KD311", "KD341"),
    mend="write reduction='batchmean' and multiply the term by T * T; if the scale is intended (as with a mean over "
    "all numbers), waive it with the reason",
)
def kd_scale(trace: Trace) -> Verdict:
    """The distillation term acts with the weight that is written.

    The weight in force is the coefficient of T^2 KL(teacher || student), averaged over the rows, in the gradient that
    the student's logits get. Held against the declared weight; else, where both weights should sum to one, against
    that: a factor by which they do not is named. A free weight decides only what its own way shows.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    if (verdict := declared_form(trace)) is not None:
        return verdict
    read = [(s, e) for s, e in explained(trace) if e.form in _SCALED and e.weight is not None and e.temperature]
    if not read:
        if any(e.form in _UNSCALED for _, e in explained(trace)):
            return undecided(
                "out-of-scope",
                "the gradient shows a squared distance or hard labels (alone or beside another term), and only for "
                "KL(teacher || student) by itself is one scale canonical",
            )
        mean = _mean_reduction(trace)
        if mean is not None:
            return mean
        if any(e.form == "permuted" for _, e in explained(trace)):
            return undecided("form-not-recognised", "the rows do not belong together, so no weight was read")
        return undecided("form-not-recognised", "no soft term of a known form was seen, so no weight was read")
    sight, e = read[0]
    assert e.weight is not None and e.temperature is not None
    if e.uneven:
        said = "the rows have different weights, so there is no one weight to read"
        return undecided("form-not-recognised", said, None, {"kd_weight": e.weight, "label_weight": e.label_weight})
    part = _part_of_step(trace, sight, e)
    reading = _Reading(e, e.weight, e.temperature[0], sight.micro, term_place(trace, sight), part)
    k, t, a = reading.weight, reading.temperature, e.label_weight
    if trace.declared.kd.alpha is not None or trace.declared.kd.kd_weight is not None:
        return _against_declared(reading, trace.declared.kd)
    if e.partial and (mean := _mean_reduction(trace)) is not None:
        return mean
    if e.partial:
        said = "only some rows are distilled, so the weight is relative"
        return undecided("form-not-recognised", said, "alpha", reading.observed)
    # Where exits teach each other the labels weigh on each as they will: what sums to one is not one exit's share.
    verdict = (None if sight.self_taught else _beside_labels(reading)) or _mean_reduction(trace)
    if verdict is not None:
        return verdict
    slip = _slip_on_the_way(e, sight.micro, trace.world)
    if slip is not None:
        said = f"the effective KD weight is {k:.4g} at temperature {t:g}: off by a factor {slip}"
        return failed(said, reading.observed, reading.place, "warn")
    written = f"{k * t * t:.4g} with T * T missing" if t != 1 else f"{k:.4g}"
    return undecided(
        "intent-unknown",
        f"labels act with weight {'unknown' if a is None else format(a, '.4g')}, distillation with {k:.4g} at "
        f"temperature {t:g} (it would read {written}); whether that is meant cannot be seen",
        "alpha or kd_weight" if trace.script else "kd=kdbench.KD(alpha=) or KD(kd_weight=)",
        reading.observed,
    )


def _part_of_step(trace: Trace, sight: Sight, e: Explanation) -> float:
    """Return which part of the rows of a step those of one head are, where tokens come piece by piece.

    1 where the step was not seen whole.
    """
    together = [s for s in trace.losses.sights if s.step == sight.step]
    pieces = [x for s in together for x in s.explanations if x.source == e.source and x.sequence]
    if not e.source or len(pieces) < 2 or any(not s.explanations for s in together):
        return 1.0
    return e.rows / sum(x.rows for x in pieces)


class _Reading(NamedTuple):
    """The weight in force, as the gradient of one window shows it."""

    e: Explanation
    weight: float
    temperature: float
    micro: int
    "Backwards to a step."
    place: Where | None
    part: float = 1.0
    "Part of the step's rows that this window's are."

    @property
    def ways(self) -> list[float]:
        """By what the weight may be multiplied: a loss divided by its backwards acts with its weight over them all, and
        one divided by the rows of the whole step too."""
        return sorted({1, self.micro, 1 / self.part})

    @property
    def slips(self) -> list[tuple[str, float]]:
        """The slips that are known, and the factor that each leaves."""
        slips, several = _named(self.temperature, self.e.classes, self.e.batch, self.e.rows), self.e.members
        if several > 1:
            slips += [
                (f"{several}/B (the sum over {several} teachers was divided by the batch)", several / self.e.rows),
                (f"{several} (the sum over {several} teachers was not divided by their number)", float(several)),
            ]
        return slips

    @property
    def loose(self) -> float:
        """The tolerance on the weight: in half precision it is read no better."""
        return max(TOLERANCE, 2 * self.e.residual)

    @property
    def observed(self) -> dict[str, object]:
        """What was read, for the finding."""
        return {
            "kd_weight": self.weight,
            "label_weight": self.e.label_weight,
            "temperature": self.temperature,
            "classes": self.e.classes,
            "rows": self.e.rows,
            "residual": self.e.residual,
        }


def _against_declared(reading: _Reading, kd: KD) -> Verdict:
    """Hold the weight in force against the declared one."""
    k, ways = reading.weight, reading.ways
    intended = kd.alpha if kd.alpha is not None else kd.kd_weight
    assert intended is not None
    for n in ways:
        if abs(k * n - intended) <= reading.loose * intended:
            return passed(f"the effective KD weight is {k * n:.4g}, as declared", reading.observed)
    named = [name for n in ways if intended and (name := _names(k * n / intended, reading.slips))]
    said = f"the effective KD weight is {k:.4g}; {intended:g} is declared"
    said += f". The ratio is {named[0] if named else f'{k / intended:.4g}'}" if intended else ""
    return failed(said, reading.observed, reading.place)


def _beside_labels(reading: _Reading) -> Verdict | None:
    """Hold the weight in force against that of the labels, where the two should sum to one."""
    k, a, e, ways = reading.weight, reading.e.label_weight, reading.e, reading.ways
    if a is None:
        return None
    if 0 < a < 1 - TOLERANCE:
        for n in ways:
            if abs(n * (a + k) - 1) <= reading.loose:
                said = f"the weights sum to one: labels {n * a:.4g}, distillation {n * k:.4g}"
                return passed(said, reading.observed)
        for n in ways:
            fit = [
                (name, f)
                for name, f in reading.slips
                if abs(n * (a + k / f) - 1) <= TOLERANCE
                and n * k / f > _LEAST_WEIGHT
                # Of sequences several divisors are in use: only a weight that stands in the code speaks.
                and (not e.sequence or any(abs(w * f / x - 1) <= TOLERANCE for w in e.factors for x in (k, n * k)))
            ]
            if fit and max(f for _, f in fit) <= _ONE_FACTOR * min(f for _, f in fit):
                slip_factor = fit[0][1]
                return failed(
                    f"the effective KD weight is {n * k:.4g}; {n * k / slip_factor:.4g} is expected beside the labels' "
                    f"weight {n * a:.4g}. The ratio is {', or '.join(name for name, _ in fit)}",
                    {**reading.observed, "factor": slip_factor},
                    reading.place,
                )
    if _is_twice(1 - a, e.factors, reading.temperature):
        return failed(
            f"the effective KD weight is {k:.4g}; {1 - a:.4g} is expected beside the labels' weight {a:.4g}. "
            f"The term is multiplied by {1 - a:.4g} twice",
            {**reading.observed, "factors": e.factors},
            reading.place,
            "warn",
        )
    return None


def _is_twice(alpha: float, factors: list[float], t: float) -> bool:
    """Say whether two of the numbers that the term was multiplied by are the weight that it should have once."""
    shares = (alpha, alpha * t, alpha * t * t)
    if not _TELLING < alpha < 1 - _TELLING:
        return False
    square = [f for f in factors if abs(f / t - 1) < TOLERANCE]
    if len(square) == 2:  # T * T, whatever else they may be
        factors = [f for f in factors if f not in square]
    return sum(f != 1 and any(abs(f / share - 1) < TOLERANCE for share in shares) for f in factors) == 2


def _mean_reduction(trace: Trace) -> Verdict | None:
    for sight in trace.losses.sights:
        for t in sight.terms:
            if t.name == "kl_div" and t.reduction == "mean" and t.shapes and t.shapes[0] and t.shapes[0][-1] > 1:
                return failed(
                    f"kl_div's reduction is 'mean', which divides by the {t.shapes[0][-1]} classes too",
                    {"reduction": "mean", "shape": list(t.shapes[0])},
                    t.where,
                    "warn",
                    by_itself=True,
                )
    return None


def _slip_on_the_way(e: Explanation, micro: int, world: int) -> str | None:
    """Return the slip that the numbers written on the term's way to the sum show, where the weight is free.

    Their product is what the code multiplies the term by. Over T^2 it is the weight in force, but for what the
    reduction did; and either T^2 is among them, or it is missing.
    """
    assert e.temperature is not None and e.weight is not None
    t, factors = e.temperature[0], e.factors
    product = math.prod(factors)
    if product <= 0 or not e.factors_known:
        return None
    rest = e.weight * t * t / product
    of_all = [f for f in factors if abs(f * e.rows * e.classes - 1) <= TOLERANCE]
    of_classes = [f for f in factors if abs(f / e.classes - 1) <= TOLERANCE]
    if of_all and of_classes:  # a mean over all numbers, times the classes again, is one over the rows
        factors = [f for f in factors if f not in (of_all[0], of_classes[0])] + [1 / e.rows]
    by_rows = [f for f in factors if any(abs(f * n - 1) <= TOLERANCE for n in {e.rows, e.batch})]
    if e.sequence or micro > 1 or world > 1:  # rows of several backwards or ranks are one mean, or padding counts too
        by_rows += [f for f in factors if f not in by_rows and _divides_by_more(f, e.rows, world)]
    if any(abs(f * e.rows * e.classes - 1) <= TOLERANCE for f in factors) and abs(rest / e.rows - 1) <= _ON_THE_WAY:
        return "1/C (the sum is divided by the classes too)"  # a mean over all numbers, by another road
    if abs(rest * e.classes - 1) <= _ON_THE_WAY and not any(abs(f / e.classes - 1) <= TOLERANCE for f in factors):
        return "1/C (the mean divides by the classes too)"
    if len(by_rows) == 1 and abs(rest * e.classes / e.rows - 1) <= _ON_THE_WAY and e.rows > 1:
        return "1/C (the mean divides by the classes too)"  # over the classes alone; the rows are divided by hand
    if abs(rest / e.rows - 1) <= _ON_THE_WAY and not by_rows and e.rows > 1:
        return "B (the sum was not divided by the batch)"
    if abs(rest - 1) <= _ON_THE_WAY and len(by_rows) == 1 and e.rows > 1:
        return "1/B (divided by the batch twice)"
    if t == 1 or not any(abs(rest / n - 1) <= _ON_THE_WAY for n in (1, e.rows, e.batch, 1 / e.classes)):
        return None
    written = [f for f in factors if f not in by_rows]
    if _has_square(written, t):
        return None
    if any(abs(f / t - 1) < TOLERANCE or (_digits(f / t) < _digits(f) and _digits(f) > 1) for f in written):
        return "1/T (T instead of T * T)"
    if all(_digits(f) <= 3 for f in written):
        return "1/T^2 (T * T is missing)"
    return None


def _divides_by_more(factor: float, rows: int, world: int) -> bool:
    """Say whether a factor divides by a whole number of rows, of which those that were seen are some.

    Of several ranks, whose gradients are averaged, it may be the mean over the ranks of their rows.
    """
    count = world / factor if factor else 0.0
    return rows < count < _COUNTED and abs(count - round(count)) <= TOLERANCE


def _has_square(factors: list[float], t: float) -> bool:
    """Say whether T^2 is among the factors, as one, as two of T, or within one that is rounder without it."""
    if any(abs(f / t**2 - 1) < TOLERANCE for f in factors) or sum(abs(f / t - 1) < TOLERANCE for f in factors) >= 2:
        return True
    return any(_digits(f / t**2) <= _digits(f) for f in factors)


@audit("KD314", severity="info", phase="burn-in", mend="weigh the terms so that both are heard")
def term_balance(trace: Trace) -> Verdict:
    """The distillation term's share of the gradient lies in the declared range."""
    if not trace.losses.sights:
        return no_distillation(trace)
    soft = [e for _, e in explained(trace) if e.form != "nothing"]
    if not soft:
        return undecided("form-not-recognised", "no gradient of a soft term was seen")
    shares = [1.0 if e.label_weight == 0 else e.share / (1 + e.share) for e in soft]
    share = sum(shares) / len(shares)
    if trace.declared.kd.share is None:
        return undecided(
            "intent-unknown",
            f"the soft term makes up about {share:.0%} of the gradient at the student's logits; no range was declared",
            None if trace.script else "kd=kdbench.KD(share=(low, high))",
            {"share": share},
        )
    low, high = trace.declared.kd.share
    if low <= share <= high:
        return passed(f"the soft term makes up {share:.0%} of the gradient at the logits", {"share": share})
    said = f"the soft term makes up {share:.0%} of the gradient at the logits; declared {low:.0%} to {high:.0%}"
    return failed(said, {"share": share}, term_place(trace))


@audit("KD341", severity="error", phase="first", mend="loss = (1 - alpha) * ce + alpha * kd")
def weight_endpoints(trace: Trace) -> Verdict:
    """Each term has its own weight: alpha for the distillation, 1 - alpha for the labels.

    Needs alpha declared; for a function that weighs, :func:`kdbench.check_weighting` decides without a training.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    if (verdict := declared_form(trace)) is not None:
        return verdict
    alpha = trace.declared.kd.alpha
    read = [(s, e) for s, e in explained(trace) if e.form == "forward" and e.weight is not None]
    if not read or read[0][1].label_weight is None:
        return undecided("form-not-recognised", "the weights of the two terms were not read")
    sight, e = read[0]
    k, a = float(e.weight or 0), float(e.label_weight or 0)
    if alpha is None:
        return undecided(
            "intent-unknown",
            f"the labels have weight {a:.4g} and the distillation has {k:.4g}; the intended weights are not declared",
            "alpha" if trace.script else "kd=kdbench.KD(alpha=), or kdbench.check_weighting(combine)",
            {"label_weight": a, "kd_weight": k},
        )
    observed = {"label_weight": a, "kd_weight": k, "alpha": alpha}
    if abs(alpha - 0.5) > _TELLING and abs(a - alpha) <= TOLERANCE and abs(k - (1 - alpha)) <= TOLERANCE:
        return failed(
            f"the weights are exchanged: {k:.4g} on the distillation and {a:.4g} on the labels, alpha is {alpha:g}",
            observed,
            term_place(trace, sight),
        )
    if abs(a - (1 - alpha)) <= TOLERANCE:
        return passed(f"the labels have weight 1 - alpha = {a:.4g}", observed)
    return undecided(
        "intent-unknown", f"the labels' weight is {a:.4g}, not 1 - alpha: the weights are free", None, observed
    )
