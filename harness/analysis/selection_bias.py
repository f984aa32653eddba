"""What was chosen by which scores, and what the choosing itself added to them."""

import json
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from kdbench.harness.analysis.rows import GridRow
from kdbench.harness.analysis.study_table import Trials, grid_rows, order
from kdbench.harness.plan.grid import Point, best
from kdbench.harness.records.record import Folder, Result

_TEST_CHOOSES = "KD334"
"The audit that fails where validation is the test set: then its scores by epoch are test scores."


@dataclass(frozen=True)
class ByEpoch:
    """An arm that chose its epoch on the test set; accuracies are means over the seeds, in percent."""

    pair: str
    method: str
    arm: str
    seeds: int
    reported: float
    last: float
    "Of the last epoch."
    more: float
    "What the choosing added, in percentage points."
    most: float
    "In any seed."


@dataclass(frozen=True)
class BySetting:
    """An arm that chose its settings; accuracies are means of the scores that choose, in percent."""

    pair: str
    method: str
    arm: str
    point: Point
    tried: int
    won: float
    "Where it won: the best of several, which owes something to luck."
    fresh: float
    "With the study's own seeds."
    more: float


class Choice(NamedTuple):
    """What was chosen, and what the best of many scores exceeds an ordinary one by."""

    grid: list[GridRow]
    epochs: list[ByEpoch]
    settings: list[BySetting]


def read(study: Trials) -> Choice:
    """Return the grid, and what choosing added: of epochs, and of settings."""
    return Choice(grid_rows(study), _epochs(study), _settings(study))


def _epochs(study: Trials) -> list[ByEpoch]:
    """Return by arm that chose its epoch on the test set what it reported, and the score of its last epoch."""
    rows = []
    for arm in sorted(study.arms, key=order):
        found = []
        for spec, result in study.arms[arm].values():
            scores = _test_scores(study.folder.trial(spec.key), result)
            if scores and result is not None and result.metrics is not None:
                found.append((result.metrics.test_accuracy, scores[-1]))
        if found:
            reported, last = (fmean(values) for values in zip(*found, strict=True))
            rows.append(
                ByEpoch(
                    arm.pair,
                    arm.method,
                    arm.label,
                    seeds=len(found),
                    reported=reported,
                    last=last,
                    more=reported - last,
                    most=max(a - b for a, b in found),
                )
            )
    return rows


def _test_scores(folder: Folder, result: Result | None) -> list[float]:
    """Return the test accuracy by epoch, of a trial whose epoch was chosen by it; else nothing."""
    curve = folder.path / "test_curve.jsonl"
    if result is None or not result.roots:
        return []
    if _TEST_CHOOSES in result.roots and result.metrics and result.metrics.test_accuracy == result.metrics.val_accuracy:
        return [epoch["val_accuracy"] for epoch in folder.curve()]
    return [json.loads(line)["test_accuracy"] for line in curve.read_text().splitlines()] if curve.is_file() else []


def _settings(study: Trials) -> list[BySetting]:
    """Return by arm that chose its settings: the winner's mean where it won, and with the study's seeds.

    Both are means of the scores that choose. The first is the best of several and so owes something to luck; the
    second, of other seeds, does not.
    """
    rows = []
    for arm in sorted(study.grid, key=order):
        winner = best(study.grid[arm])
        fresh = [r.metrics.val_accuracy for _, r in study.arms.get(arm, {}).values() if r is not None and r.metrics]
        if winner is None or winner.mean is None or not fresh:
            continue
        rows.append(
            BySetting(
                arm.pair,
                arm.method,
                arm.label,
                point=winner.point,
                tried=len(study.grid[arm]),
                won=winner.mean,
                fresh=fmean(fresh),
                more=winner.mean - fmean(fresh),
            )
        )
    return rows
