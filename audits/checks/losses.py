"""What the distillation term is, as its gradient tells: whom it reaches, its form, its temperature."""

from kdbench.audits.checks.answers import collapsed, emptied, made_anew, padded_answers, unscaled
from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, some, undecided
from kdbench.audits.checks.forms import RIGHT, WRONG
from kdbench.audits.checks.operands import TWICE, features, operands, stands_still
from kdbench.audits.checks.reading import (
    DIRECT,
    NOT_UNDERSTOOD,
    OF_SCORES,
    checked_by_properties,
    declared_form,
    explained,
    known_distances,
    term_place,
    what_was_seen,
)
from kdbench.audits.infer.explain import Explanation
from kdbench.audits.trace import Sight, Term, Trace
from kdbench.audits.updates import Where

_IDLE_SCRIPT, _IDLE_DECLARED, _LOST_DECLARED = 5, 3, 2
"""Backwards in which a network answers and is not heard until that is said. Declared, the teacher is known for one;
without that, and at the beginning, it takes longer to be sure."""
_NO_SHARE, _GROWTH = 1e-5, 2.0
"""Share of the labels' gradient below which a term does nothing, and by how much it grows where a schedule or a student
that leaves its teacher's place is about to make it something."""
_WINDOWS, _FIRST, _APART = 5, 3, 10
"Backwards that must agree, those of the beginning among them, and how far the last must lie behind the first."
_TEMPERATURE = 1e-2
"Share by which the temperature read off a gradient may be off the declared one: it is read in half precision too."

