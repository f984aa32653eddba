"""Anybody's table of runs: compared as a study's arms are, refused where the groups differ in more than the group."""

import json

import pandas as pd
import pytest
import statsmodels.stats.multitest
import statsmodels.stats.weightstats as weightstats
from test_cli import kdbench

from kdbench.harness.analysis import external_runs as table
from kdbench.harness.analysis import stats
from kdbench.harness.analysis.external_runs import Columns, Row
from kdbench.kd.errors import InputError

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
    numbered = [Row(f"line {line}", cells) for line, cells in enumerate(found, 2)]
    return table.compare(numbered, columns, baseline, **{"margin": 0.5, "alpha": 0.05, **changes})


def test_every_group_is_compared_with_the_baseline_as_statsmodels_would():
    entries = compare(rows())
    assert [(e.a, e.b) for e in entries] == [("plain", "logit"), ("plain", "other")]
    ps = []
    for e in entries:
        a, b = SCORES["plain"], SCORES[e.b]
        means = weightstats.CompareMeans.from_data(b, a)
        ps.append(means.ttest_ind(usevar="unequal")[1])
        assert e.welch_p == pytest.approx(ps[-1], rel=1e-9)
        assert e.ci95_pp == pytest.approx(means.tconfint_diff(usevar="unequal"), rel=1e-9)
        assert e.tost_p == pytest.approx(means.ttost_ind(-0.5, 0.5, usevar="unequal")[0], rel=1e-9)
    holm = statsmodels.stats.multitest.multipletests(ps, method="holm")[1]
    assert [e.holm_p for e in entries] == pytest.approx(list(holm), rel=1e-9)
    assert [e.verdict for e in entries] == ["different", "equivalent"]


def test_within_a_family_groups_are_compared_and_all_adjusted_together():
    found = [{**row, "pair": pair} for pair in ("a", "b") for row in rows()]
    with pytest.raises(InputError, match="has seed 0 twice; one run a seed, or name what tells them apart: --family"):
        compare(found)
    entries = compare(found, Columns("method", "seed", "accuracy", "pair"))
    assert [(e.pair, e.b) for e in entries] == [("a", "logit"), ("a", "other"), ("b", "logit"), ("b", "other")]
    assert entries[0].holm_p == pytest.approx(4 * entries[0].welch_p)


def test_groups_that_differ_in_more_are_refused_and_the_difference_is_named():
    found = rows(
        epochs={"plain": 100, "logit": 200, "other": 100},
        lr={"plain": "0.10", "logit": ".1", "other": 0.1},
        crop={"plain": 2, "logit": 4, "other": 2},
    )
    says = r"plain and logit differ in more than method: epochs: 100 against 200; crop: 2 against 4\. .*say "
    with pytest.raises(InputError, match=says + "--allow-difference epochs --allow-difference crop"):
        compare(found)
    entries = compare(found, allowed=["epochs", "crop"])
    assert any("allowed to differ: epochs: 100 against 200" in w for w in entries[0].warnings)
    with pytest.raises(InputError, match="--allow-difference: unknown difference 'epoks'; did you mean 'epochs'"):
        compare(found, allowed=["epoks", "crop"])


def test_what_differs_for_some_runs_only_is_remarked_on():
    epochs = [100] * 5 + [100, 200, 200, 200, 200] + [100] * 5
    one, other = compare([{**row, "epochs": n} for row, n in zip(rows(), epochs, strict=True)])
    assert "epochs is 100 in plain, and 100 or 200 in logit: these runs may differ in more than method" in one.warnings
    assert not any("epochs" in w for w in other.warnings)
    # What is new in every run is no setting: here the time that each took, which one group's clock did not tell.
    seconds = [0.0] * 5 + [10.0 + i for i in range(10)]
    for entry in compare([{**row, "seconds": s} for row, s in zip(rows(), seconds, strict=True)]):
        assert not any("seconds" in w for w in entry.warnings)


def test_a_column_of_nans_is_one_value():
    note = {"plain": "nan", "logit": "nan", "other": "cosine"}
    with pytest.raises(InputError, match="plain and other differ in more than method: note: nan against cosine"):
        compare(rows(note=note))


