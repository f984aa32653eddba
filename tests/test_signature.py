"""The sequential test over seeds: what each look decides, its size and power, and a run of it."""

import json
import random
from dataclasses import dataclass, field, fields, replace
from functools import partial

import pytest
from scipy import stats
from test_cli import kdbench

from kdbench.harness.analysis.rows import ArmRow
from kdbench.harness.analysis.study_table import Trials
from kdbench.harness.plan.plan import Arm
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.record import FaultStory, Metrics, Result
from kdbench.harness.signature import Design, Look, decide, look, run, simulate
from kdbench.harness.study import Request
from kdbench.kd.errors import InputError

DESIGN = Design()
CORRECTED = [80.0, 81.0, 80.5]


def test_a_look_is_welchs_test_against_the_margin():
    bugged = [78.0, 79.5, 78.5]
    seen = look(CORRECTED, bugged, DESIGN)
    shifted = [v - 0.5 for v in CORRECTED]
    oracle = stats.ttest_ind(shifted, bugged, equal_var=False, alternative="greater").pvalue
    assert seen.p_exceeds == pytest.approx(oracle, abs=1e-12)
    assert seen.drop_pp == pytest.approx(sum(CORRECTED) / 3 - 236 / 3)
    interval = stats.ttest_ind(CORRECTED, bugged, equal_var=False).confidence_interval(0.90)
    assert seen.upper_pp == pytest.approx(interval.high, abs=1e-9)
    lower = stats.ttest_ind([v - 0.5 for v in CORRECTED], bugged, equal_var=False, alternative="less").pvalue
    upper = stats.ttest_ind([v + 0.5 for v in CORRECTED], bugged, equal_var=False, alternative="greater").pvalue
    assert seen.p_equivalent == pytest.approx(max(lower, upper), abs=1e-12)


OPEN = Look(3, 0.4, 0.5, 0.5, 3.0, False)


@pytest.mark.parametrize(
    ("change", "revealed", "state"),
    [
        ({}, True, None),
        ({"p_exceeds": 0.0039}, False, "killed"),
        ({"p_exceeds": 0.0041}, False, None),
        ({"n": 5, "p_exceeds": 0.0041}, False, "killed"),
        ({"p_equivalent": 0.0039}, True, "latent"),
        ({"p_equivalent": 0.0039}, False, "survived"),
        ({"p_equivalent": 0.0041}, True, None),
        ({"futile": True}, True, "survived"),
        ({"n": 12}, True, "no verdict"),
        ({"n": 12, "p_exceeds": 0.016}, True, "killed"),
        ({"p_exceeds": None, "p_equivalent": None, "drop_pp": 70.0}, True, "killed"),
        ({"p_exceeds": None, "p_equivalent": None, "drop_pp": 0.0}, True, "latent"),
        ({"p_exceeds": None, "p_equivalent": None, "drop_pp": -9.0}, True, "no verdict"),
    ],
)
def test_what_a_look_decides(change, revealed, state):
    assert decide(replace(OPEN, **change), DESIGN, revealed) == state


def test_an_arm_that_stays_at_chance_is_killed_without_a_warning(recwarn):
    seen = look(CORRECTED, [10.0] * 3, DESIGN)
    assert decide(seen, DESIGN, True) == "killed" and not recwarn.list


def test_arms_that_do_not_vary_have_no_p():
    seen = look([50.0] * 3, [10.0] * 3, DESIGN)
    assert (seen.p_exceeds, seen.drop_pp) == (None, 40.0) and decide(seen, DESIGN, True) == "killed"


def test_its_size_is_held_and_its_power_is_what_is_reported():
    edge, two, six = simulate(DESIGN, [0, 2, 6], 1.0, repetitions=4000)
    assert edge["killed"] <= sum(DESIGN.alphas) and edge["killed"] == pytest.approx(0.022, abs=0.01)
    assert two["killed"] == pytest.approx(0.94, abs=0.02) and six["killed"] > 0.999
    assert six["mean_seeds"] < two["mean_seeds"] < 8
    for row in (edge, two):
        assert sum(row[state] for state in ("killed", "equivalent", "futile", "no verdict")) == pytest.approx(1)


def test_looks_that_pay_no_price_cost_size():
    greedy = Design(alphas=(0.05, 0.05, 0.05, 0.05), futility_sd=1e-9)
    assert simulate(greedy, [0], 1.0, repetitions=4000)[0]["killed"] > 0.08


def test_equivalence_is_reached_where_the_spread_is_small():
    (none,) = simulate(Design(futility_sd=1e-9), [-10], 0.05, repetitions=500)
    assert none["drop_pp"] == pytest.approx(0) and none["equivalent"] > 0.9


