"""A method over several pairs: gains and intervals against formulas and against rliable, and where it is shown."""

import json
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats
from test_cli import kdbench

from kdbench.harness.analysis import over_pairs
from kdbench.harness.analysis.over_pairs import aggregated

PAIRS = ["r34-r18", "r50-r18", "r50-r34"]


def drawn(gain, seeds=5, spread=0.4, start=0):
    rng = np.random.default_rng(start)
    return {pair: list(70 + 3 * at + gain + spread * rng.standard_normal(seeds)) for at, pair in enumerate(PAIRS)}


def test_gain_and_probability_are_means_over_the_pairs():
    method, base = drawn(0.3, start=1), drawn(0.0, start=2)
    (row,) = aggregated({"m": method}, base, "baseline")
    assert row.gain_pp == pytest.approx(np.mean([np.mean(method[p]) - np.mean(base[p]) for p in PAIRS]))
    wins = [scipy_stats.mannwhitneyu(method[p], base[p]).statistic / (len(method[p]) * len(base[p])) for p in PAIRS]
    assert row.p_gain == pytest.approx(np.mean(wins))
    assert row.gain_ci95_pp[0] < row.gain_pp < row.gain_ci95_pp[1] and row.seeds == 15
    assert (row.pairs, row.among_best) == (PAIRS, True)


def test_ties_count_half():
    same = {pair: [70.0, 71.0] for pair in PAIRS}
    (row,) = aggregated({"m": same}, same, "baseline")
    assert row.p_gain == 0.5 and row.gain_pp == 0


def test_the_interval_is_as_wide_as_the_normal_ones_variance_says():
    """With many seeds the percentile interval of a mean is the normal interval of the plug-in variance."""
    method, base = drawn(0.3, seeds=30, start=3), drawn(0.0, seeds=30, start=4)
    (row,) = aggregated({"m": method}, base, "baseline")
    variance = sum(np.var(v[p]) / 30 for p, v in product(PAIRS, (method, base))) / len(PAIRS) ** 2
    low, high = row.gain_ci95_pp
    assert (high - low) / (2 * 1.96 * variance**0.5) == pytest.approx(1, abs=0.06)


def test_many_scores_cost_little_and_agree_with_the_bootstrap(monkeypatch):
    method, base = drawn(0.3, seeds=30, start=3), drawn(0.0, seeds=30, start=4)
    (normal,) = aggregated({"m": method}, base, "baseline")
    monkeypatch.setattr(over_pairs, "MANY", 30)
    (bootstrap,) = aggregated({"m": method}, base, "baseline")
    assert (normal.gain_pp, normal.p_gain) == (bootstrap.gain_pp, pytest.approx(bootstrap.p_gain))
    assert normal.gain_ci95_pp == pytest.approx(bootstrap.gain_ci95_pp, abs=0.02)
    assert normal.p_gain_ci95 == pytest.approx(bootstrap.p_gain_ci95, abs=0.02)
    ties = {pair: [70.0, 70.0, 71.0] * 20 for pair in PAIRS}
    (row,) = aggregated({"m": ties}, ties, "baseline")
    assert row.p_gain == 0.5 and row.p_gain_ci95[0] < 0.5 < row.p_gain_ci95[1]


def test_what_is_far_below_is_not_among_the_best_and_equals_are():
    base = drawn(0.0, start=9)
    methods = {"a": drawn(2.0, start=1), "b": drawn(2.0, start=2), "c": drawn(0.2, start=3)}
    assert [(row.method, row.among_best) for row in aggregated(methods, base, "baseline")] == [
        *sorted([("a", True), ("b", True)], key=lambda m: -np.mean([*map(np.mean, methods[m[0]].values())])),
        ("c", False),
    ]


def test_methods_of_one_worth_are_seldom_told_apart():
    """Six methods without a difference: at the 95 % level one in twenty studies may lose one."""
    lost = 0
    for study in range(20):
        methods = {f"m{number}": drawn(0.0, seeds=10, start=100 * study + number) for number in range(6)}
        lost += not all(row.among_best for row in aggregated(methods, drawn(0.0, start=7), "baseline"))
    assert lost <= 3


def test_the_same_seeds_give_the_same_numbers():
    method, base = {"m": drawn(0.3)}, drawn(0.0, start=5)
    assert aggregated(method, base, "baseline") == aggregated(method, base, "baseline")


CSV = "pair,method,seed,acc\n" + "".join(
    f"{pair},{method},{seed},{70 + 3 * at + gain + 0.1 * ((7 * seed + 3 * at) % 5)}\n"
    for (at, pair), (method, gain), seed in product(
        enumerate(PAIRS), [("plain", 0), ("logit", 0.5), ("hint", -1)], range(4)
    )
)
COMPARE = ["compare", "--csv", "runs.csv", "--group", "method", "--baseline", "plain", "--seed", "seed", "--metric"]


def test_a_table_of_ones_own_is_read_over_its_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.csv").write_text(CSV)
    words = [*COMPARE, "acc", "--margin", "0.3", "--family", "pair"]
    code, out, err = kdbench(*words)
    assert code == 0 and "Over 3 pairs together, against plain" in out and "among the best" in out, err
    rows = json.loads(kdbench(*words, "--json")[1])["over_pairs"]
    assert [(row["method"], round(row["gain_pp"], 6), row["among_best"]) for row in rows] == [
        ("logit", 0.5, True),
        ("hint", -1.0, False),
    ]


@pytest.mark.parametrize("lost", ["one pair", "a method in one pair"])
def test_means_over_different_pairs_are_not_compared(tmp_path, monkeypatch, lost):
    monkeypatch.chdir(tmp_path)
    lines = CSV.splitlines(keepends=True)
    if lost == "one pair":
        kept = [line for line in lines if line.startswith(("pair,", PAIRS[0]))]
    else:
        kept = [line for line in lines if not line.startswith(f"{PAIRS[1]},hint")]
    (tmp_path / "runs.csv").write_text("".join(kept))
    code, out, _ = kdbench(*COMPARE, "acc", "--margin", "0.3", "--family", "pair", "--json")
    assert code == 0
    assert [row["method"] for row in json.loads(out)["over_pairs"]] == ([] if lost == "one pair" else ["logit"])


@pytest.mark.packages
def test_rliable_gives_the_same_numbers():
    """In an environment of its own, since arch, which it uses, needs pandas below 3.

    pip install rliable 'pandas<3' && python -m pytest -m packages tests/test_over_pairs.py
    """
    pytest.importorskip("rliable", reason="rliable is not installed")
    from rliable import library as rly

    metrics = pytest.importorskip("rliable.metrics")
    method, base = drawn(0.3, start=1), drawn(0.0, start=2)
    (row,) = aggregated({"m": method}, base, "baseline")
    table = {"m": np.array([method[p] for p in PAIRS]).T, "b": np.array([base[p] for p in PAIRS]).T}
    point, ends = rly.get_interval_estimates(
        {"m,b": (table["m"], table["b"])}, metrics.probability_of_improvement, reps=over_pairs.DRAWS
    )
    assert row.p_gain == pytest.approx(float(point["m,b"]))
    assert row.p_gain_ci95 == pytest.approx(ends["m,b"].ravel().tolist(), abs=0.03)
