"""Attach the audits to a training loop that somebody wrote.

During the burn-in every step is seen, afterwards every n-th. Nothing that is watched is changed: no random number is
drawn, no gradient or parameter written, no hook left behind; and scalars stay on the device until the report is made.
"""

import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from kdbench.audits.checks.all import run
from kdbench.audits.finding import AuditFailure, Report
from kdbench.audits.infer.answers import Answers
from kdbench.audits.infer.inference import Inference
from kdbench.audits.infer.provenance import provenance
from kdbench.audits.infer.roles import Declared
from kdbench.audits.laws.soft_loss import CHECKED
from kdbench.audits.observe import hooks, torch_internals
from kdbench.audits.observe.arguments import keeps_graph
from kdbench.audits.observe.loads import Loads
from kdbench.audits.observe.recorder import Recorder
from kdbench.audits.observe.steps import Steps
from kdbench.audits.observe.windows import ModuleCall, RawWindow
from kdbench.audits.trace import KD, Clip, Declaration, Trace

Modules = nn.Module | Mapping[str, nn.Module] | None
OnFail = Literal["record", "warn", "raise"]


def watch(
    *,
    student: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
    teacher: nn.Module | None = None,
    projectors: Modules = None,
    clip: Clip | None = None,
    kd: KD | None = None,
    teacher_weights: Mapping[str, Tensor] | None = None,
    same_input: bool = False,
    burn_in: int = 20,
    every: int = 50,
    on_fail: OnFail = "record",
) -> "Watch":
    """Watch a training for as long as the ``with`` block lives, and hold it to what is declared here.

    `projectors` is what is trained beside the student: a module, or several by name. `teacher_weights` is the state
    dict that the teacher should hold. `same_input` declares that both networks are shown the same batch. `burn_in` is
    the number of steps of which every one is seen; after them every `every`-th is. `on_fail` says what a failed audit
    of severity error does when the burn-in ends and when the block does: it is recorded in ``report``, warned of, or
    raised as AuditFailure. A declaration that makes no sense is a ValueError.
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    named = {"projectors": projectors} if isinstance(projectors, nn.Module) else dict(projectors or {})
    for wrong, says in (
        (not optimizers, "no optimizer was given; nothing could be seen to step"),
        (not all(isinstance(o, torch.optim.Optimizer) for o in optimizers), "optimizer= takes optimizers, or a list"),
        (
            not any(True for _ in student.parameters()),
            "the student has no parameters; pass the network that is trained",
        ),
        (clip is not None and not 0 < clip.max_norm < float("inf"), "clip: max_norm must be positive and finite"),
        (clip is not None and clip.scope not in ("global", "per_group"), "clip: scope is 'global' or 'per_group'"),
        (burn_in < 1 or every < 1, "burn_in and every are numbers of steps, at least 1"),
        (on_fail not in get_args(OnFail), f"on_fail is one of {', '.join(get_args(OnFail))}"),
        (bool(named.keys() & {"student", "teacher"}), "a projector cannot be called student or teacher"),
    ):
        if wrong:
            raise ValueError(f"kdbench.watch: {says}")
    roles = {**({"teacher": teacher} if teacher is not None else {}), "student": student, **named}
    names = {id(p): f"{role}.{name}" for role, module in roles.items() for name, p in module.named_parameters()}
    declared = Declaration(student, teacher, clip, kd or KD(), same_input, hooks.call_site())
    trace = Trace(declared, names)
    if teacher is not None and teacher_weights is not None:
        trace.teacher.provenance = provenance(teacher, teacher_weights)
    return Watch(trace, optimizers, burn_in, every, on_fail, Declared(student, teacher, named))


class Watch:
    """A running watch; made by :func:`watch`, used as a context manager."""

    def __init__(
        self,
        trace: Trace,
        optimizers: list[torch.optim.Optimizer] | None,
        burn_in: int,
        every: int,
        on_fail: str,
        declared: Declared,
        windows: int = 4,
    ) -> None:
        self._trace = trace
        self._burn_in, self._on_fail = burn_in, on_fail
        self._home = os.getpid()
        self._steps = Steps(trace, optimizers, burn_in, every, self._after_step)
        self._loads = Loads()
        self._windows = Recorder(
            self._guarded(self._on_window),
            self._guarded(self._on_answer),
            self._break,
            self._wants_window,
            self._guarded(self._on_modes),
            self._guarded(self._steps.written_to),
            self._guarded(self._on_shown, lasting=True),
            self._guarded(self._steps.read_from) if trace.declared.clip is not None else None,
        )
        self._steps.follows = lambda: self._windows.armed
        self._inference = Inference(trace, self._windows.taint, self._loads, declared, windows, self._windows.lineage)
        self._answers = Answers(trace)
        self.let_go = False
        "Whether what is left of the hooks does nothing any more."
        self._stack = ExitStack()
        self._forward_hook: Any = None

    def labels(self, labels: Tensor) -> None:
        """Show the labels (B,) of the batch that the teacher has just answered."""
        self._guarded(self._answers.labels)(labels)

    @property
    def trace(self) -> Trace:
        """All that was seen so far."""
        return self._trace

    @property
    def steps(self) -> int:
        """Steps so far of the optimizer that stepped most."""
        return self._steps.most

    @property
    def report(self) -> Report:
        """The findings over what has been seen so far."""
        self._conclude()
        return run(self._trace)

    def __enter__(self) -> "Watch":
        guard, stack = self._guarded, self._stack
        self._steps.open(stack, guard)
        stack.enter_context(
            hooks.around(
                torch.autograd, "backward", guard(self._after_backward), guard(self._before_backward), always=True
            )
        )
        stack.enter_context(hooks.patched(torch.autograd, "grad", self._wrap_grad))
        if self._steps.most < self._burn_in:  # a watch may be left and entered again
            self._forward_hook = register_module_forward_hook(guard(self._answers.forward), with_kwargs=True)
            stack.callback(self._forward_hook.remove)
            self._windows.open()
            stack.callback(self._windows.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self._act()

    def close(self) -> None:
        """Take every hook away; what was seen stays."""
        self._stack.close()

    # -- what torch tells

    def _guarded(self, hook: Callable[..., Any], lasting: bool = False) -> Callable[..., Any]:
        """Keep a hook to this process and to eager code, and an error of ours out of the user's training.

        One that is lasting is told of what comes after the watch let go.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            if torch_internals.is_recorded() or os.getpid() != self._home:
                return None
            if (self.let_go and not lasting) or self._trace.broken is not None:
                return None
            try:
                # What a hook reads and computes is none of what is watched; most of what the function mode was told of
                # in a step were these reads.
                with torch_internals.DisableTorchFunction():
                    return hook(*args, **kwargs)
            except AuditFailure:
                raise
            except Exception as error:
                self._break(error)
                return None

        return call

    def _break(self, error: BaseException) -> None:
        self._trace.broken = self._trace.broken or f"{type(error).__name__}: {error}"
        if os.environ.get("KDBENCH_DEBUG"):
            traceback.print_exception(error)  # for those who mend kdbench

    def _wants_window(self) -> bool:
        in_burn_in = self._steps.most < self._burn_in
        first = self._trace.losses.windows_seen < self._inference.windows
        last = self._steps.most >= self._burn_in - 3  # what was right at first may have been lost since
        return in_burn_in and self._trace.broken is None and (first or last)

    def _on_window(self, raw: RawWindow) -> None:
        known = self._inference.known
        restarts = known.restarts
        self._inference.window(raw)
        if known.started and (not self._steps.distils or known.restarts > restarts):
            self._steps.begin()

    def _on_answer(self, call: ModuleCall) -> None:
        self._inference.answered(self._windows.raw, call)

    def _on_shown(self, module: nn.Module, args: Any) -> None:
        """Take in what the student is shown; of use where a whole script is watched."""

    def _on_modes(self, modes: list[bool]) -> None:
        self._inference.modes.backward(modes, self._steps.most + 1)

    def _before_backward(self, tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        self._trace.losses.backwards += 1
        self._windows.before_backward(tensors, keeps_graph(args, kwargs))
        self._steps.before_backward()

    def _after_backward(self, *args: Any, **kwargs: Any) -> None:
        self._steps.after_backward()
        self._windows.after_backward()

    def _wrap_grad(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Take gradients of a loss for parameters, by hand, for a backward."""

        def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            single = isinstance(outputs, Tensor) and outputs.numel() == 1
            by_hand = single and not self._windows.in_backward and any(isinstance(p, nn.Parameter) for p in given)
            if by_hand:
                self._guarded(self._windows.before_backward)(outputs, keeps_graph(args, kwargs))
            try:
                return original(outputs, given if not isinstance(inputs, Tensor) else inputs, *args, **kwargs)
            finally:
                if by_hand:
                    self._guarded(self._windows.after_backward)()

        return grad

    def _after_step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        self._answers.forget()
        self._windows.stepped()
        self._windows.keep_up()
        self._inference.step(optimizer, params)
        if self._steps.counts[id(optimizer)] == self._burn_in:
            self._end_burn_in()

    def _end_burn_in(self) -> None:
        self._forward_hook.remove()
        self._windows.close()
        self._conclude()
        self._act()

    def _conclude(self) -> None:
        self._trace.losses.checked = [(one.name, one.file, one.lines) for one in CHECKED]
        self._guarded(self._inference.finish)(self._steps.stepping)
        self._guarded(self._steps.finish)()

    def _act(self) -> None:
        """Do what was asked for when an audit failed."""
        if self._on_fail == "record":
            return
        report = self.report
        if self._on_fail == "raise":
            report.raise_for("error")
        elif report.failed("error"):
            where = self._trace.declared.at or {"file": "<unknown>", "line": 0}
            warnings.warn_explicit(str(report), UserWarning, where["file"], where["line"])
