"""Attach the audits to a training loop that somebody wrote.

During the burn-in every step is seen, afterwards every n-th. Nothing that is watched is changed: no random number is
drawn, no gradient or parameter written, no hook left behind; and scalars stay on the device until the report is made.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from audits import checks, hooks
from audits.events import Clip, ClipCall, Forward, Hits, Provenance, Spatial, Step, Trace
from audits.finding import AuditFailure, Report

Modules = nn.Module | Mapping[str, nn.Module] | None


def watch(
    *,
    student: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
    teacher: nn.Module | None = None,
    projectors: Modules = None,
    clip: Clip | None = None,
    teacher_weights: Mapping[str, Tensor] | None = None,
    burn_in: int = 20,
    every: int = 50,
    on_fail: Literal["record", "warn", "raise"] = "record",
) -> "Watch":
    """Watch a training for as long as the ``with`` block lives, and hold it to what is declared here.

    `projectors` is what is trained beside the student: a module, or several by name. `teacher_weights` is the state
    dict that the teacher should hold. `burn_in` is the number of steps of which every one is seen; after them every
    `every`-th is. `on_fail` says what a failed audit of severity error does when the
    burn-in ends and when the block does: it is recorded in ``report``, warned of, or raised as AuditFailure.
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    if not optimizers:
        raise ValueError("audits.watch: no optimizer was given; nothing could be seen to step")
    if not any(True for _ in student.parameters()):
        raise ValueError("audits.watch: the student has no parameters; pass the network that is trained")
    if clip is not None and not clip.max_norm > 0:
        raise ValueError(f"audits.watch: clip max_norm is {clip.max_norm}; it must be positive")
    named = {"projectors": projectors} if isinstance(projectors, nn.Module) else dict(projectors or {})
    roles = {**({"teacher": teacher} if teacher is not None else {}), "student": student, **named}
    names = {id(p): f"{role}.{name}" for role, module in roles.items() for name, p in module.named_parameters()}
    trace = Trace(student, teacher, clip, names, hooks.call_site())
    if teacher is not None and teacher_weights is not None:
        trace.provenance = _provenance(teacher, teacher_weights)
    return Watch(trace, optimizers, burn_in, every, on_fail)


