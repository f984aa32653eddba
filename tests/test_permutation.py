"""Permutation tests against scipy's, as they stood before large groups were thought of, and what they may take."""

import sys
import tracemalloc

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdbench.harness.analysis import permutation, stats


def as_before(samples, statistic, kind, drawn=permutation.RESAMPLES):
    """The call as it stood before: up to 20,000 relabellings at once, so that 10,000 values took 8 GB."""
    return scipy_stats.permutation_test(
        samples, statistic, permutation_type=kind, n_resamples=drawn, vectorized=True, batch=20_000, rng=0
    ).pvalue


def means(u, v, axis):
    return u.mean(axis=axis) - v.mean(axis=axis)


@pytest.mark.parametrize("sizes", [(20, 20), (3, 190), (40, 60)])
def test_groups_of_a_study_give_the_same_bits_as_ever(sizes):
    rng = np.random.default_rng(1)
    x, y = (95 + 0.3 * rng.standard_normal(n) for n in sizes)
    y += 0.1
    assert permutation.relabelling_p(x, y) == as_before((y, x), means, "independent")
    if len(x) == len(y):
        assert permutation.sign_flip_p(y - x) == as_before((y - x,), lambda d, axis: d.mean(axis=axis), "samples")


DATA = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tails": lambda rng, n: rng.standard_t(2, n),
    "one value beyond all": lambda rng, n: np.append(rng.standard_normal(n - 1), 500.0),
    "wins and losses": lambda rng, n: rng.integers(0, 2, n).astype(float),
}


@pytest.mark.parametrize("sizes", [(600, 700), (900, 300), (4, 1400), (1200, 40)])
@pytest.mark.parametrize("data", DATA)
def test_large_groups_give_scipys_p_but_for_what_chance_draws(data, sizes):
    rng, drawn = np.random.default_rng(2), 5000
    x, y = (DATA[data](rng, n) for n in sizes)
    y = y + 1.5 * np.std(x) / np.sqrt(min(sizes)) if data != "wins and losses" else y
    theirs = as_before((y, x), means, "independent", drawn)
    error = 2 * np.sqrt(theirs / 2 * (1 - theirs / 2) / drawn)
    assert permutation.relabelling_p(x, y) == pytest.approx(theirs, abs=4 * error + 2 / drawn)


@pytest.mark.parametrize(("a", "b"), [(2500, 2600), (5200, 300), (40, 9000)])
def test_wins_and_losses_of_large_groups_give_the_exact_p(a, b):
    """How many wins b has under relabelling is hypergeometric, so its p can be counted."""
    x, y = (np.repeat([0.0, 1.0], [n - wins, wins]) for n, wins in ((a, a // 2), (b, b // 2 + b // 40)))
    wins = scipy_stats.hypergeom(a + b, int(x.sum() + y.sum()), b)
    known = 2 * min(wins.sf(y.sum() - 1), wins.cdf(y.sum()))
    assert permutation.relabelling_p(x, y) == pytest.approx(min(1, known), abs=8 * np.sqrt(known / 2 / 99_999))


def test_p_is_the_same_whichever_group_comes_first():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal(700), rng.standard_normal(800) + 0.1
    assert permutation.relabelling_p(x, y) == pytest.approx(permutation.relabelling_p(y, x), rel=0.05)


@pytest.mark.parametrize("sizes", [(5, 5), (40, 7), (300, 200)])
def test_the_share_of_wins_is_that_of_all_pairs(sizes):
    rng = np.random.default_rng(4)
    x, y = (np.round(rng.standard_normal(n), 1) for n in sizes)  # with ties
    assert stats._share_greater(x, y) == float(np.sign(np.subtract.outer(y, x)).mean() + 1) / 2


def test_the_number_of_relabellings_is_counted_as_far_as_it_matters():
    assert permutation.designs(5, 5) == 252 and permutation.designs(2, 130) == 8646
    assert permutation.EXACT_LIMIT < permutation.designs(500_000, 500_000) < 10**12


def test_five_thousand_seeds_take_little_memory():
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal(5000), rng.standard_normal(5000)
    stats.compare(x, y, 0.5)  # what is imported now is no cost of the data's
    tracemalloc.start()
    found = stats.compare(x, y, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6, f"{peak / 1e6:.0f} MB"
    assert found.p_b_greater == float(np.sign(np.subtract.outer(y, x)).mean() + 1) / 2
    assert found.permutation_p == pytest.approx(found.welch_p, abs=0.01)


HEAVY = ("torch", "pandas", "scipy.stats", "mlflow", "matplotlib", "pydantic")


def test_a_table_of_runs_is_compared_without_pytorch(tmp_path):
    import subprocess

    table = tmp_path / "runs.csv"
    rows = [f"{m},{s},{70 + s % 3 + (m == 'kd')}" for m in ("plain", "kd") for s in range(600)]
    table.write_text("\n".join(["m,s,acc", *rows]))
    program = (
        "import sys; from kdbench.harness.cli import cli; cli.main(sys.argv[1:], standalone_mode=False);"
        f"print('IMPORTED', [name for name in {HEAVY} if name in sys.modules])"
    )
    words = ["compare", "--csv", table, "--group", "m", "--baseline", "plain", "--seed", "s", "--metric", "acc"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words), "--margin", "1"], capture_output=True, text=True, check=True
    )
    assert "different" in done.stdout and "IMPORTED []" in done.stdout, done.stdout
