"""The arms of a study: their accuracies over seeds, what their audits said, and how far their bugs got."""

from collections.abc import Sequence
from dataclasses import replace

from kdbench.harness import faults
from kdbench.harness.analysis import stats
from kdbench.harness.analysis.expectation import trial_as_declared
from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, Effect, TeacherRow
from kdbench.harness.analysis.study_table import BySeed, Trials, order, scores
from kdbench.harness.plan.plan import Arm
from kdbench.harness.plan.variants import variant_of
from kdbench.harness.records.record import Folder, Result
from kdbench.kd.procedure import CANONICAL


def summary(study: Trials) -> list[ArmRow]:
    """Return the arms of a study, in the order of tables."""
    return [arm_row(arm, study.arms[arm]) for arm in sorted(study.arms, key=order)]


def arm_row(arm: Arm, trials: BySeed) -> ArmRow:
    """Return one arm; its mean and deviation are its own aggregate's, which may be what its fault is in."""
    by_seed: list[Result | None] = [result for _, (_, result) in sorted(trials.items())]
    results = [result for result in by_seed if result is not None]
    values = scores(trials)
    fault = faults.get(arm.fault) if arm.fault else None
    procedure = fault.inject(CANONICAL, lambda: None) if fault else CANONICAL
    mean, std = procedure.aggregate(values) if values else (None, None)
    stories = [r.fault for r in results if r.fault is not None]
    return ArmRow(
        variant=variant_of(arm.fault),
        fault=arm.fault,
        pair=arm.pair,
        method=arm.method,
        seeds=sorted(trials),
        test_accuracy=[r.metrics.test_accuracy if r is not None and r.metrics else None for r in by_seed],
        mean=mean,
        std=std,
        expected_findings=fault.ids(fault.caught_by) if fault else [],
        failed_findings=sorted({i for r in results for i in r.roots}),
        consequences=sorted({i for r in results for i in r.consequences}),
        as_expected=all(r is not None and trial_as_declared(r, spec) for spec, r in trials.values()),
        reached=all(s.reached for s in stories) if stories else None,
        diverged_at=_first([s.diverged_at for s in stories]),
        dormant=sum(s.dormant is True for s in stories) if stories else None,
    )


def effect(row: ArmRow, verdict: stats.Verdict | None) -> Effect | None:
    """Say how far a bug got, of its arm's row and the verdict on its accuracy; None of an arm without a bug.

    `invalid`: its seam was never asked. `dormant`: it changed no weight and no score of any seed. `latent`: it changed
    the weights, and the accuracy is equivalent at the margin. `visible`: the accuracy differs by more than can be
    shown to be within the margin. `undecided`: these seeds cannot tell; so too where the corrected twin is missing.
    """
    if row.fault is None:
        return None
    if row.reached is False:
        return "invalid"
    if row.dormant == len(row.seeds):
        return "dormant"
    if verdict in ("equivalent", "both"):
        return "latent"
    return "visible" if verdict == "different" else "undecided"


def with_effects(rows: Sequence[ArmRow], bugs: Sequence[ComparisonRow]) -> list[ArmRow]:
    """Return the arms with how far each bug got, by the comparisons of bugged arms with their corrected ones."""
    verdicts = {(c.b, c.pair, c.method): c.verdict for c in bugs}
    return [
        replace(row, effect=effect(row, verdicts.get((row.fault, row.pair, row.method)) if row.fault else None))
        for row in rows
    ]


def _first(epochs: list[int | str | None]) -> int | str | None:
    numbers = [e for e in epochs if isinstance(e, int)]
    return min(numbers) if numbers else next((e for e in epochs if isinstance(e, str)), None)


def teacher_row(arch: str, folder: Folder) -> TeacherRow:
    """Return a teacher's trial."""
    spec, result = folder.spec(), folder.result()
    fault = faults.get(spec.fault) if spec.fault else None
    return TeacherRow(
        arch=arch,
        fault=spec.fault,
        seed=spec.seed,
        key=folder.key,
        test_accuracy=result.metrics.test_accuracy if result is not None and result.metrics else None,
        expected_findings=fault.ids(fault.caught_by) if fault else [],
        failed_findings=result.roots if result is not None else [],
        consequences=result.consequences if result is not None else [],
        as_expected=result is not None and trial_as_declared(result, spec),
    )
