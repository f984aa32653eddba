"""What was handed to the functions in which student and teacher meet, as far as it is wrong by itself."""

from kdbench.audits.checks.catalogue import Verdict, failed, some
from kdbench.audits.checks.reading import OF_SCORES
from kdbench.audits.trace import Term, Trace

TWICE = 2
"Backwards that must agree: in one, the answers may be equal by chance."
_SUM = 2e-2
"Distance from one up to which a row of probabilities sums to one: half precision over a thousand classes."
_ROUNDING = 1e-6
"Below zero, what rounding leaves of a probability."


def stands_still(trace: Trace) -> Verdict | None:
    """Judge a distance of features that does not move with the student's answer, each time that it was seen."""
    seen: dict[tuple[str, int, str], list[Term]] = {}
    for t in (t for s in trace.losses.sights for t in s.terms if t.where is not None):
        assert t.where is not None
        seen.setdefault((t.where["file"], t.where["line"], t.name), []).append(t)
    for terms in seen.values():
        t = terms[0]
        if len(terms) >= TWICE and all(t.of_one is not None for t in terms):
            return failed(
                f"the term ({t.name}) does not depend on the student's answer: its softmax runs over dimension "
                f"{t.of_one}, which holds one number, and is 1 whatever that is",
                {"term": t.name, "dimension": t.of_one, "shapes": [list(s) for s in t.shapes]},
                t.where,
            )
        if len(terms) >= TWICE and all(t.still for t in terms):
            return failed(
                f"the feature term ({t.name}) is in the loss and does not depend on the student's answer: what it "
                "compares sums to zero, or is one number, however the student answers",
                {"term": t.name, "shapes": [list(s) for s in t.shapes]},
                t.where,
            )
    return None


def features(trace: Trace) -> Verdict | None:
    """Judge a distance of features: whether it draws them together, what a cosine runs over, and how scores compare."""
    terms = [t for s in trace.losses.sights for t in s.terms if t.kind == "feature"]
    lowered = [t for s in trace.losses.sights for t in s.terms if t.lowers_all]
    if lowered:
        t = lowered[0]
        return failed(
            "the difference of log-probabilities carries a gradient that lowers each of the student's by one number, "
            "whatever the teacher says",
            {"term": t.name, "shapes": [list(s) for s in t.shapes]},
            t.where,
            "warn",  # over words that the student sampled it is nothing in the mean, and noise
            mend="where the difference weighs what the student sampled, detach it",
        )
    uneven = [t for s in trace.losses.sights for t in s.terms if t.contrast is not None and t.contrast != 1]
    if len(uneven) >= TWICE:
        t, ratio = uneven[0], uneven[0].contrast
        return failed(
            "the scores of the contrastive term are not of one temperature: what drives the student from the others "
            f"is {ratio:.3g} times what draws it to its positive",
            {"term": t.name, "ratio": ratio},
            t.where,
            mend="divide all scores, the positives too, by one temperature",
        )
    for t in terms:
        if t.apart:
            said = f"the feature term ({t.name}) has the wrong sign: it drives the student away from the teacher"
            return failed(said, {"term": t.name, "shapes": [list(s) for s in t.shapes]}, t.where)
    over = [t for t in terms if t.across is not None and t.name == "cosine_similarity"]
    if over and all(t.across is not None for t in terms if t.name == "cosine_similarity"):
        t = over[0]
        along = "batch" if t.across == 0 else "sequence"
        return failed(
            f"the cosine runs over the {along} (dimension {t.across} of {t.shapes[0]}), not over the features",
            {"dimension": t.across, "shape": list(t.shapes[0])},
            t.where,
            mend="F.cosine_similarity(student, teacher, dim=-1)",
        )
    return None


