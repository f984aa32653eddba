"""What the distillation term is, as its gradient tells: whom it reaches, its form, its temperature, its weight."""

import math

from audits.checks import Verdict, audit, failed, no_distillation, passed, some, undecided
from audits.events import Sight, Term, Trace, Where
from audits.explain import Explanation

TOLERANCE = 2e-3
"On weights: relative, and on the sum of two that should be one."

_DIRECT = (
    "kl_div",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "cosine_similarity",
    "cosine_embedding_loss",
)
_FORMS = {
    "reversed": "it is KL(student || teacher): the student stands in the teacher's place",
    "probabilities": "the student's probabilities stand where torch's kl_div wants log-probabilities",
    "logits-as-target": "the teacher's logits stand where probabilities are due",
    "log-target": "the teacher's log-probabilities are taken for probabilities (log_target is not set)",
    "negative": "its sign is wrong: it drives the student away from the teacher",
}


def _explained(trace: Trace) -> list[tuple[Sight, Explanation]]:
    return [(s, e) for s in trace.sights for e in s.explanations]


def _declared_decoupled() -> Verdict:
    return undecided("out-of-scope", "the term is declared to be decoupled, and this reads that of T^2 KL alone")


def _place(trace: Trace, sight: Sight | None = None) -> Where | None:
    """Return the line of the distillation term, or else of the backward."""
    at = sight or trace.sights[0]
    return next((t.where for t in at.terms if t.kind == "soft" and t.where is not None), at.where)


@audit(
    "KD311",
    severity="error",
    phase="first",
    follows=("KD103", "KD214"),
    mend="build the term from the student's own answer with its graph: no detach(), .data, .item() or no_grad on that "
    "side; and from the teacher's answer, not the student's, on the other",
)
def term_provenance(trace: Trace) -> Verdict:
    """Every distillation term reaches the student it should train, and the projector it goes through.

    Fails when a term's student side is cut from its graph, when the teacher answers and the student is held against
    itself, the teacher against itself, or the answer reaches no loss, when a feature term leaves its projector or the
    student without a gradient, or when the student as a whole is frozen.
    """
    if not trace.sights:
        # Declared, the teacher is known for one; without that it takes longer to be sure.
        if trace.idle_windows >= (5 if trace.script else 3):
            return failed(
                f"a second network ({trace.idle_name}) answered the student's batch before {trace.idle_windows} "
                "backwards, and its answer reached no loss",
                {"windows": trace.idle_windows, "network": trace.idle_name},
                trace.idle_where,
            )
        return no_distillation(trace)
    if trace.lost_windows >= (5 if trace.script else 2):
        return failed(
            f"the answer of {trace.idle_name} to the student's batch reached the loss at first, and no longer does: it "
            f"reached none of the last {trace.lost_windows} seen",
            {"windows": trace.lost_windows, "network": trace.idle_name},
            trace.idle_where,
        )
    sight = trace.sights[0]
    terms = [t for s in trace.sights for t in s.terms]
    explained = _explained(trace)
    acts = any(e.form != "nothing" for _, e in explained)
    if all(s.student_frozen for s in trace.sights):
        return failed("no parameter of the student gets a gradient", {"student": sight.student}, sight.where)
    for s in trace.sights:
        silent = all(e.form == "nothing" for e in s.explanations)
        if s.self_taught and s.explanations and (s.idle or s.asked_twice or silent):
            what = f"; the teacher ({s.teacher}) answers, and reaches no loss" if s.idle else ""
            return failed(f"the student is held against its own answer{what}", {"student": s.student}, _place(trace, s))
    for t in terms:
        if t.of_teacher_alone:
            return failed(
                f"a term ({t.name}) holds the teacher's answer against itself: the student is not in it",
                {"term": t.name, "shapes": [list(s) for s in t.shapes]},
                t.where or sight.where,
            )
    for kind in ("soft", "feature"):
        mine = [t for t in terms if t.kind == kind and not t.against_itself]
        # A similarity of the detached answers may weigh the samples of a term that acts.
        direct = [t for t in mine if t.name in _DIRECT and not (acts and t.name == "cosine_similarity")]
        cut = [t for t in direct if not t.reaches_student]
        if not cut and mine and not any(t.reaches_student for t in mine):
            cut = mine
        if kind == "soft" and acts:
            cut = []
        if cut:
            named = "distillation" if kind == "soft" else "feature"
            why = (
                "the student's side is cut from its graph"
                if cut[0].student_ran_detached
                else "its gradient stops before"
            )
            return failed(
                f"the {named} term ({cut[0].name}) never reaches the student: {why}",
                {"term": cut[0].name, "shapes": [list(s) for s in cut[0].shapes]},
                cut[0].where or sight.where,
            )
    for t in terms:
        if t.projectors_missed:
            return failed(
                f"the term ({t.name}) goes through {some(t.projectors_missed, 3)}, which gets no gradient from it",
                {"term": t.name, "projectors": t.projectors_missed},
                t.where or sight.where,
            )
    if acts or any(t.kind == "feature" and t.reaches_student for t in terms):
        return passed("the distillation's gradient reaches the student")
    if any(t.reaches_student for t in terms):
        return undecided(
            "not-in-these-steps", "the distillation term is off in the steps seen: its weight is 0", "--steps"
        )
    return undecided("form-not-recognised", "no distance between student and teacher was recognised")


