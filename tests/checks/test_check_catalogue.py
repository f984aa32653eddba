"""All checks together: a clean training, one fault at a time, and what follows from what."""

from dataclasses import replace
from typing import Any

import pytest
import test_check_architecture
import test_check_clip_bound
import test_check_clipping
import test_check_inputs
import test_check_loss_weights
import test_check_losses
import test_check_modes
import test_check_optimizer
import test_check_ranks
import test_check_saved
import test_check_teacher
import test_check_tokens
from specimens import (
    BODY,
    CLIP,
    DEEP,
    EARLY,
    HINT,
    OWN,
    SEVEN,
    STEP,
    TURN,
    A,
    B,
    change,
    clip,
    conv,
    coverage,
    explained,
    feature,
    finding,
    hits,
    number,
    put,
    sight,
    step,
    steps,
    term,
    tokens,
    trace,
)
from test_check_ranks import AVERAGE, FEW, LOCAL, SAME, SHARED, SHIFTED, rank

from kdbench.audits.checks.all import CATALOGUE, run
from kdbench.audits.checks.catalogue import Audit, Verdict, audit, passed, some
from kdbench.audits.finding import Finding
from kdbench.audits.lost import Unheard
from kdbench.audits.trace import KD, Clip, Inputs, Kept, Loaded, Saved, Trace
from kdbench.audits.updates import Empty

SUBJECTS = (
    test_check_architecture,
    test_check_clip_bound,
    test_check_clipping,
    test_check_inputs,
    test_check_loss_weights,
    test_check_losses,
    test_check_modes,
    test_check_optimizer,
    test_check_ranks,
    test_check_saved,
    test_check_teacher,
    test_check_tokens,
)
CASES = {id: cases for subject in SUBJECTS for id, cases in subject.CASES.items()}


def test_every_audit_of_a_training_has_specimens_good_and_bad() -> None:
    assert {a.id for a in CATALOGUE.values()} == set(CASES) == set(OWN)
    for id, cases in CASES.items():
        assert {"pass", "fail", "not_triggered"} <= {wanted.status for _, wanted in cases.values()}, id


WITHOUT = (
    "KD104",
    "KD105",
    "KD201",
    "KD202",
    "KD203",
    "KD204",
    "KD205",
    "KD211",
    "KD212",
    "KD214",
    "KD215",
    "KD303",
    "KD332",
    "KD344",
    "KD361",
    "KD362",
    "KD363",
    "KD364",
    "KD365",
    "KD366",
)
"Audits that need no distillation, or say in words of their own that none was seen."


@pytest.mark.parametrize("id", [id for id in OWN if id not in WITHOUT])
@pytest.mark.parametrize("script", [True, False])
def test_without_a_distillation_each_says_so(id: str, script: bool) -> None:
    found = finding(id, trace(script=script, windows_seen=7, steps=steps(3)))
    assert (found.status, found.reason) == ("not_triggered", "no-teacher-seen")
    assert "no distillation was seen" in found.message and "in 7 backwards" in found.message
    options = "--student NAME --teacher NAME, or more --steps"
    assert found.decide_with == (options if script else "teacher=, and a backward within the watch")


def test_what_decides_it_is_named_in_the_way_of_the_user() -> None:
    """A script has options, a loop has arguments."""
    for id, parts, option in (
        ("KD312", [explained(label_weight=1.0)], "kd=kdbench.KD(alpha=) or KD(kd_weight=)"),
        ("KD341", [explained()], "kd=kdbench.KD(alpha=), or kdbench.check_weighting(combine)"),
    ):
        assert finding(id, trace(sights=[sight(*parts)])).decide_with == option