_ALONG = 0.9
"Cosine from which a step goes with the weights of its words: they may be cut at a bound, or taken less their mean."
_SHARPENED = "reads of an averaged teacher that is sharpened, as self-distillation without labels does it"
_OUTSIDE = 2.0
"How much larger than all answers a centre must be to be no mean of them: earlier answers may have been larger."
_WHOLE = 0.99
"Part of the teacher's probability from which its k largest are as good as all."


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

    Fails when a term's student side is cut from its graph, or does not move with what the student answers, when the
    teacher answers and the student is held against itself, the teacher against itself, or the answer reaches no loss,
    when the target holds one number for every class where it told them apart before, or the teacher did,
    when a feature term leaves its projector or the student without a gradient, when no module has the name by which
    one is looked for to be hooked, when the student as a whole is frozen, or when the term's gradient is there and
    less than 1e-5 of the labels', and stays so; and when a number is made into a new tensor and added to the loss,
    backward after backward. Warns of a divergence between the two, or with stored answers, that is
    computed with its graph and is in no loss, and of a network that is asked before each step and of whose answers
    nothing is made.
    """
    losses = trace.losses
    if (verdict := made_anew(trace) or _heard(trace)) is not None:
        return verdict
    sight = losses.sights[0]
    if all(s.student_frozen for s in losses.sights):
        return failed("no parameter of the student gets a gradient", {"student": sight.student}, sight.where)
    acts = any(e.form != "nothing" for _, e in explained(trace))
    terms = [t for s in losses.sights for t in s.terms]
    if (verdict := _against_itself(trace) or _cut(terms, acts, sight.where) or _unhooked(trace)) is not None:
        return verdict
    if (verdict := emptied(trace)) is not None:
        return verdict
    if (verdict := stands_still(trace)) is not None:
        return verdict
    for t in terms:
        if t.projectors_missed:
            return failed(
                f"the term ({t.name}) goes through {some(t.projectors_missed, 3)}, which gets no gradient from it",
                {"term": t.name, "projectors": t.projectors_missed},
                t.where or sight.where,
            )
    if not acts and (verdict := _without_share(trace)) is not None:
        return verdict
    if (verdict := _left_out(trace)) is not None:
        return verdict
    if acts or any(t.kind == "feature" and t.reaches_student for t in terms):
        return passed("the distillation's gradient reaches the student")
    if any(t.reaches_student for t in terms):
        return _silent(trace, terms)
    return undecided("form-not-recognised", "no distance between student and teacher was recognised")


def _left_out(trace: Trace) -> Verdict | None:
    """Judge a divergence that is computed with its graph before each backward, and is in none of the losses."""
    for unheard in trace.losses.unheard:
        if unheard.windows >= (_IDLE_SCRIPT if trace.script else _IDLE_DECLARED):
            between = "between student and teacher" if trace.losses.sights else "of the network that is trained"
            return failed(
                f"a divergence {between} is computed with a gradient before each of {unheard.windows} backwards, and "
                "is in no loss: it teaches nothing",
                {"windows": unheard.windows},
                unheard.where,
                "warn",  # it may be meant for a log alone, which no_grad would say
                explains=False,
            )
    return None


def _silent(trace: Trace, terms: list[Term]) -> Verdict:
    """Say why a term that the student is in was not seen at its logits, as far as that is known."""
    if not explained(trace):
        return undecided(
            "form-not-recognised", "the gradient at the student's logits was not read: no logits of its were seen whole"
        )
    weights = [t.weight for t in terms if t.kind == "soft" and t.weight is not None]
    why = (
        "its weight is 0"
        if weights and not any(weights)
        else "what it is multiplied by, or detached from, was not seen"
    )
    return undecided(
        "not-in-these-steps",
        f"the distillation term gave the student's logits no gradient in the steps seen: {why}",
        "steps",
    )


def _unhooked(trace: Trace) -> Verdict | None:
    """Judge hooks for features that see nothing: a search by name that found no module, a module that never answers."""
    for missed in trace.losses.missed_hooks:
        observed = {"network": missed.network, "module": missed.module}
        if missed.module is None:
            return failed(
                f"no module of {missed.network} has a name by which hooks look for one: none of its features is taken",
                observed,
                missed.where,
                mend="look for names that named_modules() lists: DataParallel and torch.compile put a prefix first",
            )
        return failed(
            f"the hook on {missed.module} of {missed.network} is never called: that module answers nothing",
            observed,
            missed.where,
            "warn",
        )
    return None


def _without_share(trace: Trace) -> Verdict | None:
    """Judge a term whose gradient is there and next to nothing, in windows far apart: no weight on its way up."""
    read = [(s, e) for s, e in explained(trace) if e.form == "nothing"]
    shares = [e.share for _, e in read]
    if any(e.vanishes for _, e in read):
        return None  # there is more to say of it
    if len(shares) < _WINDOWS or min(shares) <= 0 or read[-1][0].number - read[0][0].number < _APART:
        return None
    if max(shares) >= _NO_SHARE or max(shares[_FIRST:]) > _GROWTH * max(shares[:_FIRST]):
        return None
    return failed(
        f"the distillation term has no share in the gradient: at the student's logits it is {max(shares):.1e} of the "
        f"labels' part, in all of {len(shares)} backwards that were looked at",
        {"shares": shares},
        term_place(trace, read[0][0]),
    )


def _heard(trace: Trace) -> Verdict | None:
    """Judge a network that answers the student's batch and is not heard, from the first or from some step on."""
    losses = trace.losses
    if not losses.sights:
        if losses.idle_windows >= (_IDLE_SCRIPT if trace.script else _IDLE_DECLARED):
            missed = next((m for m in losses.missed_hooks if m.module is None), None)
            return failed(
                f"a second network ({losses.idle_name}) answered the student's batch before {losses.idle_windows} "
                "backwards, and its answer reached no loss"
                + (f": the search for modules to hook found none in {missed.network}" if missed else ""),
                {"windows": losses.idle_windows, "network": losses.idle_name},
                missed.where if missed else losses.idle_where,
            )
        return _left_out(trace) or _asked_for_nothing(trace) or no_distillation(trace)
    if losses.lost_windows >= (_IDLE_SCRIPT if trace.script else _LOST_DECLARED):
        return failed(
            f"the answer of {losses.idle_name} to the student's batch reached the loss at first, and no longer does: "
            f"it reached none of the last {losses.lost_windows} seen",
            {"windows": losses.lost_windows, "network": losses.idle_name},
            losses.idle_where,
        )
    return None


def _asked_for_nothing(trace: Trace) -> Verdict | None:
    """Judge a network that is asked while another learns, where nothing is made of its answers and no other teaches."""
    asked = trace.losses.asked
    if asked is None or asked.windows < _IDLE_SCRIPT:
        return None
    return failed(
        f"{asked.name} is asked without a gradient before {asked.windows} of the backwards seen, and nothing of what "
        "it says is in a loss or used otherwise: its answers are lost on the way",
        {"windows": asked.windows, "network": asked.name},
        asked.where,
        "warn",
    )


