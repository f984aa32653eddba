"""Why something is NO: for each way in which a row departs from its declaration, what is said of it."""

import dataclasses
import io

import pytest
from rich.console import Console
from test_expectation import EXACT, finding, findings

from kdbench.harness.analysis.because import because, shared
from kdbench.harness.analysis.expectation import needed_passes
from kdbench.harness.analysis.rows import Again, ControlsRow
from kdbench.harness.analysis.sentences import in_words
from kdbench.harness.analysis.study_table import Trials
from kdbench.harness.cli.show import show_because, show_controls
from kdbench.harness.plan.plan import Arm, Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.record import FaultStory, Folder, Result, StudyFolder, TeacherRecord

PRESET = dataclasses.replace(load_preset("quick"), methods=("feature",), seeds=(0, 1), teacher={"epochs": 1})
FAULT = "projector-unclipped"
CLEAN = Arm(None, "r34-r18", "feature")
BUGGED = Arm(FAULT, "r34-r18", "feature")
NEAR_CHANCE = TeacherRecord("r34", "student.safetensors", "0", 1.0, val_accuracy=9.5, floor=21.5, above_floor=False)


@pytest.fixture
def study(tmp_path):
    """A study of two arms on disk, and its plan; of which trials nothing has come yet."""
    plan = make_plan(PRESET, (None, FAULT), Ground("digits", "0", "cpu"), named_fault=True, controls=False)
    folder = StudyFolder(tmp_path / plan.study)
    for key, spec in plan.trials.items():
        folder.trial(key).write_spec(spec)
    return folder, plan


def reasons(study, said, arm=CLEAN, reached=True, **record):
    """Return the reasons of one arm in whose trials the audits said this."""
    folder, plan = study
    story = FaultStory(FAULT, "clipped", int(reached), reached, []) if arm.fault else None
    trials = {}
    for seed, key in plan.arms[arm].items():
        result = Result(key, "finished", findings=said, fault=story, **record)
        trials[seed] = (plan.trials[key], result)
    return because(Trials(folder, plan.preset.decision, {arm: trials}), [], None)


def passes(*without, extra=()):
    needed = sorted(needed_passes("feature", PRESET.recipe) - {*without})
    return [*(finding(id) | {"message": "fine"} for id in needed), *extra]


def said(id, status, message, **more):
    return {**finding(id, status), "message": message, **more}


def printed(found):
    out = io.StringIO()
    show_because(Console(file=out, width=200, highlight=False), found, "Why NO")
    return out.getvalue()


def test_what_is_as_declared_needs_no_reason(study):
    assert reasons(study, passes()) == []
    assert reasons(study, findings(EXACT), BUGGED) == []


def test_an_audit_that_failed_says_so_for_all_seeds_at_once(study):
    (reason,) = reasons(study, passes("KD201", extra=[said("KD201", "fail", "2 of 66 are never clipped", mend="clip")]))
    assert (reason.kind, reason.audit, reason.seeds, reason.fix) == ("failed", "KD201", [0, 1], "clip")
    assert reason.said == "KD201 KD201 failed: 2 of 66 are never clipped"
    text = printed([reason])
    assert f"audits show {reason.trial}" in text and "Feature-KD corrected (r34-r18, seeds 0, 1)" in text
    assert reason.show == f"kdbench audits show {reason.trial}"


def test_an_audit_that_decided_nothing_says_what_was_missing(study):
    undecided = said("KD201", "not_triggered", "no clip was seen")
    (reason,) = reasons(study, passes("KD201", extra=[undecided]))
    assert (
        reason.kind == "silent" and "is undecided, and a corrected arm needs its pass: no clip was seen" in reason.said
    )
    (reason,) = reasons(study, passes("KD201"))
    assert reason.said == "KD201 clip-coverage did not run, and a corrected arm needs its pass"
    (reason,) = reasons(study, [], BUGGED)
    assert reason.said == "KD201 clip-coverage did not run, and this fault must make it fail"


def test_an_audit_that_broke_is_an_error_of_kdbench(study):
    broken = said("KD343", "error", "ValueError: steps is 1")
    (reason,) = reasons(study, passes("KD343", extra=[broken]))
    assert reason.kind == "broken" and reason.audit == "KD343"
    assert "broke down, which is an error of kdbench and not of your study: ValueError: steps is 1" in reason.said
    assert "an error of kdbench" in printed([reason])


