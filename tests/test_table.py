"""Anybody's table of runs: compared as a study's arms are, refused where the groups differ in more than the group."""

import json

import pandas as pd
import pytest
import statsmodels.stats.multitest
import statsmodels.stats.weightstats as weightstats
from test_cli import kdbench

from harness import stats, table
from harness.table import Columns
from kd.errors import InputError

COLUMNS = Columns("method", "seed", "accuracy")
SCORES = {
    "plain": [70.1, 70.4, 69.9, 70.6, 70.2],
    "logit": [71.0, 71.4, 70.9, 71.1, 71.5],
    "other": [70.3, 70.2, 70.5, 70.1, 70.0],
}


def rows(scores=SCORES, **more):
    return [
        {"method": method, "seed": seed, "accuracy": value, **{n: v.get(method) for n, v in more.items()}}
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]


def compare(found, columns=COLUMNS, baseline="plain", **changes):
    return table.compare(found, columns, baseline, **{"margin": 0.5, "alpha": 0.05, **changes})


def test_every_group_is_compared_with_the_baseline_as_statsmodels_would():
    entries = compare(rows())
    assert [(e["a"], e["b"]) for e in entries] == [("plain", "logit"), ("plain", "other")]
    ps = []
    for e in entries:
        a, b = SCORES["plain"], SCORES[e["b"]]
        means = weightstats.CompareMeans.from_data(b, a)
        ps.append(means.ttest_ind(usevar="unequal")[1])
        assert e["welch_p"] == pytest.approx(ps[-1], rel=1e-9)
        assert e["ci95_pp"] == pytest.approx(means.tconfint_diff(usevar="unequal"), rel=1e-9)
        assert e["tost_p"] == pytest.approx(means.ttost_ind(-0.5, 0.5, usevar="unequal")[0], rel=1e-9)
    holm = statsmodels.stats.multitest.multipletests(ps, method="holm")[1]
    assert [e["holm_p"] for e in entries] == pytest.approx(list(holm), rel=1e-9)
    assert [e["verdict"] for e in entries] == ["different", "equivalent"]


def test_within_a_family_groups_are_compared_and_all_adjusted_together():
    found = [{**row, "pair": pair} for pair in ("a", "b") for row in rows()]
    with pytest.raises(InputError, match="has seed 0 twice; one run a seed, or name what tells them apart: --family"):
        compare(found)
    entries = compare(found, Columns("method", "seed", "accuracy", "pair"))
    assert [(e["pair"], e["b"]) for e in entries] == [("a", "logit"), ("a", "other"), ("b", "logit"), ("b", "other")]
    assert entries[0]["holm_p"] == pytest.approx(4 * entries[0]["welch_p"])


def test_groups_that_differ_in_more_are_refused_and_the_difference_is_named():
    found = rows(epochs={"plain": 100, "logit": 200, "other": 100}, lr={"plain": 0.1, "logit": 0.1, "other": 0.1})
    with pytest.raises(
        InputError, match=r"plain and logit differ in more than method: epochs: 100.0 against 200.0\. .*epochs"
    ):
        compare(found)
    entries = compare(found, allowed=["epochs"])
    assert any("allowed to differ: epochs: 100.0 against 200.0" in w for w in entries[0]["warnings"])
    # What varies within a group is no setting: here the time that each run took.
    compare([{**row, "seconds": 10.0 + i} for i, row in enumerate(rows())])


def test_a_run_without_a_value_is_counted_and_not_dropped_in_silence():
    found = rows({**SCORES, "logit": [71.0, None, float("inf"), 71.1, 71.5]})
    entry = compare(found)[0]
    assert entry["n"] == [5, 3] and [m["seed"] for m in entry["missing"]] == ["1", "2"]
    assert "2 runs have no accuracy and are missing from n" in entry["warnings"]


@pytest.mark.parametrize(
    ("found", "columns", "baseline", "says"),
    [
        ([], COLUMNS, "plain", "the table has no rows"),
        (rows(), Columns("methods", "seed", "accuracy"), "plain", "unknown column .--group. 'methods'.*'method'"),
        (rows(), Columns("method", "seed", "acuracy"), "plain", "unknown column .--metric. 'acuracy'.*'accuracy'"),
        (rows(), COLUMNS, "plane", "unknown --baseline .method. 'plane'.*'plain'"),
        (rows({"plain": [1.0, 2.0]}), COLUMNS, "plain", "method has one value, plain"),
        (
            rows({"plain": [1.0, 2.0], "logit": ["high", 3.0]}),
            COLUMNS,
            "plain",
            "line 4: accuracy is 'high'; it must be a number",
        ),
        ([{**rows()[0], "seed": None}], COLUMNS, "plain", "line 2: seed is empty"),
    ],
)
def test_slips_are_named(found, columns, baseline, says):
    with pytest.raises(InputError, match=says.replace("'", ".")):
        compare(found, columns, baseline)