def test_seeds_without_a_partner_are_named_unless_all_are():
    found = [row for row in rows() if (row["method"], row["seed"]) not in {("plain", 0), ("logit", 3), ("logit", 4)}]
    one, other = compare(found)
    assert {"logit has no run of seed 3, 4", "plain has no run of seed 0"} <= {*one.warnings}
    assert any("no run of seed 0" in w for w in other.warnings)
    apart = [{**row, "seed": row["seed"] + 10 * (row["method"] != "plain")} for row in rows()]
    assert not any("no run of" in w for entry in compare(apart) for w in entry.warnings)


def test_the_order_of_the_lines_changes_nothing():
    found = [{**row, "seed": row["seed"] + 8} for row in rows()]  # 8 to 12, which are not in the alphabet's order
    assert compare(found[::-1]) == compare(found)
    assert compare(found)[0].values[0] == SCORES["plain"]


def test_an_empty_group_is_the_baseline_if_that_is_said():
    """As kdbench's own results.csv has it: the corrected arm's fault is empty."""
    found = [{**row, "method": "" if row["method"] == "plain" else row["method"]} for row in rows()]
    with pytest.raises(InputError, match="line 2: method is empty; are these runs the baseline"):
        compare(found)
    entries = compare(found, baseline="")
    assert [(e.a, e.b) for e in entries] == [("(empty)", "logit"), ("(empty)", "other")]


def test_a_run_without_a_value_is_counted_and_not_dropped_in_silence():
    found = rows({**SCORES, "logit": [71.0, None, float("inf"), 71.1, 71.5]})
    entry = compare(found)[0]
    assert entry.n == [5, 3] and [m.seed for m in entry.missing] == ["1", "2"]
    assert "2 runs have no accuracy and are missing from n" in entry.warnings


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
        ([{**rows()[0], "accuracy": "-1e200"}], COLUMNS, "plain", "line 2: accuracy is -1e200, which is too large"),
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
    for margin in ("nan", "inf", "0"):
        code, _, err = kdbench("compare", *args, "--margin", margin)
        assert code == 2 and "--margin" in err, margin


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--experiment", "mine"], "--experiment goes with --mlflow"),
        (["--runs", "elsewhere"], "--runs goes with arms of a study"),
        (["--study", "mine"], "--study goes with arms of a study"),
        (["--where", "method"], "--where method: write it as COLUMN=VALUE"),
        (["--where", "metod=plain"], "unknown column (--where) 'metod'; did you mean 'method'"),
        (["--where", "method=plane"], "unknown --where method 'plane'; did you mean 'plain'"),
        (["--where", "method=plain"], "method has one value, plain"),
    ],
)
def test_options_that_go_with_something_else_are_refused(tmp_path, more, says):
    file = tmp_path / "runs.csv"
    pd.DataFrame(rows()).to_csv(file, index=False)
    args = ["--csv", file, "--group", "method", "--baseline", "plain", "--seed", "seed", "--metric", "accuracy"]
    code, _, err = kdbench("compare", *args, "--margin", "0.5", *more)
    assert code == 2 and says in err, err


def test_a_study_is_not_decided_by_an_option():
    code, _, err = kdbench("compare", "corrected", "bugged", "--alpha", "0.2")
    assert code == 2 and "--alpha goes with --csv or --mlflow" in err and "was declared with it" in err


def test_names_with_brackets_are_printed_whole(tmp_path):
    file = tmp_path / "runs.csv"
    names = {"plain": "plain", "logit": "kd[alpha=0.5]", "other": "kd[/T4]"}
    pd.DataFrame([{**row, "method": names[row["method"]]} for row in rows()]).to_csv(file, index=False)
    args = ["--csv", file, "--group", "method", "--baseline", "plain", "--seed", "seed", "--metric", "accuracy"]
    code, out, _ = kdbench("compare", *args, "--margin", "0.5")
    assert code == 0 and "kd[alpha=0.5]" in out and "kd[/T4]" in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the table has no rows"),
        ("m,s,acc,acc\na,0,1,2\n", "two columns are called 'acc'"),
        ("m,s,acc\na,0,1,\na,1,2,\n", "line 2 has more cells than the header's 3"),
        ("m,s,acc\na,0,1\n\na,1\n", "line 4 has fewer cells than the header's 3"),
        ('m,s,acc\n"a,0,1\n', "cannot be read as a table"),
        ("m,s,acc\na,0,95.1\na,1,diverged\n", "line 3: acc is 'diverged'; it must be a number, or empty"),
        (b"m,s,acc\n\xff,0,1\n", "cannot be read as a table"),
    ],
)
def test_a_table_that_is_none_says_where(tmp_path, text, says):
    file = tmp_path / "runs.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    args = ["--csv", file, "--group", "m", "--baseline", "a", "--seed", "s", "--metric", "acc"]
    code, _, err = kdbench("compare", *args, "--margin", "0.5")
    assert code == 2 and says in err, err