@pytest.mark.parametrize(
    ("found", "reached", "kind", "says"),
    [
        (findings(passed=["KD201"]), True, "escaped", "KD201 KD201 did not fail, and this fault must make it fail"),
        (findings({**EXACT, "KD301": None}), True, "undeclared", "KD301 KD301 failed, which is not among"),
        (findings({"KD201": "KD301"}), True, "not-a-root", "failed only as a consequence"),
        (findings({"KD201": None, "KD204": None}), True, "not-a-consequence", "KD204 KD204 failed by itself"),
        (findings(EXACT), False, "unreached", "the decision that the fault replaces (clipped) was never asked for"),
    ],
)
def test_each_way_in_which_a_bugged_arm_departs(study, found, reached, kind, says):
    (reason,) = reasons(study, found, BUGGED, reached)
    assert reason.kind == kind and says in reason.said and (reason.audit is None) == (kind == "unreached")


WEAK = said("KD303", "fail", "the teacher is right on 7.8% of 128 labels", mend="check the teacher's loading")


def test_a_teacher_that_was_hardly_trained_is_told_from_one_that_was_not_loaded(study):
    (reason,) = reasons(study, passes("KD303", extra=[WEAK]), teacher=NEAR_CHANCE)
    assert "was loaded whole (KD104 passed), and its own accuracy is near chance: 9.5%" in reason.explanation
    assert "trained for 1 epoch only, on 320 images" in reason.explanation
    assert reason.fix.startswith("train the teacher longer") and "--teacher-epochs (now 1)" in reason.fix
    # One that was not loaded is the audit's own: nothing excuses it.
    lost = said(
        "KD104", "fail", "only 3% of the teacher's numbers are those of the declared checkpoint", mend="load it"
    )
    found = reasons(study, passes("KD303", "KD104", extra=[lost, WEAK]), teacher=NEAR_CHANCE)
    assert {r.audit: (r.explanation, r.fix) for r in found} == {
        "KD104": (None, "load it"),
        "KD303": (None, "check the teacher's loading"),
    }
    # One that is good on validation images is fed something else in training.
    good = dataclasses.replace(NEAR_CHANCE, val_accuracy=97.0, above_floor=True)
    (reason,) = reasons(study, passes("KD303", extra=[WEAK]), teacher=good)
    assert (reason.explanation, reason.fix) == (None, "check the teacher's loading")


def test_a_weak_teacher_that_was_brought_is_not_told_to_be_trained_longer(study):
    folder, plan = study
    brought = dataclasses.replace(plan, trials={k: own_teacher(s) for k, s in plan.trials.items()})
    (reason,) = reasons((folder, brought), passes("KD303", extra=[WEAK]), teacher=NEAR_CHANCE)
    assert "the file that you brought (student.safetensors)" in reason.explanation and "epoch" not in reason.fix


def own_teacher(spec):
    if spec.teacher is None:
        return spec
    return dataclasses.replace(spec, teacher=dataclasses.replace(spec.teacher, key="sha256:00"))


def test_one_cause_of_many_rows_is_told_once_and_again_only_by_name(study):
    clean = reasons(study, passes("KD303", extra=[WEAK]), teacher=NEAR_CHANCE)
    bugged = reasons(study, findings({**EXACT, "KD303": None}, ["KD104"]), BUGGED, teacher=NEAR_CHANCE)
    text = printed([*clean, *bugged])
    assert text.count("was loaded whole") == 1
    assert "Feature-KD corrected (r34-r18, seeds 0, 1); Feature-KD projector-unclipped (r34-r18, seeds 0, 1)" in text
    out = io.StringIO()
    console = Console(file=out, width=200, highlight=False)
    shown = show_because(console, clean, "Why NO")
    again = Again("key", "feature", None, seed=0, epochs=1, verdict="identical")
    controls = ControlsRow(again, None, as_declared=False, sound=False)
    show_controls(console, controls, [dataclasses.replace(bugged[0], whose="control")], shown)
    assert out.getvalue().count("was loaded whole") == 1 and "KD303, for the reason given above" in out.getvalue()


def test_a_trial_without_a_result_is_a_reason_too(study):
    folder, plan = study
    trials = {seed: (plan.trials[key], None) for seed, key in plan.arms[CLEAN].items()}
    trials[0] = (trials[0][0], Result(trials[0][0].key, "failed", "killed"))
    stopped, unfinished = because(Trials(folder, plan.preset.decision, {CLEAN: trials}), [], None)
    assert (stopped.kind, stopped.seeds, stopped.said) == ("stopped", [0], "the trial failed: killed")
    assert (unfinished.kind, unfinished.seeds, unfinished.said) == ("unfinished", [1], "it has no result yet")


def test_few_steps_are_said_to_be_few(study):
    folder, plan = study
    short = dataclasses.replace(PRESET.recipe, epochs=1)
    few = dataclasses.replace(plan, trials={k: dataclasses.replace(s, recipe=short) for k, s in plan.trials.items()})
    undecided = said("KD201", "not_triggered", "4 clips are too few to tell", reason="not-in-these-steps")
    (reason,) = reasons((folder, few), passes("KD201", extra=[undecided]))
    assert "this training has 10 steps in all, and the audits need up to 20" in reason.explanation
    (reason,) = reasons(study, passes("KD201", extra=[undecided]))
    assert (reason.explanation, reason.fix) == (None, None)


