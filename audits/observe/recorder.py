"""The recorder of windows: hooks on modules and functions, and what they note between one backward and the next."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from kdbench.audits.observe import by_hand, custom, hooks, moods, noted, torch_internals
from kdbench.audits.observe.arguments import named_arguments
from kdbench.audits.observe.decoding import Decoding
from kdbench.audits.observe.flow import (
    INPLACE,
    KEPT_WHOLE,
    NO_WRITES,
    SHAPE_ONLY,
    meets_itself,
    passed_on,
    two_meet,
)
from kdbench.audits.observe.lineage import Lineage
from kdbench.audits.observe.outline import kept
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.taint import NOTHING, Made, Mode, Taint, gets_no_numbers, pop_if_on_top, push, tensors_in
from kdbench.audits.observe.windows import (
    LOOKUPS,
    MOODY,
    SMALL,
    FunctionCall,
    ModuleCall,
    RawWindow,
    following,
    leaves_of,
)


class Recorder:
    """Records windows while armed; tells of each before its backward runs, and of its parameters after."""

    def __init__(
        self,
        on_window: Callable[[RawWindow], None],
        on_answer: Callable[[ModuleCall], None],
        on_error: Callable[[BaseException], None],
        wants: Callable[[], bool],
        on_modes: Callable[[list[bool]], None] = lambda modes: None,
        on_write: Callable[[list[Tensor]], None] = lambda tensors: None,
        on_shown: Callable[[nn.Module, Any], None] = lambda module, args: None,
        on_read: Callable[[str, list[Tensor]], None] | None = None,
    ) -> None:
        self.taint = Taint()
        self.lineage = Lineage()
        self._on_window, self._on_answer, self._on_error, self._wants = on_window, on_answer, on_error, wants
        self._on_modes, self._on_write, self._on_shown, self._on_read = on_modes, on_write, on_shown, on_read
        self._mode = Mode(self._on_function)
        self._home = (os.getpid(), threading.get_ident())
        self._stack: list[ModuleCall | None] = []
        self._lifted = 0
        self._pushed = self._paused = False
        self._decoding, self._passing = Decoding(), custom.Passing()
        self._custom: list[str] = []
        "The functions with a backward of their own that are being computed."
        self._in_backward = 0
        self._next = 0
        self._exit = ExitStack()
        self._scaled: Any = torch.utils.weak.WeakTensorKeyDictionary()
        self._picked: Any = torch.utils.weak.WeakTensorKeyDictionary()
        "By what was picked by numbers that a network gave, the parameters of what it was picked from."
        self.armed = False
        self._wanted = True
        self.raw = RawWindow(0)
        self.students: set[int] = set()
        "Ids of the modules whose mode is noted at each call with a gradient, armed or not."
        self.student_modes: list[bool] = []
        self.heeds_answers = False
        "Whether answers that learn nothing are recorded between windows too: they may be stored for later."

    # -- coming and going

    def open(self) -> None:
        """Register the module hooks, and arm; where tensors cannot be followed, nothing, and no audit is decided."""
        if not torch_internals.can_follow():
            return
        self._exit.callback(register_module_forward_pre_hook(self._enter_module).remove)
        self._exit.callback(register_module_forward_hook(self._leave_module, with_kwargs=True, always_call=True).remove)
        self._exit.enter_context(custom.applied(self._on_custom))
        self._exit.enter_context(custom.named_variable(self._on_variable))
        self._exit.enter_context(hooks.patched(torch.amp.grad_scaler.GradScaler, "scale", self._wrap_scale))
        self.arm()

    def close(self) -> None:
        """Let go of everything."""
        self.disarm()
        self._mode.is_over = True
        self._exit.close()

    def arm(self) -> None:
        """Begin to record, if the mode can be put up."""
        if self.armed or not self._at_home() or not torch_internals.can_follow():
            return
        self.armed, self._paused = True, False
        self._put_up()

    def _put_up(self) -> None:
        if not self._pushed:
            push(self._mode)
            self._pushed = True

    @property
    def in_backward(self) -> bool:
        """Whether a backward runs, or what its window shows is being read."""
        return self._in_backward > 0

    def keep_up(self) -> None:
        """Arm or disarm as the last window decided.

        Not at once: the backward itself is called through the mode, and torch takes a mode off its stack for as long
        as it is being told of a call.
        """
        if self._in_backward or self._stack or torch_internals.is_recorded() or not self._at_home():
            return
        if self._wanted and not self.armed:
            self.arm()
        elif not self._wanted and (self.armed or self._pushed):
            self.disarm()
        elif self.armed and not self._paused:
            self._put_up()

    def look(self) -> None:
        """Arm, and stay so until the next backward."""
        self._wanted = True
        self.arm()

    def disarm(self) -> None:
        """Stop recording; the mode is taken down where it is on top."""
        self.armed = self._wanted = False
        self._take_down()

    def _take_down(self) -> None:
        if self._pushed and self._at_home() and pop_if_on_top(self._mode):
            self._pushed = False

    def _goes_on_writing(self, module: nn.Module) -> bool:
        """Say whether the call that begins is one more word of a text, and look away for as long as it is."""
        if not self.armed or self._stack or not self._decoding.is_likely:
            return False
        self._paused = self._decoding.goes_on(module, hooks.call_site(), torch.is_grad_enabled())
        if self._paused:
            self.raw.left |= self.taint.mask(module.parameters())  # what it writes is not followed from here on
            self._take_down()
        else:
            self._decoding.forget()
            self._put_up()
        return self._paused

    def _at_home(self) -> bool:
        return self._home == (os.getpid(), threading.get_ident())

    def _seeing(self) -> bool:
        return (
            self.armed
            and not self._paused
            and torch_internals.peek_interpreter_stack() is None
            and not self._in_backward
            and not torch_internals.is_recorded()
            and self._at_home()
        )

    # -- functions

    def _on_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not self.armed or self._paused or self._in_backward or not self._at_home():
            return
        if torch_internals.peek_interpreter_stack():
            return
        try:
            name = getattr(func, "__name__", "")
            if name not in SHAPE_ONLY and not (name == "__get__" and gets_no_numbers(func, out)):
                self._function(name, args, kwargs, out)
        except Exception as error:
            self._on_error(error)

    def _function(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, is_custom: bool = False
    ) -> None:
        given = [*tensors_in(args, 2), *tensors_in(list(kwargs.values()), 2)] if args or kwargs else []
        if given and self._on_read is not None and name != "__get__":
            self._on_read(name, given)
        outs = [given[0]] if name == "__setitem__" else tensors_in(out, 2)
        if given and name in noted.LEAVES:
            self.raw.left |= self.taint.of(given[:1], ids=True).params
        if not outs or not given:
            return
        taint = self.taint
        mades = [taint.of(t, True) for t in given]
        params, calls = passed_on(name, given, mades)
        self.raw.left |= noted.passed_over(mades, params, outs[0])
        if name in ("one_hot", "scatter", "scatter_") and isinstance(out, Tensor) and not params:
            self.raw.one_hot.append(out)
        if not params and outs[0].ndim > 1:
            self.lineage.made(outs[0], given)
            noted.note_mask(self.raw, name, args, given)
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name in INPLACE:
            taint.add(given[0], Made(params, calls, taint.base))
            if name not in NO_WRITES:
                self._on_write(given if name.startswith("_foreach") else given[:1])
        if name in moods.FUNCTIONS and self._stack:
            self._note_mood(name, args, kwargs)
        itself = is_custom and meets_itself(given, mades, self.raw.calls)
        meets = itself or (
            two_meet(given, mades)
            if is_custom
            else noted.matters(name, given, mades, outs, self.raw.one_hot, self._picked)
        )
        if meets and not self._custom and all(map(is_readable, given)):
            index = self._number()
            calls |= 1 << index
            first = outs[0]
            self.raw.functions.append(
                FunctionCall(
                    name,
                    index,
                    args if is_custom else kept(name, args, mades[0], self.raw.calls) if name in KEPT_WHOLE else (),
                    kwargs,
                    [(t if t.numel() <= SMALL else None, m, tuple(t.shape)) for t, m in zip(given, mades, strict=True)],
                    first if first.numel() <= SMALL else None,
                    Made(params, calls, taint.base),
                    first.grad_fn,
                    first.requires_grad,
                    hooks.call_site(),
                    is_custom,
                    itself,
                )
            )
        elif params and name in noted.SCALES and (factor := noted.factor_of(name, args, taint)) is not None:
            self.raw.scales.append((Made(params, calls, taint.base), factor))
        if name in noted.POOLS and self._stack:
            self._note_pool(args, kwargs, given[0], outs[0])
        if params and mades[0].params:
            around = self._stack[-1] if self._stack else None
            noted.note_beside(self.raw, name, (*args, *kwargs.values()), given, mades, outs[0], around)
        if name in LOOKUPS and len(given) > 1 and mades[0].params and params & ~mades[0].params:
            self._picked[outs[0]] = mades[0].params
        top = self._stack[-1] if self._stack else None
        if (head := by_hand.head_of(name, given, out, top)) is not None:
            call = by_hand.call_of(head, self._number(), top, given[0], mades[0], out)
            params, calls = params | taint.bit(head), calls | 1 << call.index
            call.out = Made(params, calls, taint.base)
            self.raw.calls.append(call)
        if params or calls:
            made = Made(params, calls, taint.base)
            inplace = outs[0] is given[0]
            for t in outs if outs[0].dtype != torch.bool else ():  # to compare numbers makes none
                (taint.add if inplace else taint.put)(t, made)

    def _note_pool(self, args: tuple[Any, ...], kwargs: dict[str, Any], image: Tensor, out: Tensor) -> None:
        top = self._stack[-1]
        if top is not None and not isinstance(top.module, nn.MaxPool2d):
            self.raw.pools.append((self._number(), top.index, *noted.pool_of(args, kwargs, image, out)))

    def _note_mood(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        top = self._stack[-1]
        if top is not None and not isinstance(top.module, MOODY) and moods.depends(name, args, kwargs, top.training):
            top.moody.append(name)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1 - self.taint.base

    # -- modules

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if torch_internals.is_recorded() or not self._at_home():
            return
        heeds = self.heeds_answers and not self._stack and not torch.is_grad_enabled() and not self._in_backward
        if heeds and not _is_a_graph(module):  # compiled code answers without a gradient within a network that learns
            self._wanted = True  # until the next backward
        self.keep_up()
        if self._goes_on_writing(module) or (self._paused and self._stack):
            self._stack.append(None)
            return
        if id(module) in self.students and not self._in_backward:
            if torch.is_grad_enabled():
                self.student_modes.append(_training(module))
            if not self.taint.of(args, ids=True).params:
                self._on_shown(module, args)
        if not self._seeing():
            if self.armed or self._stack:
                self._stack.append(None)
            return
        try:
            parent = next((c for c in reversed(self._stack) if c is not None), None)
            if parent is not None:
                parent.has_children = True
            if parent is None and torch.distributed.is_available() and torch.distributed.is_initialized():
                self.taint.note_sharded(module)
            given = tensors_in(args, 2)
            call = ModuleCall(
                module,
                self._number(),
                parent.index if parent is not None else None,
                self.taint.of(given),
                _training(module),
                torch.is_grad_enabled(),
                given if _is_a_graph(module) else given[:4],
                hooks.call_site() if parent is None else None,
            )
            call.within = self._custom[-1] if self._custom else ""
            self.raw.calls.append(call)
            self._stack.append(call)
            # With a mode up, torch's fused attention steps aside for another kernel, whose last bits differ.
            fast = _has_fast_path(module) and not _training(module)
            if fast and self._pushed and not self._lifted and pop_if_on_top(self._mode):
                self._lifted = len(self._stack)
        except Exception as error:
            self._on_error(error)

    def _leave_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        # Where a forward raises, torch calls its hooks without the keyword arguments.
        kwargs, out = rest if len(rest) == 2 else ({}, rest[0])
        if torch_internals.is_recorded() or not self._at_home() or not self._stack:
            return
        dark = self._lifted == len(self._stack)
        if dark:
            self._lifted = 0
            push(self._mode)
        call = self._stack.pop()
        if call is None or not self.armed:
            return
        try:
            if call.parent is None:
                call.named = named_arguments(module, args, kwargs)
            if kwargs and call.given != (more := [*call.given, *tensors_in(kwargs, 2)]):
                call.given = more[:6]
                call.fed = self.taint.of(more)
            self._answered(call, out, dark)
        except Exception as error:
            self._on_error(error)

    def _answered(self, call: ModuleCall, out: Any, dark: bool) -> None:
        """Note what a module answered and what that is made of; `dark` says that the mode was off meanwhile."""
        taint = self.taint
        outs = tensors_in(out)
        made = taint.of(outs)
        if dark or not made.params:  # compiled code, threads, custom functions: seen from outside only
            own = taint.mask(call.module.parameters())
            made = Made(call.fed.params | own, call.fed.calls, taint.base)
        bit = 1 << call.index
        shown = {id(t) for t in call.given}
        for t in outs:
            if id(t) in shown and not taint.of(t).params:
                continue  # data that is handed on, as compiled code does for its backward, stays data
            old = NOTHING if dark else taint.of(t)  # what the modules within told of says nothing of what is between
            taint.put(t, Made(old.params or made.params, old.calls | call.fed.calls | bit, taint.base))
        call.out = Made(made.params, made.calls | call.fed.calls | bit, taint.base)
        if outs:
            call.shape = tuple(outs[0].shape)
            call.outputs = torch.utils.weak.TensorWeakRef(outs[0])
            call.version = 0 if outs[0].is_inference() else torch_internals.version_of(outs[0])
        likely = [
            t for t in outs if t.ndim in (2, 3) and t.numel() <= SMALL and t.is_floating_point() and is_readable(t)
        ]
        leaf = not call.has_children
        if likely and (not leaf or isinstance(call.module, nn.Linear | nn.Bilinear) or call.parent is None):
            best = _logits_among(out, likely)
            call.answer, call.value = best, best.detach().clone()
        elif not leaf or isinstance(call.module, nn.Linear) or call.parent is None:
            self._note_large(call, out, outs)
        if call.parent is None:
            chosen = taint.of([t for t in call.given if not t.is_floating_point()], ids=True).params
            own = bool(chosen and not call.grad and chosen & taint.mask(call.module.parameters()))
            self._decoding.answers(call.module, call.where, own)
            if not own:
                self._on_answer(call)

    def _note_large(self, call: ModuleCall, out: Any, outs: list[Tensor]) -> None:
        """Note an output that could be logits, without a copy: a network's is held, one within it only if it lives."""
        likely = [t for t in outs if t.ndim in (2, 3, 4) and t.is_floating_point() and t.shape[-1] > 1]
        if likely:
            best = _logits_among(out, likely)
            call.large = best if call.parent is None else torch.utils.weak.TensorWeakRef(best)
            call.large_version = 0 if best.is_inference() else torch_internals.version_of(best)

    # -- what else makes tensors out of tensors

    def _on_custom(self, name: str, compute: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take in a call of a function with a backward of its own, as one call, whatever it computes within."""
        self._custom.append(name)
        try:
            out = compute()
        finally:
            self._custom.pop()
        if self._seeing():
            try:
                self._function(name, args, kwargs, out, is_custom=True)
            except Exception as error:
                self._on_error(error)
        return out

    def _on_variable(self, value: Any, made: Any) -> None:
        if self._seeing() and isinstance(value, Tensor) and isinstance(made, Tensor) and made is not value:
            self.taint.put(made, self.taint.of(value, ids=True))

    def _wrap_scale(self, original: Any) -> Any:
        def scale(scaler: Any, outputs: Any) -> Any:
            result = original(scaler, outputs)
            if self.armed and scaler.is_enabled() and isinstance(result, Tensor):
                self._scaled[result] = float(scaler.get_scale())
                self.taint.add(result, self.taint.of(outputs))
            return result

        return scale

    # -- backward

    def before_backward(self, roots: Any, retained: bool = False) -> None:
        """Close the window, and tell of it while its graph still stands; `retained` says that it will stand on."""
        self._in_backward += 1
        if self._in_backward == 1 and self.student_modes:
            self._on_modes(self.student_modes)
            self.student_modes = []
        if self._in_backward > 1 or not self._at_home() or not self.armed:
            return
        raw = self.raw
        raw.roots = tensors_in(roots, 2)
        raw.root = self.taint.of(raw.roots)
        raw.leaves = leaves_of((t.grad_fn for t in raw.roots), edges=self._passing.edges)
        raw.where, raw.retained = hooks.call_site(), retained
        if len(raw.roots) == 1:
            raw.root_scale = self._scaled.get(raw.roots[0], 1.0)
        raw.unheard = bool(self._passing.unheard)
        self._passing.listen()  # who gets a gradient is known once this backward has run
        self._on_window(raw)
        if not raw.waits and not raw.unheard:
            raw.release()  # what the backward frees as it goes is not held over it

    def stepped(self) -> None:
        """Let go of what was kept for another backward through weights that a step has changed by now."""
        if self.raw.only_retained:
            self.raw.drop_before(self.raw.starts[-1] - self.taint.base)

    def after_backward(self) -> None:
        """Begin the next window."""
        self._in_backward = max(0, self._in_backward - 1)
        if self._in_backward == 0:
            self.taint.window += 1
            keeps = self.raw.waits and self.armed
            self.raw, self.taint.base = following(self.raw, self.taint.window, self.taint.base, self._next, keeps)
            self._paused = False
            self._decoding.forget()
            self._stack = [None] * len(self._stack)
            self._lifted = 0 if not self._stack else self._lifted
            self._wanted = self._wants()


def _training(module: nn.Module) -> bool:
    """Return the module's mode; a frozen script module has none, and answers as in evaluation."""
    return bool(getattr(module, "training", False))


def _is_a_graph(module: nn.Module) -> bool:
    """Say whether a module is traced code, whose arguments are parameters, too."""
    return type(module).__module__.startswith("torch.fx")


def _has_fast_path(module: nn.Module) -> bool:
    return isinstance(module, nn.TransformerEncoderLayer | nn.MultiheadAttention | nn.TransformerEncoder)


def _logits_among(out: Any, likely: list[Tensor]) -> Tensor:
    named = out.get("logits") if isinstance(out, dict) else getattr(out, "logits", None)
    if isinstance(named, Tensor) and any(named is t for t in likely):
        return named
    return likely[0]