def _against_itself(trace: Trace) -> Verdict | None:
    """Judge a student or a teacher that is held against its own answer."""
    sights = trace.losses.sights
    alone = []
    for s in sights:
        silent = all(e.form == "nothing" for e in s.explanations)
        is_alone = s.self_taught and s.explanations and (s.idle or s.asked_twice or silent)
        is_alone = is_alone or (s.self_taught and s.asked_twice and any(t.against_itself for t in s.terms))
        if is_alone or (s.own_target and _cancels(trace)):  # beside a term of features that does reach the teacher
            alone.append(s)
    if any(s.other_weights for s in sights):
        alone = []  # as it was before: in the first window the two are one
    # Answers that it gave before it learned on are another matter; what was asked in the first window looks alike.
    if alone and (alone[-1] is not sights[0] or len(sights) == 1):
        s = alone[0]
        what = f"; the teacher ({s.teacher}) answers, and reaches no loss" if s.idle else ""
        return failed(f"the student is held against its own answer{what}", {"student": s.student}, term_place(trace, s))
    told = [t for s in sights for t in s.terms if t.name == "kl_div" and t.reaches_student]
    if len(told) >= _FIRST and all(t.own_answer for t in told):
        return failed(
            "the student is held against its own answer: what teaches it is, number by number, what it says",
            {"student": sights[0].student},
            told[0].where or sights[0].where,
        )
    if len(sights) >= _FIRST and all(s.unanchored for s in sights[:_FIRST]):
        return failed(
            "the student is held against its own answer of the moment, and nothing else teaches it: what it trains on "
            "its frozen base is on as well where it answers for the target",
            {"student": sights[0].student},
            term_place(trace, sights[0]),
            mend="switch the adapters off where the base is asked: with model.disable_adapter(): ...",
        )
    echoed = trace.losses.echoed
    if echoed is not None and echoed.windows >= _APART:  # a copy of the student's start is apart after a step or two
        return failed(
            f"the teacher answers bit for bit as the student does, in all of {echoed.windows} steps in which that one "
            "learned: its weights are the student's own",
            {"student": sights[0].student, "steps": echoed.windows},
            echoed.where or sights[0].where,
            mend="keep a copy of what teaches: v.detach().clone() of each tensor of a state_dict, or copy.deepcopy",
        )
    for t in [t for s in sights for t in s.terms]:
        if t.of_teacher_alone:
            return failed(
                f"a term ({t.name}) holds the teacher's answer against itself: the student is not in it",
                {"term": t.name, "shapes": [list(s) for s in t.shapes]},
                t.where or sights[0].where,
            )
    return None


def _cut(terms: list[Term], acts: bool, backward: Where | None) -> Verdict | None:
    """Judge terms that never reach the student; `acts` says that a gradient of a soft one was seen at its logits."""
    soft = [t for t in terms if t.kind == "soft"]
    if len(soft) >= _FIRST and all(t.projector_alone for t in soft):
        return failed(
            f"the distillation term ({soft[0].name}) trains a projector alone: the student's answer is cut from its "
            "graph before it goes in",
            {"term": soft[0].name, "shapes": [list(s) for s in soft[0].shapes]},
            soft[0].where or backward,
        )
    for kind in ("soft", "feature"):
        # What weighs sampled words is cut from the graph by intention.
        mine = [t for t in terms if t.kind == kind and not t.against_itself and not (t.weighs_words and acts)]
        # A similarity of the detached answers may weigh the samples of a term that acts.
        direct = [t for t in mine if t.anew or (t.name in DIRECT and not (acts and t.name == "cosine_similarity"))]
        cut = [t for t in direct if not t.reaches_student]
        if not cut and mine and not any(t.reaches_student for t in mine):
            cut = mine
        if not cut or (kind == "soft" and acts):
            continue
        named = "distillation" if kind == "soft" else "feature"
        ran_detached = cut[0].student_ran_detached
        why = "the student's side is cut from its graph" if ran_detached else "its gradient stops before"
        return failed(
            f"the {named} term ({cut[0].name}) never reaches the student: {why}",
            {"term": cut[0].name, "shapes": [list(s) for s in cut[0].shapes]},
            cut[0].where or backward,
        )
    return None