def clean() -> Trace:
    """A script that every audit passes."""
    alternating = [clip(A, B, norm=0.5 + i % 2) for i in range(20)]
    return trace(
        script=True,
        clip=Clip(1.0),
        steps=[step(i + 1, c, scaled=True, distils=True) for i, c in enumerate(alternating)],
        spatial={"student": [conv(), conv(), conv()]},
        hits=hits(600, *[64] * 10),
        labels_shown=True,
        student_width=10,
        kd=KD(temperature=4.0, alpha=0.9, share=(0.2, 0.8)),
        sights=[sight(term(), feature(), explained(), inputs=Inputs("same"), tokens=[tokens()])],
        roles={"teacher": ["Net (teacher)"]},
        leaves=[BODY],
        stale=[],
        loaded=Loaded(4, 4, [], [], [], False, "loaded"),
        change=change(),
        teacher_moved=[],
        ineffective=[],
        scaler_calls=30,
        scaler_skips=1,
        scaler_search=1,
        lr_rows=[(0.1, 0.2), (0.05, 0.1)],
        group_names=["body", "hint"],
        split_overlap=(100, 0, "by index", True),
        kept=Kept([Saved(1.0, 0.0, None)]),
        ranks=[rank(number, **AVERAGE, tokens=tokens_) for number, tokens_ in ((0, FEW), (1, SHARED))],
    )


def spoil(made: Trace, id: str) -> None:
    """Give a clean training the one fault that this audit is for."""
    s, first = made.losses.sights[0], made.updates.steps[0]
    spoilt: dict[str, Any] = {
        "KD101": (made, {"leaves": [BODY, HINT]}),
        "KD102": (made, {"teacher_moved": ["fc.weight"]}),
        "KD103": (made, {"stale": ["old.weight"]}),
        "KD104": (made, {"loaded": Loaded(3, 4, ["fc.bias"], [], [], False, "loaded")}),
        "KD105": (made, {"spatial": {"teacher": [SEVEN, DEEP]}}),
        "KD106": (s.terms[1], {"shapes": [(8, 4), (8, 1)]}),
        "KD201": (first, {"clips": [clip(A, norm=0.5)]}),
        "KD202": (made, {"steps": [replace(x, clips=[EARLY]) for x in made.updates.steps]}),
        "KD203": (first.clips[0], {"scaled": True}),
        "KD204": (first, {"norm": number(2.0)}),
        "KD205": (made, {"steps": [replace(x, clips=[clip(A, B, norm=0.5)]) for x in made.updates.steps]}),
        "KD211": (first, {"stale_grads": [A]}),
        "KD212": (first, {"repeated": True}),
        "KD213": (made, {"ineffective": ["fc.weight"]}),
        "KD214": (made, {"scaler_skips": 20}),
        "KD215": (made, {"empty": {1: Empty("SGD", [A], 9, 9, STEP, CLIP)}}),
        "KD301": (s, {"teacher_training": ["bn1"]}),
        "KD302": (made, {"change": change(1)}),
        "KD303": (made, {"hits": hits(64, *[64] * 10)}),
        "KD304": (s, {"inputs": Inputs("flipped")}),
        "KD305": (s.explanations[0], {"permutation": TURN}),
        "KD311": (s, {"student_frozen": True}),
        "KD312": (s.explanations[0], {"weight": 0.9 / 16}),
        "KD313": (s.terms[0], {"swapped": True}),
        "KD314": (s.explanations[0], {"share": 9.0}),
        "KD321": (s, {"student_eval": True}),
        "KD332": (made, {"split_overlap": (100, 1, "by index", True)}),
        "KD335": (made, {"kept": Kept([Saved(0.0, 1.0, STEP)], whole=True)}),
        "KD341": (s.explanations[0], {"weight": 0.1, "label_weight": 0.9}),
        "KD344": (made, {"lr_rows": [(0.1, 0.2), (0.05, 0.2)]}),
        "KD351": (s, {"tokens": [*s.tokens, tokens(tokens=100, weight=0.9 / 100, coverage=coverage(start=40))]}),
        "KD361": (made.ranks[1], {"batches": SAME}),
        "KD362": (made.ranks[1], {"teacher": {"0.weight": "z"}}),
        "KD363": (made.ranks[1], SHIFTED),
        "KD364": (made.ranks[1], {"teacher_buffers": {"running_mean": "z"}}),
        "KD365": (made.ranks[0], {"clipped": 9, "clipped_early": 9}),
        "KD366": (made.ranks[1], {"tokens": LOCAL}),
        "KD352": (s.tokens[0], {"coverage": coverage(padding_distilled=100)}),
    }
    target, fields = spoilt[id]
    for key, value in fields.items():
        if target is made:
            put(made, **{key: value})
        else:
            setattr(target, key, value)


