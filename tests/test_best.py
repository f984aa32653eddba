"""The best method of a pair, and those that its seeds cannot tell from it."""

import dataclasses
import inspect

import numpy as np
import pytest
from scipy import stats
from test_report import comparison

from kdbench.harness.analysis.best import best_of_pairs


def gains(groups, pair="r34-r18"):
    """Return comparisons of each group but the first with the first."""
    (base, of_base), *others = groups.items()
    rows = []
    for name, values in others:
        row = comparison(name, name, "undecided", float(np.mean(values) - np.mean(of_base)))
        rows.append(
            dataclasses.replace(row, a=base, b=name, pair=pair, values=[of_base, values], n=[len(of_base), len(values)])
        )
    return rows


GROUPS = {
    "baseline": [70.1, 70.4, 69.8, 70.2],
    "logit": [74.0, 74.3, 73.9, 74.2],
    "dkd": [74.1, 74.6, 73.8, 74.4],
    "at": [71.9, 72.2, 72.0, 72.3],
}


def test_methods_of_one_worth_are_not_told_apart_and_the_others_are():
    (found,) = best_of_pairs(gains(GROUPS))
    assert (found.best, found.not_told_apart, found.groups) == ("dkd", ["logit"], 4)
    said = found.in_words({"dkd": "DKD", "logit": "Logit-KD"})
    assert "r34-r18: the highest mean is that of DKD; these seeds do not tell Logit-KD from it" in said


def test_a_wide_spread_of_one_method_is_not_lent_to_the_others():
    """A baseline that varies much is not told from the best, and widens no other interval."""
    (found,) = best_of_pairs(gains({**GROUPS, "baseline": [60.0, 85.0, 55.0, 82.0]}))
    assert found.not_told_apart == ["logit", "baseline"]


@pytest.mark.skipif("equal_var" not in inspect.signature(stats.tukey_hsd).parameters, reason="scipy without this test")
@pytest.mark.parametrize("seed", range(6))
def test_it_is_scipys_test_of_games_and_howell(seed):
    rng = np.random.default_rng(seed)
    groups = {f"m{i}": list(rng.normal(0.5 * i, 1 + i / 2, 3 + i)) for i in range(5)}
    (found,) = best_of_pairs(gains(groups))
    p = stats.tukey_hsd(*groups.values(), equal_var=False).pvalue[[*groups].index(found.best)]
    theirs = {name for name, of_it in zip(groups, p, strict=True) if of_it >= 0.05}
    assert {found.best, *found.not_told_apart} == theirs


def test_seeds_of_one_score_are_told_apart_by_their_means_alone():
    (found,) = best_of_pairs(gains({"baseline": [70.0, 70.0], "logit": [72.0, 72.0], "dkd": [72.0, 72.0]}))
    assert (found.best, found.not_told_apart) == ("logit", ["dkd"])


def test_two_groups_one_seed_or_an_undefined_comparison_have_no_order():
    assert best_of_pairs(gains({name: GROUPS[name] for name in ("baseline", "logit")})) == []
    assert best_of_pairs(gains({name: values[:1] for name, values in GROUPS.items()})) == []
    assert best_of_pairs([dataclasses.replace(row, difference_pp=None) for row in gains(GROUPS)]) == []
