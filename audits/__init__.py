"""Audits: what must hold in any distillation training, as executable checks.

    with kdbench.watch(student=s, teacher=t, projectors=p, optimizer=opt, clip=kdbench.Clip(1.0)) as w:
        ...  # your own loop
    print(w.report)

A training shows most of it. A decision that leaves no trace there (a selection, a schedule, a split, ...) is a
function: ``check_selection`` and the other property checks call it on made-up inputs. The package knows torch and
nothing of kd or harness, so it can be used on any project.
"""

from kdbench.audits.finding import AuditFailure, Finding, Report
from kdbench.audits.laws import (
    check_aggregation,
    check_augmentation,
    check_group_schedule,
    check_held_out,
    check_schedule,
    check_seeds,
    check_selection,
    check_soft_loss,
    check_split,
    check_spread,
    check_weighting,
    check_workers,
)
from kdbench.audits.trace import KD, Clip
from kdbench.audits.watch import Watch, watch

__all__ = [
    "KD",
    "AuditFailure",
    "Clip",
    "Finding",
    "Report",
    "Watch",
    "check_aggregation",
    "check_augmentation",
    "check_group_schedule",
    "check_held_out",
    "check_schedule",
    "check_seeds",
    "check_selection",
    "check_soft_loss",
    "check_split",
    "check_spread",
    "check_weighting",
    "check_workers",
    "watch",
]
