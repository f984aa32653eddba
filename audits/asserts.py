"""Assertions for tests: run a training step some times under watch, and fail with the report.

    def test_my_step():
        assert_clean(my_step, student=student, teacher=teacher, optimizer=optimizer)

A test must not be green on silence: what an assertion is about has to be decided, and not merely not to have failed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.audits.finding import AuditFailure, Finding, Report, Severity, is_ours
from kdbench.audits.trace import KD, Clip
from kdbench.audits.watch import Modules, Watch, watch

# In each, `__tracebackhide__` has pytest end a failed test at its own line.

Step = Callable[[], Any]
Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer]

_MODES = ("teacher-mode", "teacher-frozen", "teacher-not-optimised")


def assert_clean(
    step: Step,
    n: int = 12,
    *,
    student: nn.Module,
    optimizer: Optimizers,
    teacher: nn.Module | None = None,
    projectors: Modules = None,
    clip: Clip | None = None,
    kd: KD | None = None,
    teacher_weights: Mapping[str, Tensor] | None = None,
    severity: Severity = "error",
) -> Report:
    """Run `step` n times under watch; raise AuditFailure if an audit of at least this severity failed.

    `step` takes no arguments and steps the optimizer; the declarations are those of :func:`kdbench.watch`. Fails, too,
    where the optimizer never stepped, where a teacher was declared and no distillation was seen, and where an audit
    broke. Returns the report.
    """
    __tracebackhide__ = True
    report = _watched(
        step,
        n,
        student=student,
        optimizer=optimizer,
        teacher=teacher,
        projectors=projectors,
        clip=clip,
        kd=kd,
        teacher_weights=teacher_weights,
    )
    report.raise_for(severity)
    return report


# The others ask for one thing, and pass on what else kdbench.watch takes.


def assert_clipped(step: Step, n: int = 6, *, clip: Clip | None = None, **roles: Any) -> Report:
    """Assert that whatever the optimizer steps was clipped, in the right order; with `clip`, to that bound."""
    __tracebackhide__ = True
    decided = ("clip-coverage", "norm-bound") if clip is not None else ("clip-coverage",)
    report = _watched(step, n, clip=clip, **roles)
    return _hold(report, decided, ("clip-order", "clip-after-unscale", "norm-bound"))


def assert_teacher_frozen(step: Step, n: int = 6, *, teacher: nn.Module, **roles: Any) -> Report:
    """Assert that the teacher answers in evaluation mode, stays bitwise what it was, and is not optimised."""
    __tracebackhide__ = True
    return _hold(_watched(step, n, teacher=teacher, **roles), _MODES)


def assert_optimizer_coverage(step: Step, n: int = 6, **roles: Any) -> Report:
    """Assert that whatever the loss gives a gradient to is optimised, and that nothing optimised is stale."""
    __tracebackhide__ = True
    return _hold(_watched(step, n, **roles), ("optimizer-coverage",), ("no-stale-parameters",))


def assert_kd_scale(step: Step, n: int = 4, *, kd: KD | None = None, **roles: Any) -> Report:
    """Assert that the distillation term acts with the weight declared in `kd`; without, that the weights sum to one."""
    __tracebackhide__ = True
    return _hold(_watched(step, n, kd=kd, **roles), ("kd-scale",))


def _watched(step: Step, n: int, **declared: Any) -> Report:
    __tracebackhide__ = True
    if n < 1:
        raise ValueError(f"the step must run at least once, n is {n}")
    with watch(burn_in=max(20, 2 * n), **declared) as w:
        for _ in range(n):
            step()
    return heard(w)


def heard(w: Watch) -> Report:
    """Return a watch's report; raise AuditFailure where it says nothing of what was declared, or an audit broke."""
    __tracebackhide__ = True
    report = w.report
    mode = finding(report, "teacher-mode")
    broken = (f"{f.id} broke, which is an error of kdbench: {f.message}" for f in report.findings if is_ours(f))
    silence = next(broken, None)
    if silence is None and not w.trace.updates.steps:
        silence = "no step of the declared optimizer was seen"
    elif silence is None and w.trace.declared.teacher is not None and mode.reason == "no-teacher-seen":
        silence = mode.message
    if silence is not None and not report.failed("error"):
        raise AuditFailure(f"nothing was decided: {silence}")
    return report


def finding(report: Report, name: str) -> Finding:
    """Return the finding of the audit of this name."""
    return next(f for f in report.findings if f.name == name)


def _hold(report: Report, decided: Sequence[str], unless_failed: Sequence[str] = ()) -> Report:
    """Raise unless the first audits passed and the others did not fail; only these make up the message."""
    __tracebackhide__ = True
    wrong = [f for f in report.findings if f.name in decided and f.status != "pass"]
    wrong += [f for f in report.findings if f.name in unless_failed and f.status == "fail" and f not in wrong]
    if wrong:
        raise AuditFailure(str(Report(tuple(sorted(wrong, key=lambda f: f.sort_key)))))
    return report
