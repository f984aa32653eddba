"""Whether the teacher is the trained network that it is taken for."""

import math
from itertools import takewhile

from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, some, undecided
from kdbench.audits.finding import Severity
from kdbench.audits.hits import Hits, Renumbered, renumbered
from kdbench.audits.trace import Loaded, Trace
from kdbench.audits.updates import Step, Where

DOUBT = 1e-3
"Probability under which the observed number of right answers is taken to contradict a rate."
_FINE = 1e-4
"Step at which the search for the least share of a label ends: a hundredth of what is told apart."
_NO_GRADIENT = 1e-4
"Part of the norm of later steps that rounding leaves where there is no gradient: 1e-5 in single precision."
_ELSEWHERE = 0.1
"Share of a teacher's answers that may name labelled classes where it is said to know others."
_ONE_CLASS = 0.5
"Share of the commonest label above which a teacher of rare classes may well be right less often than a constant."


@audit(
    "KD104",
    severity="error",
    phase="static",
    mend="load with strict=True and raise when the checkpoint is missing; never go on with a teacher not loaded",
)
def teacher_provenance(trace: Trace) -> Verdict:
    """The teacher that answers is the checkpoint that was meant, whole.

    Fails when not every parameter and buffer of the teacher is bitwise the declared checkpoint's at the moment the
    watch begins, or the checkpoint holds tensors that the teacher has no place for. No route of loading matters, only
    what is there. Where nothing is declared, fails when the teacher's weights came from no file and no training, or
    were overwritten since; and when teacher and student begin as one, so that the first step has no gradient, and
    nothing but the teacher teaches. A copy of the student's start may teach beside labels, beside other losses, as an
    average, or while the student is pruned or rounded step by step.
    """
    if trace.script:
        return _as_seen(trace)
    if trace.declared.teacher is None:
        return undecided("no-teacher-seen", "no teacher was declared", "teacher=")
    found = trace.teacher.provenance
    if found is None:
        return undecided(
            "intent-unknown",
            "which weights the teacher should hold was not declared",
            "teacher_weights=torch.load(path)",
        )
    share = found.equal / max(1, found.total)
    if len(found.aliases) and not found.equal:
        return undecided(
            "intent-unknown",
            "the weights declared are the teacher's own tensors, which prove nothing",
            "teacher_weights=torch.load(path)",
        )
    if not found.differing and not found.unexpected and not found.aliases:
        return passed("the teacher is the declared checkpoint, bitwise", {"loaded_fraction": 1.0})
    parts = []
    if found.differing:
        parts.append(
            f"only {share:.1%} of the teacher's numbers are those of the declared checkpoint "
            f"({len(found.differing)} tensors differ, first {found.differing[0]})"
        )
    if found.aliases:
        parts.append(
            f"{len(found.aliases)} tensors were loaded from the teacher itself, first {found.aliases[0]}: "
            "its own values were put into the state dict before it was loaded"
        )
    if found.unexpected:
        parts.append(
            f"{len(found.unexpected)} tensors of the checkpoint have no place in the teacher, "
            f"first {found.unexpected[0]}"
        )
    observed = {
        "loaded_fraction": share,
        "differing": found.differing[:10],
        "differing_count": len(found.differing),
        "aliases": found.aliases[:10],
        "unexpected": found.unexpected[:10],
        "unexpected_count": len(found.unexpected),
    }
    return failed("; ".join(parts), observed, trace.declared.at)


def _as_seen(trace: Trace) -> Verdict:
    """Judge a teacher of which nothing was declared by the routes on which its weights came."""
    if not trace.losses.sights:
        return no_distillation(trace)
    if trace.peers or (trace.teacher.change is not None and trace.teacher.change.follows):
        return undecided("out-of-scope", "the teacher is trained along, or follows the student")
    found = trace.teacher.loaded
    if found is None or not found.total:
        if any(s.self_taught for s in trace.losses.sights):
            return undecided("no-teacher-seen", "the student's own answers are the targets: no separate teacher")
        return undecided("no-teacher-seen", "the teacher's answers are stored, or its module was not found")
    return _by_route(trace, found)


