"""Peak memory of a training, each in a process of its own."""

import pytest
from peak import peak_mb
from timing import Ratio, in_new_process
from trainings import DISTILLING


@pytest.mark.parametrize("method", DISTILLING)
def test_peak_memory(bench, measure, benchmark, precision, method):
    """Peak memory of the textbook's training as a multiple of ours, imports included; A/A is ours a second time."""

    def of(textbook):
        return in_new_process(peak_mb, bench, method, precision, textbook)

    first, theirs, second = benchmark.pedantic(of, (False,), rounds=1), of(True), of(False)
    ratios = theirs / first, theirs / second
    measure.claim(
        Ratio(2 * theirs / (first + second), min(ratios), max(ratios), first / second, 0.0),
        goal=1.0,
        peak_mb=round((first + second) / 2),
        textbook_peak_mb=round(theirs),
    )