class Watch:
    """A running watch; made by :func:`watch`, used as a context manager."""

    def __init__(
        self, trace: Trace, optimizers: list[torch.optim.Optimizer], burn_in: int, every: int, on_fail: str
    ) -> None:
        self._trace = trace
        self._optimizers = {id(o): o for o in optimizers}
        self._burn_in, self._every, self._on_fail = burn_in, every, on_fail
        self._count = 0
        self._depth = 0
        self._home = os.getpid()
        self._clips: list[ClipCall] = []
        self._versions: dict[int, tuple[int, int]] | None = None
        self._scaled = False
        self._teacher_logits: Tensor | None = None
        self._stack = ExitStack()
        self._forward_hook: Any = None
        self._roles: dict[int, tuple[str, str]] = {}
        for role, module in (("student", trace.student), ("teacher", trace.teacher)):
            if module is not None:
                self._roles.update({id(m): (role, name) for name, m in module.named_modules()})

    # -- what the user's loop may tell

    def labels(self, labels: Tensor) -> None:
        """Show the labels (B,) of the batch that the teacher has just answered."""
        logits, self._teacher_logits = self._teacher_logits, None
        if logits is None or not self._active or labels.ndim != 1 or len(labels) != len(logits):
            return
        trace = self._trace
        if trace.hits is None:
            zeros = torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device)
            trace.hits = Hits(torch.zeros((), dtype=torch.long, device=logits.device), zeros)
        labels = labels.to(logits.device)
        trace.hits.right += (logits.argmax(1) == labels).sum()
        trace.hits.by_class.index_add_(0, labels, torch.ones_like(labels))

    @property
    def report(self) -> Report:
        """The findings over what has been seen so far."""
        return checks.run(self._trace)

    # -- context manager

    def __enter__(self) -> "Watch":
        guard, stack = self._guarded, self._stack
        stack.enter_context(hooks.clip_log(guard(self._on_clip), lambda: self._active))
        stack.enter_context(hooks.after(torch.autograd, "backward", guard(self._snapshot)))
        stack.enter_context(hooks.after(torch.amp.grad_scaler.GradScaler, "unscale_", guard(self._on_unscale)))
        pre = register_optimizer_step_pre_hook(guard(self._on_step))
        stack.callback(pre.remove)
        post = register_optimizer_step_post_hook(guard(self._after_step))
        stack.callback(post.remove)
        self._forward_hook = register_module_forward_hook(guard(self._on_forward))
        stack.callback(self._forward_hook.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is None:
            self._act()

    # -- what torch tells

    @property
    def _active(self) -> bool:
        return self._count < self._burn_in or (self._count + 1) % self._every == 0

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Keep a hook to this process, and an error of ours out of the user's training."""

        def call(*args: Any, **kwargs: Any) -> None:
            if os.getpid() != self._home or self._trace.broken is not None or torch.compiler.is_compiling():
                return
            try:
                hook(*args, **kwargs)
            except AuditFailure:
                raise
            except Exception as error:
                self._trace.broken = f"{type(error).__name__}: {error}"

        return call

    def _on_clip(self, call: ClipCall) -> None:
        self._clips.append(call)

    def _params(self, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _snapshot(self, *args: Any, **kwargs: Any) -> None:
        """Note each gradient's version: whoever writes to it later, by whatever means, raises it."""
        if self._active:
            params = [p for optimizer in self._optimizers.values() for p in self._params(optimizer)]
            self._versions = {id(p): (p.grad.data_ptr(), p.grad._version) for p in params if p.grad is not None}

    def _on_unscale(self, scaler: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> None:
        if scaler.is_enabled():
            self._scaled = True
            self._snapshot()

    def _on_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in self._optimizers:
            return
        self._depth += 1
        if self._depth > 1 or not self._active:  # a subclass that calls an already hooked super().step()
            return
        params = self._params(optimizer)
        if not params:
            return
        grads = [p.grad for p in params if p.grad is not None]
        norm = nn.utils.get_total_norm(grads).detach()
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer is handed gradients that are still scaled
        if scale is not None:
            norm = norm / scale
        touched = None
        if self._versions is not None:
            now = [(id(p), (g.data_ptr(), g._version)) for p, g in zip(params, grads, strict=True)]
            touched = [self._versions.get(key) != version for key, version in now]
        scaled = self._scaled or scale is not None
        self._trace.steps.append(Step(self._count + 1, params, self._clips, touched, scaled, norm, hooks.call_site()))

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in self._optimizers:
            return
        self._depth -= 1
        if self._depth > 0:
            return
        self._clips, self._versions, self._scaled = [], None, False
        self._count += 1
        if self._count == self._burn_in:
            self._forward_hook.remove()
            self._act()

    def _on_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        role, name = self._roles.get(id(module), ("", ""))
        if not role:
            return
        forward = self._trace.forwards.setdefault(role, Forward())
        is_root = name == ""
        if not forward.complete:
            if (call := _spatial(name, module, args, output)) is not None:
                forward.spatial.append(call)
            if is_root:
                image = next((a for a in args if isinstance(a, Tensor) and a.ndim == 4), None)
                forward.input_size = None if image is None else (int(image.shape[-2]), int(image.shape[-1]))
                forward.complete = True
        if is_root and role == "teacher":
            self._teacher_logits = _logits(output)

    def _act(self) -> None:
        """Do what was asked for when an audit failed."""
        if self._on_fail == "record":
            return
        report = self.report
        if self._on_fail == "raise":
            report.raise_for("error")
        elif report.failed("error"):
            warnings.warn(str(report), stacklevel=3)


def _provenance(teacher: nn.Module, weights: Mapping[str, Tensor]) -> Provenance:
    equal, total, differing = 0, 0, []
    for name, value in teacher.state_dict().items():
        other = weights.get(name, weights.get(f"module.{name}"))
        same = (
            other is not None and other.shape == value.shape and torch.equal(value.cpu(), other.to(value.dtype).cpu())
        )
        total += value.numel()
        if same:
            equal += value.numel()
        else:
            differing.append(name)
    return Provenance(equal, total, differing)


def _logits(output: Any) -> Tensor | None:
    """Return the logits (B, C) in what a network returned, where it is plain which tensor they are."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    return output.detach() if isinstance(output, Tensor) and output.ndim == 2 else None


def _spatial(name: str, module: nn.Module, args: Any, output: Any) -> Spatial | None:
    kind: Literal["conv", "pool"]
    if isinstance(module, nn.Conv2d):
        kind = "conv"
    elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        kind = "pool"
    else:
        return None
    kernel, stride = (max(v) if isinstance(v, tuple) else int(v) for v in (module.kernel_size, module.stride))
    before, after = args[0].shape[-2:], output.shape[-2:]
    return Spatial(name, kind, kernel, stride, (int(before[0]), int(before[1])), (int(after[0]), int(after[1])))
