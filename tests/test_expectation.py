"""What "caught by exactly" means: for each clause a training that departs from its declaration in that clause alone."""

import dataclasses

import pytest

from kdbench.harness import faults
from kdbench.harness.analysis.expectation import Said, departures, needed_passes, trial_as_declared
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.environment import audits_digest
from kdbench.harness.records.record import FaultStory, Result

RECIPE = load_preset("quick").recipe
EXACT = {"KD201": None, "KD204": "KD201"}
"What projector-unclipped does: clip-coverage fails, and norm-bound follows from it."


def finding(id, status="pass", root=None, severity="error"):
    return {"id": id, "name": id, "status": status, "severity": severity, "consequence_of": root}


def findings(failed=(), passed=(), broken=(), warned=()):
    """Return findings as records hold them; `failed` by id with what they follow from."""
    return [
        *(finding(id, "fail", root) for id, root in dict(failed).items()),
        *(finding(id) for id in passed),
        *(finding(id, "error") for id in broken),
        *(finding(id, "fail", severity="warn") for id in warned),
    ]


def judge(fault, said, reached=True, method="feature", recipe=RECIPE):
    fault = faults.get(fault) if fault else None
    return departures(fault, Said.of(said), reached=reached, method=method, recipe=recipe)


def test_the_two_audits_of_these_specimens_are_those_that_the_fault_declares():
    fault = faults.get("projector-unclipped")
    assert (fault.ids(fault.caught_by), fault.ids(fault.follows)) == (["KD201"], ["KD204"])


@pytest.mark.parametrize(
    "said", [findings(EXACT), findings({"KD201": None}), findings(EXACT, ["KD301"], [], ["KD401"])]
)
def test_a_fault_that_is_caught_by_exactly_its_audits(said):
    """With or without what may follow, whatever else passed, and whatever was only warned of."""
    assert judge("projector-unclipped", said) == []


@pytest.mark.parametrize(
    ("said", "reached", "told"),
    [
        (findings({}), True, "KD201 did not fail"),
        (findings({**EXACT, "KD301": None}), True, "KD301 failed and is not declared"),
        (findings({**EXACT, "KD301": "KD201"}), True, "KD301 failed and is not declared"),
        (findings({"KD201": "KD301"}), True, "KD201 failed as a consequence, not as a root cause"),
        (findings({"KD201": None, "KD204": None}), True, "KD204 failed as a root cause, not as a consequence"),
        (findings(EXACT, broken=["KD301"]), True, "KD301 could not do its work"),
        (findings(EXACT), False, "clipped was never asked for"),
    ],
)
def test_each_clause_of_a_fault_alone(said, reached, told):
    assert judge("projector-unclipped", said, reached) == [told]


def test_each_clause_of_a_corrected_training_alone():
    needed = sorted(needed_passes("feature", RECIPE))
    assert judge(None, findings(passed=needed)) == []
    assert judge(None, findings(passed=needed[1:])) == [f"{needed[0]} did not pass"]
    assert judge(None, findings({needed[0]: None}, needed[1:])) == [f"{needed[0]} failed"]
    assert judge(None, findings({"KD999": "KD201"}, needed)) == ["KD999 failed"]
    assert judge(None, findings(passed=needed, broken=["KD999"])) == ["KD999 could not do its work"]
    assert judge(None, findings(passed=needed, warned=["KD999"])) == []


def test_an_audit_of_modes_need_not_pass_where_the_network_has_none():
    """A student without dropout and batch norm is proven clean; one of whom nothing was seen is not."""
    needed = needed_passes("feature", RECIPE)
    rest = findings(passed=needed - {"KD321"})
    assert "KD321" in needed
    assert judge(None, [*rest, finding("KD321", "not_triggered") | {"reason": "mode-independent"}]) == []
    assert judge(None, [*rest, finding("KD321", "not_triggered") | {"reason": "out-of-scope"}]) == [
        "KD321 did not pass"
    ]