def test_a_comparison_in_words():
    from test_tables import comparison

    def told(**changes):
        row = comparison(**{"a": "plain", "b": "kd", "difference_pp": 0.42, "ci95_pp": [-0.1, 0.94], **changes})
        return in_words(row, 0.5, 2, "")

    beyond = told(difference_pp=0.9, ci95_pp=[0.6, 1.2])
    assert beyond == "plain vs kd: different; kd is higher by 0.90 (95% interval +0.60 to +1.20)."
    small = told(ci95_pp=[0.1, 0.74])
    assert small.endswith("(95% interval +0.10 to +0.74); that it differs by more than 0.5 is not shown.")
    assert told(verdict="undecided") == (
        "plain vs kd: undecided; kd minus plain is +0.42 (95% interval -0.10 to +0.94); neither a difference nor "
        "equality within 0.5 is shown. About 12 seeds each would show a difference of 0.5 with power 0.8 in "
        "this comparison alone; a family takes more."
    )
    assert "seeds each" not in told(verdict="undecided", seeds_for_power_80=5), "there are as many already"
    odd = told(verdict="undecided", ci95_pp=[0.1, 0.74], welch_p=0.03, holm_p=0.06)
    assert "p is adjusted for a family of 2 comparisons: 0.03 alone, 0.06 adjusted" in odd
    assert "equivalent; kd minus plain is +0.42" in told(verdict="equivalent")
    assert told(verdict="both").endswith(", within the margin of 0.5.")
    assert told(verdict="undefined", warnings=["torch: 1 against 2"]) == "plain vs kd: undefined; torch: 1 against 2."


def test_a_diverged_training_is_told_as_that_and_not_by_what_it_left_undecided(study):
    folder, plan = study
    (key, *_) = plan.arms[CLEAN].values()
    result = Result(key, "diverged", reason="the loss was no number in epoch 1", findings=passes("KD201"))
    (reason,) = because(Trials(folder, plan.preset.decision, {CLEAN: {0: (plan.trials[key], result)}}), [], None)
    assert (reason.kind, reason.what, reason.message) == ("stopped", "the trial diverged", result.reason)
    failed = Result(key, "diverged", findings=passes("KD201", extra=[said("KD201", "fail", "2 are never clipped")]))
    (reason,) = because(Trials(folder, plan.preset.decision, {CLEAN: {0: (plan.trials[key], failed)}}), [], None)
    assert reason.kind == "failed", "a bug that was found is told all the same"


def test_a_teachers_own_finding_is_no_students(study, monkeypatch):
    """In the teacher's training the network that learns is the teacher; its row is not that of its students."""
    folder, plan = study
    (teacher,) = plan.teachers.values()
    stem = said("KD105", "fail", "the student reads 64x64 images through a 7x7 convolution", mend="another stem")
    own = Result(teacher, "finished", findings=passes("KD105", extra=[stem]))
    monkeypatch.setattr(Folder, "result", lambda self: own)
    (key, *_) = plan.arms[CLEAN].values()
    held = Result(key, "finished", findings=passes("KD105", extra=[stem | {"message": "the teacher reads"}]))
    arms = {CLEAN: {0: (plan.trials[key], held)}}
    found = shared(because(Trials(folder, plan.preset.decision, arms), [folder.trial(teacher)], None))
    assert [(one.reason.message.split(" reads")[0], len(one.rows)) for one in found] == [
        ("the network", 1), ("the teacher", 1),
    ]  # fmt: skip
    assert found[0].reason.fix == "another stem"


@pytest.mark.parametrize(
    ("role", "fix"),
    [("student", "torchvision:resnet18 is made for larger images; take a network"), ("teacher", "another stem")],
)
def test_of_a_network_of_another_library_no_stem_is_asked_for(study, role, fix):
    """The teacher of these is kdbench's own, and whose stem it is stands in the finding."""
    folder, plan = study
    (key, *_) = plan.arms[CLEAN].values()
    spec = dataclasses.replace(plan.trials[key], arch="torchvision:resnet18")
    folder.trial(spec.key).write_spec(spec)
    stem = said("KD105", "fail", f"the {role} reads", mend="another stem", observed={role: {"kernel": 7}})
    result = Result(spec.key, "finished", findings=passes("KD105", extra=[stem]))
    (reason,) = because(Trials(folder, plan.preset.decision, {CLEAN: {0: (spec, result)}}), [], None)
    assert reason.fix.startswith(fix)