ASKED = ["--group", "method", "--baseline", "plain", "--seed", "seed", "--metric", "accuracy", "--margin", "0.5"]


@pytest.mark.parametrize(
    ("name", "separator"),
    [("runs.tsv", "\t"), ("runs.TAB", "\t"), ("runs.csv", "\t"), ("runs.csv", ";"), ("r.txt", ",")],
)
def test_tabs_and_semicolons_separate_columns_too(tmp_path, name, separator):
    pd.DataFrame(rows()).to_csv(tmp_path / "plain.csv", index=False)
    pd.DataFrame(rows()).to_csv(tmp_path / name, index=False, sep=separator)
    said = [kdbench("compare", "--csv", tmp_path / file, *ASKED, "--json") for file in ("plain.csv", name)]
    assert said[0] == said[1] and said[0][0] == 0


def test_a_comma_in_a_name_of_a_tsv_separates_nothing(tmp_path):
    file = tmp_path / "runs.tsv"
    pd.DataFrame(rows(note={})).rename(columns={"note": "kept, or not"}).to_csv(file, index=False, sep="\t")
    code, _, err = kdbench("compare", "--csv", file, *ASKED)
    assert code == 0, err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method|seed|accuracy\nplain|0|1\n", "the header has one column, 'method|seed|accuracy'; separate columns by"),
        (
            "method;seed;accuracy\nplain;0;70,1\n",
            "line 2: accuracy is '70,1'; it must be a number, with a point before",
        ),
    ],
)
def test_another_separator_and_a_decimal_comma_are_said(tmp_path, text, says):
    (tmp_path / "runs.csv").write_text(text)
    code, _, err = kdbench("compare", "--csv", tmp_path / "runs.csv", *ASKED)
    assert code == 2 and says in err, err


def test_who_forgets_the_columns_is_told_which_there_are(tmp_path):
    pd.DataFrame(rows()).to_csv(tmp_path / "runs.csv", index=False)
    code, _, err = kdbench("compare", "--csv", tmp_path / "runs.csv", "--metric", "accuracy")
    assert code == 2 and "runs.csv has the columns method, seed, accuracy" in err
    many = pd.DataFrame([{**row, **{f"setting{i}": 1 for i in range(30)}} for row in rows()])
    many.to_csv(tmp_path / "many.csv", index=False)
    code, _, err = kdbench("compare", "--csv", tmp_path / "many.csv", *ASKED[2:], "--group", "methd")
    assert code == 2 and "did you mean 'method'?" in err and "setting" not in err
    code, _, err = kdbench("compare", "--csv", tmp_path / "many.csv", *ASKED[2:], "--group", "zzz")
    assert code == 2 and "there are 33, such as accuracy, method, seed, setting0, setting1" in err


def test_a_newcomer_reads_both_sides_and_the_answer_in_words(tmp_path):
    """Two methods of five seeds: n, mean and sd of each, and on the last line the verdict with its reason."""
    pd.DataFrame(rows({name: SCORES[name] for name in ("plain", "logit")})).to_csv(tmp_path / "runs.csv", index=False)
    code, out, err = kdbench("compare", "--csv", tmp_path / "runs.csv", *ASKED)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and ["plain", "5", "70.24", "0.27"] in lines and ["logit", "5", "71.18", "0.26"] in lines, err
    assert out.splitlines()[-1] == "plain vs logit: different; logit is higher by 0.94 (95% interval +0.55 to +1.33)."
    file = tmp_path / "close.csv"
    pd.DataFrame(rows({"plain": SCORES["plain"], "close": [70.0, 71.0, 70.4, 70.9, 69.8]})).to_csv(file, index=False)
    code, out, _ = kdbench("compare", "--csv", file, *ASKED)
    last = " ".join(out.split("\n\n")[-1].split())
    assert last.startswith(
        "plain vs close: undecided; close minus plain is +0.18 (95% interval -0.47 to +0.83); neither"
    ), last
    assert last.endswith("About 13 seeds each would show a difference of 0.5 with power 0.8.")