@audit(
    "KD313",
    severity="error",
    phase="first",
    follows=("KD102", "KD301", "KD305", "KD311"),
    mend="F.kl_div(F.log_softmax(student / T, dim=1), F.softmax(teacher / T, dim=1), reduction='batchmean') * T * T",
)
def target_form(trace: Trace) -> Verdict:
    """The term holds the student's log-probabilities against the teacher's probabilities, at one temperature.

    Fails when what stands in kl_div's places are not log-probabilities and probabilities over the classes, when a
    softmax is taken of what are probabilities already, when the target carries a gradient of the teacher's, when only
    one side is softened, or when the gradient is that of the reversed KL; only warns of a reversed KL that is written
    so on purpose (by hand, or with log_target) and against which nothing was declared.
    """
    if not trace.sights:
        return no_distillation(trace)
    for sight in trace.sights:
        both_ways = any(t.name == "kl_div" and not t.swapped and t.reaches_student for t in sight.terms)
        for t in sight.terms:
            if t.swapped and both_ways:
                continue  # a symmetric divergence
            if (verdict := _operands(t, trace)) is not None:
                return verdict
        if sight.probabilities:
            answers, again = sight.probabilities, sight.squashed_by
            return failed(
                f"the {answers} answers are probabilities already, and a {again} is taken of them again",
                {"whose": sight.probabilities},
                _place(trace, sight),
            )
    if trace.kd.form == "decoupled":
        return _declared_decoupled()
    explained = _explained(trace)
    for sight, e in explained:
        observed = {"form": e.form, "temperature": e.temperature, "residual": e.residual}
        if e.form in _FORMS:
            meant = e.form == "reversed" and trace.kd.temperature is None and not any(t.swapped for t in sight.terms)
            return failed(
                f"the distillation term has the wrong form: {_FORMS[e.form]}",
                observed,
                _place(trace, sight),
                # Written out by hand it may be meant: language models are distilled so.
                "warn" if meant else None,
            )
        if e.form == "one-sided" and e.temperature is not None and 1.0 in e.temperature and max(e.temperature) > 1:
            side = "student's" if e.temperature[1] == 1.0 else "teacher's"
            return failed(
                f"only the {side} side is softened: temperature {e.temperature[0]:g} for the student, "
                f"{e.temperature[1]:g} for the teacher",
                observed,
                _place(trace, sight),
            )
        declared = trace.kd.temperature
        seen = e.temperature[0] if e.form == "forward" and e.temperature is not None else None
        if declared is not None and seen is not None and abs(seen - declared) > 1e-2 * declared:
            return failed(
                f"the temperature in force is {seen:g}, declared {declared:g}", observed, _place(trace, sight)
            )
    for _, e in explained:
        if e.form in ("forward", "mse-logits", "mse-probabilities", "hard-labels"):
            at = f", temperature {e.temperature[0]:g}" if e.temperature is not None and e.form == "forward" else ""
            return passed(f"the term is {_word(e.form)}{at}", {"form": e.form, "residual": e.residual})
        if e.form == "permuted":
            return undecided("form-not-recognised", "the rows do not belong together, so the form was not read")
    if explained and explained[0][1].form == "nothing":
        return undecided("not-in-these-steps", "the soft term has no gradient in the steps seen", "--steps")
    if explained:
        e = explained[0][1]
        return undecided(
            "form-not-recognised",
            f"the form of the soft term was not recognised (residual {e.residual:.2g}): two temperatures, masks, "
            "standardised logits and relational terms are not in the list",
        )
    return undecided("out-of-scope", "no term between logits was seen")


