"""The places where a fault can act: torch's functions as the script finds them, above all that the audits watch.

What is patched here is what the script's own code looks up: ``F.softmax``, ``Tensor.__mul__``, ``nn.Module.__call__``,
``Optimizer.step``. A fault changes the call before the audits see it, so that they see a script that *has* the fault.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad

from kdbench.audits.observe import hooks
from kdbench.audits.observe.imports import when_imported
from kdbench.audits.observe.windows import DISTANCES
from kdbench.harness.injection.calls import OURS, Call, Kind, is_of_the_audits


class Agent(Protocol):
    """What is told of the calls, and makes them."""

    def on(self, call: Call) -> Any:
        """Make the call, changed or not, and return its answer."""


class _Name(NamedTuple):
    owner: Any
    name: str


_FUNCTIONS: dict[Kind, list[_Name]] = {
    "softmax": [_Name(owner, name) for owner in (functional, torch, Tensor) for name in ("softmax", "log_softmax")],
    "kl_div": [_Name(functional, "kl_div")],
    "distance": [_Name(functional, name) for name in sorted(DISTANCES)],
    "scale": [
        *(_Name(Tensor, name) for name in ("__mul__", "__rmul__", "mul", "__imul__", "mul_")),
        *(_Name(Tensor, name) for name in ("__truediv__", "div", "true_divide", "__itruediv__", "div_")),
        *(_Name(torch, name) for name in ("mul", "div", "true_divide")),
    ],
    "add": [*(_Name(Tensor, name) for name in ("__add__", "__radd__", "__iadd__", "add")), _Name(torch, "add")],
    "clip": [_Name(owner, name) for owner in (nn.utils, clip_grad) for name in ("clip_grad_norm_", "clip_grad_value_")],
}
"Functions, within which no other call is the script's own."
_METHODS: dict[Kind, list[_Name]] = {
    "forward": [_Name(nn.Module, "__call__")],
    "schedule": [_Name(torch.optim.lr_scheduler.LRScheduler, "step")],
    "zero_grad": [_Name(torch.optim.Optimizer, "zero_grad"), _Name(nn.Module, "zero_grad")],
    "backward": [_Name(Tensor, "backward")],
    "unscale": [_Name(torch.amp.grad_scaler.GradScaler, "unscale_")],
    "load": [_Name(nn.Module, "load_state_dict")],
    "conv": [_Name(nn.Conv2d, "__init__")],
}
KINDS: tuple[Kind, ...] = (*_FUNCTIONS, *_METHODS, "optimizer", "step", "pretrained")
"All that can be tapped."


class Taps:
    """Tells an agent of the script's calls for as long as it is open."""

    def __init__(self, agent: Agent, kinds: Collection[Kind]) -> None:
        self._agent, self._kinds = agent, kinds
        self._stack = ExitStack()
        self._inside = False
        self._stepping = 0
        self._classes: set[type] = set()

    def __enter__(self) -> "Taps":
        for folder in OURS:
            hooks.pass_over(folder)
        for kind, names in _FUNCTIONS.items():
            for name in names if kind in self._kinds else ():
                self._stack.enter_context(_replaced(*name, functools.partial(self._function, kind, name.name)))
        for kind, names in _METHODS.items():
            for name in names if kind in self._kinds else ():
                self._stack.enter_context(_replaced(*name, functools.partial(self._method, kind, name.name)))
        if "pretrained" in self._kinds:
            self._stack.enter_context(when_imported("transformers.modeling_utils", self._tap_pretrained))
        # Optimizers are always followed: how many there are is a part of their name.
        init = functools.partial(self._method, "optimizer", "__init__")
        self._stack.enter_context(_replaced(torch.optim.Optimizer, "__init__", functools.partial(self._built, init)))
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def _function(self, kind: Kind, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or self._inside or is_of_the_audits():
                return original(*args, **kwargs)
            number = _number(name, args) if kind == "scale" else None
            if kind == "scale" and number is None:
                return original(*args, **kwargs)
            self._inside = True
            try:
                return self._agent.on(Call(kind, name.strip("_"), original, list(args), kwargs, number))
            finally:
                self._inside = False

        return call

    def _method(self, kind: Kind, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            # A backward comes again through the audits' function mode.
            if torch.compiler.is_compiling() or (kind == "backward" and is_of_the_audits()):
                return original(*args, **kwargs)
            return self._agent.on(Call(kind, name.strip("_"), original, list(args), kwargs))

        return call

    def _tap_pretrained(self, home: ModuleType) -> None:
        """Tap from_pretrained of Transformers, by which a network comes with its weights."""
        base = home.PreTrainedModel
        inner = base.__dict__["from_pretrained"]

        def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
            original = functools.partial(inner.__func__, cls)
            return self._agent.on(Call("pretrained", "from_pretrained", original, list(args), kwargs))

        base.from_pretrained = classmethod(from_pretrained)
        self._stack.callback(setattr, base, "from_pretrained", inner)

    def _built(self, tapped: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
        init = tapped(original)

        @functools.wraps(original)
        def call(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            result = init(optimizer, *args, **kwargs)
            self._follow_steps(type(optimizer))
            return result

        return call

    def _follow_steps(self, kind: type) -> None:
        """Tap the step of a class of optimizers, which torch itself wraps when the first of them is built."""
        owner = next(c for c in kind.__mro__ if "step" in c.__dict__)
        if owner in self._classes or owner is torch.optim.Optimizer:
            return
        self._classes.add(owner)

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def step(*args: Any, **kwargs: Any) -> Any:
                if self._stepping:  # a subclass that calls its parent's step
                    return original(*args, **kwargs)
                self._stepping += 1
                try:
                    return self._agent.on(Call("step", "step", original, list(args), kwargs))
                finally:
                    self._stepping -= 1

            return step

        self._stack.enter_context(_replaced(owner, "step", wrap))


@contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace an attribute, be it the owner's own or one that it inherits, and put back what was there."""
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    own = owner.__dict__.get(name)
    wrapped = wrap(original)
    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        if owner.__dict__.get(name) is wrapped:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _number(name: str, args: tuple[Any, ...]) -> float | None:
    """Return the number that a tensor is multiplied with; None if it is another tensor, or none."""
    if len(args) < 2:
        return None
    number = args[0] if isinstance(args[1], Tensor) and not isinstance(args[0], Tensor) else args[1]
    if isinstance(number, Tensor):
        if number.numel() != 1 or number.requires_grad or number.device.type != "cpu":
            return None
        number = number.item()
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return (1 / number if number else None) if "div" in name else float(number)


def with_number(call: Call, number: float) -> Any:
    """Make a multiplication or division with another number."""
    value = 1 / number if "div" in call.name and number else number
    given: list[Any] = [value if not isinstance(a, Tensor) else a for a in call.args]
    if all(isinstance(a, Tensor) for a in given[:2]):  # a tensor that holds the number
        given[1] = torch.full_like(given[1], value)
    return call.original(*given, **call.kwargs)
