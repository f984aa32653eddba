"""The controls of a study: what it must see before it may say anything."""

from collections.abc import Sequence

from kdbench.harness.analysis.arms import arm_row
from kdbench.harness.analysis.compare import bug_pairs, compare_arms
from kdbench.harness.analysis.rows import Again, ControlsRow, Positive, Repeated
from kdbench.harness.analysis.study_table import Trials
from kdbench.harness.records.record import FINAL, Folder, same_machine


def controls(study: Trials, allowed: Sequence[str] = ()) -> ControlsRow | None:
    """Return what the controls showed; None where none were run. Arms may differ in what is `allowed`."""
    if study.again is None and not study.controls:
        return None
    again = _again(*study.again) if study.again else None
    positive = _positive(study, allowed)
    verdict = again.verdict if again else "missing"
    return ControlsRow(
        again,
        positive,
        as_declared=verdict != "differs" and (positive is None or positive.seen_by_audit),
        sound=verdict in ("identical", "undecidable")
        and positive is not None
        and positive.seen_by_audit
        and positive.seen_in_accuracy,
    )


def _positive(study: Trials, allowed: Sequence[str]) -> Positive | None:
    """Return whether the positive control was seen, by its audit and in accuracy."""
    bugged = next((arm for arm in study.controls if arm.fault), None)
    if bugged is None:
        return None
    row = arm_row(bugged, study.controls[bugged])
    trials = Trials(study.folder, study.decision, study.controls)
    (entry,) = compare_arms(trials, bug_pairs(study.controls), allowed, refuse=False)
    lower = entry.difference_pp is not None and entry.difference_pp < 0
    return Positive(
        **vars(row),
        comparison=entry,
        seen_by_audit=row.as_expected,
        seen_in_accuracy=entry.verdict in ("different", "both") and lower,
    )


def _again(folder: Folder, repeat: Folder) -> Again:
    """Compare a trial with its repeat, bit by bit, by the digests of its weights."""
    spec, first, second = folder.spec(), folder.result(), repeat.result()
    mine, theirs = folder.digests(), repeat.digests()
    verdict: Repeated = "identical"
    if first is None or second is None or first.status not in FINAL or second.status not in FINAL:
        verdict = "missing"
    elif mine != theirs or first.metrics != second.metrics:
        same = same_machine(first, second)
        verdict = "differs" if spec.device == "cpu" and same else "undecidable"
    return Again(folder.key, spec.method, spec.fault, spec.seed, len(mine), verdict)