@audit(
    "KD313",
    severity="error",
    phase="first",
    follows=("KD102", "KD301", "KD305", "KD311"),
    mend="F.kl_div(F.log_softmax(student / T, dim=1), F.softmax(teacher / T, dim=1), reduction='batchmean') * T * T",
)
def target_form(trace: Trace) -> Verdict:
    """The term holds the student's log-probabilities against the teacher's probabilities, at one temperature.

    Fails when what stands in kl_div's places are not log-probabilities and probabilities over the classes, or over one
    dimension, when the student's probabilities are held number by number against negative ones, when margins lose their
    sign, when a softmax is taken of what are probabilities already, when the target carries a gradient of the
    teacher's, when only one side is softened, when the target names one class for every sample and the teacher does
    not, when the student's logits skip the cap or the factor that its own configuration sets for them, or when the
    gradient is that of a wrong form: a softmax over another dimension, a mixture of logits, the student's likeliest
    classes, a detached weight, a wrong sign. The reversed KL fails over images; it only warns where it is written on
    purpose (by hand, or with log_target) and nothing was declared, and is a choice over tokens.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    if (verdict := _arguments(trace) or declared_form(trace)) is not None:
        return verdict
    read = explained(trace)
    if (verdict := features(trace) or _vanished(trace)) is not None:
        return verdict
    for sight, e in read:
        if (verdict := _gradient(trace, sight, e)) is not None:
            return verdict
    if (verdict := collapsed(trace) or unscaled(trace) or padded_answers(trace)) is not None:
        return verdict
    for _, e in read:
        if (said := _right(trace, e)) is not None:
            return passed(f"the term is {said}", {"form": e.form, "residual": e.residual})
        if e.form == "permuted":
            return undecided("form-not-recognised", "the rows do not belong together, so the form was not read")
    if (verdict := _policy(trace)) is not None:
        return verdict
    if (own := checked_by_properties(trace)) is not None:
        return passed(f"the term is {own}, a form of its own that check_soft_loss found right")
    if distances := known_distances(trace):
        what = "scores" if {*distances} & {*OF_SCORES} else "features"
        return undecided("out-of-scope", f"no term between logits was seen; {what} are compared ({some(distances, 3)})")
    if read and read[0][1].form == "nothing":
        return undecided("not-in-these-steps", "the soft term has no gradient in the steps seen", "steps")
    return undecided("form-not-recognised", f"{NOT_UNDERSTOOD}: {what_was_seen(trace)}", "form")


def _policy(trace: Trace) -> Verdict | None:
    """Judge a term that weighs the words that the student sampled by how much likelier the teacher finds them."""
    weighed = [(t, t.policy) for s in trace.losses.sights for t in s.terms if t.policy is not None]
    if weighed and all(cosine > _ALONG for _, cosine in weighed):
        return passed(
            "each sampled word is weighed by how much likelier the teacher finds it than the student", {"words": True}
        )
    if len(weighed) >= TWICE and all(cosine < -_ALONG for _, cosine in weighed):
        return failed(
            "the likelier the teacher finds a sampled word, the less likely the loss makes it: the sign is wrong",
            {"cosine": weighed[0][1]},
            weighed[0][0].where,
            mend="loss = -((teacher_logp - student_logp).detach() * student_logp).mean()",
        )
    return None


def _arguments(trace: Trace) -> Verdict | None:
    """Judge what was handed to kl_div, and answers of which probabilities are made twice."""
    for sight in trace.losses.sights:
        both_ways = any(t.name == "kl_div" and not t.swapped and t.reaches_student for t in sight.terms)
        for t in sight.terms:
            if t.swapped and both_ways:
                continue  # a symmetric divergence
            if t.swapped and t.log_target and any(_is_choice(trace, sight, e) for e in sight.explanations):
                continue  # its gradient is that of the form which it is written as
            if (verdict := operands(t, trace)) is not None:
                return verdict
        if sight.probabilities:
            answers, again = sight.probabilities, sight.squashed_by
            return failed(
                f"the {answers} answers are probabilities already, and a {again} is taken of them again",
                {"whose": sight.probabilities},
                term_place(trace, sight),
                by_itself=True,
                mend=f"hand on the logits: the network ends before its own {again}",
            )
    return None


def _vanished(trace: Trace) -> Verdict | None:
    """Judge a term that has a weight and whose gradient cancels at the student's logits, each time."""
    if not _cancels(trace):
        return None
    return failed(
        "the distillation term has a weight, and its gradient cancels at the student's logits: the probabilities that "
        "weigh the student's log-probabilities are detached",
        {"backwards": len(explained(trace))},
        term_place(trace),
        mend="leave the student's probabilities in the graph",
    )


def _cancels(trace: Trace) -> bool:
    """Say whether the gradient of the term cancelled at the student's logits each time that it was read."""
    read = [e for _, e in explained(trace)]
    return len(read) >= TWICE and all(e.vanishes for e in read)