def _word(form: str) -> str:
    return {
        "forward": "KL(teacher || student)",
        "mse-logits": "the squared distance of logits",
        "mse-probabilities": "the squared distance of probabilities",
        "hard-labels": "cross-entropy on the teacher's labels",
    }[form]


def _operands(t: Term, trace: Trace) -> Verdict | None:
    if t.name != "kl_div" or t.against_itself:
        return None
    observed = {"target_sum": t.target_sum, "target_least": t.target_least, "input_sum": t.input_sum}
    if t.across is not None:
        shape = t.shapes[0]
        over = "batch" if t.across == 0 else "sequence"
        return failed(
            f"the softmax runs over the {over} (dimension {t.across} of {shape}), not over the {shape[-1]} classes",
            {**observed, "dimension": t.across, "shape": list(shape)},
            t.where,
        )
    if t.input_sum is not None and abs(t.input_sum - 1) > 2e-2:
        return failed(
            f"kl_div is given as input what are no log-probabilities: exp of a row sums to {t.input_sum:.3g}",
            observed,
            t.where,
        )
    if t.target_least is not None and t.target_least < -1e-6:
        return failed("kl_div is given as target what are no probabilities: some are negative", observed, t.where)
    if t.target_sum is not None and abs(t.target_sum - 1) > 2e-2:
        return failed(
            f"kl_div is given as target what are no probabilities: a row sums to {t.target_sum:.3g}", observed, t.where
        )
    if t.swapped:
        return failed(
            "kl_div's arguments are swapped: the student stands in the target's place, which is the reversed KL",
            observed,
            t.where,
            # Two log-probabilities are handed over the other way round on purpose: on-policy distillation does.
            "warn" if t.log_target and trace.kd.temperature is None else None,
        )
    if t.target_grad and not trace.peers:
        return failed("the target carries a gradient: the teacher is drawn towards the student", observed, t.where)
    return None


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
        if abs(float(f"{x:.{d}g}") - x) <= 2e-4 * abs(x):
            return d
    return 7


