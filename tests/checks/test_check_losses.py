"""Verdicts on what the losses reach, and on the form of the soft term, to the number, on traces made by hand."""

from typing import Any

import pytest
from specimens import (
    BACKWARD,
    MANY,
    NOTHING,
    OTHER,
    TERM,
    Cases,
    Wanted,
    explained,
    fails,
    feature,
    finding,
    judge,
    named,
    passes,
    seen,
    sight,
    term,
    trace,
    undecided,
)

from kdbench.audits.trace import KD, MissedHook, Trace

CASES: Cases = {}

OWN_FORM = "--form own, kdbench.check_soft_loss(loss) in the script, or --waive KD313=REASON"
CUT = {"reaches_student": False, "student_ran_detached": True}
STOPS = {"reaches_student": False}


def cut(name: str) -> dict[str, Any]:
    return {"term": name, "shapes": [[8, 10], [8, 10]]}


DIRECT = ["kl_div", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "cosine_similarity", "cosine_embedding_loss"]

CASES["KD311"] = {
    "the teacher against itself": (
        seen(term(), explained(), feature("cosine_similarity", of_teacher_alone=True, shapes=[(8, 4), (8, 4)])),
        fails(
            "a term (cosine_similarity) holds the teacher's answer against itself: the student is not in it",
            TERM,
            term="cosine_similarity",
            shapes=[[8, 4], [8, 4]],
        ),
    ),
    "hooks found no module, and a second network is not heard": (
        trace(idle_windows=5, idle_name="Net (big)", idle_where=OTHER, missed_hooks=[MissedHook("Net (big)", TERM)]),
        fails("the search for modules to hook found none in Net (big)", TERM, windows=5, network="Net (big)"),
    ),
    "hooks found no module": (
        trace(sights=[sight(term(), explained())], missed_hooks=[MissedHook("Net (big)", OTHER)]),
        fails("no module of Net (big) has a name by which hooks look", OTHER, network="Net (big)", module=None),
    ),
    "a hook that sees nothing": (
        trace(sights=[sight(term(), explained())], missed_hooks=[MissedHook("Net (big)", OTHER, "neck")]),
        fails("the hook on neck of Net (big) is never called", OTHER, "warn", network="Net (big)", module="neck"),
    ),
    "no share, five times": (
        trace(sights=[sight(explained("nothing", share=1e-6), number=5 * n) for n in range(5)]),
        fails("it is 1.0e-06 of the labels' part, in all of 5 backwards", BACKWARD, shares=[1e-6] * 5),
    ),
    "a share on its way up": (
        trace(sights=[sight(term(), explained("nothing", share=4.0**n * 1e-9), number=5 * n) for n in range(5)]),
        undecided("not-in-these-steps", "no gradient in the steps seen: what it is multiplied by", "--steps"),
    ),
    "no share, four times": (
        trace(sights=[sight(term(), explained("nothing", share=1e-6), number=5 * n) for n in range(4)]),
        undecided("not-in-these-steps", "no gradient in the steps seen: what it is multiplied by", "--steps"),
    ),
    "4 backwards beside a second network": (
        trace(idle_windows=4, idle_name="Net (big)", idle_where=OTHER, windows_seen=9, script=True),
        undecided("no-teacher-seen", "in 9 backwards", "--student NAME --teacher NAME, or more --steps"),
    ),
    "5 backwards beside a second network": (
        trace(idle_windows=5, idle_name="Net (big)", idle_where=OTHER),
        fails(
            "a second network (Net (big)) answered the student's batch before 5 backwards, and its answer reached no",
            OTHER,
            windows=5,
            network="Net (big)",
        ),
    ),
    "reaches at first, and in none of the last 2": (
        trace(sights=[sight(term(), explained())], lost_windows=2, idle_name="Net (big)", idle_where=OTHER),
        fails("the answer of Net (big)", OTHER, windows=2, network="Net (big)"),
    ),
    "reaches but for the last": (
        trace(sights=[sight(term(), explained())], lost_windows=1),
        passes("gradient reaches the student"),
    ),
    "reaches but for 4 of a script's": (
        trace(sights=[sight(term(), explained())], lost_windows=4, script=True),
        passes("gradient reaches the student"),
    ),
    "reaches": (seen(term(), explained()), passes("the distillation's gradient reaches the student")),
    "reaches, seen in the gradient alone": (seen(explained("unknown")), passes("gradient reaches the student")),
    "frozen": (
        seen(term(), explained(), student_frozen=True),
        fails("no parameter of the student gets a gradient", BACKWARD, student="Net (student)"),
    ),
    "frozen in both backwards": (
        trace(sights=[sight(student_frozen=True), sight(student_frozen=True, where=OTHER, student="other")]),
        fails("no parameter of the student", BACKWARD, student="Net (student)"),
    ),
    "frozen in one backward of two": (
        trace(sights=[sight(explained(), student_frozen=True), sight(explained())]),
        passes("gradient reaches the student"),
    ),
    "against itself, the teacher idle": (
        seen(term(), explained(), self_taught=True, idle=True),
        fails(
            "held against its own answer; the teacher (Net (teacher)) answers, and reaches no loss",
            TERM,
            student="Net (student)",
        ),
    ),
    "against itself, asked twice": (
        seen(explained(), self_taught=True, asked_twice=True),
        fails("the student is held against its own answer", BACKWARD, student="Net (student)"),
    ),
    "against itself, in the second backward": (
        trace(sights=[sight(term()), sight(self_taught=True, asked_twice=True, explanations=[NOTHING], where=OTHER)]),
        fails("the student is held against its own answer", OTHER, student="Net (student)"),
    ),
    "against itself, without a gradient": (
        seen(term(where=None), NOTHING, self_taught=True),
        fails("the student is held against its own answer", BACKWARD, student="Net (student)"),
    ),
    "self-distillation": (seen(explained(), NOTHING, self_taught=True), passes("gradient reaches the student")),
    "idle, not against itself": (seen(explained(), idle=True), passes("gradient reaches the student")),
    "against itself, not explained": (
        seen(feature(), self_taught=True, idle=True),
        passes("gradient reaches the student"),
    ),
    "soft term cut": (
        seen(term(**CUT), where=OTHER),
        fails(
            "the distillation term (kl_div) never reaches the student: the student's side is cut", TERM, **cut("kl_div")
        ),
    ),
    "soft term stops": (
        seen(term(where=None, **STOPS), where=OTHER),
        fails("term (kl_div) never reaches the student: its gradient stops before", OTHER, **cut("kl_div")),
    ),
    "soft term cut, another seems to reach": (
        seen(term("mul"), term("mse_loss", **STOPS)),
        fails("the distillation term (mse_loss) never reaches", TERM, **cut("mse_loss")),
    ),
    "soft term cut, yet the gradient acts": (
        seen(term(), term("mse_loss", **STOPS), explained()),
        passes("gradient reaches the student"),
    ),
    "a weight by cosine similarity": (
        seen(feature("cosine_similarity", **STOPS), feature(), explained()),
        passes("gradient reaches the student"),
    ),
    "a weight by cosine similarity, where nothing else acts": (
        seen(feature("cosine_similarity", **STOPS), feature(), NOTHING),
        fails("the feature term (cosine_similarity) never reaches", TERM, **cut("cosine_similarity")),
    ),
    "feature term cut, another reaches": (
        seen(feature(**STOPS), feature("mul"), explained()),
        fails("the feature term (mse_loss) never reaches", TERM, **cut("mse_loss")),
    ),
    "hand-written soft term stops": (
        seen(term("sub", **STOPS)),
        fails("the distillation term (sub) never reaches", TERM, **cut("sub")),
    ),
    "hand-written soft term seems to stop, yet the gradient acts": (
        seen(term("sub", **STOPS), explained()),
        passes("gradient reaches the student"),
    ),
    "one of two hand-written soft terms stops": (
        seen(term("sub", **STOPS), term("mul")),
        undecided("form-not-recognised", "no logits of its were seen whole"),
    ),
    "feature term cut": (
        seen(feature(**CUT), explained()),
        fails("the feature term (mse_loss) never reaches the student: the student's side", TERM, **cut("mse_loss")),
    ),
    "hand-written feature term stops": (
        seen(feature("sub", **STOPS), explained()),
        fails("the feature term (sub) never reaches", TERM, **cut("sub")),
    ),
    "two feature terms stop, one of them known": (
        seen(feature("sub", **STOPS), feature("mse_loss", **STOPS)),
        fails("the feature term (mse_loss) never reaches", TERM, **cut("mse_loss")),
    ),
    "one of two hand-written feature terms stops": (
        seen(feature("sub", **STOPS), feature("mul")),
        passes("gradient reaches the student"),
    ),
    "a term against itself is none": (
        seen(term(against_itself=True, **STOPS), explained()),
        passes("gradient reaches the student"),
    ),
    "a soft term that reaches hides no feature term": (
        seen(term(), feature("sub", **STOPS)),
        fails("the feature term (sub) never reaches", TERM, **cut("sub")),
    ),
    "two soft terms cut": (
        seen(term(**CUT), term("mse_loss", where=OTHER, shapes=[(8, 2)], **STOPS)),
        fails("term (kl_div) never reaches the student: the student's side is cut", TERM, **cut("kl_div")),
    ),
    "a soft term against itself, and nothing else": (
        seen(term(against_itself=True, **STOPS), NOTHING),
        undecided("form-not-recognised", "no distance between student and teacher"),
    ),
    "a feature term against itself, and nothing else": (
        seen(feature(against_itself=True, **STOPS), NOTHING),
        undecided("form-not-recognised", "no distance between student and teacher"),
    ),
    "projector passed over": (
        seen(explained(), feature(projectors_missed=MANY[:4])),
        fails(
            "the term (mse_loss) goes through layer0, layer1, layer2, and 1 more, which gets no gradient from it",
            TERM,
            term="mse_loss",
            projectors=MANY[:4],
        ),
    ),
    "projector passed over, line not known": (
        seen(feature(projectors_missed=["hint"], where=None), where=OTHER),
        fails("(mse_loss) goes through hint", OTHER, term="mse_loss", projectors=["hint"]),
    ),
    "a weight of 0": (
        seen(term(weight=0.0), NOTHING),
        undecided("not-in-these-steps", "no gradient in the steps seen: its weight is 0", "--steps"),
    ),
    "a weight that is not 0, and no gradient": (
        seen(term(weight=0.7), NOTHING),
        undecided("not-in-these-steps", "what it is multiplied by, or detached from, was not seen", "--steps"),
    ),
    "nothing recognised": (seen(NOTHING), undecided("form-not-recognised", "no distance between student and teacher")),
    **{
        f"{name} of logits cut beside another": (
            seen(term(name, **CUT), term("mul")),
            fails(f"the distillation term ({name}) never reaches", TERM, **cut(name)),
        )
        for name in DIRECT
    },
}


