"""The bookkeeping of updates: what was clipped, zeroed, unscaled and written to between a backward and its step."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from kdbench.audits.observe import hooks, torch_internals
from kdbench.audits.observe.hand_clips import bound_of, factors_of, norms_of
from kdbench.audits.observe.readable import address, copy_of, numbers
from kdbench.audits.observe.scaler import found_infinite, is_still_scaled
from kdbench.audits.observe.unused import Unused
from kdbench.audits.trace import Trace
from kdbench.audits.updates import ClipCall, Empty, Step

# A bound that large is how a norm is measured, not clipped.
_NO_BOUND = 1e6


Guard = Callable[[Callable[..., Any]], Callable[..., Any]]


class Steps:
    """Follows gradients from the backward to the step of each optimizer it watches; of all where none is named."""

    def __init__(
        self,
        trace: Trace,
        optimizers: list[torch.optim.Optimizer] | None,
        burn_in: int,
        every: int,
        after_step: Callable[[torch.optim.Optimizer, list[nn.Parameter]], None],
    ) -> None:
        self._trace = trace
        self._watches_all = optimizers is None
        named = optimizers or []
        # A wrapper may step for the optimizer that was declared, or the other way round: they share parameters.
        self._params_watched = {id(p) for o in named for group in o.param_groups for p in group["params"]}
        self._is_watched = WeakKeyDictionary(dict.fromkeys(named, True))
        self._stepped_late: WeakKeyDictionary[torch.optim.Optimizer, bool] = WeakKeyDictionary()
        "Whether an optimizer, watched or not, stepped in the distillation last."
        self.stepping = list(named)
        "Strong references: an id alone is given to another object after collection."
        self._burn_in, self._every = burn_in, every
        self._tell_step = after_step
        self.counts: dict[int, int] = {}
        "Steps by optimizer."
        self._unused = Unused()
        self._before: dict[int, int] = {}
        "Of them, those before the distillation."
        self._depth = 0
        self._closing = False
        "Whether the closure runs that a step was handed, for the first time: what it does stands before the step."
        self._backward_since = False
        self._clips: list[ClipCall] = []
        self._clips_read: dict[int, int] = {}
        self._versions: dict[int, tuple[int, int]] | None = None
        self._written: set[int] = set()
        self._written_with_all: set[int] = set()
        self._written_after: set[int] = set()
        self._seen_written: set[int] = set()
        self._zeroed: set[int] = set()
        self._scaled: set[int] = set()
        self._hand_scaled: set[int] = set()
        self._consumed: dict[int, nn.Parameter] = {}
        self._stale: set[int] = set()
        self._stamps_used: dict[int, dict[int, tuple[int, int]]] = {}
        self._backwards = 0
        self._backwards_used: dict[int, int] = {}
        self._scaler: Any = None
        self._scale_called = self._root_is_scaled = False
        self._busy = 0
        "How deep in a function of torch's that may write to gradients, and is no clip by hand."
        self._kept: dict[int, Tensor] = {}
        self._read = False
        "Whether a gradient was read since the backward, as a clip by hand does even where it has nothing to do."
        self.follows: Callable[[], bool] = lambda: False
        "Says whether the function mode tells of what is read and written."
        self.distils = False

    def open(self, stack: ExitStack, guard: Guard) -> None:
        """Register the hooks for as long as the stack lives."""
        self._guard = guard
        stack.enter_context(hooks.clip_log(guard(self._on_clip), guard(self._after_clip)))
        scaler = torch.amp.grad_scaler.GradScaler
        for owner, name, then, before in (
            (scaler, "unscale_", self._on_unscale, self._before_unscale),
            (torch.optim.Optimizer, "zero_grad", self._after_zero, self._before_zero),
            (nn.Module, "zero_grad", self._after_zero, self._before_zero),
            (scaler, "scale", self._on_scale, None),
            (scaler, "step", self._after_scaler_step, self._before_scaler_step),
        ):
            stack.enter_context(hooks.around(owner, name, guard(then), guard(before) if before else None))
        stack.callback(register_optimizer_step_pre_hook(guard(self._on_step)).remove)
        stack.callback(register_optimizer_step_post_hook(guard(self._after_step)).remove)

    def begin(self) -> None:
        """Take in that the distillation begins: every optimizer's steps are counted from here on."""
        self.distils = True
        self._before = dict(self.counts)
        for optimizer in list(self._stepped_late):
            self._stepped_late[optimizer] = False

    @property
    def most(self) -> int:
        """Return the number of steps of the optimizer that stepped most."""
        return max(self.counts.values(), default=0)

    def finish(self) -> None:
        """Tell whose parameters may move: of every optimizer but those that stepped only before the distillation."""
        alive = [o for o in self._is_watched if self._stepped_late.get(o, self.distils) == self.distils]
        self._trace.updates.movable = frozenset(
            id(p) for o in alive for group in o.param_groups for p in group["params"]
        )
        self._trace.updates.undone = {key: (lost.often, lost.zeroed_at) for key, lost in self._unused.undone.items()}

    def _is_active(self, optimizer: torch.optim.Optimizer) -> bool:
        count = self._count(optimizer)
        return count < self._burn_in or (count + 1) % self._every == 0

    def _count(self, optimizer: torch.optim.Optimizer) -> int:
        """Return how many steps an optimizer took since the distillation began, or since ever."""
        return self.counts.get(id(optimizer), 0) - self._before.get(id(optimizer), 0)

    @property
    def active(self) -> bool:
        """Whether any optimizer's next step will be looked at."""
        return (self._watches_all and not self.stepping) or any(self._is_active(o) for o in self.stepping)

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch an optimizer that was built meanwhile, if it is one of those to be watched."""
        if self._watches(optimizer):
            self._clips_read.setdefault(id(optimizer), len(self._clips))

    def _watches(self, optimizer: torch.optim.Optimizer) -> bool:
        known = self._is_watched.get(optimizer)
        if known is None:
            params = (id(p) for group in optimizer.param_groups for p in group["params"])
            known = self._is_watched[optimizer] = self._watches_all or any(p in self._params_watched for p in params)
            if known:
                self.stepping.append(optimizer)
        return known

    # -- gradients and what is written to them

    def _gradients(self) -> Iterable[tuple[int, Tensor]]:
        for optimizer in self.stepping:
            for param in with_gradient(optimizer):
                assert param.grad is not None
                yield id(param), param.grad

    def _stamps(self) -> dict[int, tuple[int, int]]:
        return {key: _stamp(grad) for key, grad in self._gradients()}

    def _snapshot(self) -> None:
        """Note each gradient's version: whoever writes to it later, by whatever means, raises it."""
        self._versions = self._stamps()

    def _note_writes(self, *args: Any, **kwargs: Any) -> None:
        """Take in which gradients were written to since the last snapshot; apart, if all of them were."""
        if self._versions is None or not self.active:
            return
        now = self._stamps()
        written = {key for key, stamp in now.items() if self._versions.get(key) != stamp}
        written |= self._seen_written & now.keys()
        self._seen_written.clear()
        (self._written_with_all if len(written) == len(now) else self._written).update(written)
        if written and not self._backward_since and self._consumed:
            self._written_after |= {k for k, g in self._gradients() if k in written and _is_set(g)}
        self._versions = now

    def written_to(self, tensors: list[Tensor]) -> None:
        """Take in a write that the function mode saw: it sees through ``.data``, which raises no version."""
        if self._busy or not self.active or self._depth:
            return
        places = {stamp[0]: key for key, stamp in (self._versions or {}).items()}
        hit = {places[at] for t in tensors if (at := address(t)) in places}
        if hit and self._backward_since:
            self._seen_written |= hit
        elif hit:
            self._written_after |= {k for k, g in self._gradients() if k in hit and _is_set(g)}

    def read_from(self, name: str, tensors: list[Tensor]) -> None:
        """Take in that a function of torch's was handed these tensors: some may be gradients on their way to a step."""
        if self._read or self._busy or self._depth or not self._backward_since or name.startswith("_amp_"):
            return
        places = {stamp[0] for stamp in (self._versions or {}).values()}
        self._read = any(address(t) in places for t in tensors if not t.is_sparse)

    def before_backward(self) -> None:
        """Take in the writes so far, and which used gradients are still there to be added to."""
        self._note_writes()
        if not self._consumed or not self.active:
            return
        left = {key: p for key, p in self._consumed.items() if p.grad is not None and not p.grad.is_sparse}
        grads = [p.grad for p in left.values() if p.grad is not None]
        if grads:
            sizes = norms_of(grads).tolist()
            left = {key: p for (key, p), size in zip(left.items(), sizes, strict=True) if size != 0}
        self._consumed = left
        self._stale &= left.keys()

    def after_backward(self) -> None:
        """Forget, for the gradients that grew, what was done to them before: it did not reach what was added."""
        self._read = self._read and self._backward_since
        self._backward_since = True
        self._backwards += 1
        self._root_is_scaled, self._scale_called = self._scale_called, False
        if not self.active:
            self._zeroed.clear()
            return
        before = self._versions or {}
        self._versions = self._stamps()
        grown = {key for key, stamp in self._versions.items() if before.get(key) != stamp}
        held = (p for optimizer in self.stepping for p in with_gradient(optimizer))
        self._unused.grown([p for p in held if id(p) in grown], sum(self.counts.values()))
        if self._watches_all and self._trace.declared.clip is None:
            dense = ((k, copy_of(g)) for k, g in self._gradients() if k in grown and not g.is_sparse)
            self._kept.update((k, copy) for k, copy in dense if copy is not None)
        self._written -= grown
        self._written_with_all -= grown
        self._zeroed -= grown
        self._stale |= grown & self._consumed.keys()
        self._clips = [
            replace(c, ids=c.ids - grown, grown=c.grown + len(c.ids & grown)) if c.ids & grown else c
            for c in self._clips
        ]

    def _before_zero(self, *args: Any, **kwargs: Any) -> None:
        self._busy = 1
        self._note_writes()

    def _after_zero(self, *args: Any, **kwargs: Any) -> None:
        self._busy = 0
        if self.active and self._versions is not None:  # zeroing is no clip
            now = self._stamps()
            self._zeroed = {key for key, stamp in now.items() if self._versions.get(key) != stamp}
            if not self._depth or self._closing:
                gone = self._zeroed | (self._versions.keys() - now.keys())
                self._unused.zeroed(gone, sum(self.counts.values()))
            self._snapshot()

    # -- clips

    def _on_clip(self, kind: Literal["norm", "value"], params: list[nn.Parameter], bound: float, total: Any) -> None:
        self._busy += 1
        self._read = self._read or bound >= _NO_BOUND
        if not self.active or bound >= _NO_BOUND:
            return
        self._note_writes()
        grads = [p.grad for p in params if p.grad is not None]
        norms = None
        if kind == "norm" and grads:
            norms = (torch.as_tensor(total).detach(), nn.utils.get_total_norm(grads).detach())
        ids = frozenset(id(p) for p in params if p.grad is not None)
        stepped_before = bool(self.counts) and not self._backward_since
        self._clips.append(
            ClipCall(
                kind,
                ids,
                float(bound),
                hooks.call_site(),
                norms,
                handed=len(params),
                handed_ids=frozenset(id(p) for p in params),
                after_step=stepped_before and bool(ids & self._consumed.keys()),
                scaled=self._is_scaled(ids),
            )
        )

    def _is_scaled(self, ids: frozenset[int]) -> bool:
        """Say whether these gradients still carry the scaler's factor."""
        scaler = self._scaler
        if scaler is None or not self._root_is_scaled or not scaler.is_enabled() or not self._backward_since:
            return False
        for optimizer in self.stepping:
            if ids & {id(p) for group in optimizer.param_groups for p in group["params"]}:
                return is_still_scaled(scaler, optimizer)
        return False

    def _after_clip(self) -> None:
        self._busy = 0
        if self.active:
            self._snapshot()

    # -- the scaler

    def _on_scale(self, scaler: Any, *args: Any, **kwargs: Any) -> None:
        if scaler.is_enabled():
            self._scaler, self._scale_called = scaler, True

    def _before_unscale(self, scaler: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        self._busy = 1
        self._note_writes()
        if scaler.is_enabled() and self.active:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._hand_scaled |= (self._written | self._written_with_all) & mine

    def _on_unscale(self, scaler: torch.amp.GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self._busy = 0
        if scaler.is_enabled() and self.active:
            self._scaled.add(id(optimizer))
            self._snapshot()

    def _before_scaler_step(self, scaler: Any, *args: Any, **kwargs: Any) -> None:
        self._taken = sum(self.counts.values())

    def _after_scaler_step(self, scaler: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Forget the clips of a step that the scaler skipped: they belong to no step."""
        if not scaler.is_enabled():
            return
        self._clips_read[id(optimizer)] = len(self._clips)
        self._scaled.discard(id(optimizer))
        fused = getattr(optimizer, torch_internals.SCALES_ITSELF, False)
        if not self.distils or (fused and not self.active):  # to look costs a wait for the device
            return
        skipped = sum(self.counts.values()) == self._taken or (fused and found_infinite(scaler, optimizer))
        self._trace.updates.scaler_stepped(skipped)

    # -- steps

    def _on_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._stepped_late[optimizer] = self.distils
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
            self._closing = not seen
            try:
                result = closure()
            finally:
                self._closing = False
            if not seen:
                seen = True
                self._guard(self._record)(optimizer, False)
            return result

        return ((args[0], observed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": observed})

    def _record(self, optimizer: torch.optim.Optimizer, whole: bool = True) -> None:
        """Take down what a step is given; `whole` says that the gradients were there before it was called."""
        # A gradient that was zeroed and that no backward reached is there, and needs no clip.
        params = [p for p in with_gradient(optimizer) if id(p) not in self._zeroed]
        if not params:
            self._note_empty(optimizer)
            return
        self._trace.updates.empty.pop(id(optimizer), None)
        grads = [p.grad for p in params if p.grad is not None]
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
        norm = nn.utils.get_total_norm(dense).detach()
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer is handed gradients that are still scaled
        if scale is not None:
            norm = norm / scale
        key = id(optimizer)
        since = self._clips[self._clips_read.get(key, 0) :]
        stepped = {id(p) for p in params}
        clips = [c for c in since if c.ids & stepped or (not c.ids and (c.handed_ids & stepped or not c.handed))]
        self._note_writes()
        written = set(self._written)
        if not (clips and stepped <= self._written_with_all):  # beside a clip of torch's, a write to all only scales
            written |= self._written_with_all
        written |= {
            id(p) for p in params if torch_internals.hooks_of(p)
        }  # a hook of the user's may clip, and is not seen
        stamps = {id(p): _stamp(p.grad) for p in params if p.grad is not None}
        backwards = self._backwards - self._backwards_used.get(key, 0)
        by_hand = not clips and bool(written & stepped) and scale is None
        kept = {k: g for k, g in self._kept.items() if k in self._touched}
        factors = factors_of(params, kept) if by_hand else {}
        thrown, zeroed_at = self._unused.before(stepped)
        self._trace.updates.steps.append(
            Step(
                number=self._count(optimizer) + 1,
                stepped=params,
                clips=clips,
                clipped_elsewhere=len(since) > len(clips),
                written=None if self._versions is None else frozenset(written & stepped),
                scaled=key in self._scaled or scale is not None,
                norm=norm,
                resolution=max(torch.finfo(g.dtype).eps for g in dense),
                where=hooks.call_site(),
                stale_grads=[p for p in params if id(p) in self._stale],
                repeated=self._backwards > 0 and backwards == 0 and stamps == self._stamps_used.get(key),
                backwards=backwards,
                hand_scaled=bool(self._hand_scaled & stepped),
                hand_after_step=bool(self._written_after & stepped) and not written & stepped and not clips,
                distils=self.distils,
                thrown=0 if by_hand else thrown,
                zeroed_at=zeroed_at,
                hand_bound=bound_of(params, factors, kept) if factors else None,
                hand_norms=norms_of(dense) if by_hand else None,
                hand_factors=factors,
                strays=[c for c in since if c.handed_ids and not c.grown and not c.handed_ids & stepped],
                touched=self._read if self.follows() and whole and _steps_plainly(optimizer) else None,
            )
        )

    def _note_empty(self, optimizer: torch.optim.Optimizer) -> None:
        """Count a step that has nothing to go by."""
        if not self.distils or not self._backwards:
            return
        params = [p for group in optimizer.param_groups for p in group["params"]]
        empty = self._trace.updates.empty
        steps = sum(s.stepped[0] is p for s in self._trace.updates.steps if s.distils for p in params)
        if id(optimizer) not in empty:
            if steps:
                return  # it had gradients before: an alternating loop
            empty[id(optimizer)] = Empty(type(optimizer).__name__, params, where=hooks.call_site())
        mine = empty[id(optimizer)]
        mine.steps += 1
        thrown = [self._unused.thrown[id(p)] for p in params if id(p) in self._unused.thrown]
        mine.thrown += bool(thrown)
        mine.zeroed_at = thrown[0][1] if thrown else mine.zeroed_at

    @property
    def _touched(self) -> set[int]:
        return self._written | self._written_with_all

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._watches(optimizer):
            return
        self._depth = max(0, self._depth - 1)
        if self._depth > 0:
            return
        key = id(optimizer)
        active = self._is_active(optimizer)
        self._clips_read[key] = len(self._clips)
        self._scaled.discard(key)
        params = with_gradient(optimizer) if active else []
        marked = (self._written, self._written_with_all, self._written_after, self._hand_scaled, self._stale)
        if active or any(marked) or self._kept or self._consumed or self._unused.fresh:
            stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for marks in marked:
                marks -= stepped
            for kept in stepped & self._kept.keys():
                del self._kept[kept]
            for used in () if active else stepped & self._consumed.keys():
                del self._consumed[used]
            self._unused.stepped(stepped)
        if active:
            self._consumed.update((id(p), p) for p in params)
            self._stamps_used[key] = {id(p): _stamp(p.grad) for p in params if p.grad is not None}
        self._backwards_used[key] = self._backwards
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.active and self._versions is not None:
            self._snapshot()
        else:
            self._versions = None
        self._tell_step(optimizer, params)


def with_gradient(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that a step would move; a frozen one may keep a gradient from before."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None and p.requires_grad]


def _steps_plainly(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether a step does nothing to gradients before it uses them: a class of torch's, with nothing hooked."""
    return type(optimizer).__module__.startswith("torch.optim") and not torch_internals.step_hooks_of(optimizer)


def _is_set(grad: Tensor) -> bool:
    here = numbers(grad)
    return here is not None and bool(here.any())


def _stamp(grad: Tensor) -> tuple[int, int]:
    here = None if grad.is_sparse else numbers(grad)
    return (0, torch_internals.version_of(grad)) if here is None else (address(here), torch_internals.version_of(here))
