"""Weighting: what must be found right, and what must be caught."""

import pytest
from law_specimens import holds

from kdbench.audits import laws
from kdbench.kd.procedure import CANONICAL

WEIGHTINGS = {
    "canonical": (CANONICAL.combine, "pass"),
    "single": (lambda ce, kd, a, b: (a * ce + b * kd).float(), "pass"),
    "as floats": (lambda ce, kd, a, b: a * ce.item() + b * kd.item(), "pass"),
    "swapped": (lambda ce, kd, a, b: b * ce + a * kd, "fail", "0 ce + 0.7 kd, not 0.7 ce + 0 kd", "swapped"),
    "kd stays": (lambda ce, kd, a, b: a * ce + kd, "fail", "distillation term stays although its weight is 0"),
    "ce stays": (lambda ce, kd, a, b: ce + b * kd, "fail", "weight of the label term is ignored"),
    "both ignored": (lambda ce, kd, a, b: ce + kd, "fail", "ignored", "stays"),
    "constant": (lambda ce, kd, a, b: a * ce + b * kd + 0.1, "fail", "a constant 0.1 is added"),
    "normalised": (lambda ce, kd, a, b: (a * ce + b * kd) / (a + b), "fail", "weight of the label term is ignored"),
    "temperature": (lambda ce, kd, a, b: a * ce + 16 * b * kd, "fail", "distillation term counts 16 times"),
    "product": (lambda ce, kd, a, b: a * ce + b * kd + a * b * ce, "fail", "label term counts 1.6 times"),
    "squared": (lambda ce, kd, a, b: a * ce**2 + b * kd, "fail", "no weighted sum"),
    "nan": (lambda ce, kd, a, b: ce / 0 * 0, "fail"),
}
ONE_WEIGHT = {
    "the paper's": (lambda ce, kd, a: (1 - a) * ce + a * kd, "pass"),
    "swapped": (lambda ce, kd, a: a * ce + (1 - a) * kd, "fail", "alpha 0", "swapped"),
    "only added": (lambda ce, kd, a: ce + a * kd, "fail", "alpha 1", "label term stays"),
    "ignored": (lambda ce, kd, a: (ce + kd) / 2, "fail", "stays"),
    "squared": (lambda ce, kd, a: (1 - a) * ce + a * a * kd, "fail", "alpha 0.3", "counts 0.3 times its weight"),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weighting(name):
    combine, *expected = WEIGHTINGS[name]
    holds(laws.check_weighting(combine), *expected)


@pytest.mark.parametrize("name", ONE_WEIGHT)
def test_weighting_by_alpha(name):
    combine, *expected = ONE_WEIGHT[name]
    holds(laws.check_weighting(combine, alpha=True), *expected)