def failures(made: Trace) -> dict[str, str | None]:
    """Return the cause of each failure, by id."""
    return {f.id: f.consequence_of for f in run(made).findings if f.status == "fail"}


def test_every_audit_passes_a_clean_training() -> None:
    assert {f.id: f.status for f in run(clean()).findings} == dict.fromkeys(OWN, "pass")


ALONG = {"KD202": {"KD201": "KD202"}, "KD341": {"KD312": "KD341"}}


@pytest.mark.parametrize("id", OWN)
def test_a_fault_fails_its_audit_and_only_what_follows(id: str) -> None:
    made = clean()
    spoil(made, id)
    assert failures(made) == {id: None} | ALONG.get(id, {})


FOLLOWS = {
    "KD101": ["KD103"],
    "KD213": ["KD101", "KD103", "KD214"],
    "KD215": ["KD101", "KD311"],
    "KD301": ["KD102"],
    "KD302": ["KD301", "KD102"],
    "KD303": ["KD104", "KD301", "KD304", "KD305"],
    "KD304": ["KD104"],
    "KD201": ["KD202"],
    "KD204": ["KD201", "KD202", "KD203"],
    "KD311": ["KD103", "KD214"],
    "KD312": ["KD313", "KD305", "KD311"],  # and KD341, which cannot fail beside it for another reason
    "KD313": ["KD102", "KD301", "KD305", "KD311"],
    "KD351": ["KD352", "KD313", "KD305"],
    "KD352": ["KD313", "KD305"],
    "KD362": ["KD104", "KD301", "KD302"],
    "KD364": ["KD362"],
    "KD366": ["KD351", "KD352"],
}


@pytest.mark.parametrize(("effect", "cause"), [(effect, cause) for effect in FOLLOWS for cause in FOLLOWS[effect]])
def test_a_failure_follows_from_its_cause(effect: str, cause: str) -> None:
    made = clean()
    spoil(made, cause)
    spoil(made, effect)
    found = failures(made)
    # A clip out of order reaches nothing, and so leaves everything out: the nearest cause is named.
    assert found[effect] == ("KD201" if (effect, cause) == ("KD204", "KD202") else cause)
    assert found[cause] is None


def test_a_divergence_that_is_in_no_loss_explains_nothing() -> None:
    made = clean()
    spoil(made, "KD313")
    made.losses.unheard = [Unheard(30, STEP)]
    assert failures(made) == {"KD311": None, "KD313": None}


def test_a_bound_that_fails_may_follow_from_order_alone() -> None:
    made = trace(clip=Clip(1.0), steps=steps(2, EARLY, norm=2.0, written=frozenset({id(A), id(B)})))
    assert failures(made) == {"KD202": None, "KD204": "KD202"}


@pytest.mark.parametrize("effect", FOLLOWS)
def test_of_several_causes_the_likeliest_is_named(effect: str) -> None:
    made = clean()
    for id in [effect, *reversed(FOLLOWS[effect])]:
        spoil(made, id)
    assert failures(made)[effect] == FOLLOWS[effect][0]


def test_what_passes_follows_from_nothing() -> None:
    made = clean()
    spoil(made, "KD103")
    assert {f.consequence_of for f in run(made).findings} == {None}