def test_what_must_pass_is_what_the_faults_of_that_method_and_recipe_are_caught_by():
    ids = faults.audit_ids()
    logit, feature, baseline = (needed_passes(method, RECIPE) for method in ("logit", "feature", "baseline"))
    assert {ids["kd-scale"], ids["teacher-mode"]} <= logit and ids["kd-scale"] not in feature
    assert not {ids["teacher-mode"], ids["student-mode"]} & baseline and ids["clip-coverage"] in baseline
    scaled = needed_passes("logit", dataclasses.replace(RECIPE, precision="fp16"))
    assert scaled - logit == {ids["clip-after-unscale"], ids["skipped-steps"]}
    folded = needed_passes("logit", dataclasses.replace(RECIPE, fold_teacher=True))
    assert ids["teacher-mode"] in logit - folded, "a folded copy would hide it: nothing can be asked of it"
    assert ids["alignment"] in needed_passes("ttm", RECIPE)
    assert ids["alignment"] not in needed_passes("dist", RECIPE), "records of before hold it undecided"
    assert faults.get("teacher-rows-shuffled").why_not("dist") is None


def test_of_a_recipe_without_augmentation_no_word_on_it_is_asked_for():
    augmented = dataclasses.replace(RECIPE, crop_padding=2, flip=False)
    plain = dataclasses.replace(RECIPE, crop_padding=0, flip=False)
    assert needed_passes("logit", augmented) - needed_passes("logit", plain) == {
        faults.audit_ids()["augmentation-active"]
    }


def test_of_two_faults_at_once_one_part_may_follow_from_the_other():
    both = "projector-unclipped+random-teacher"
    caught = faults.get(both).ids(faults.get(both).caught_by)
    said = {**dict.fromkeys(caught, "KD101"), caught[0]: None}
    assert judge(both, findings(said)) == []
    assert judge(both, findings(dict.fromkeys(caught[1:]))) == [f"{caught[0]} did not fail"]
    assert judge(both, findings({**said, "KD999": None})) == ["KD999 failed and is not declared"]


@pytest.fixture
def trial():
    preset = dataclasses.replace(load_preset("quick"), methods=("baseline",), seeds=(0,))
    plan = make_plan(preset, (None,), Ground("digits", "0", "cpu"))
    (spec,) = plan.trials.values()
    return spec


def test_a_trial_is_as_declared_by_the_same_measure(trial):
    said = findings(passed=needed_passes("baseline", trial.recipe))
    assert trial_as_declared(Result(trial.key, "finished", findings=said), trial)
    assert trial_as_declared(Result(trial.key, "diverged", findings=said), trial)
    assert not trial_as_declared(Result(trial.key, "finished", findings=said[1:]), trial)
    assert not trial_as_declared(Result(trial.key, "finished"), trial), "silence proves nothing"
    assert not trial_as_declared(Result(trial.key, "failed", findings=said), trial), "no result that is final"


def test_a_trial_whose_fault_was_never_asked_is_not_as_declared(trial):
    story = FaultStory("head-unclipped", "clipped", 3, True, ["KD201"])
    result = Result(trial.key, "finished", findings=findings({"KD201": None}), fault=story)
    assert trial_as_declared(result, trial)
    unasked = dataclasses.replace(story, calls=0, reached=False)
    assert not trial_as_declared(dataclasses.replace(result, fault=unasked), trial)


def test_nothing_is_expected_of_an_audit_that_is_younger_than_the_record():
    """A new audit with a new fault must not turn every earlier study into one that is not as declared."""
    needed = needed_passes("feature", RECIPE)
    older = findings(passed=needed - {"KD201"})
    judged = {digest: judge_of(Said.of(older, digest)) for digest in ("another", audits_digest(), None)}
    assert judged == {"another": [], audits_digest(): ["KD201 did not pass"], None: ["KD201 did not pass"]}
    silent = [*older, finding("KD201", "not_triggered")]
    assert judge_of(Said.of(silent, "another")) == ["KD201 did not pass"], "it was there, and saw nothing"
    bugged = findings({"KD204": "KD201"})
    told = departures(
        faults.get("projector-unclipped"), Said.of(bugged, "another"), reached=True, method="feature", recipe=RECIPE
    )
    assert told == []


def judge_of(said):
    return departures(None, said, reached=True, method="feature", recipe=RECIPE)
