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

from audits.checks.all import run
from audits.finding import AuditFailure, Report
from audits.infer.analysis import Analyst, plain_name, spatial_call
from audits.infer.roles import Declared
from audits.observe import hooks
from audits.observe.loads import Loads
from audits.observe.steps import Steps
from audits.observe.windows import ModuleCall, RawWindow, Windows
from audits.trace import KD, Clip, Declaration, Hits, Provenance, Trace

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
            raise ValueError(f"audits.watch: {says}")
    roles = {**({"teacher": teacher} if teacher is not None else {}), "student": student, **named}
    names = {id(p): f"{role}.{name}" for role, module in roles.items() for name, p in module.named_parameters()}
    declared = Declaration(student, teacher, clip, kd or KD(), same_input, hooks.call_site())
    trace = Trace(declared, names)
    if teacher is not None and teacher_weights is not None:
        trace.teacher.provenance = _provenance(teacher, teacher_weights)
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
        self._windows = Windows(
            self._guarded(self._on_window),
            self._guarded(self._on_answer),
            self._break,
            self._wants_window,
            self._guarded(self._on_modes),
            self._guarded(self._steps.written_to),
            self._guarded(self._on_shown),
        )
        self._analyst = Analyst(trace, self._windows.taint, self._loads, declared, windows, lambda: self._windows.raw)
        self._teacher_logits: Tensor | None = None
        self.let_go = False
        "Whether what is left of the hooks does nothing any more."
        self._stack = ExitStack()
        self._forward_hook: Any = None
        self._roles: dict[int, list[tuple[str, str]]] = {}
        for role, module in (("student", trace.declared.student), ("teacher", trace.declared.teacher)):
            for name, part in module.named_modules() if module is not None else ():
                self._roles.setdefault(id(part), []).append((role, name))

    def labels(self, labels: Tensor) -> None:
        """Show the labels (B,) of the batch that the teacher has just answered."""
        self._guarded(self._on_labels)(labels)

    @property
    def trace(self) -> Trace:
        """All that was seen so far."""
        return self._trace

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
            self._forward_hook = register_module_forward_hook(guard(self._on_forward), with_kwargs=True)
            stack.callback(self._forward_hook.remove)
            self._windows.open()
            stack.callback(self._windows.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is None:
            self._act()

    # -- what torch tells

    def _guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Keep a hook to this process and to eager code, and an error of ours out of the user's training."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or os.getpid() != self._home:
                return None
            if self.let_go or self._trace.broken is not None:
                return None
            try:
                # What a hook reads and computes is none of what is watched; most of what the function mode was told of
                # in a step were these reads.
                with torch._C.DisableTorchFunction():
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
        first = self._trace.losses.windows_seen < self._analyst.windows
        last = self._steps.most >= self._burn_in - 3  # what was right at first may have been lost since
        return in_burn_in and self._trace.broken is None and (first or last)

    def _on_window(self, raw: RawWindow) -> None:
        self._analyst.window(raw)
        self._steps.distils = self._steps.distils or self._analyst.started

    def _on_answer(self, call: ModuleCall) -> None:
        self._analyst.answered(call)

    def _on_shown(self, module: nn.Module, args: Any) -> None:
        """Take in what the student is shown; of use where a whole script is watched."""

    def _on_modes(self, modes: list[bool]) -> None:
        self._analyst.modes(modes, self._steps.most + 1)

    def _before_backward(self, tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        self._windows.before_backward(tensors)
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
                self._guarded(self._windows.before_backward)(outputs)
            try:
                return original(outputs, given if not isinstance(inputs, Tensor) else inputs, *args, **kwargs)
            finally:
                if by_hand:
                    self._guarded(self._windows.after_backward)()

        return grad

    def _after_step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        self._teacher_logits = None  # labels shown after the step are another batch's, or come too late
        self._windows.keep_up()
        self._analyst.stepped(optimizer, params)
        if self._steps.counts[id(optimizer)] == self._burn_in:
            self._end_burn_in()

    def _end_burn_in(self) -> None:
        self._forward_hook.remove()
        self._windows.close()
        self._conclude()
        self._act()

    def _conclude(self) -> None:
        self._guarded(self._analyst.finish)(self._steps.stepping)
        self._guarded(self._steps.finish)()

    def _on_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for role, name in self._roles.get(id(module), ()):
            calls = self._trace.data.spatial.setdefault(role, [])
            image = args[0] if args else kwargs.get("input")
            shapes = [tuple(t.shape) if isinstance(t, Tensor) else None for t in (image, output)]
            if len(calls) < 3 and (call := spatial_call(name, module, *shapes)) is not None:
                calls.append(call)
            if name == "":
                logits = _logits(output)
                if role == "teacher":
                    self._teacher_logits = None if logits is None else logits.clone()  # losses may mask theirs in place
                elif logits is not None:
                    self._trace.teacher.student_width = logits.shape[1]

    def _on_labels(self, labels: Tensor) -> None:
        logits, self._teacher_logits = self._teacher_logits, None
        trace = self._trace
        trace.teacher.labels_shown = True
        if logits is None or labels.ndim != 1 or len(labels) != len(logits):
            return
        with torch.inference_mode(False), torch.no_grad():
            logits = logits.clone()
            labels = labels.to(logits.device).long()
            counts = (labels >= 0) & (labels < logits.shape[1])  # an index to ignore is no label
            right = ((logits.argmax(1) == labels) & counts).sum()
            by_class = torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device)
            by_class.index_add_(0, labels.clamp(0, logits.shape[1] - 1), counts.long())
            if trace.teacher.hits is not None:
                right, by_class = right + trace.teacher.hits.right, by_class + trace.teacher.hits.by_class
            trace.teacher.hits = Hits(right, by_class)

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


def _provenance(teacher: nn.Module, weights: Mapping[str, Tensor]) -> Provenance:
    weights = {name: value for name, value in weights.items() if not _carries_no_weight(name)}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            hint = f"; perhaps pass teacher_weights[{name!r}]" if isinstance(value, Mapping) else ""
            raise ValueError(f"audits.watch: teacher_weights: {name!r} is a {type(value).__name__}, no tensor{hint}")
    declared = {plain_name(name): value for name, value in weights.items()}
    own = {name: value for name, value in teacher.state_dict().items() if not _carries_no_weight(name)}
    equal, differing, aliases = [], [], []
    for name, value in own.items():
        other = declared.get(plain_name(name))
        if other is not None and other.data_ptr() == value.data_ptr() and value.numel():
            aliases.append(name)
        elif other is not None and other.shape == value.shape and torch.equal(value.cpu(), other.to(value).cpu()):
            equal.append(name)
        else:
            differing.append(name)
    # Tied tensors stand in a checkpoint under one of their names.
    tied = {own[name].data_ptr() for name in equal}
    lost = [name for name in differing if plain_name(name) in declared or own[name].data_ptr() not in tied]
    equal += [name for name in differing if name not in lost]
    return Provenance(
        sum(own[name].numel() for name in equal),
        sum(value.numel() for value in own.values()),
        lost,
        sorted(declared.keys() - {plain_name(name) for name in own}),
        aliases,
    )


def _carries_no_weight(name: str) -> bool:
    """Say whether an entry of a state dict is a counter, or a module's own notes."""
    return name.endswith(("num_batches_tracked", "n_averaged", "_extra_state"))


def _logits(output: Any) -> Tensor | None:
    """Return the logits (B, C) in what a network returned, if it is plain which tensor they are."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        flat = [part for part in output if isinstance(part, Tensor) and part.ndim == 2]
        output = flat[0] if len(flat) == 1 else None
    return output.detach() if isinstance(output, Tensor) and output.ndim == 2 else None