def _by_route(trace: Trace, found: Loaded) -> Verdict:
    """Judge how much of a teacher was loaded or trained, and what became of it since."""
    share = found.covered / found.total
    observed = {
        "covered_fraction": share,
        "missing": found.missing[:10],
        "missing_count": len(found.missing),
        "aliases": found.aliases[:10],
        "changed": found.changed[:10],
        "route": found.route,
    }
    place = found.where or trace.losses.sights[0].where
    if found.same_as_student:
        severity: Severity | None = "warn" if _knows_something(trace) else None
        return failed(
            "the teacher was loaded from the student's own start, which nothing had trained",
            observed,
            place,
            severity,
            mend="load the trained teacher's own checkpoint",
        )
    as_one = (found.same_start and _nothing_to_learn(trace)) or (found.began_as_one and _began_with_nothing(trace))
    if as_one and not found.student_remade:
        return failed(
            "teacher and student begin as one: they hold the same weights and give the same answers, and no labels are "
            "learned beside them, so there is nothing to learn",
            observed,
            place,
            mend="a student of its own start, or a teacher that is trained further",
        )
    if share == 1:
        return passed(f"all of the teacher was {found.route}", observed)
    # Weights may be averaged, pruned or set by hand; a teacher that surely knows something is not broken by it.
    milder: Severity | None = "warn" if _knows_something(trace) else None
    if found.changed:
        return failed(
            f"{len(found.changed)} tensors of the teacher were overwritten after they were loaded or trained: "
            f"{some(found.changed, 3)}",
            observed,
            place,
            milder,
            mend="load last: after every init, reset_parameters() and conversion",
        )
    if found.aliases:
        return failed(
            f"{len(found.aliases)} tensors of the teacher were loaded from the teacher itself: its own values were put "
            f"into the state dict first ({some(found.aliases, 3)})",
            observed,
            place,
            mend="do not fill what a checkpoint lacks from the network itself: load with strict=True",
        )
    if found.covered == 0 or found.route == "not seen":
        verdict = _knows_something(trace)
        if found.made_from:
            return undecided("route-not-seen", f"the teacher was made by a library of its own from {found.made_from}")
        if verdict:
            return undecided(
                "route-not-seen", f"the teacher's weights came by a route that was not seen, yet {verdict}"
            )
        said = "nothing was loaded into the teacher and nothing trained it: its weights are those it was made with"
        if found.same_start:
            said = "the teacher is a copy of the student as it was made, and nothing has moved it since"
        return failed(said, observed, place)
    return failed(
        f"only {share:.1%} of the teacher's numbers were loaded or trained; missing: {some(found.missing, 4)}",
        observed,
        place,
        milder,
    )


def _nothing_to_learn(trace: Trace) -> bool:
    """Say whether the whole loss leaves no gradient at the student's logits before the first step.

    Beside labels a copy of the student's start is right: it keeps what was learned before.
    """
    read = [e for s in trace.losses.sights if s.step == 0 for e in s.explanations]
    return bool(read) and all(e.form == "nothing" and e.label_weight == 0.0 and not e.vanishes for e in read)


def _began_with_nothing(trace: Trace) -> bool:
    """Say the same of a first step that was taken before the first backward that could be read: no gradient was in it,
    and there was one in later ones."""
    later = [s for s in trace.updates.steps if s.distils]
    before = [s for s in takewhile(lambda s: not s.distils, trace.updates.steps) if later and _is_of(s, later[0])]
    labels = [e.label_weight for s in trace.losses.sights for e in s.explanations]
    if not before or not labels or any(w != 0.0 for w in labels):
        return False
    return float(before[-1].norm) < _NO_GRADIENT * max(float(s.norm) for s in later)


