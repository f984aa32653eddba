"""The statistics against values counted, integrated or called from scipy by hand; and every degenerate case."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.special import gamma
from statsmodels.stats.power import TTestIndPower

from kdbench.harness.analysis import stats
from kdbench.harness.analysis.stats import Comparison, compare, holm, power, seeds_needed, smallest_effect, verdict

A, B = [95.1, 94.8, 95.3, 94.9, 95.0], [95.4, 95.6, 95.2, 95.5, 95.9]


def test_difference_is_b_minus_a_with_welchs_interval_and_p():
    c = compare(A, B, margin=0.5)
    x, y = np.array(A), np.array(B)
    v_x, v_y = x.var(ddof=1) / 5, y.var(ddof=1) / 5
    df = (v_x + v_y) ** 2 / (v_x**2 / 4 + v_y**2 / 4)
    t = (y.mean() - x.mean()) / math.sqrt(v_x + v_y)
    half = scipy_stats.t.isf(0.025, df) * math.sqrt(v_x + v_y)
    assert c.difference == pytest.approx(0.5, abs=1e-9)
    assert c.welch_p == pytest.approx(2 * scipy_stats.t.sf(t, df), rel=1e-9)
    assert c.ci95 == pytest.approx((0.5 - half, 0.5 + half), rel=1e-9)
    assert c.std == pytest.approx((x.std(ddof=1), y.std(ddof=1)))


@pytest.mark.parametrize(("test", "one"), [(stats.welch, compare), (stats.paired_t, stats.compare_paired)])
def test_many_experiments_at_once_are_tested_as_each_alone(test, one):
    rng = np.random.default_rng(1)
    x, y = rng.normal(95.0, 0.3, (6, 4)), rng.normal(95.3, 0.6, (6, 4))
    rows = test(x, y, 0.5)
    for i in range(6):
        c = one(x[i], y[i], margin=0.5)
        alone = (c.difference, *c.ci95, c.welch_p, c.tost_p)
        assert tuple(float(column[i]) for column in rows) == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize(("n_x", "n_y"), [(5, 5), (2, 7), (30, 3)])
def test_the_t_tests_are_scipys(n_x, n_y):
    rng = np.random.default_rng(2)
    x, y = rng.normal(95.0, 0.3, (50, n_x)), rng.normal(95.3, 0.9, (50, n_y))
    pairs = [(stats.welch(x, y, 0.5), scipy_stats.ttest_ind(y, x, axis=1, equal_var=False))]
    if n_x == n_y:
        pairs.append((stats.paired_t(x, y, 0.5), scipy_stats.ttest_rel(y, x, axis=1)))
    for ours, theirs in pairs:
        interval = theirs.confidence_interval(0.95)
        for mine, known in ((ours.p, theirs.pvalue), (ours.low, interval.low), (ours.high, interval.high)):
            np.testing.assert_allclose(mine, known, rtol=1e-12)


def test_permutation_p_is_the_count_over_all_relabellings():
    c = compare(A, B, margin=0.5)
    pool, seen = np.array(A + B), c.difference - 1e-9
    differences = [
        pool[list(chosen)].mean() - np.delete(pool, list(chosen)).mean()
        for chosen in itertools.combinations(range(10), 5)
    ]
    assert c.permutation_p == pytest.approx(sum(abs(d) >= seen for d in differences) / len(differences))
    assert c.least_permutation_p == pytest.approx(2 / 252)


@pytest.mark.parametrize(("n_a", "n_b", "least"), [(3, 3, 0.1), (5, 5, 2 / 252), (2, 3, 0.2), (10, 10, 2 / 184_756)])
def test_least_p_of_the_design_is_reached_by_the_clearest_data(n_a, n_b, least):
    a, b = [0.0 + i * 1e-3 for i in range(n_a)], [100.0 + i * 1e-3 for i in range(n_b)]
    c = compare(a, b, margin=0.5)
    assert c.least_permutation_p == pytest.approx(least)
    assert c.permutation_p == pytest.approx(least, rel=1e-6)


def test_hedges_g_uses_the_exact_factor_and_its_interval_inverts_the_noncentral_t():
    c = compare(A, B, margin=0.5)
    pooled = math.sqrt((np.var(A, ddof=1) + np.var(B, ddof=1)) / 2)
    factor = gamma(4) / (math.sqrt(4) * gamma(3.5))
    assert factor == pytest.approx(0.9027, abs=1e-4)
    assert c.hedges_g == pytest.approx(0.5 / pooled * factor, rel=1e-9)
    t = 0.5 / (pooled * math.sqrt(2 / 5))
    for bound, tail in zip(c.hedges_g_ci95, (0.025, 0.975), strict=True):
        shift = bound / math.sqrt(2 / 5)
        assert scipy_stats.nct.sf(t, 8, shift) == pytest.approx(tail, rel=1e-6)


def test_probability_of_improvement_counts_pairs():
    c = compare([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], margin=0.5)
    wins = sum((b > a) + 0.5 * (b == a) for a in (1, 2, 3) for b in (2, 3, 4))
    assert c.p_b_greater == pytest.approx(wins / 9)


@pytest.mark.parametrize(
    ("n", "effect"), [(2, 5.65), (3, 3.07), (4, 2.38), (5, 2.02), (6, 1.80), (8, 1.51), (10, 1.32), (20, 0.91)]
)
def test_smallest_effect_of_each_design(n, effect):
    assert smallest_effect(n) == pytest.approx(effect, abs=0.006)
    assert power(smallest_effect(n), n) == pytest.approx(0.8)


@pytest.mark.parametrize("sizes", [(5, 2), (5, 3), (4, 5), (10, 2), (5, 5)])
def test_smallest_effect_of_unequal_groups_is_statsmodels(sizes):
    n_a, n_b = sizes
    oracle = TTestIndPower().solve_power(nobs1=n_a, ratio=n_b / n_a, alpha=0.05, power=0.8)
    assert smallest_effect(sizes) == pytest.approx(oracle, rel=1e-6)
    a, b = [float(i) for i in range(n_a)], [float(i) for i in range(n_b)]
    pooled = math.sqrt(((n_a - 1) * np.var(a, ddof=1) + (n_b - 1) * np.var(b, ddof=1)) / (n_a + n_b - 2))
    assert compare(a, b, margin=0.5).mde == pytest.approx(oracle * pooled, rel=1e-6)


def test_smallest_effect_of_a_strict_alpha():
    effect = smallest_effect(2, 0.0005)
    assert effect > 50 and power(effect, 2, 0.0005) == pytest.approx(0.8)
    assert smallest_effect(5, 0.05, wanted=0.05) == 0
    assert stats.compare_paired([1.0, 2.0], [1.5, 2.7], 0.5, 0.01).mde > 0


def test_groups_of_very_different_sizes_are_relabelled():
    many = [float(i % 7) for i in range(130)]
    assert compare([3.0, 4.0], many, margin=0.5).permutation_p == pytest.approx(
        scipy_stats.permutation_test(
            (many, [3.0, 4.0]), lambda u, v: np.mean(u) - np.mean(v), n_resamples=np.inf
        ).pvalue,
        rel=0.02,
    )


@pytest.mark.parametrize(("effect", "n"), [(0.5, 64), (0.8, 26), (1.0, 17), (1.5, 9), (2.0, 6), (3.0, 4)])
def test_seeds_needed(effect, n):
    assert seeds_needed(effect) == n
    assert power(effect, n) >= 0.8 > power(effect, n - 1)


def test_power_of_a_huge_effect_is_one_and_of_none_is_alpha():
    assert power(40.0, 5) == pytest.approx(1.0)
    assert power(1000.0, 20) == pytest.approx(1.0)
    assert power(0.0, 5) == pytest.approx(0.05)
    assert seeds_needed(1e-6) is None


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("wanted", [0.1, 0.8, 0.99])
def test_seeds_needed_are_the_first_that_suffice(wanted, paired):
    for effect in (0.1, 0.31, 0.8, 1.7, 4.0, 30.0):
        n = seeds_needed(effect, 0.05, wanted, paired)
        assert power(effect, n, 0.05, paired) >= wanted
        assert n == 2 or power(effect, n - 1, 0.05, paired) < wanted


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_equivalence_is_the_larger_of_two_one_sided_tests():
    x, y = np.array(A), np.array(B)
    c = compare(A, B, margin=0.8)
    low = scipy_stats.ttest_ind(y - x.mean() + x.mean(), x - 0.8, equal_var=False, alternative="greater").pvalue
    high = scipy_stats.ttest_ind(y, x + 0.8, equal_var=False, alternative="less").pvalue
    assert c.tost_p == pytest.approx(max(low, high), rel=1e-9)


@pytest.mark.parametrize(
    ("shift", "margin", "p", "wanted"),
    [
        (2.0, 0.5, None, "different"),
        (0.0, 1.0, None, "equivalent"),
        (0.4, 1.0, None, "both"),
        (0.2, 0.1, None, "undecided"),
        (2.0, 0.5, 0.9, "undecided"),
    ],
)
def test_the_verdict_is_what_adjusted_p_and_equivalence_say(shift, margin, p, wanted):
    c = compare(A, [a + shift for a in A], margin)
    assert verdict(c, c.welch_p if p is None else p) == wanted


@pytest.mark.parametrize(
    ("a", "b", "difference", "says"),
    [
        ([95.1] * 3, [95.1] * 3, 0.0, "deterministic"),
        ([95.1] * 3, [95.3] * 3, 0.2, "deterministic"),
        ([0.1 + 0.2] * 3, [0.3] * 3, 0.0, "deterministic"),
        ([95.0], [96.0, 97.0], 1.5, "fewer than two"),
        ([], [96.0, 97.0], None, "fewer than two"),
    ],
)
def test_degenerate_groups_are_undefined_and_never_p_zero(a, b, difference, says, recwarn):
    c = compare(a, b, margin=0.5)
    assert verdict(c, None) == "undefined" and c.welch_p is None
    assert c.difference == (None if difference is None else pytest.approx(difference))
    assert says in c.warnings[0]
    assert not recwarn.list


def test_one_constant_arm_is_still_compared_and_remarked_on(recwarn):
    c = compare([95.0] * 4, [96.0, 96.1, 95.9, 96.2], margin=0.5)
    assert c.welch_p < 0.01 and verdict(c, c.welch_p) == "different"
    assert c.constant == "a" and not recwarn.list


def test_few_seeds_are_warned_of_with_what_they_could_show():
    (warning,) = compare([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], margin=0.5).warnings
    assert "3 v 3 seeds: no exact test can give p < 0.1" in warning and "3.1 sd" in warning


def test_a_nan_is_refused_not_carried_along():
    with pytest.raises(ValueError):
        compare([1.0, math.nan, 2.0], [1.0, 2.0, 3.0], margin=0.5)


def test_false_alarms_stay_near_alpha():
    """200 comparisons of nothing with nothing, three seeds each: as few cry wolf as alpha allows (99.9% limits)."""
    rng = np.random.default_rng(0)
    p = [compare(*rng.normal(95, 0.2, size=(2, 3)), margin=0.5).welch_p for _ in range(200)]
    assert (
        scipy_stats.binom.ppf(0.0005, 200, 0.02) <= sum(x < 0.05 for x in p) <= scipy_stats.binom.ppf(0.9995, 200, 0.05)
    )
    assert min(p) < 0.1 and max(p) > 0.9


def test_holm_counts_declared_comparisons_that_have_no_p():
    assert holm([0.01, None, 0.02, None]) == [pytest.approx(0.04), None, pytest.approx(0.06), None]


def test_everything_undefined_is_none():
    assert verdict(Comparison((None, None), (None, None)), 0.01) == "undefined"


# -- paired, for what happens after training

X, Y = [95.1, 95.9, 94.7, 95.4, 96.0], [95.4, 96.1, 95.1, 95.5, 96.4]


def test_pairs_are_compared_as_statsmodels_does():
    from statsmodels.stats.weightstats import DescrStatsW

    c = stats.compare_paired(X, Y, 0.5)
    d = DescrStatsW([b - a for a, b in zip(X, Y, strict=True)])
    assert c.paired and c.difference == pytest.approx(d.mean, rel=1e-9)
    assert c.welch_p == pytest.approx(d.ttest_mean(0)[1], rel=1e-9)
    assert c.ci95 == pytest.approx(d.tconfint_mean(), rel=1e-9)
    assert c.tost_p == pytest.approx(d.ttost_mean(-0.5, 0.5)[0], rel=1e-9)
    assert c.correlation == pytest.approx(np.corrcoef(X, Y)[0, 1]) and c.correlation > 0.9
    unpaired = stats.compare(X, Y, 0.5)
    assert c.welch_p < 0.02 < unpaired.welch_p, "seeds that couple make the pairs surer"
    assert c.hedges_g == unpaired.hedges_g and not unpaired.paired


def test_the_sign_flip_p_is_the_count_over_all_flips():
    c = stats.compare_paired(X, Y, 0.5)
    d = [b - a for a, b in zip(X, Y, strict=True)]
    sums = [sum(s * v for s, v in zip(signs, d, strict=True)) for signs in itertools.product((1, -1), repeat=5)]
    assert c.permutation_p == pytest.approx(sum(abs(s) >= abs(sum(d)) - 1e-12 for s in sums) / 32)
    assert c.permutation_p == c.least_permutation_p == pytest.approx(2 / 32)
    mixed = [0.3, -0.1, 0.2, 0.4, -0.2, 0.1]
    p = stats.compare_paired([0.0] * 6, mixed, 0.5).permutation_p
    sums = [sum(s * v for s, v in zip(signs, mixed, strict=True)) for signs in itertools.product((1, -1), repeat=6)]
    assert p == pytest.approx(sum(abs(s) >= abs(sum(mixed)) - 1e-12 for s in sums) / 64)


@pytest.mark.parametrize(("n", "dz"), [(3, 3.26), (4, 2.13), (5, 1.68), (6, 1.43), (8, 1.16), (10, 1.00), (20, 0.66)])
def test_smallest_paired_effect_of_each_design(n, dz):
    assert stats.smallest_effect(n, paired=True) == pytest.approx(dz, abs=0.006)


@pytest.mark.parametrize(("dz", "n"), [(0.5, 34), (0.8, 15), (1, 10), (1.5, 6), (2, 5), (3, 4)])
def test_pairs_needed(dz, n):
    assert stats.seeds_needed(dz, paired=True) == n


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([95.0, 96.0, 97.0], [95.2, 96.2, 97.2], "every seed differs by the same"),
        ([95.0, 96.0], [95.0, 96.0], "every seed differs by the same"),
        ([95.0], [96.0], "1 pairs of seeds"),
        ([], [], "0 pairs of seeds"),
    ],
)
def test_degenerate_pairs_are_undefined_and_never_p_zero(a, b, says, recwarn):
    c = stats.compare_paired(a, b, 0.5)
    assert c.welch_p is None and says in c.warnings[0] and stats.verdict(c, None) == "undefined"
    assert not recwarn.list


def test_values_without_a_partner_are_no_pairs():
    with pytest.raises(ValueError, match="3 and 2 values are no pairs"):
        stats.compare_paired([1.0, 2.0, 3.0], [1.0, 2.0], 0.5)


def test_correlation_needs_something_to_correlate():
    still = np.array([1.0, 1.0, 1.0])
    assert stats.correlation(np.array(X), np.array(Y)) == pytest.approx(np.corrcoef(X, Y)[0, 1])
    assert stats.correlation(still, np.array([1.0, 2.0, 3.0])) is None
    assert stats.correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
