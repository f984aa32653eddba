"""Which arms are compared seed by seed: only those that part after training."""

import dataclasses

import pytest

from kdbench.harness import faults
from kdbench.harness.analysis import compare
from kdbench.harness.analysis.study_table import Trials
from kdbench.harness.plan.plan import Arm, Ground, make_plan
from kdbench.harness.plan.preset import Decision, load_preset
from kdbench.harness.records.record import Metrics, Result, StudyFolder
from kdbench.kd.errors import InputError

SCORES = {
    None: [95.1, 95.9, 94.7, 95.4, 96.0],
    "select-on-test": [95.4, 96.1, 95.1, 95.5, 96.4],
    "lr-never-decays": [95.4, 96.1, 95.1, 95.5, 96.4],
}


@pytest.fixture
def trials(tmp_path):
    """Arms of made-up scores: the two bugged ones have the same."""
    preset = dataclasses.replace(load_preset("quick"), methods=("baseline",), seeds=tuple(range(5)))
    plan = make_plan(preset, list(SCORES), Ground("digits", "d" * 64, "cpu"))
    environment = {"torch": "2", "device_name": "a", "code_digest": "c"}
    arms = {
        arm: {
            seed: (
                plan.trials[key],
                Result(key, "finished", metrics=Metrics(SCORES[arm.fault][seed], 0, []), environment=environment),
            )
            for seed, key in by_seed.items()
        }
        for arm, by_seed in plan.arms.items()
    }
    return Trials(StudyFolder(tmp_path), Decision(), arms)


def entries(trials):
    return {e.b: e for e in compare.compare_arms(trials, compare.bug_pairs(trials.arms))}


def test_a_fault_after_training_is_compared_by_pairs_and_one_in_it_is_not(trials):
    found = entries(trials)
    assert found["select-on-test"].paired is True and found["lr-never-decays"].paired is False
    assert found["select-on-test"].difference_pp == pytest.approx(found["lr-never-decays"].difference_pp)
    assert found["select-on-test"].welch_p < 0.02 < found["lr-never-decays"].welch_p


def test_a_fault_that_is_not_loaded_counts_in_the_family_and_is_not_decided_on(trials, monkeypatch):
    """A run of other arms of its study, without the file that it is in, is not stopped after all the training."""
    monkeypatch.delitem(faults.FAULTS, "select-on-test")
    wanted = [pair for pair in compare.bug_pairs(trials.arms) if pair[1].fault == "lr-never-decays"]
    (entry,), family = compare.compare_within_family(trials, wanted, refuse=False)
    assert family == 2 and entry.holm_p == pytest.approx(2 * entry.welch_p)
    with pytest.raises(InputError, match="corrected and select-on-test: one is no fault that is loaded"):
        compare.compare_arms(trials, compare.bug_pairs(trials.arms))


def test_a_seed_without_a_partner_is_left_out_and_said(trials):
    arm = next(arm for arm in trials.arms if arm.fault == "select-on-test")
    spec, result = trials.arms[arm][1]
    trials.arms[arm][1] = (spec, dataclasses.replace(result, status="failed", metrics=None))
    del trials.arms[Arm(None, arm.pair, arm.method)][4]
    found = entries(trials)["select-on-test"]
    assert "compared by seeds; without a partner and left out: 1, 4" in found.warnings
    assert found.difference_pp == pytest.approx((0.3 + 0.4 + 0.1) / 3)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("select-on-tset", "unknown arm 'select-on-tset'; did you mean 'select-on-test'? This study has: bugged, "),
        ("imagnet-stem", "did you mean 'imagenet-stem'? This study has: bugged, baseline, corrected, lr-never-decays"),
        ("xyzzy", "unknown arm 'xyzzy'; This study has: bugged, baseline, corrected, lr-never-decays, select-on-test"),
    ],
)
def test_an_unknown_arm_names_the_nearest_and_the_studys_own(trials, word, says):
    """Not all the faults and methods that there are."""
    with pytest.raises(InputError) as error:
        compare.pairs_of_arms(trials, "corrected", word)
    assert says in str(error.value) and len(str(error.value)) < 200


def test_a_name_that_may_differ_must_be_one_that_there_is(trials):
    specs = [spec for by_seed in trials.arms.values() for spec, _ in by_seed.values()]
    compare.check_allowed(specs, ["torch", "recipe.epochs"])
    with pytest.raises(
        InputError, match=r"--allow-difference: unknown difference 'recipe\.epoks'; did you mean 'recipe\.epochs'"
    ):
        compare.check_allowed(specs, ["recipe.epoks"])
    with pytest.raises(InputError, match="did you mean 'torch'"):
        compare.compare_within_family(trials, compare.bug_pairs(trials.arms), ["torchh"])