@audit(
    "KD312",
    severity="error",
    phase="first",
    follows=("KD313", "KD305", "KD311", "KD341"),
    mend="reduction='batchmean', and * T * T; if the scale is meant (as with a mean over all numbers), "
    "waive it with the reason: --waive KD312=REASON",
)
def kd_scale(trace: Trace) -> Verdict:
    """The distillation term acts with the weight that is written.

    The weight in force is the coefficient of T^2 KL(teacher || student), averaged over the rows, in the gradient that
    the student's logits get. Held against the declared weight; else, where both weights should sum to one, against
    that: a factor by which they do not is named. A free weight decides only what its own way shows.
    """
    if not trace.sights:
        return no_distillation(trace)
    if trace.kd.form == "decoupled":
        return _declared_decoupled()
    read = [(s, e) for s, e in _explained(trace) if e.form == "forward" and e.weight is not None and e.temperature]
    if not read:
        if any(e.form in ("mse-logits", "mse-probabilities", "hard-labels") for _, e in _explained(trace)):
            return undecided("out-of-scope", "the term is no KL divergence, and of others no scale is canonical")
        mean = _mean_reduction(trace)
        if mean is not None:
            return mean
        if any(e.form == "permuted" for _, e in _explained(trace)):
            return undecided("form-not-recognised", "the rows do not belong together, so no weight was read")
        return undecided("form-not-recognised", "no soft term of a known form was seen, so no weight was read")
    sight, e = read[0]
    assert e.weight is not None and e.temperature is not None
    t, k, a = e.temperature[0], e.weight, e.label_weight
    slips = _named(t, e.classes, e.batch, e.rows)
    observed: dict[str, object] = {
        "kd_weight": k,
        "label_weight": a,
        "temperature": t,
        "classes": e.classes,
        "rows": e.rows,
        "residual": e.residual,
    }
    micro = sight.micro
    loose = max(TOLERANCE, 2 * e.residual)  # in half precision the weight is read no better
    place = _place(trace, sight)
    intended = trace.kd.alpha if trace.kd.alpha is not None else trace.kd.kd_weight
    if intended is not None:
        ways = sorted({1, micro})  # a loss divided by its backwards acts with its weight over them all
        for n in ways:
            if abs(k * n - intended) <= loose * intended:
                return passed(f"the term acts with weight {k * n:.4g}, as declared", observed)
        named = [name for n in ways if intended and (name := _names(k * n / intended, slips))]
        factor = named[0] if named else f"{k / intended:.4g}" if intended else "without end"
        return failed(f"the term acts with weight {k:.4g}, declared {intended:g}: a factor {factor}", observed, place)
    if e.partial:
        return undecided(
            "form-not-recognised", "only some rows are distilled, so the weight is relative", "--alpha", observed
        )
    if a is not None and 0 < a < 1 - TOLERANCE:
        for n in sorted({1, micro}):
            if abs(n * (a + k) - 1) <= loose:
                return passed(f"the weights sum to one: labels {n * a:.4g}, distillation {n * k:.4g}", observed)
        for n in sorted({1, micro}):
            fit = [
                (name, f)
                for name, f in slips
                if abs(n * (a + k / f) - 1) <= TOLERANCE
                and n * k / f > 0.02
                # Of sequences several divisors are in use: only a weight that stands in the code speaks.
                and (not e.sequence or any(abs(w * f / k - 1) <= TOLERANCE for w in e.factors))
            ]
            if fit and max(f for _, f in fit) <= 1.004 * min(f for _, f in fit):
                slip_factor = fit[0][1]
                return failed(
                    f"the term acts with weight {n * k:.4g} where {n * k / slip_factor:.4g} belongs beside the labels' "
                    f"{n * a:.4g}: a factor {', or '.join(name for name, _ in fit)}",
                    {**observed, "factor": slip_factor},
                    place,
                )
    if a is not None and _is_twice(1 - a, e.factors, t):
        return failed(
            f"the term acts with weight {k:.4g} where {1 - a:.4g} belongs beside the labels' {a:.4g}: "
            f"it is multiplied by {1 - a:.4g} twice on its way",
            {**observed, "factors": e.factors},
            place,
            "warn",
        )
    mean = _mean_reduction(trace)
    if mean is not None:
        return mean
    slip = _slip_on_the_way(e)
    if slip is not None:
        return failed(
            f"the term acts with weight {k:.4g} at temperature {t:g}, as if by a factor {slip}", observed, place, "warn"
        )
    written = f"{k * t * t:.4g} with T * T missing" if t != 1 else f"{k:.4g}"
    return undecided(
        "intent-unknown",
        f"labels act with weight {'unknown' if a is None else format(a, '.4g')}, distillation with {k:.4g} at "
        f"temperature {t:g} (it would read {written}); whether that is meant cannot be seen",
        "--alpha or --kd-weight" if trace.script else "kd=audits.KD(alpha=) or KD(kd_weight=)",
        observed,
    )


def _is_twice(alpha: float, factors: list[float], t: float) -> bool:
    """Say whether two of the numbers that the term was multiplied by are the weight that it should have once."""
    shares = (alpha, alpha * t, alpha * t * t)
    if not 1e-3 < alpha < 1 - 1e-3:
        return False
    return sum(f != 1 and any(abs(f / share - 1) < TOLERANCE for share in shares) for f in factors) == 2


def _mean_reduction(trace: Trace) -> Verdict | None:
    for sight in trace.sights:
        for t in sight.terms:
            if t.name == "kl_div" and t.reduction == "mean" and t.shapes and t.shapes[0] and t.shapes[0][-1] > 1:
                return failed(
                    f"kl_div's reduction is 'mean', which divides by the {t.shapes[0][-1]} classes too",
                    {"reduction": "mean", "shape": list(t.shapes[0])},
                    t.where,
                    "warn",
                )
    return None