def _is_of(one: Step, other: Step) -> bool:
    return {id(p) for p in one.stepped} == {id(p) for p in other.stepped}


def over_chance(commonest: float) -> float:
    """Return the accuracy that only a trained network exceeds, from the share of the commonest label; both in [0, 1].

    Twice that share; or, where it is large already, a tenth of the way from it to all.
    """
    return commonest + min(commonest, (1 - commonest) / 10)


def _least_over_chance(hits: Hits) -> float:
    """Return the same from what the commonest label's share is at least: of few labels one is the commonest by chance.

    That share is no less than one part in as many classes as are labelled.
    """
    most, n = int(hits.by_class.max()), int(hits.by_class.sum())
    low, high = 0.0, most / n
    while high - low > _FINE:
        middle = (low + high) / 2
        low, high = (middle, high) if at_least(most, n, middle) < DOUBT else (low, middle)
    return over_chance(max(low, 1 / int((hits.by_class > 0).sum())))


def _knows_something(trace: Trace) -> str | None:
    """Return the teacher's accuracy in words if it is surely above chance."""
    hits = trace.teacher.hits
    if hits is None or not int(hits.by_class.sum()):
        return None
    right, n = int(hits.right), int(hits.by_class.sum())
    threshold = over_chance(int(hits.by_class.max()) / n)
    if threshold < 1 and at_least(right, n, threshold) < DOUBT:
        return f"it is right on {right / n:.1%} of {n} labels"
    return None


def _log_tail(hits: int, n: int, rate: float) -> float:
    """Return P(X <= hits) for X binomial(n, rate); exact, in logarithms, since scipy may not be at hand here."""
    if hits >= n:
        return 1.0
    terms = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(rate)
        + (n - k) * math.log1p(-rate)
        for k in range(hits + 1)
    ]
    top = max(terms)
    return min(1.0, math.exp(top) * math.fsum(math.exp(t - top) for t in terms))


def at_most(hits: int, n: int, rate: float) -> float:
    """Return the probability of at most `hits` right answers out of n if each is right with probability `rate`."""
    return _log_tail(hits, n, rate)


def at_least(hits: int, n: int, rate: float) -> float:
    """Return the probability of at least `hits` right answers out of n if each is right with probability `rate`."""
    return _log_tail(n - hits, n, 1 - rate)


