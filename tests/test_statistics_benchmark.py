"""The simulation of the statistics runs, and its marks find a wrong statistic of every kind that it judges."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from benchmarks.statistics import simulation
from benchmarks.statistics.page import SECTIONS, reading
from benchmarks.statistics.simulation import FAMILIES, SEEDS, Row, Setup
from kdbench.harness.analysis import stats

ROOT = Path(__file__).resolve().parent.parent
SETUP = Setup(2000)


def by_z(difference, error, margin):
    """Decide with the normal's tail where the t's belongs: too sure of few seeds."""
    with np.errstate(divide="ignore", invalid="ignore"):  # of scores that do not vary
        lower, upper = (special.ndtr(-(margin + d) / error) for d in (difference, -difference))
        p = 2 * special.ndtr(-np.abs(difference) / error)
    reach = -special.ndtri(0.025) * error
    return stats.Tested(difference, difference - reach, difference + reach, p, np.maximum(lower, upper))


def z_test(x, y, margin):
    error = np.sqrt((x.var(axis=-1, ddof=1) + y.var(axis=-1, ddof=1)) / x.shape[-1])
    return by_z(y.mean(axis=-1) - x.mean(axis=-1), error, margin)


def paired_z_test(x, y, margin):
    d = y - x
    return by_z(d.mean(axis=-1), d.std(axis=-1, ddof=1) / math.sqrt(d.shape[-1]), margin)


def row_of(rows, start, n):
    return next(row for row in rows if row.case.startswith(start) and row.n == n)


def test_the_report_has_every_table_at_every_number_of_seeds_and_is_the_same_again(tmp_path):
    command = [sys.executable, "-m", "benchmarks.statistics", "--output", tmp_path / "made", "--repetitions", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "made" / "statistics.json").read_text())
    assert next(iter(record)) == "schema" and record["schema"] == "kdbench.statistics/1"
    tables = {}
    for row in record["rows"]:
        tables.setdefault(row["table"], set()).add(row["n"])
        low, high = row["bounds"]
        assert low <= row["rate"] == row["hits"] / row["of"] <= high
        assert (row["nominal"] is None) == (row["mark"] is None) == (row["kept"] is None)
    assert tables.keys() == SECTIONS.keys()
    assert all(ns >= set(SEEDS) for table, ns in tables.items() if table != "seeds")
    page = (tmp_path / "made" / "README.md").read_text()
    assert all(f"## {title}" in page for title, _ in SECTIONS.values()) and "nan" not in page
    assert (tmp_path / "made" / "statistics.png").read_bytes().startswith(b"\x89PNG")
    again = [(row.case, row.n, row.hits, row.of) for row in simulation.simulate(Setup(20))]
    assert again == [(row["case"], row["n"], row["hits"], row["of"]) for row in record["rows"]]
    other = next(iter(simulation.stopping(Setup(2000, seed=1))))
    assert other != next(iter(simulation.stopping(Setup(2000))))


def test_a_namespace_yields_to_the_standard_library():
    code = "import statistics; print(statistics.fmean([1, 3]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.stdout == "2.0\n", done.stderr


@pytest.mark.parametrize(
    ("hits", "of", "nominal", "mark", "kept"),
    [
        (50, 1000, 0.05, "within", True),
        (20, 1000, 0.05, "below", True),
        (100, 1000, 0.05, "above", False),
        (900, 1000, 0.95, "below", False),
        (990, 1000, 0.95, "above", True),
        (700, 1000, 0.8, "below", False),
        (0, 50, 0.05, "within", True),  # too few to tell
        (900, 1000, None, None, None),
    ],
)
def test_marks(hits, of, nominal, mark, kept):
    row = Row("size", "case", 3, hits, of, nominal)
    assert (row.mark, row.kept) == (mark, kept)


def test_reading_counts_and_names_the_furthest():
    rows = [Row("size", word, 3, hits, 1000, 0.05) for word, hits in (("a", 50), ("b", 100), ("c", 200), ("d", 10))]
    text = reading(rows)
    assert text == (
        "Rates as promised: 1 of 4. Kept with room: 1 (furthest: 1.0 for 5.0; d; 3 seeds). "
        "Not kept: 2 (furthest: 20.0 for 5.0; c; 3 seeds)."
    )
    assert reading(rows[:1]) == "Rates as promised: 1 of 1. Not kept: none."


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_arms_have_the_means_and_the_spread_that_their_name_says(family):
    x, y = family.arms(np.random.default_rng(3), (200_000, 2), difference=1.0)
    rounding = 1 / (12 * family.images**2) if family.images else 0
    assert x.mean() == pytest.approx(y.mean() - 1, abs=0.02 * family.ratio)
    # A t with 3 degrees has no fourth moment: its sample variance is slow to settle.
    assert x.var() == pytest.approx(1 + rounding, rel=0.15) and y.std() / x.std() == pytest.approx(
        family.ratio, rel=0.1
    )


def test_scores_that_do_not_vary_are_undefined_as_in_a_study():
    family = FAMILIES[-1]
    x, y = family.arms(np.random.default_rng(0), (3000, 3))
    undefined = family.undefined(x, y)
    assert 0 < undefined.sum() < 600
    for i in [*np.flatnonzero(undefined)[:5], *np.flatnonzero(~undefined)[:5]]:
        assert (stats.compare(x[i], y[i], 1.0).welch_p is None) == undefined[i]


def test_the_size_of_a_z_test_is_off_and_that_of_welchs_is_not():
    wrong, right = list(simulation.size(SETUP, z_test)), list(simulation.size(SETUP))
    for n in (3, 5):
        assert row_of(wrong, "normal, sd 1 : 1", n).mark == "above"
        assert row_of(right, "normal, sd 1 : 1", n).kept


def test_the_coverage_of_an_interval_too_short_is_off():
    def short(x, y):
        g, (low, high) = stats.hedges(x, y)
        middle = (low + high) / 2
        return g, (middle + 0.8 * (low - middle), middle + 0.8 * (high - middle))

    rows = list(simulation.coverage(SETUP, z_test, paired_z_test, short))
    for start in ("difference: normal, sd 1 : 1", "difference, paired", "Hedges' g: true effect 0"):
        row = row_of(rows, start, 3)
        assert row.mark == "below" and not row.kept, row


def test_an_interval_that_shares_gs_small_sample_factor_is_off_where_the_effect_is_large():
    def shrunk(x, y):
        g, (low, high) = stats.hedges(x, y)
        factor = g / ((y.mean() - x.mean()) / math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2))
        return g, (factor * low, factor * high)

    start = "Hedges' g: true effect 3"
    wrong, right = (list(simulation.coverage(SETUP, hedges=interval)) for interval in (shrunk, stats.hedges))
    assert row_of(wrong, start, 3).mark == "below"
    assert row_of(right, start, 3).mark == "within"


def test_families_that_are_not_adjusted_are_off():
    rows = list(simulation.family_wise(Setup(500), adjust=lambda ps: ps))
    assert all(row.mark == "above" for row in rows if row.case.endswith("Holm"))
    assert all(row.kept for row in simulation.family_wise(Setup(500)) if row.case.endswith("Holm"))


def test_a_z_test_for_equivalence_is_off_at_the_margins_edge():
    wrong, right = list(simulation.equivalence(SETUP, z_test)), list(simulation.equivalence(SETUP))
    assert row_of(wrong, "margin 5 sd, at the margin's edge", 3).mark == "above"
    assert row_of(right, "margin 5 sd, at the margin's edge", 3).kept
    assert row_of(right, "margin 5 sd, no difference", 10).rate > 0.99


def test_a_formula_that_promises_too_much_power_is_off(monkeypatch):
    # Of the test that the formula is of; Welch's, which decides, has less power with few seeds.
    assert all(row.kept for row in simulation.needed(SETUP, simulation.pooled_t))
    monkeypatch.setattr(stats, "seeds_needed", lambda effect, *_: math.ceil(8 / effect**2) + 1)
    monkeypatch.setattr(stats, "power", lambda *_: 0.8)
    assert all(row.mark == "below" for row in simulation.needed(SETUP, simulation.pooled_t))


def test_pairing_pays_where_the_seed_couples_and_costs_where_it_does_not():
    rows = list(simulation.pairing(SETUP))
    gain = {
        r: row_of(rows, f"r = {r}, paired, a", 3).rate - row_of(rows, f"r = {r}, Welch, a", 3).rate for r in (0, 0.9)
    }
    assert gain[0] < -0.1 < 0.1 < gain[0.9]
    assert all(row.mark == "within" for row in rows if "paired, a" in row.case and row.n == 5)


def test_looking_again_errs_more_often_than_one_look():
    rows = list(simulation.stopping(SETUP))
    ever = [row.rate for row in rows if row.case.startswith("any")]
    assert ever == sorted(ever) and rows[-2].mark == "above" and rows[-1].kept


@pytest.mark.long
def test_what_libraries_would_cost_is_measured():
    """It refuses to time what gives other numbers."""
    words = [sys.executable, "-m", "benchmarks.libraries"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("times as long") == 4, done.stderr