def _slip_on_the_way(e: Explanation) -> str | None:
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
    by_rows = [f for f in factors if any(abs(f * n - 1) <= TOLERANCE for n in {e.rows, e.batch})]
    loose = 5e-3
    if abs(rest * e.classes - 1) <= loose and not any(abs(f / e.classes - 1) <= TOLERANCE for f in factors):
        return "1/C (the mean divides by the classes too)"
    if abs(rest / e.rows - 1) <= loose and not by_rows and e.rows > 1:
        return "B (the sum was not divided by the batch)"
    if abs(rest - 1) <= loose and len(by_rows) == 1 and e.rows > 1:
        return "1/B (divided by the batch twice)"
    if t == 1 or not any(abs(rest / n - 1) <= loose for n in (1, e.rows, e.batch, 1 / e.classes)):
        return None
    written = [f for f in factors if f not in by_rows]
    if _has_square(written, t):
        return None
    if any(abs(f / t - 1) < TOLERANCE or (_digits(f / t) < _digits(f) and _digits(f) > 1) for f in written):
        return "1/T (T instead of T * T)"
    if all(_digits(f) <= 3 for f in written):
        return "1/T^2 (T * T is missing)"
    return None


def _has_square(factors: list[float], t: float) -> bool:
    """Say whether T^2 is among the factors, as one, as two of T, or within one that is rounder without it."""
    if any(abs(f / t**2 - 1) < TOLERANCE for f in factors) or sum(abs(f / t - 1) < TOLERANCE for f in factors) >= 2:
        return True
    return any(_digits(f / t**2) <= _digits(f) for f in factors)


@audit("KD314", severity="info", phase="burn-in", mend="weigh the terms so that both are heard")
def term_balance(trace: Trace) -> Verdict:
    """The distillation term's share of the gradient lies in the declared range."""
    if not trace.sights:
        return no_distillation(trace)
    soft = [e for _, e in _explained(trace) if e.form != "nothing"]
    if not soft:
        return undecided("form-not-recognised", "no gradient of a soft term was seen")
    shares = [1.0 if e.label_weight == 0 else e.share / (1 + e.share) for e in soft]
    share = sum(shares) / len(shares)
    if trace.kd.share is None:
        return undecided(
            "intent-unknown",
            f"the soft term makes up about {share:.0%} of the gradient at the student's logits; no range was declared",
            None if trace.script else "kd=audits.KD(share=(low, high))",
            {"share": share},
        )
    low, high = trace.kd.share
    if low <= share <= high:
        return passed(f"the soft term makes up {share:.0%} of the gradient at the logits", {"share": share})
    return failed(f"the soft term makes up {share:.0%} of the gradient at the logits", {"share": share})


@audit("KD341", severity="error", phase="first", mend="loss = (1 - alpha) * ce + alpha * kd")
def weight_endpoints(trace: Trace) -> Verdict:
    """Each term has its own weight: alpha for the distillation, 1 - alpha for the labels.

    Needs alpha declared; for a function that weighs, :func:`audits.check_weighting` decides without a training.
    """
    if not trace.sights:
        return no_distillation(trace)
    if trace.kd.form == "decoupled":
        return _declared_decoupled()
    alpha = trace.kd.alpha
    read = [(s, e) for s, e in _explained(trace) if e.form == "forward" and e.weight is not None]
    if not read or read[0][1].label_weight is None:
        return undecided("form-not-recognised", "the weights of the two terms were not read")
    sight, e = read[0]
    k, a = float(e.weight or 0), float(e.label_weight or 0)
    if alpha is None:
        return undecided(
            "intent-unknown",
            f"labels act with weight {a:.4g}, distillation with {k:.4g}; which was meant for which was not declared",
            "--alpha" if trace.script else "kd=audits.KD(alpha=), or audits.check_weighting(combine)",
            {"label_weight": a, "kd_weight": k},
        )
    observed = {"label_weight": a, "kd_weight": k, "alpha": alpha}
    if abs(alpha - 0.5) > 1e-3 and abs(a - alpha) <= TOLERANCE and abs(k - (1 - alpha)) <= TOLERANCE:
        return failed(
            f"the weights are exchanged: {k:.4g} on the distillation and {a:.4g} on the labels, alpha is {alpha:g}",
            observed,
            _place(trace, sight),
        )
    if abs(a - (1 - alpha)) <= TOLERANCE:
        return passed(f"the labels have weight 1 - alpha = {a:.4g}", observed)
    return undecided(
        "intent-unknown", f"the labels' weight is {a:.4g}, not 1 - alpha: the weights are free", None, observed
    )