def test_cells_are_text_and_not_what_a_reader_makes_of_them(tmp_path):
    """010 and 10 are two groups, None is a name, and what a metric has no value as is missing."""
    file = tmp_path / "runs.csv"
    lines = [f"{m},{seed},{seed + i}" for i, m in enumerate(("None", "010", "10")) for seed in range(3)]
    file.write_text("\n".join(["\ufeffm,s,acc", *lines, "None,3,NaN", "None,4,"]), encoding="utf-8")
    args = ["--csv", file, "--group", "m", "--baseline", "None", "--seed", "s", "--metric", "acc"]
    code, out, err = kdbench("compare", *args, "--margin", "0.5", "--json")
    entries = json.loads(out)["comparisons"]
    assert code == 0 and [e["b"] for e in entries] == ["010", "10"], err
    assert [m["seed"] for m in entries[0]["missing"]] == ["3", "4"] and entries[0]["n"] == [3, 3]


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
    columns = Columns("params.method", "params.seed", "metrics.accuracy")
    entries = table.compare(found, columns, "plain", margin=0.5, alpha=0.05)
    by_name = {e.b: e for e in entries}
    assert by_name["logit"].difference_pp == pytest.approx(
        stats.compare(SCORES["plain"], SCORES["logit"], 1).difference
    )
    assert by_name["other"].n == [5, 4] and by_name["other"].missing[0].seed == "4"
    with pytest.raises(InputError, match=r"unknown experiment.*theirs"):
        table.read_mlflow(uri, "their", "metrics.accuracy")
    with pytest.raises(InputError, match=r"typo\.db does not exist"):
        table.read_mlflow(f"sqlite:///{tmp_path / 'typo.db'}", "theirs", "metrics.accuracy")
    assert not (tmp_path / "typo.db").exists()
    with pytest.raises(InputError, match=r"--mlflow http://127\.0\.0\.1:9"):
        table.read_mlflow("http://127.0.0.1:9", "theirs", "metrics.accuracy")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--sd", "0.4", "--effect", "0.5"], "12 seeds per arm find a difference of 0.5 with power 0.8"),
        (["--sd", "0.4", "--seeds", "3"], "3 seeds per arm find a difference of 1.2 or more with power 0.8"),
        (["--sd", "1", "--effect", "2", "--seeds", "5"], "5 seeds per arm find a difference of 2 with power 0.79"),
        (["--sd", "1", "--effect", "0.001"], "more than 10,000 seeds per arm"),
    ],
)
def test_power_plans_seeds(args, says):
    code, out, _ = kdbench("power", *args)
    assert code == 0 and says in out, out
    few = "--seeds" in args
    assert few == ("With so few seeds these numbers are optimistic" in out)


def test_power_in_a_family_and_as_json():
    _, alone, _ = kdbench("power", "--sd", "1", "--effect", "1", "--json")
    _, among, _ = kdbench("power", "--sd", "1", "--effect", "1", "--family", "6", "--json")
    assert json.loads(alone)["seeds_needed"] == 17 < json.loads(among)["seeds_needed"]
    code, _, err = kdbench("power", "--sd", "1")
    assert code == 2 and "say --effect" in err
    code, _, err = kdbench("power", "--sd", "0", "--effect", "1")
    assert code == 2 and "--sd must be positive" in err
    code, _, err = kdbench("power", "--sd", "nan", "--effect", "1")
    assert code == 2 and "nan is not a finite number" in err
    code, _, err = kdbench("power", "--sd", "1", "--seeds", "5", "--power", "0.03")
    assert code == 2 and "--power 0.03 is no more than alpha, 0.05" in err
    code, out, _ = kdbench("power", "--sd", "1", "--seeds", "2", "--family", "100")
    assert code == 0 and "2 seeds per arm find a difference of 57 or more" in out, out
