"""What MLflow gets of an arm as a whole: one run with the means over its seeds, their deviation, and a colour."""

import colorsys
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from kdbench.harness.analysis.arms import arm_row
from kdbench.harness.analysis.study_table import BySeed, Trials, order
from kdbench.harness.faults import audit_ids
from kdbench.harness.plan.plan import Arm
from kdbench.harness.publish import mlflow_view
from kdbench.harness.records.record import Metrics

_COLOURS = (
    "#4b5563",
    "#1d4ed8",
    "#b45309",
    "#0f766e",
    "#be185d",
    "#6d28d9",
    "#65a30d",
    "#dc2626",
    "#0891b2",
    "#ca8a04",
)
"Of the first arms; those after them get hues that are far apart."
Curves = Sequence[Sequence[Mapping[str, float | None]]]
"By seed and epoch, the values of `curve/*`."


@dataclass(frozen=True)
class ArmSummary:
    """An arm over its seeds, as MLflow shows it."""

    title: str
    group: str
    colour: str
    params: dict[str, str]
    tags: dict[str, str]
    "Numbers in them are rounded: they are there to be read."
    final: dict[str, float]
    "Exact, as the means and the deviation of `final/*`."
    curves: dict[str, list[float | None]]
    "Means over the seeds by epoch."

    @property
    def record(self) -> str:
        """A digest of all of it: where it is as it was, nothing is written."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def colour(number: int) -> str:
    """Return the colour of a study's arm of this number; no two of a study's arms have the same."""
    if number < len(_COLOURS):
        return _COLOURS[number]
    hue, light = (number * 0.618034) % 1, (0.36, 0.52, 0.66)[number % 3]
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, 0.7))


def colours(study: Trials) -> dict[Arm, str]:
    """Return the colour of each arm of a study, in the order of its tables."""
    return {arm: colour(number) for number, arm in enumerate(sorted(study.arms, key=order))}


def summarise(study: Trials, arm: Arm, curves: Curves) -> ArmSummary | None:
    """Return an arm's summary; None where none of its trials has a score yet."""
    trials = study.arms[arm]
    row = arm_row(arm, trials)
    if row.mean is None:
        return None
    several = len({one.pair for one in study.arms}) > 1
    scored = sorted(seed for seed, (_, result) in trials.items() if result is not None and result.metrics is not None)
    seeds = f"{len(scored)} {'seed' if len(scored) == 1 else 'seeds'}"
    names = {id: name for name, id in audit_ids().items()}
    failed = [f"{id} {names.get(id, '')}".strip() for id in [*row.failed_findings, *row.consequences]]
    spec = next(iter(trials.values()))[0]
    return ArmSummary(
        title=mlflow_view.title(arm.method, arm.fault, arm.pair if several else ""),
        group=mlflow_view.group(arm.method, arm.fault, arm.pair),
        colour=colours(study)[arm],
        params={
            "variant": row.variant,
            "fault": arm.fault or "none",
            "pair": arm.pair,
            "method": arm.method,
            "seeds": ", ".join(map(str, scored)),
            "dataset": spec.dataset,
        },
        tags={
            "test accuracy": f"{row.mean:.2f}" + (f" ± {row.std:.2f}" if row.std is not None else "") + f" ({seeds})",
            "findings": ", ".join(failed) or "none",
            "as declared": "yes" if row.as_expected else "no",
        },
        final=_final(trials, row.mean, row.std),
        curves=_means(curves),
    )


def _final(trials: BySeed, mean: float, sd: float | None) -> dict[str, float]:
    """Return the means of `final/*`; the test accuracy's is the arm's own, whose fault may be how it takes it."""
    results = [result for _, result in trials.values() if result is not None and result.metrics is not None]

    def over_seeds(name: str) -> float | None:
        values = [value for r in results if (value := getattr(_scores(r.metrics), name)) is not None]
        return fmean(values) if values else None

    found = {
        "final/test_accuracy": mean,
        "final/test_accuracy_sd": sd,
        "final/val_accuracy": over_seeds("val_accuracy"),
        "final/agreement": over_seeds("agreement"),
        "final/audits_failed": fmean(len(r.roots) + len(r.consequences) for r in results),
    }
    return {name: value for name, value in found.items() if value is not None}


def _scores(metrics: Metrics | None) -> Metrics:
    assert metrics is not None
    return metrics


def _means(curves: Curves) -> dict[str, list[float | None]]:
    """Return each curve's mean by epoch over the seeds that came so far and have a number there."""
    names = list(dict.fromkeys(name for curve in curves for epoch in curve for name in epoch))
    longest = max(map(len, curves), default=0)
    found: dict[str, list[float | None]] = {}
    for name in names:
        values: list[list[Any]] = [[curve[i].get(name) for curve in curves if i < len(curve)] for i in range(longest)]
        known = [[value for value in of if value is not None] for of in values]
        found[name] = [fmean(of) if of else None for of in known]
    return found
