"""Attach the audits to a training loop that somebody wrote.

During the burn-in every step is seen, afterwards every n-th. Nothing that is watched is changed: no random number is
drawn, no gradient or parameter written, no hook left behind; and scalars stay on the device until the report is made.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from audits import checks, hooks
from audits.events import Clip, ClipCall, Hits, Provenance, Spatial, Step, Trace
from audits.finding import AuditFailure, Report

# A bound that large is how a norm is measured, not clipped.
_NO_BOUND = 1e6

Modules = nn.Module | Mapping[str, nn.Module] | None
OnFail = Literal["record", "warn", "raise"]


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
    on_fail: OnFail = "record",
) -> "Watch":
    """Watch a training for as long as the ``with`` block lives, and hold it to what is declared here.

    `projectors` is what is trained beside the student: a module, or several by name. `teacher_weights` is the state
    dict that the teacher should hold. `burn_in` is the number of steps of which every one is seen; after them every
    `every`-th is. `on_fail` says what a failed audit of severity error does when the burn-in ends and when the block
    does: it is recorded in ``report``, warned of, or raised as AuditFailure. A declaration that makes no sense is a
    ValueError.
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
        # A wrapper may step for the optimizer that was declared, or the other way round: they share parameters.
        self._params_watched = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        self._is_watched = WeakKeyDictionary(dict.fromkeys(optimizers, True))
        self._stepping = list(optimizers)
        self._burn_in, self._every, self._on_fail = burn_in, every, on_fail
        self._counts: dict[int, int] = {}
        self._depth = 0
        self._backward_since = False
        self._home = os.getpid()
        self._clips: list[ClipCall] = []
        self._clips_read: dict[int, int] = {}
        self._versions: dict[int, tuple[int, int]] | None = None
        self._written: set[int] = set()
        self._written_with_all: set[int] = set()
        self._zeroed: set[int] = set()
        self._scaled: set[int] = set()
        self._teacher_logits: Tensor | None = None
        self._stack = ExitStack()
        self._forward_hook: Any = None
        self._roles: dict[int, list[tuple[str, str]]] = {}
        for role, module in (("student", trace.student), ("teacher", trace.teacher)):
            for name, part in module.named_modules() if module is not None else ():
                self._roles.setdefault(id(part), []).append((role, name))

    def labels(self, labels: Tensor) -> None:
        """Show the labels (B,) of the batch that the teacher has just answered."""
        self._guarded(self._on_labels)(labels)

    @property
    def report(self) -> Report:
        """The findings over what has been seen so far."""
        return checks.run(self._trace)

    def __enter__(self) -> "Watch":
        guard, stack = self._guarded, self._stack
        stack.enter_context(hooks.clip_log(guard(self._on_clip), guard(self._after_clip)))
        scaler = torch.amp.grad_scaler.GradScaler
        for owner, name, then in (
            (torch.autograd, "backward", self._on_backward),
            (scaler, "unscale_", self._on_unscale),
            (torch.optim.Optimizer, "zero_grad", self._after_zero),
            (nn.Module, "zero_grad", self._after_zero),
        ):
            stack.enter_context(hooks.around(owner, name, guard(then), guard(self._note_writes)))
        stack.enter_context(hooks.around(scaler, "step", guard(self._after_scaler_step)))
        stack.callback(register_optimizer_step_pre_hook(guard(self._on_step)).remove)
        stack.callback(register_optimizer_step_post_hook(guard(self._after_step)).remove)
        if max(self._counts.values(), default=0) < self._burn_in:  # a watch may be left and entered again
            self._forward_hook = register_module_forward_hook(guard(self._on_forward), with_kwargs=True)
            stack.callback(self._forward_hook.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is None:
            self._act()

    # -- what torch tells

    def _guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Keep a hook to this process and to eager code, and an error of ours out of the user's training."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or os.getpid() != self._home or self._trace.broken is not None:
                return None
            try:
                return hook(*args, **kwargs)
            except AuditFailure:
                raise
            except Exception as error:
                self._trace.broken = f"{type(error).__name__}: {error}"
                return None

        return call

    def _is_active(self, optimizer: torch.optim.Optimizer) -> bool:
        count = self._counts.get(id(optimizer), 0)
        return count < self._burn_in or (count + 1) % self._every == 0

    @property
    def _active(self) -> bool:
        """Whether any optimizer's next step will be looked at."""
        return any(self._is_active(optimizer) for optimizer in self._stepping)

    def _watches(self, optimizer: torch.optim.Optimizer) -> bool:
        known = self._is_watched.get(optimizer)
        if known is None:
            params = (id(p) for group in optimizer.param_groups for p in group["params"])
            known = self._is_watched[optimizer] = any(p in self._params_watched for p in params)
            if known:
                self._stepping.append(optimizer)
        return known

    def _on_clip(self, kind: Literal["norm", "value"], params: list[nn.Parameter], bound: float, total: Any) -> None:
        if not self._active or bound >= _NO_BOUND:
            return
        self._note_writes()
        grads = [p.grad for p in params if p.grad is not None]
        norms = None
        if kind == "norm" and grads:
            norms = (torch.as_tensor(total).detach(), nn.utils.get_total_norm(grads).detach())
        ids = frozenset(id(p) for p in params if p.grad is not None)
        self._clips.append(ClipCall(kind, ids, float(bound), hooks.call_site(), norms))

    def _after_clip(self) -> None:
        if self._active:
            self._snapshot()

    def _gradients(self) -> Iterable[tuple[int, Tensor]]:
        for optimizer in self._stepping:
            for param in _with_gradient(optimizer):
                assert param.grad is not None
                yield id(param), param.grad

    def _stamps(self) -> dict[int, tuple[int, int]]:
        return {key: _stamp(grad) for key, grad in self._gradients()}

    def _snapshot(self) -> None:
        """Note each gradient's version: whoever writes to it later, by whatever means, raises it."""
        self._versions = self._stamps()

    def _note_writes(self, *args: Any, **kwargs: Any) -> None:
        """Take in which gradients were written to since the last snapshot; apart, if all of them were."""
        if self._versions is None or not self._active:
            return
        now = self._stamps()
        written = {key for key, stamp in now.items() if self._versions.get(key) != stamp}
        (self._written_with_all if len(written) == len(now) else self._written).update(written)
        self._versions = now

    def _on_backward(self, *args: Any, **kwargs: Any) -> None:
        """Forget, for the gradients that grew, what was done to them before: it did not reach what was added."""
        self._backward_since = True
        if not self._active:
            self._zeroed.clear()
            return
        before = self._versions or {}
        self._versions = self._stamps()
        grown = {key for key, stamp in self._versions.items() if before.get(key) != stamp}
        self._written -= grown
        self._written_with_all -= grown
        self._zeroed -= grown
        self._clips = [replace(c, ids=c.ids - grown) if c.ids & grown else c for c in self._clips]

    def _after_zero(self, *args: Any, **kwargs: Any) -> None:
        if self._active and self._versions is not None:  # zeroing is no clip
            self._zeroed = {key for key, stamp in self._stamps().items() if self._versions.get(key) != stamp}
            self._snapshot()

    def _on_unscale(self, scaler: torch.amp.GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if scaler.is_enabled() and self._active:
            self._scaled.add(id(optimizer))
            self._snapshot()

    def _after_scaler_step(self, scaler: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Forget the clips of a step that the scaler skipped: they belong to no step."""
        if scaler.is_enabled():
            self._clips_read[id(optimizer)] = len(self._clips)
            self._scaled.discard(id(optimizer))

    def _on_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if not self._watches(optimizer):
            return None
        if self._depth and self._backward_since:  # the step before this one raised, and its end was never told
            self._depth = 0
        self._depth += 1
        self._backward_since = False
        if self._depth > 1 or not self._is_active(optimizer):  # a subclass that calls an already hooked super().step()
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._record(optimizer)
            return None
        seen = False

        def observed() -> Any:  # the gradients of this step are there once the closure has run
            nonlocal seen
            result = closure()
            if not seen:
                seen = True
                self._guarded(self._record)(optimizer)
            return result

        return ((args[0], observed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": observed})

    def _record(self, optimizer: torch.optim.Optimizer) -> None:
        # A gradient that was zeroed and that no backward reached is there, and needs no clip.
        params = [p for p in _with_gradient(optimizer) if id(p) not in self._zeroed]
        if not params:
            return
        grads = [p.grad for p in params if p.grad is not None]
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
        norm = nn.utils.get_total_norm(dense).detach()
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer is handed gradients that are still scaled
        if scale is not None:
            norm = norm / scale
        since = self._clips[self._clips_read.get(id(optimizer), 0) :]
        stepped = {id(p) for p in params}
        clips = [clip for clip in since if clip.ids & stepped or not clip.ids]
        self._note_writes()
        written = set(self._written)
        if not (clips and stepped <= self._written_with_all):  # beside a clip of torch's, a write to all only scales
            written |= self._written_with_all
        written |= {id(p) for p in params if p._backward_hooks}  # a hook of the user's may clip, and is not seen
        self._trace.steps.append(
            Step(
                number=self._counts.get(id(optimizer), 0) + 1,
                stepped=params,
                clips=clips,
                clipped_elsewhere=len(since) > len(clips),
                written=None if self._versions is None else frozenset(written & stepped),
                scaled=id(optimizer) in self._scaled or scale is not None,
                norm=norm,
                resolution=max(torch.finfo(g.dtype).eps for g in dense),
                where=hooks.call_site(),
            )
        )

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._watches(optimizer):
            return
        self._depth = max(0, self._depth - 1)
        if self._depth > 0:
            return
        self._clips_read[id(optimizer)] = len(self._clips)
        self._scaled.discard(id(optimizer))
        self._teacher_logits = None  # labels shown after the step are another batch's, or come too late
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._written -= stepped
        self._written_with_all -= stepped
        self._counts[id(optimizer)] = self._counts.get(id(optimizer), 0) + 1
        if self._active and self._versions is not None:
            self._snapshot()
        else:
            self._versions = None
        if self._counts[id(optimizer)] == self._burn_in:
            self._forward_hook.remove()
            self._act()

    def _on_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for role, name in self._roles.get(id(module), ()):
            calls = self._trace.spatial.setdefault(role, [])
            if len(calls) < 2 and (call := _spatial(name, module, args, kwargs, output)) is not None:
                calls.append(call)
            if name == "":
                logits = _logits(output)
                if role == "teacher":
                    self._teacher_logits = None if logits is None else logits.clone()  # losses may mask theirs in place
                elif logits is not None:
                    self._trace.student_width = logits.shape[1]

    def _on_labels(self, labels: Tensor) -> None:
        logits, self._teacher_logits = self._teacher_logits, None
        trace = self._trace
        trace.labels_shown = True
        if logits is None or labels.ndim != 1 or len(labels) != len(logits):
            return
        with torch.inference_mode(False), torch.no_grad():
            logits = logits.clone()
            labels = labels.to(logits.device).long()
            counts = (labels >= 0) & (labels < logits.shape[1])  # an index to ignore is no label
            right = ((logits.argmax(1) == labels) & counts).sum()
            by_class = torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device)
            by_class.index_add_(0, labels.clamp(0, logits.shape[1] - 1), counts.long())
            if trace.hits is not None:
                right, by_class = right + trace.hits.right, by_class + trace.hits.by_class
            trace.hits = Hits(right, by_class)

    def _act(self) -> None:
        """Do what was asked for when an audit failed."""
        if self._on_fail == "record":
            return
        report = self.report
        if self._on_fail == "raise":
            report.raise_for("error")
        elif report.failed("error"):
            where = self._trace.declared_at or {"file": "<unknown>", "line": 0}
            warnings.warn_explicit(str(report), UserWarning, where["file"], where["line"])


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that a step would move; a frozen one may keep a gradient from before."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None and p.requires_grad]


def _stamp(grad: Tensor) -> tuple[int, int]:
    return (0 if grad.is_sparse else grad.data_ptr(), grad._version)


def _plain(name: str) -> str:
    """Return a tensor's name without what DataParallel and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _provenance(teacher: nn.Module, weights: Mapping[str, Tensor]) -> Provenance:
    weights = {name: value for name, value in weights.items() if not _carries_no_weight(name)}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            hint = f"; perhaps pass teacher_weights[{name!r}]" if isinstance(value, Mapping) else ""
            raise ValueError(f"audits.watch: teacher_weights: {name!r} is a {type(value).__name__}, no tensor{hint}")
    declared = {_plain(name): value for name, value in weights.items()}
    own = {name: value for name, value in teacher.state_dict().items() if not _carries_no_weight(name)}
    equal, differing, aliases = [], [], []
    for name, value in own.items():
        other = declared.get(_plain(name))
        if other is not None and other.data_ptr() == value.data_ptr() and value.numel():
            aliases.append(name)
        elif other is not None and other.shape == value.shape and torch.equal(value.cpu(), other.to(value).cpu()):
            equal.append(name)
        else:
            differing.append(name)
    # Tied tensors stand in a checkpoint under one of their names.
    tied = {own[name].data_ptr() for name in equal}
    lost = [name for name in differing if _plain(name) in declared or own[name].data_ptr() not in tied]
    equal += [name for name in differing if name not in lost]
    return Provenance(
        sum(own[name].numel() for name in equal),
        sum(value.numel() for value in own.values()),
        lost,
        sorted(declared.keys() - {_plain(name) for name in own}),
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


def _spatial(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Spatial | None:
    kind: Literal["conv", "pool"]
    if isinstance(module, nn.Conv2d):
        kind = "conv"
    elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        kind = "pool"
    else:
        return None
    image = args[0] if args else kwargs.get("input")
    if not isinstance(image, Tensor) or not isinstance(output, Tensor):
        return None
    kernel, stride = (max(v) if isinstance(v, tuple) else int(v) for v in (module.kernel_size, module.stride))
    before, after = image.shape[-2:], output.shape[-2:]
    return Spatial(name, kind, kernel, stride, (int(before[0]), int(before[1])), (int(after[0]), int(after[1])))
