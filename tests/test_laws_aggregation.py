"""Numbers over seeds: what must be found right, and what must be caught."""

import math
import statistics
import types

import numpy as np
import pytest
from law_specimens import holds

from kdbench.audits import laws
from kdbench.kd.procedure import CANONICAL


def spread(ddof=1, single=None, scale=1.0):
    def aggregate(values):
        return np.mean(values), float(np.std(values, ddof=ddof)) * scale if len(values) > 1 else single

    return aggregate


SPREADS = {
    "canonical": (CANONICAL.aggregate, "pass", "has none"),
    "nan for one": (spread(single=math.nan), "pass"),
    "rounded": (lambda v: tuple(None if x is None else round(x, 2) for x in spread()(v)), "pass"),
    "dict": (lambda v: dict(zip(("mean", "std"), spread()(v), strict=True)), "pass"),
    "object": (lambda v: types.SimpleNamespace(mean=np.mean(v), sd=spread()(v)[1]), "pass"),
    "array": (lambda v: np.array(spread(single=np.nan)(v)), "pass"),
    "refuses one": (lambda v: (statistics.fmean(v), statistics.stdev(v)), "pass", "refused"),
    "ddof=0": (spread(0), "fail", "ddof = 0"),
    "0 for one": (spread(single=0.0), "fail", "one value is given a deviation of 0"),
    "standard error": (lambda v: (np.mean(v), np.std(v, ddof=1) / len(v) ** 0.5), "fail", "standard error"),
    "variance": (lambda v: (np.mean(v), np.var(v, ddof=1)), "fail", "variance"),
    "of shares": (spread(scale=0.01), "fail", "with ddof = 1 it is"),
    "median": (lambda v: (statistics.median(v), spread()(v)[1]), "fail", "the mean of"),
    "none at all": (lambda v: (np.mean(v), None), "fail"),
}


@pytest.mark.parametrize("name", SPREADS)
def test_spread(name):
    aggregate, *expected = SPREADS[name]
    holds(laws.check_spread(aggregate), *expected)


def kept(values):
    return [v for v in values if v is not None and not math.isnan(v)]


def zeros(values):
    return [v if v is not None and not math.isnan(v) else 0.0 for v in values]


AGGREGATIONS = {
    "canonical": (CANONICAL.aggregate, "pass"),
    "as floats": (lambda v: tuple(spread()(np.array(v, dtype=float))), "pass"),
    "mean of None": (lambda v: (None if len(kept(v)) < len(v) else 1.0, 0.0), "pass"),
    "says n": (lambda v: {"mean": np.mean(kept(v)), "n": len(v)}, "pass"),
    "third is n": (lambda v: (np.mean(kept(v)), 1.0, len(v)), "pass"),
    "says missing": (lambda v: {"mean": np.mean(kept(v)), "missing": len(v) - len(kept(v))}, "pass"),
    "left out": (
        lambda v: (np.mean(kept(v)), 1.0),
        "fail",
        "number 1 of 5 seeds diverged (nan)",
        "as if it had never been run",
    ),
    "nanmean": (lambda v: (np.nanmean(np.array(v, dtype=float)), 1.0), "fail", "as if it had never been run"),
    "mean alone": (np.mean, "pass"),
    "nanmean alone": (lambda v: np.nanmean(np.array(v, dtype=float)), "fail", "as if it had never been run"),
    "nan kept, None left out": (lambda v: (np.mean([x for x in v if x is not None]), 1.0), "fail", "missing (None)"),
    "n of those left": (lambda v: (np.mean(kept(v)), 1.0, np.int64(len(kept(v)))), "fail"),
    "as 0": (lambda v: (np.mean(zeros(v)), 1.0), "fail", "it counts as 0"),
    "best": (lambda v: (max(kept(v)), 0.0), "fail", "96"),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregation(name):
    aggregate, *expected = AGGREGATIONS[name]
    holds(laws.check_aggregation(aggregate), *expected)