def formed(form: str = "forward", temperature: Any = (4.0, 4.0)) -> dict[str, Any]:
    return {"form": form, "temperature": temperature, "residual": 1e-7}


def given(**fields: Any) -> tuple[Trace, dict[str, Any]]:
    """A kl_div and what is observed of its operands."""
    seen_of = {"target_sum": None, "target_least": None, "input_sum": None} | fields
    return seen(term(**fields), explained()), seen_of


def operands(wanted: str | None, **fields: Any) -> tuple[Trace, Wanted]:
    made, observed = given(**fields)
    if wanted is None:
        return made, passes("the term is KL(teacher || student), temperature 4", form="forward", residual=1e-7)
    return made, fails(wanted, TERM, **observed)


NO_LOG, NO_SHARES = (
    "as input what are no log-probabilities: exp of a row sums to",
    "as target what are no probabilities:",
)

CASES["KD313"] = {
    "right": operands(None, target_sum=1.0, target_least=0.0, input_sum=1.0),
    "an input sums to 1.019": operands(None, input_sum=1.019),
    "an input sums to 1.021": operands(f"{NO_LOG} 1.02", input_sum=1.021),
    "an input sums to 0.981": operands(None, input_sum=0.981),
    "an input sums to 0.979": operands(f"{NO_LOG} 0.979", input_sum=0.979),
    "a target sums to 1.019": operands(None, target_sum=1.019),
    "a target sums to 1.021": operands(f"{NO_SHARES} a row sums to 1.02", target_sum=1.021),
    "a target sums to 0.979": operands(f"{NO_SHARES} a row sums to 0.979", target_sum=0.979),
    "a target is negative by rounding": operands(None, target_least=-1e-6),
    "a target is negative": operands(f"{NO_SHARES} some are negative", target_least=-2e-6, target_sum=3.0),
    "swapped": (
        seen(term(swapped=True), explained()),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "swapped, and the other way round besides": (
        seen(term(), term(swapped=True), explained()),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "the other way round, and odd besides": (
        seen(term(swapped=True), term(target_sum=3.0), explained()),
        fails(f"{NO_SHARES} a row sums to 3", TERM, target_sum=3.0, target_least=None, input_sum=None),
    ),
    "swapped, and another function besides": (
        seen(term("mse_loss"), term(swapped=True), explained()),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "swapped, and one that stops besides": (
        seen(term(**STOPS), term(swapped=True), explained()),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "a target with a gradient": (
        seen(term(target_grad=True), explained()),
        fails("the target carries a gradient", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "a target with a gradient that moves nothing": (
        trace(sights=[sight(term(target_grad=True), explained(), teacher_leaves=["fc.weight"])]),
        fails("nothing steps it, so no number", TERM, "warn", target_sum=None, target_least=None, input_sum=None),
    ),
    "a target with a gradient that an optimizer steps by": (
        trace(
            sights=[sight(term(target_grad=True), explained(), teacher_leaves=["fc.weight"])],
            teacher_moved=["fc.weight"],
        ),
        fails("the teacher is drawn", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "a peer's answer with a gradient": (
        trace(sights=[sight(term(target_grad=True), explained())], peers=True),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "odd operands of another function": (
        seen(term("mse_loss", target_sum=3.0, swapped=True), explained()),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "odd operands of a term against itself": (
        seen(term(target_sum=3.0, against_itself=True), explained()),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "odd operands in the second backward": (
        trace(sights=[sight(term(), explained()), sight(term(), term(target_sum=3.0, where=OTHER))]),
        fails(f"{NO_SHARES} a row sums to 3", OTHER, target_sum=3.0, target_least=None, input_sum=None),
    ),
    "swapped, of two log-probabilities": (
        seen(term(swapped=True, log_target=True), explained()),
        fails("arguments are swapped", TERM, "warn", target_sum=None, target_least=None, input_sum=None),
    ),
    "swapped, of two log-probabilities, and a temperature declared": (
        seen(term(swapped=True, log_target=True), explained(), kd=KD(temperature=4.0)),
        fails("arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    **{
        f"over dimension {over}": (
            seen(term(across=over, shapes=[(5, 7, 3)] * 2, input_sum=3.0)),
            fails(
                f"the softmax runs over the {word} (dimension {over} of (5, 7, 3)), not over the 3 classes",
                TERM,
                target_sum=None,
                target_least=None,
                input_sum=3.0,
                dimension=over,
                shape=[5, 7, 3],
            ),
        )
        for over, word in ((0, "batch"), (1, "sequence"))
    },
    "over another dimension than the other side": (
        seen(term(over_others=(2, 1), shapes=[(5, 7, 3)] * 2), explained("unknown")),
        fails(
            "the two sides of kl_div are probabilities over different dimensions of (5, 7, 3): exp of its input sums "
            "to one over dimension 2, its target over dimension 1",
            TERM,
            target_sum=None,
            target_least=None,
            input_sum=None,
            dimensions=[2, 1],
            shape=[5, 7, 3],
        ),
    ),
    "a softmax of probabilities": (
        seen(term(), explained(), probabilities="teacher's"),
        fails("probabilities already, and a softmax is taken of them again", TERM, whose="teacher's"),
    ),
    "a sigmoid of probabilities": (
        seen(term(), explained(), probabilities="student's", squashed_by="sigmoid"),
        fails("probabilities already, and a sigmoid is taken of them again", TERM, whose="student's"),
    ),
    "reversed, written by hand": (
        seen(term("sub"), explained("reversed")),
        fails("the wrong form: it is KL(student || teacher)", TERM, "warn", **formed("reversed")),
    ),
    "reversed, and a temperature declared": (
        seen(term("sub"), explained("reversed"), kd=KD(temperature=4.0)),
        fails("the wrong form: it is KL(student || teacher)", TERM, **formed("reversed")),
    ),
    **{
        form: (seen(term(), explained(form)), fails(words, TERM, **formed(form)))
        for form, words in {
            "probabilities": "student's probabilities stand where",
            "logits-as-target": "the teacher's logits stand where probabilities are due",
            "log-target": "log_target is not set",
            "negative": "its sign is wrong",
        }.items()
    },
    "reversed in the second backward": (
        trace(sights=[sight(explained()), sight(explained("reversed"), where=OTHER)]),
        fails("the wrong form", OTHER, "warn", **formed("reversed")),
    ),
    "the student alone is softened": (
        seen(explained("one-sided", temperature=(4.0, 1.0))),
        fails(
            "only the student's side is softened: temperature 4 for the student, 1 for the teacher",
            BACKWARD,
            **formed("one-sided", (4.0, 1.0)),
        ),
    ),
    "the student alone is softened, in squares": (
        seen(explained("mse-probabilities", temperature=(4.0, 1.0))),
        fails("only the student's side is softened", BACKWARD, **formed("mse-probabilities", (4.0, 1.0))),
    ),
    "probabilities held against logits": (
        seen(term("mse_loss", beyond=True), explained()),
        fails(
            "mse_loss holds the student's probabilities against what are none",
            TERM,
            term="mse_loss",
            shapes=[[8, 10]] * 2,
        ),
    ),
    "the student alone, in the second backward": (
        trace(sights=[sight(), sight(explained("one-sided", temperature=(2.0, 1.0)), where=OTHER)]),
        fails("only the student's side is softened", OTHER, **formed("one-sided", (2.0, 1.0))),
    ),
    "reversed, features besides": (
        seen(feature(where=OTHER), term(), explained("reversed")),
        fails("the wrong form", TERM, "warn", **formed("reversed")),
    ),
    "the teacher alone is softened": (
        seen(explained("one-sided", temperature=(1.0, 2.5))),
        fails(
            "only the teacher's side is softened: temperature 1 for the student, 2.5 for the teacher",
            BACKWARD,
            **formed("one-sided", (1.0, 2.5)),
        ),
    ),
    "one side is sharpened": (
        seen(explained("one-sided", temperature=(1.0, 0.5))),
        passes("the teacher sharpened to temperature 0.5", form="one-sided", residual=1e-7),
    ),
    "two temperatures": (
        seen(explained("one-sided", temperature=(4.0, 2.0), residual=0.125)),
        undecided("form-not-recognised", "the distillation term was not understood", decide_with=OWN_FORM),
    ),
    "two forms not known": (
        seen(explained("unknown", residual=0.25), explained("unknown", residual=0.5)),
        undecided("form-not-recognised", "form fits its gradient (residual 0.25)", decide_with=OWN_FORM),
    ),
    "one-sided, temperatures not read": (
        seen(explained("one-sided", temperature=None)),
        undecided("form-not-recognised", "was not understood", decide_with=OWN_FORM),
    ),
    "a form of one's own": (seen(explained("unknown"), kd=KD(form="own")), undecided("out-of-scope", "its own")),
    "a form of one's own, of swapped arguments": (
        seen(term(swapped=True), explained("unknown"), kd=KD(form="own")),
        fails("kl_div's arguments are swapped", TERM, target_sum=None, target_least=None, input_sum=None),
    ),
    "checked by its properties": (
        trace(script=True, sights=[sight(term("sub"), explained("unknown"))], checked=[("mine", "loop.py", (3, 5))]),
        passes("the term is mine, a form of its own that check_soft_loss found right"),
    ),
    "checked, but elsewhere": (
        trace(script=True, sights=[sight(term("sub"), explained("unknown"))], checked=[("mine", "loop.py", (7, 9))]),
        undecided(
            "form-not-recognised", "meet in sub at loop.py:5 of shapes (8, 10) and (8, 10)", decide_with=OWN_FORM
        ),
    ),
    "distances of features alone": (
        seen(feature("l1_loss"), feature("sub"), explained("unknown", classes=12)),
        undecided("out-of-scope", "features are compared (l1_loss, sub)"),
    ),
    "distances beside a soft term": (
        seen(feature("l1_loss"), term(), explained("unknown")),
        undecided("form-not-recognised", "no known form fits its gradient", decide_with=OWN_FORM),
    ),
    "positions of a map": (
        seen(term(shapes=[(24, 36), (24, 36)], target_sum=1.0, input_sum=1.0), explained("unknown")),
        undecided("out-of-scope", "features are compared (kl_div)"),
    ),
    "another form, one temperature 1": (
        seen(explained("unknown", temperature=(4.0, 1.0))),
        undecided("form-not-recognised", "was not understood", decide_with=OWN_FORM),
    ),
    "the declared temperature": (
        seen(explained(temperature=(4.03, 4.03)), kd=KD(temperature=4.0)),
        passes("KL(teacher || student), temperature 4.03", form="forward", residual=1e-7),
    ),
    "another temperature": (
        seen(explained(temperature=(4.05, 4.05)), kd=KD(temperature=4.0)),
        fails("the temperature in force is 4.05, declared 4", BACKWARD, **formed("forward", (4.05, 4.05))),
    ),
    "another temperature, in the second backward": (
        trace(sights=[sight(), sight(explained(), where=OTHER)], kd=KD(temperature=3.0)),
        fails("the temperature in force is 4, declared 3", OTHER, **formed()),
    ),
    "off by just one in a hundred": (
        seen(explained(temperature=(101.0, 101.0)), kd=KD(temperature=100.0)),
        passes("temperature 101", form="forward", residual=1e-7),
    ),
    "a lower temperature": (
        seen(explained(temperature=(2.0, 2.0)), kd=KD(temperature=4.0)),
        fails("the temperature in force is 2, declared 4", BACKWARD, **formed("forward", (2.0, 2.0))),
    ),
    "a temperature declared, none read": (
        seen(explained(temperature=None), kd=KD(temperature=4.0)),
        passes("the term is KL(teacher || student)", form="forward", residual=1e-7),
    ),
    "a temperature declared, another form": (
        seen(explained("mse-logits", temperature=(2.0, 2.0)), kd=KD(temperature=4.0)),
        passes("the term is the squared distance of logits", form="mse-logits", residual=1e-7),
    ),
    "squared distance of probabilities": (
        seen(explained("mse-probabilities")),
        passes("the term is the squared distance of probabilities", form="mse-probabilities", residual=1e-7),
    ),
    "labels of the teacher's": (
        seen(explained("hard-labels")),
        passes("the term is cross-entropy on the teacher's labels", form="hard-labels", residual=1e-7),
    ),
    "first unknown, then known": (
        trace(sights=[sight(explained("unknown")), sight(explained())]),
        passes("the term is KL(teacher || student), temperature 4", form="forward", residual=1e-7),
    ),
    "rows permuted": (seen(explained("permuted")), undecided("form-not-recognised", "the rows do not belong together")),
    "off": (seen(NOTHING), undecided("not-in-these-steps", "no gradient in the steps seen", "--steps")),
    "not known, and off": (
        seen(explained("unknown"), NOTHING),
        undecided("form-not-recognised", "was not understood", decide_with=OWN_FORM),
    ),
    "no logits": (seen(feature()), undecided("out-of-scope", "no term between logits")),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])


WHOLE = {
    ("KD311", "against itself, asked twice"): "the student is held against its own answer",
    ("KD313", "squared distance of probabilities"): "the term is the squared distance of probabilities",
    ("KD313", "a temperature declared, none read"): "the term is KL(teacher || student)",
    (
        "KD313",
        "two forms not known",
    ): "the distillation term was not understood: no loss in which the two meet was seen, "
    "no known form fits its gradient (residual 0.25)",
    ("KD313", "two temperatures"): "the distillation term was not understood: no loss in which the two meet was seen, "
    "its gradient is that of temperature 4 for the student and 2 for the teacher",
}


@pytest.mark.parametrize(("id", "name"), WHOLE)
def test_what_is_not_so_is_not_said(id: str, name: str) -> None:
    assert finding(id, CASES[id][name][0]).message == WHOLE[id, name]
