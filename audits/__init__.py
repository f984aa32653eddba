"""Audits: what must hold in any distillation training, as executable checks.

    with audits.watch(student=s, teacher=t, projectors=p, optimizer=opt, clip=audits.Clip(1.0)) as w:
        ...  # your own loop
    print(w.report)

Knows torch and nothing of kd or harness, so it can be lifted out and used on any project.
"""

from audits.events import KD, Clip
from audits.finding import AuditFailure, Finding, Report
from audits.watch import Watch, watch

__all__ = ["KD", "AuditFailure", "Clip", "Finding", "Report", "Watch", "watch"]
