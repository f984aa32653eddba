"""What it would cost to hand our statistics to libraries that give the same numbers.

    python -m benchmarks.libraries

Prints, for each piece, how many times as long the library takes in this run, and the CPU seconds of its import.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower

from kdbench.harness.analysis import stats

IMPORTS = ("scipy.special, scipy.optimize", "scipy.stats", "statsmodels.stats.power", "pydantic", "filelock")


def seconds(call: Callable[[], Any], least: float = 0.2) -> float:
    """Return the CPU seconds of one call: the least of five means."""
    call()
    number = 1
    while True:
        start = time.process_time()
        for _ in range(number):
            call()
        if (took := time.process_time() - start) >= least:
            break
        number *= 2
    means = [took / number]
    for _ in range(4):
        start = time.process_time()
        for _ in range(number):
            call()
        means.append((time.process_time() - start) / number)
    return min(means)


def imported(names: str) -> float:
    """Return the CPU seconds that an import takes in a process of its own, beside numpy: the least of three."""
    code = f"import time, numpy; t = time.process_time(); import {names}; print(time.process_time() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def main() -> None:
    """Print the tables; a library that gives other numbers is an error."""
    drawn = np.random.default_rng(0)
    ps, (x, y) = [*drawn.uniform(size=40)], drawn.normal(size=(2, 5))
    library = TTestIndPower()
    pieces = {
        "Holm over 40 p values, statsmodels": (lambda: stats.holm(ps), lambda: multipletests(ps, method="holm")[1]),
        "Welch's test of 5 against 5, scipy.stats": (
            lambda: float(stats.welch(x, y, 0.5).p),
            lambda: scipy.stats.ttest_ind(x, y, equal_var=False).pvalue,
        ),
        "power of 5 seeds, statsmodels": (lambda: stats.power(1.2, 5), lambda: library.power(1.2, 5, 0.05)),
        "seeds for power .8, statsmodels": (
            lambda: stats.seeds_needed(1.2),
            lambda: np.ceil(library.solve_power(1.2, None, 0.05, 0.8)),
        ),
    }
    for name, (ours, theirs) in pieces.items():
        assert np.allclose(np.array(ours(), float), np.array(theirs(), float), rtol=1e-6), name
        print(f"{name}: {seconds(theirs) / seconds(ours):.0f} times as long")
    for names in IMPORTS:
        print(f"import {names}: {imported(names):.2f} s")


if __name__ == "__main__":
    main()