def test_from_the_command_line(tmp_path):
    file = tmp_path / "runs.csv"
    pd.DataFrame(rows()).to_csv(file, index=False)
    args = ["--csv", file, "--group", "method", "--baseline", "plain", "--seed", "seed", "--metric", "accuracy"]
    code, out, err = kdbench("compare", *args, "--margin", "0.5", "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["schema"] == "kdbench.compare/1" and found["family"] == 2 and found["metric"] == "accuracy"
    code, out, _ = kdbench("compare", *args, "--margin", "0.5")
    assert code == 0 and "accuracy of every method against plain, runs.csv" in out
    assert "different, higher" in out and " pp" not in out, "its units are the metric's, whatever they are"
    code, _, err = kdbench("compare", *args)
    assert code == 2 and "--margin: say which differences do not matter" in err
    code, _, err = kdbench("compare", *args[:4], "--margin", "0.5")
    assert code == 2 and "--baseline, --seed, --metric: say which columns" in err
    code, _, err = kdbench("compare", "a", "b", *args)
    assert code == 2 and "arms of a study are not named beside --csv" in err
    code, _, err = kdbench("compare", "--group", "method")
    assert code == 2 and "--group goes with --csv or --mlflow" in err
    code, _, err = kdbench("compare", "--csv", tmp_path / "none.csv", *args[2:], "--margin", "1")
    assert code == 2 and "none.csv does not exist" in err


def test_from_an_mlflow_experiment(tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'other.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("theirs", artifact_location=str(tmp_path / "artifacts"))
    for row in rows():
        run = client.create_run(experiment)
        client.log_param(run.info.run_id, "method", row["method"])
        client.log_param(run.info.run_id, "seed", row["seed"])
        client.log_metric(run.info.run_id, "accuracy", row["accuracy"])
        failed = (row["method"], row["seed"]) == ("other", 4)
        client.set_terminated(run.info.run_id, "FAILED" if failed else "FINISHED")
    found = table.read_mlflow(uri, "theirs", "metrics.accuracy")
    entries = compare(found, Columns("params.method", "params.seed", "metrics.accuracy"))
    by_name = {e["b"]: e for e in entries}
    assert by_name["logit"]["difference_pp"] == pytest.approx(
        stats.compare(SCORES["plain"], SCORES["logit"], 1).difference
    )
    assert by_name["other"]["n"] == [5, 4] and by_name["other"]["missing"][0]["seed"] == "4"
    with pytest.raises(InputError, match=r"unknown experiment.*theirs"):
        table.read_mlflow(uri, "their", "metrics.accuracy")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--sd", "0.4", "--effect", "0.5"], "a difference of 0.5 is found with power 0.8 by 12 seeds per arm"),
        (["--sd", "0.4", "--seeds", "3"], "3 seeds per arm find differences from 1.2 on with power 0.8"),
        (["--sd", "1", "--effect", "2", "--seeds", "5"], "5 seeds per arm find a difference of 2 with power 0.79"),
        (["--sd", "1", "--effect", "0.001"], "more than 10,000 seeds per arm"),
    ],
)
def test_power_plans_seeds(args, says):
    code, out, _ = kdbench("power", *args)
    assert code == 0 and says in out, out
    few = "--seeds" in args
    assert few == ("at the most: this is of the pooled t test; Welch's, which decides, finds less" in out)


def test_power_in_a_family_and_as_json():
    _, alone, _ = kdbench("power", "--sd", "1", "--effect", "1", "--json")
    _, among, _ = kdbench("power", "--sd", "1", "--effect", "1", "--family", "6", "--json")
    assert json.loads(alone)["seeds_needed"] == 17 < json.loads(among)["seeds_needed"]
    code, _, err = kdbench("power", "--sd", "1")
    assert code == 2 and "say --effect" in err
    code, _, err = kdbench("power", "--sd", "0", "--effect", "1")
    assert code == 2 and "--sd must be positive" in err
