"""The first stage of a study: settings are tried on a grid and chosen on validation; the second runs the chosen."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kdbench.harness.records.record import FINAL, Result
from kdbench.harness.records.spec import Spec
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.methods import METHODS

Point = Mapping[str, float]
"Settings by name; alpha stands for kd_weight = alpha and ce_weight = 1 - alpha."


@dataclass(frozen=True)
class Grid:
    """What is tried, declared before the run."""

    seeds: tuple[int, ...]
    "Other ones than the study's: the winner owes something to luck with its seeds."
    methods: Mapping[str, Mapping[str, tuple[float, ...]]]
    "By method: by setting, the values."

    def __post_init__(self) -> None:
        for method, axes in self.methods.items():
            if method not in METHODS:
                raise unknown("method", method, METHODS, "[grid]")
            own = METHODS[method].Settings.names()
            known = [*own, "alpha"] if {"ce_weight", "kd_weight"} <= {*own} else [*own]
            for name, values in axes.items():
                where = f"[grid.{method}]"
                if name not in known:
                    raise unknown("setting", name, known, where)
                if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                    raise InputError(f"{where}: {name} must be a list of numbers")
                if len({*values}) < len(values):
                    raise InputError(f"{where}: {name} names a value twice")
            if "alpha" in axes and {"ce_weight", "kd_weight"} & axes.keys():
                raise InputError(f"[grid.{method}]: alpha stands for both weights; leave ce_weight and kd_weight out")
            if not all(0 <= alpha <= 1 for alpha in axes.get("alpha", ())):
                raise InputError(f"[grid.{method}]: alpha lies from 0 to 1")

    def points(self, method: str) -> list[Point]:
        """Return the settings to be tried, in the order of the file, the last one moving fastest."""
        axes = self.methods.get(method, {})
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []


def settings_of(point: Point) -> dict[str, float]:
    """Return a point as a method's settings."""
    settings = {name: value for name, value in point.items() if name != "alpha"}
    if "alpha" in point:
        settings |= {"ce_weight": round(1 - point["alpha"], 12), "kd_weight": point["alpha"]}
    return settings


@dataclass(frozen=True)
class Tried:
    """One point of the grid and what came of its trials."""

    point: Point
    trials: Mapping[int, tuple[Spec, Result | None]]

    @property
    def val_accuracy(self) -> list[float | None]:
        """Validation accuracy of the selected epoch, by seed, in percent; None where there is none."""
        results = [self.trials[seed][1] for seed in sorted(self.trials)]
        return [result.metrics.val_accuracy if result and result.metrics else None for result in results]

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None if one of them has no score: a setting that diverges is not chosen."""
        values = [value for value in self.val_accuracy if value is not None]
        return fmean(values) if len(values) == len(self.trials) else None

    @property
    def is_decided(self) -> bool:
        """Whether no seed is still to be trained."""
        return all(result is not None and result.status in FINAL for _, result in self.trials.values())


def best(tried: Sequence[Tried]) -> Tried | None:
    """Return the point of the highest mean on validation, of equals the first; None if every one of them diverged."""
    return max((t for t in tried if t.mean is not None), key=lambda t: t.mean or 0.0, default=None)
