"""Settings tried on a grid, chosen on validation and on nothing else, and then run over the study's own seeds."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from test_cli import kdbench
from test_study_file import SMALL

from kdbench.harness import study as studies
from kdbench.harness.analysis import compare, study_table
from kdbench.harness.analysis import selection_bias as choice
from kdbench.harness.plan.grid import Grid, Tried, best, settings_of
from kdbench.harness.plan.plan import Arm, Ground, make_plan
from kdbench.harness.plan.preset import load_preset, parse_preset
from kdbench.harness.records.record import Metrics, Result, StudyFolder
from kdbench.harness.study import Request, prepare
from kdbench.kd.errors import InputError

GRID = """
[grid]
seeds = "100"
[grid.logit]
alpha = [0.3, 0.7]
temperature = [2, 4]
"""
STUDY = (
    SMALL.replace('"feature"]', '"logit"]')
    .replace('"projector-unclipped"', '"lr-never-decays", "test-as-validation"')
    .replace("[method.feature]\nce_weight = 1\nkd_weight = 1\n", GRID)
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(STUDY)
    return tmp_path


def tried(*val, test=50.0, status="finished", **point):
    metrics = [None if v is None else Metrics(test, v, []) for v in val]
    results = [Result(str(i), status if m is None else "finished", metrics=m) for i, m in enumerate(metrics)]
    return Tried(point, {i: (None, result) for i, result in enumerate(results)})


def test_a_grid_is_every_combination_in_the_order_of_the_file():
    grid = Grid((9,), {"logit": {"alpha": (0.3, 0.7), "temperature": (2, 4)}})
    assert grid.points("feature") == [] and len(grid.points("logit")) == 4
    assert grid.points("logit")[:2] == [{"alpha": 0.3, "temperature": 2}, {"alpha": 0.3, "temperature": 4}]
    assert settings_of({"alpha": 0.3, "temperature": 2}) == {"ce_weight": 0.7, "kd_weight": 0.3, "temperature": 2}
    assert settings_of({"beta": 0.25}) == {"beta": 0.25}


def test_the_best_is_the_highest_mean_on_validation_whatever_the_test_scores_are():
    low, high = tried(60.0, 70.0, test=99.0, alpha=0.3), tried(66.0, 65.0, test=1.0, alpha=0.7)
    assert best([low, high]) is high, "65.5 against 65"
    assert best([tried(65.0, alpha=0.3), tried(65.0, alpha=0.7)]).point == {"alpha": 0.3}, "of equals the first"
    half = tried(99.0, None, status="diverged", alpha=0.9)
    assert best([half, low]) is low and half.is_decided, "a setting that diverges with one seed is not chosen"
    assert best([half]) is None
    assert not tried(None, status="failed").is_decided


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("alpha =", "alhpa ="), "unknown setting 'alhpa'; did you mean 'alpha'"),
        (("[grid.logit]", "[grid.logti]"), "unknown key 'logti'; did you mean 'logit'"),
        (("alpha = [0.3, 0.7]", "alpha = 0.3"), "must be a list of numbers"),
        (("alpha = [0.3, 0.7]", 'alpha = ["a"]'), "must be a list of numbers"),
        (("alpha = [0.3, 0.7]", "alpha = [0.3, 0.3]"), "names a value twice"),
        (("alpha = [0.3, 0.7]", "alpha = [0.3, 1.7]"), "alpha lies from 0 to 1"),
        (("temperature = [2", "kd_weight = [2"), "alpha stands for both weights"),
        (('seeds = "100"', ""), "[grid] needs seeds"),
        (('seeds = "100"', 'seeds = "1-2"'), "seed 1 is one of the study's too"),
        (("temperature = [2", "temperature = [-2"), "temperature is -2"),
    ],
)
def test_a_slip_in_a_grid_is_named(here, change, says):
    (here / "mine.toml").write_text(STUDY.replace(*change))
    code, _, err = kdbench("run", "mine.toml", "--dry-run")
    assert code == 2 and says in err, err


def test_what_has_one_stage_refuses_a_grid_and_the_template_shows_a_valid_one(here):
    code, _, err = kdbench("signature", "--preset", "mine.toml", "--fault", "lr-never-decays")
    assert code == 2 and "signature runs no grid" in err
    kdbench("init", "new.toml")
    text, _, rest = (here / "new.toml").read_text().partition("# [grid]")
    shown = "[grid]" + rest.partition("\n\n")[0].replace("\n# ", "\n")
    grid = parse_preset("new", text + shown).grid
    assert set(grid.methods) == {"logit", "feature"} and len(grid.points("logit")) == 9


def test_an_arm_has_the_settings_that_the_corrected_one_chose_unless_it_chooses_otherwise(here):
    preset, ground = load_preset("mine.toml"), Ground("digits", "0", "cpu")
    arms = (None, "lr-never-decays", "test-as-validation")
    first = make_plan(preset, arms, ground, controls=True)
    choosers = Arm(None, "r34-r18", "logit"), Arm("test-as-validation", "r34-r18", "logit")
    assert first.is_first_stage and not first.arms and tuple(first.grid) == choosers and first.controls is None
    assert len(first.trials) == 2 * (1 + 4), "two teachers and the points of two arms"
    chosen = {choosers[0]: {"alpha": 0.3, "temperature": 4}, choosers[1]: {"alpha": 0.7, "temperature": 2}}
    plan = make_plan(preset, arms, ground, controls=True, chosen=chosen)
    assert first.trials.keys() < plan.trials.keys() and plan.study == first.study and not plan.is_first_stage
    temperature = {
        arm.fault: plan.trials[trials[0]].settings.temperature
        for arm, trials in plan.arms.items()
        if arm.method == "logit"
    }
    assert temperature == {None: 4, "lr-never-decays": 4, "test-as-validation": 2}
    twins = {plan.trials[key].settings for key in plan.controls.positive_trials.values()}
    assert {settings.temperature for settings in twins} == {4}


def test_a_study_with_a_grid_end_to_end(here, cache):
    code, out, err = kdbench("run", "mine.toml", "--dry-run", "--json")
    planned = json.loads(out)
    assert (planned["trials"], planned["later"]) == (10, 15) and "these are the grid's; then 15 trials" in err
    code, out, err = kdbench("run", "mine.toml", "--json")
    found = json.loads(out)
    assert code in (0, 1) and found["trained"] == 25 and found["failed"] == 0, err
    chosen = [row["fault"] for row in found["grid"] if row["chosen"]]
    assert len(found["grid"]) == 8 and chosen == [None, "test-as-validation"]
    study = StudyFolder(next((here / "runs").glob("*/study.json")).parent)
    trials = study_table.read_study(study)
    for row in found["grid"]:
        if row["chosen"]:
            spec, _ = trials.arms[Arm(row["fault"], "r34-r18", "logit")][0]
            assert spec.settings.kd_weight == row["point"]["alpha"]
            assert spec.settings.temperature == row["point"]["temperature"]
            peers = [r["mean"] for r in found["grid"] if r["fault"] == row["fault"]]
            assert row["mean"] == max(peers)
    assert all(c["verdict"] != "undefined" or "neither arm varies" in str(c["warnings"]) for c in found["comparisons"])
    table = pd.read_csv(study.path / "grid.csv")
    assert len(table) == 8 and not any("test" in name for name in table.columns), "no test score chooses anything"
    assert set(pd.read_csv(study.path / "results.csv")["seed"]) == {0, 1}
    before = (study.path / "study.json").read_text()
    code, out, _ = kdbench("run", "mine.toml", "--json")
    assert json.loads(out)["trained"] == 0 and (study.path / "study.json").read_text().count("point") == before.count(
        "point"
    )
    code, _, err = kdbench("report", "--output", "page")
    text = (here / "page" / "report.md").read_text()
    assert code == 0 and "## Settings tried first" in text and "alpha 0.3, temperature 2" in text, err
    found = choice.read(study_table.read_study(study))
    assert {(r.arm, r.tried) for r in found.settings} == {("corrected", 4), ("test-as-validation", 4)}
    by_test = [(r.method, r.arm) for r in found.epochs]
    assert by_test == [("baseline", "test-as-validation"), ("logit", "test-as-validation")]
    assert all(r.more >= 0 and r.most >= r.more for r in found.epochs), "the best is not below the last"
    out = kdbench("status")[1]
    assert "logit (grid)" in out and "4 of 4" in out


def test_a_grid_with_a_trial_that_cannot_run_chooses_nothing(here, cache, monkeypatch):
    """The data is gone after the plan was made: every trial refuses it."""
    lay_out = studies.prepare

    def no_data(request):
        return replace(lay_out(request), data_file=here / "none.safetensors")

    monkeypatch.setattr(studies, "prepare", no_data)
    code, out, err = kdbench("run", "mine.toml", "--variant", "corrected")
    assert code == 3 and "could not run" in out and "No settings were chosen, and no arm was run" in out, err
    assert "Grid of settings" in out and "Arms" not in out and "As declared" not in out


def test_a_shard_tries_its_part_of_the_grid_then_what_nobody_did_and_only_then_its_arms(here, cache):
    preset = load_preset("mine.toml")
    request = Request(preset, (None,), False, "digits", None, "cpu", 1, here / "runs", None, None, shard=(1, 2))

    def finish(ready, keys):
        for key in keys:
            folder = ready.folder.trial(key)
            folder.write_spec(ready.plan.trials[key])
            better = 90.0 if vars(folder.spec().settings).get("temperature", 4) == 4 else 80.0
            folder.write_result(Result(key, "finished", metrics=Metrics(50.0, better, [])))
            folder.student.touch()

    first = prepare(request)
    assert first.plan.is_first_stage and len(first.todo) == 3, "the teacher and two of four points"
    finish(first, first.todo)
    rest = prepare(request)
    assert rest.plan.is_first_stage and len(rest.todo) == 2 and not {*rest.todo} & {*first.todo}
    other = prepare(replace(request, shard=(2, 2)))
    assert {*other.todo} == {*rest.todo}, "whoever comes first: each is run under a lease"
    finish(rest, rest.todo)
    arms = prepare(request)
    assert not arms.plan.is_first_stage and arms.later is None
    temperatures = {
        spec.settings.temperature for key, spec in arms.plan.trials.items() if key in arms.todo and spec.teacher
    }
    assert temperatures == {4}, "chosen on validation"
    halves = [{*prepare(replace(request, shard=(i, 2))).todo} for i in (1, 2)]
    assert halves[0] | halves[1] == {k for k in arms.plan.trials if k not in rest.plan.trials}
    assert not halves[0] & halves[1]


def test_what_choosing_the_epoch_on_test_adds_is_told_of_whoever_does_it(tmp_path):
    preset, ground = load_preset("quick"), Ground("digits", "0", "cpu")
    plan = make_plan(replace(preset, methods=("baseline",), seeds=(0, 1)), (None, "select-on-test"), ground)
    arms = {}
    for arm, trials in plan.arms.items():
        arms[arm] = {}
        for seed, key in trials.items():
            folder = StudyFolder(tmp_path).trial(key)
            folder.write_spec(plan.trials[key])
            finding = {"id": "KD333", "status": "fail", "severity": "error", "consequence_of": None}
            result = Result(key, "finished", metrics=Metrics(80.0, 81.0, []), findings=[finding] if arm.fault else [])
            if arm.fault:
                scores = [79.0, 80.0, 79.5 - seed]
                lines = [json.dumps({"epoch": i, "test_accuracy": score}) for i, score in enumerate(scores, 1)]
                (folder.path / "test_curve.jsonl").write_text("\n".join(lines) + "\n")
            arms[arm][seed] = (plan.trials[key], result)
    (row,) = choice.read(study_table.Trials(StudyFolder(tmp_path), preset.decision, arms)).epochs
    assert (row.arm, row.seeds, row.reported, row.last) == ("select-on-test", 2, 80.0, 79.0)
    assert (row.more, row.most) == (1.0, 1.5)


def test_arms_that_chose_for_themselves_may_differ_in_settings_and_others_not(here):
    preset, ground = load_preset("mine.toml"), Ground("digits", "0", "cpu")
    a, b = Arm(None, "r34-r18", "logit"), Arm("test-as-validation", "r34-r18", "logit")
    chosen = {a: {"alpha": 0.3, "temperature": 4}, b: {"alpha": 0.7, "temperature": 2}}
    plan = make_plan(preset, (None, "test-as-validation"), ground, chosen=chosen)
    arms = {arm: {s: (plan.trials[k], None) for s, k in trials.items()} for arm, trials in plan.arms.items()}
    study = study_table.Trials(StudyFolder(here), preset.decision, arms, grid={a: [], b: []})
    assert compare.compare_arms(study, [(a, b)])[0].verdict == "undefined"
    with pytest.raises(InputError, match=r"settings\.temperature"):
        compare.compare_arms(replace(study, grid={}), [(a, b)])