@pytest.mark.parametrize(
    "wrong", [{"looks": (3, 5)}, {"looks": (5, 3, 8, 12)}, {"looks": (1, 5, 8, 12)}, {"margin_pp": 0.0}]
)
def test_a_design_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match="signature:"):
        Design(**wrong)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name at least one fault"),
        (["--fault", "imagenet-stm"], "did you mean 'imagenet-stem'"),
        (["--fault", "imagenet-stem", "--seeds", "0-4"], "--seeds does nothing here"),
        (["--fault", "imagenet-stem", "--method", "baseline"], "the positive control needs a method with a teacher"),
        (["--fault", "projector-unclipped", "--method", "logit"], "applies to none of the methods"),
        (["--fault", "imagenet-stem", "--margin", "0"], "margin and futility are positive"),
        (["--simulate", "-1"], "the spread must be positive"),
    ],
)
def test_what_is_refused(words, says):
    code, out, err = kdbench("signature", *words)
    assert code == 2 and out == "" and says in " ".join(err.split())


def test_the_simulation_on_the_command_line():
    code, out, _ = kdbench("signature", "--simulate", "1.0", "--json")
    found = json.loads(out)
    assert code == 0 and found["schema"] == "kdbench.signature-simulation/1" and len(found["rows"]) == 6


@dataclass
class Fake:
    """Arms with made-up scores, as a study that was trained."""

    scores: dict[Arm, list[float]]
    asked: list[tuple[int, tuple]] = field(default_factory=list)

    def __call__(self, request):
        n = len(request.preset.seeds)
        self.asked.append((n, tuple(request.faults)))
        arms = {}
        for arm, values in self.scores.items():
            if arm.fault is None or arm.fault in request.faults:
                arms[arm] = {seed: (None, result(arm, values[seed])) for seed in range(n)}
        return Trials(None, None, arms)


def result(arm, score):
    story = FaultStory(arm.fault, "stem", 1, True, ["KD105"]) if arm.fault else None
    metrics = Metrics(score, 0.0, []) if score is not None else None
    return Result("key", "finished" if metrics else "diverged", metrics=metrics, fault=story)


def rows_of(study):
    return [
        ArmRow(
            **{
                **dict.fromkeys(field.name for field in fields(ArmRow)),
                "fault": arm.fault,
                "pair": arm.pair,
                "method": arm.method,
                "reached": arm.fault != "seed-ignored",
                "failed_findings": ["KD105"] if arm.fault else [],
            }
        )
        for arm in study.arms
    ]


def test_only_what_is_undecided_is_trained_on(monkeypatch):
    monkeypatch.setattr("kdbench.harness.signature.summary", rows_of)
    rng = random.Random(0)

    def draw(mean):
        return [mean + rng.gauss(0, 0.5) for _ in range(12)]

    arm = partial(Arm, pair="r34-r18", method="logit")
    scores = {
        arm(None): draw(80),
        arm("imagenet-stem"): draw(60),
        arm("no-augmentation"): draw(78.6),
        arm("double-step"): [80.0, None, *draw(80)[:10]],
        arm("seed-ignored"): draw(10),
    }
    names = [a.fault for a in scores if a.fault]
    preset = replace(load_preset("quick"), methods=("logit",))
    fake, told = Fake(scores), []
    request = Request(preset, names, True, "digits", None, "cpu", 1, None, None, None)
    outcomes, _ = run(request, DESIGN, fake, told.append)
    states = {o.arm.fault: o.state for o in outcomes}
    assert states["imagenet-stem"] == "killed" and states["seed-ignored"] == "invalid"
    assert states["double-step"] == "no verdict" and states["no-augmentation"] in ("killed", "survived", "no verdict")
    assert [n for n, _ in fake.asked] == list(DESIGN.looks[: len(fake.asked)]) and len(fake.asked) > 1
    assert all(faults == (None, "no-augmentation") for _, faults in fake.asked[1:]), "the others were decided at once"
    assert len(told) == len(outcomes) == 4
    assert next(o for o in outcomes if o.arm.fault == "double-step").reason.startswith("a trial has no score")


@pytest.mark.long
def test_a_run_of_it_whose_control_is_not_killed_says_so(tmp_path):
    """No drop exceeds a margin of 95 points, so the first look ends it for all."""
    few = ["--method", "logit", "--width", "4", "--epochs", "1", "--teacher-epochs", "6", "--margin", "95"]
    command = ["signature", "--fault", "random-teacher", *few, "--runs", str(tmp_path)]
    code, out, err = kdbench(*command, "--json")
    found = json.loads(out)
    assert code == 1 and found["schema"] == "kdbench.signature/1" and not found["sound"], err
    assert found["again"]["verdict"] == "identical"
    rows = {row["fault"]: row for row in found["faults"]}
    assert rows.keys() == {"random-teacher", "teacher-rows-shuffled"} and rows["teacher-rows-shuffled"]["control"]
    assert rows["random-teacher"]["revealed_by"] == ["KD104"]
    assert rows["random-teacher"]["state"] in ("latent", "survived")
    assert all(row["seeds"] == 3 and len(row["looks"]) == 1 for row in rows.values())
    code, out, _ = kdbench(*command)
    assert code == 1 and "The controls are not as they must be" in out