def test_a_finding_holds_what_audit_and_verdict_say() -> None:
    made = clean()
    spoil(made, "KD204")
    entry = CATALOGUE["norm-bound"]
    assert run(made).findings[0] == Finding(
        id="KD204",
        name="norm-bound",
        severity="error",
        status="fail",
        phase="burn-in",
        message="at step 1 the optimizer got gradients of norm 2 over all its parameters, bound 1",
        observed={"step": 1, "largest_norm": 2.0, "bound": 1.0},
        mend=entry.mend,
        where=CLIP,
    )
    assert entry.mend.startswith("one clip call over everything the optimizer moves")


def test_an_audit_that_breaks_is_an_error_and_stops_no_other() -> None:
    made = clean()
    made.teacher.hits = 5  # type: ignore[assignment]
    found = {f.id: f for f in run(made).findings}
    assert found["KD303"].status == "error" and found["KD303"].severity == "error"
    assert found["KD303"].message.startswith("the audit itself broke: AttributeError: 'int' object has no attribute ")
    assert {f.status for id, f in found.items() if id != "KD303"} == {"pass"}


def test_where_watching_broke_only_what_had_failed_counts() -> None:
    made = clean()
    spoil(made, "KD302")
    made.broken = "KeyError: 'x'"
    found = {f.id: f for f in run(made).findings}
    assert found["KD302"].status == "fail"
    rest = {(f.status, f.message, str(f.observed)) for id, f in found.items() if id != "KD302"}
    assert rest == {("error", "watching itself broke and stopped: KeyError: 'x'", "{}")}


def test_an_audit_enters_the_catalogue_under_the_name_of_its_property(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "always-so", CATALOGUE["norm-bound"])  # so that it is gone after the test
    del CATALOGUE["always-so"]

    def always_so(of_trace: Trace) -> Verdict:
        """It is so."""
        return passed("it is so", {"so": True})

    enter = audit("KD999", severity="info", phase="end", mend="nothing", follows=("KD101",))
    assert enter(always_so) is always_so
    entry = Audit("KD999", "always-so", "info", "end", "nothing", ("KD101",), always_so)
    assert CATALOGUE["always-so"] == entry and entry.story == "It is so."
    assert replace(entry, check=lambda of_trace: passed("")).story == ""
    found = finding("KD999", trace())
    assert (found.status, found.severity, found.phase, found.mend) == ("pass", "info", "end", "nothing")
    assert (found.message, found.observed) == ("it is so", {"so": True})
    with pytest.raises(ValueError, match="KD997 <lambda> has no docstring"):
        audit("KD997", severity="info", phase="end", mend="")(lambda of_trace: passed(""))
    with pytest.raises(ValueError, match="KD999 finding is in the catalogue already"):
        audit("KD999", severity="info", phase="end", mend="")(finding)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="KD998 always-so is in the catalogue already"):
        audit("KD998", severity="info", phase="end", mend="")(always_so)


def test_phases_are_those_in_which_a_property_shows() -> None:
    phases = {
        "static": "KD104",
        "first": "KD101 KD102 KD103 KD105 KD106 KD304 KD305 KD311 KD312 KD313 KD341 KD351 KD352",
        "burn-in": "KD201 KD202 KD203 KD204 KD205 KD211 KD212 KD213 KD215 KD301 KD303 KD314 KD321 KD344",
        "end": "KD214 KD302 KD332 KD335 KD361 KD362 KD363 KD364 KD365 KD366",
    }
    assert {a.id: a.phase for a in CATALOGUE.values()} == {id: p for p, ids in phases.items() for id in ids.split()}


@pytest.mark.parametrize(
    ("count", "most", "wanted"),
    [
        (0, 6, ""),
        (1, 6, "a"),
        (6, 6, "a, a, a, a, a, a"),
        (7, 6, "a, a, a, a, a, a, and 1 more"),
        (3, 1, "a, and 2 more"),
    ],
)
def test_of_many_names_some_are_told(count: int, most: int, wanted: str) -> None:
    assert some(["a"] * count, most) == wanted
    assert some(["a"] * 7) == "a, a, a, a, a, a, and 1 more"
