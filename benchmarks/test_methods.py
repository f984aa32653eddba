"""How fast and how small each method is beside Logit-KD: 0.5 is half as fast, or twice as big."""

import pytest
from peak import peak_mb
from timing import Ratio, in_new_process

from kdbench.kd.methods import METHODS

OTHERS = [name for name in METHODS if name != "logit"]


@pytest.mark.parametrize("method", OTHERS)
def test_step_of(bench, measure, method):
    """Time of Logit-KD's step as a multiple of the method's; fp32, one thread, random weights."""
    measure.ratio(bench.method_step, method, goal=None)


@pytest.mark.parametrize("method", OTHERS)
def test_memory_of(bench, measure, benchmark, method):
    """Peak memory of Logit-KD as a multiple of the method's, each in a process of its own; A/A: the method twice."""

    def of(name):
        return in_new_process(peak_mb, bench, name, "fp32", False)

    first, logit, second = benchmark.pedantic(of, (method,), rounds=1), of("logit"), of(method)
    ratios = logit / first, logit / second
    measure.claim(
        Ratio(2 * logit / (first + second), min(ratios), max(ratios), first / second, 0.0),
        goal=None,
        peak_mb=round((first + second) / 2),
    )