@audit(
    "KD303",
    severity="error",
    phase="burn-in",
    follows=("KD104", "KD301", "KD304", "KD305"),
    mend="check the teacher's loading and the preprocessing of what it is fed",
)
def teacher_above_chance(trace: Trace) -> Verdict:
    """A teacher knows more than the commonest label.

    With c the share of the commonest label seen and the threshold c + min(c, (1 - c) / 10): fails when the observed
    accuracy would have a probability below 0.001 at the threshold of the least c that the labels allow, passes when it
    is as surely above. Fails too where it numbers its classes otherwise than the labels do: most of what is labelled
    one class has another's number with it, and no number stands for two.
    """
    if trace.declared.teacher is None and not trace.script:
        return undecided("no-teacher-seen", "no teacher was declared", "teacher=")
    if trace.script and not trace.losses.sights:
        return no_distillation(trace)
    if trace.peers or (trace.teacher.change is not None and trace.teacher.change.follows):
        return undecided("out-of-scope", "the teacher is trained along, or follows the student")
    for hits in (trace.teacher.hits, trace.teacher.by_place):
        if hits is not None and (found := renumbered(hits.crossed)) is not None and _is_surely(found):
            return _numbered_otherwise(trace, found)
    if not trace.teacher.labels_shown:
        if trace.script:
            return undecided("form-not-recognised", "no labels to go with the teacher's logits were seen")
        return undecided("intent-unknown", "the labels of the batches were not shown", "w.labels(y) in the loop")
    if trace.teacher.hits is None or trace.teacher.student_width not in (None, len(trace.teacher.hits.by_class)):
        return undecided(
            "form-not-recognised",
            "no logits (B, C) of the student's width to go with labels (B,) were seen: the teacher should be called "
            "as a module before the labels are shown, and return one 2-D tensor, or something with `logits`",
        )
    right, n = int(trace.teacher.hits.right), int(trace.teacher.hits.by_class.sum())
    if n == 0:
        return undecided("too-few-labels", "all labels shown were ones to ignore", "w.labels(y) in the loop")
    chance = int(trace.teacher.hits.by_class.max()) / n
    threshold = over_chance(chance)
    observed = {"accuracy": right / n, "labels": n, "chance": chance, "threshold": threshold}
    below = threshold < 1 and at_most(right, n, _least_over_chance(trace.teacher.hits)) < DOUBT
    if below and _names_other_classes(trace.teacher.hits):
        return undecided(
            "out-of-scope",
            f"the teacher names other classes than the {int((trace.teacher.hits.by_class > 0).sum())} that are "
            "labelled, as one does that learned others before: these labels say nothing of it",
            observed=observed,
        )
    if trace.script and chance > _ONE_CLASS and below:
        return undecided(
            "out-of-scope", "most labels are of one class: accuracy is no measure of a teacher there", observed=observed
        )
    if threshold >= 1:
        return undecided("out-of-scope", "all labels seen are the same", observed=observed)
    if below:
        return failed(
            f"the teacher is right on {right / n:.1%} of {n} labels, and the commonest label alone on {chance:.1%}",
            observed,
            _asked_where(trace),
            mend=_STORED if any(s.cached for s in trace.losses.sights) else None,
        )
    if at_least(right, n, threshold) < DOUBT:
        return passed(f"the teacher is right on {right / n:.1%} of {n} labels, chance {chance:.1%}", observed)
    return undecided(
        "too-few-labels",
        f"{right} of {n} right decides nothing against {threshold:.1%}; at this rate about "
        f"{_labels_needed(right / n, threshold)} labels would",
        "steps" if trace.script else "burn_in= (more steps)",
        observed,
    )


_STORED = (
    "check by which number each answer was stored and is read: a place in a split, or in a loader that shuffles, is no "
    "number of a sample; then the teacher's loading and what it was fed"
)


def _is_surely(found: Renumbered) -> bool:
    """Say whether the teacher's own numbers are right so much more often that chance does not explain it."""
    return at_least(found.right, found.right + found.wrong, 0.5) < DOUBT


def _numbered_otherwise(trace: Trace, found: Renumbered) -> Verdict:
    pairs = [f"{label} is {name}" for label, name in found.names.items()]
    return failed(
        f"the teacher numbers {len(pairs)} classes otherwise than the labels: {some(pairs, 4)}; by its own numbers it "
        f"is right on {found.right / found.n:.1%} of their {found.n} labels, by theirs on {found.wrong / found.n:.1%}",
        {"renumbered": {str(label): name for label, name in found.names.items()}, "labels": found.n},
        _asked_where(trace),
        mend="put the teacher's classes in the student's order before they meet: teacher_logits[:, order], where order "
        "has the teacher's number of each of the student's classes",
    )


def _asked_where(trace: Trace) -> Where | None:
    return next((s.teacher_where for s in trace.losses.sights if s.teacher_where), trace.declared.at)


def _names_other_classes(hits: Hits) -> bool:
    """Say whether the teacher hardly ever answers with a class that is labelled: its head was trained for others."""
    if hits.said is None or bool((hits.by_class > 0).all()):
        return False
    return int(hits.said[hits.by_class > 0].sum()) <= _ELSEWHERE * int(hits.said.sum())


def _labels_needed(rate: float, threshold: float) -> str:
    """Return about how many labels would tell two rates apart with that little doubt."""
    if rate == threshold:
        return "no number of"
    return str(math.ceil((3.1 / (rate - threshold)) ** 2 * max(rate * (1 - rate), threshold * (1 - threshold))))