def _gradient(trace: Trace, sight: Sight, e: Explanation) -> Verdict | None:
    """Judge the form and the temperature that the gradient shows."""
    observed = {"form": e.form, "temperature": e.temperature, "residual": e.residual}
    place, declared = term_place(trace, sight), trace.declared.kd.temperature
    if e.form == "across":
        return failed(f"the softmax runs over {e.across}, not over the classes", observed, place, by_itself=True)
    if e.form == "topk-sum" and not sight.cached and e.mass is not None and e.mass < _WHOLE:
        return failed(
            f"the term is summed over the teacher's {e.kept} likeliest classes and leaves out the rest, which holds "
            f"{1 - e.mass:.1%} of its probability",
            {**observed, "kept": e.kept, "mass": e.mass},
            place,
            "warn",
            mend="renormalise both sides over these classes, or add the rest as one class",
        )
    if e.form in WRONG and not _is_choice(trace, sight, e):
        # Written out by hand it may be meant: language models are distilled so.
        meant = e.form == "reversed" and declared is None and not any(t.swapped for t in sight.terms)
        return failed(
            f"the distillation term has the wrong form: {WRONG[e.form]}", observed, place, "warn" if meant else None
        )
    if _is_one_sided(e) and e.temperature is not None and 1.0 in e.temperature and max(e.temperature) > 1:
        side = "student's" if e.temperature[1] == 1.0 else "teacher's"
        return failed(
            f"only the {side} side is softened: temperature {e.temperature[0]:g} for the student, "
            f"{e.temperature[1]:g} for the teacher",
            observed,
            place,
            by_itself=True,
        )
    if _is_one_sided(e) and e.temperature is not None and _follows(trace) and e.temperature[1] > e.temperature[0]:
        return failed(
            f"the averaged teacher is softened more (temperature {e.temperature[1]:g}) than the student "
            f"({e.temperature[0]:g}): self-distillation sharpens it, or both collapse",
            observed,
            place,
            mend="a temperature for the averaged teacher that is below the student's, as .04 and .1",
        )
    if e.centre is not None and _follows(trace) and e.centre[0] > _OUTSIDE * e.centre[1]:
        return failed(
            f"the centre that is taken from the teacher's answers is no mean of them: it has numbers up to "
            f"{e.centre[0]:.3g}, and they up to {e.centre[1]:.3g}",
            observed,
            place,
            mend="divide the sum of a batch by its size",
        )
    seen = e.temperature[0] if e.form == "forward" and e.temperature is not None else None
    if declared is not None and seen is not None and abs(seen - declared) > _TEMPERATURE * declared:
        return failed(f"the temperature in force is {seen:g}, declared {declared:g}", observed, place)
    return None


def _is_choice(trace: Trace, sight: Sight, e: Explanation) -> bool:
    """Say whether a reversed KL is one of the ways in which language models are distilled, with nothing against it."""
    of_tokens = e.form == "reversed" and e.sequence and not e.pictures
    return (
        of_tokens
        and trace.declared.kd.temperature is None
        and not any(t.swapped and not t.log_target for t in sight.terms)
    )


def _is_one_sided(e: Explanation) -> bool:
    two = e.temperature is not None and e.temperature[0] != e.temperature[1]
    return two and e.form in ("one-sided", "reversed", "jsd", "mse-probabilities", "correlated")


def _follows(trace: Trace) -> bool:
    return trace.teacher.change is not None and trace.teacher.change.follows


def _right(trace: Trace, e: Explanation) -> str | None:
    """Return the name of a form that is right; None for others."""
    if e.form == "one-sided" and _follows(trace) and e.temperature is not None:
        return f"KL(teacher || student) at temperatures {e.temperature[0]:g} and {e.temperature[1]:g}: it {_SHARPENED}"
    if e.form == "one-sided" and e.temperature is not None and e.temperature[0] == 1 > e.temperature[1]:
        return f"KL(teacher || student) with the teacher sharpened to temperature {e.temperature[1]:g}, as for policies"
    if _is_one_sided(e):
        return None
    if e.form == "sum" and all(part in RIGHT for part in e.parts):
        return "a sum of " + " and ".join(RIGHT[part] for part in e.parts)
    if e.form not in RIGHT:
        return None
    more = [f"temperature {e.temperature[0]:g}"] if e.temperature is not None and e.form in _SOFTENED else []
    more += [f"beta {e.beta:g}"] if e.beta is not None else []
    more += [f"k = {e.kept}"] if e.kept is not None else []
    return ", ".join([RIGHT[e.form], *more])


_SOFTENED = (
    "forward",
    "reversed",
    "jsd",
    "topk",
    "topk-tail",
    "topk-scatter",
    "topk-sum",
    "standardised",
    "correlated",
)
"Forms of which the temperature is named."