def operands(t: Term, trace: Trace) -> Verdict | None:
    least, most = t.target_least, t.target_most
    if t.name in OF_SCORES and least is not None and most is not None and (least < -_SUM or most > 1 + _SUM):
        return failed(
            f"{t.name} is given as target what are no scores from 0 to 1, but numbers from {least:.3g} to {most:.3g}",
            {"target_least": least, "target_most": most},
            t.where,
            by_itself=True,
            mend="take the sigmoid of the teacher's logits",
        )
    if t.unsigned:
        said = f"{t.name} holds absolute margins against absolute margins: which of two is the better one is lost"
        return failed(said, {"term": t.name, "shapes": [list(s) for s in t.shapes]}, t.where, by_itself=True)
    if t.beyond:
        said = f"{t.name} holds the student's probabilities against what are none: some are negative"
        return failed(said, {"term": t.name, "shapes": [list(s) for s in t.shapes]}, t.where, by_itself=True)
    if t.name != "kl_div":
        return None
    if t.against_itself:
        if not t.target_grad:
            return None
        return failed(
            "the target carries a gradient: the answer of the student's own that teaches another is drawn towards it",
            {"term": t.name, "shapes": [list(s) for s in t.shapes]},
            t.where,
            "warn",  # the two may be meant to meet half-way
        )
    observed = {"target_sum": t.target_sum, "target_least": t.target_least, "input_sum": t.input_sum}
    if t.across is not None:
        shape = t.shapes[0]
        over = "batch" if t.across == 0 else "sequence"
        return failed(
            f"the softmax runs over the {over} (dimension {t.across} of {shape}), not over the {shape[-1]} classes",
            {**observed, "dimension": t.across, "shape": list(shape)},
            t.where,
            by_itself=True,
        )
    if t.over_others is not None:
        shape, (mine, its) = t.shapes[0], t.over_others
        return failed(
            f"the two sides of kl_div are probabilities over different dimensions of {shape}: exp of its input sums to "
            f"one over dimension {mine}, its target over dimension {its}",
            {**observed, "dimensions": [mine, its], "shape": list(shape)},
            t.where,
            by_itself=True,
            mend="take the softmax of both networks' logits over the classes, with the same dim",
        )
    if t.input_sum is not None and abs(t.input_sum - 1) > _SUM:
        return failed(
            f"kl_div is given as input what are no log-probabilities: exp of a row sums to {t.input_sum:.3g}",
            observed,
            t.where,
            by_itself=True,
        )
    if t.target_least is not None and t.target_least < -_ROUNDING:
        said = "kl_div is given as target what are no probabilities: some are negative"
        return failed(said, observed, t.where, by_itself=True)
    if t.target_sum is not None and abs(t.target_sum - 1) > _SUM:
        said = f"kl_div is given as target what are no probabilities: a row sums to {t.target_sum:.3g}"
        return failed(said, observed, t.where)  # a vocabulary that is cut after the softmax explains it
    if t.swapped:
        return failed(
            "kl_div's arguments are swapped: the student stands in the target's place, which is the reversed KL",
            observed,
            t.where,
            # Two log-probabilities are handed over the other way round on purpose: on-policy distillation does.
            "warn" if t.log_target and trace.declared.kd.temperature is None else None,
        )
    if t.target_scale:
        return failed(
            f"the teacher's side of the term is scaled by {some(t.target_scale, 2)}, which the student learns, and the "
            "gradient goes through it: the loss falls as well where the target changes",
            {"term": t.name, "parameters": t.target_scale},
            t.where,
            "warn",  # one learned temperature for both sides may be meant
            mend="scale the teacher's scores by the teacher's own number, or by the student's detached",
        )
    if t.target_grad and not trace.peers:
        if _moves_nothing(trace):
            said = "the target carries a gradient that reaches the teacher; nothing steps it, so no number changes"
            return failed(said, observed, t.where, "warn")
        return failed("the target carries a gradient: the teacher is drawn towards the student", observed, t.where)
    return None


def _moves_nothing(trace: Trace) -> bool:
    """Say whether the teacher's parameters get gradients by which no optimizer moves them."""
    leaves = {leaf for sight in trace.losses.sights for leaf in sight.teacher_leaves}
    return bool(leaves) and leaves.isdisjoint(trace.teacher.stepped or ())
