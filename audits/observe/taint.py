"""Following what a tensor was made of: the parameters it depends on, and the calls that it passed through.

One torch function mode sees every function, method and operator, whether or not a gradient is recorded. A tensor that
comes out of one is made of what went in. So a teacher asked under ``no_grad``, its cached answers, a detached copy and
a hand-written loss are all followed alike, without a name or ``requires_grad`` being trusted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.readable import is_wrapper


class Made(NamedTuple):
    """What a tensor was made of, as bit masks."""

    params: int = 0
    "Parameters, by the number that :meth:`Taint.bit` gave them."
    calls: int = 0
    "Calls of modules and functions that it passed through, by their number after `base`."
    base: int = 0


NOTHING = Made()

_GETTERS_TO_SKIP = frozenset(map(id, torch_internals.GRAD_GETTERS))


_BARE = frozenset(
    {str, bytes, int, float, bool, complex, slice, type(None), type(...), torch.Size, torch.dtype, torch.device}
)
"Types of which nothing is a tensor: most arguments have one of them."


def tensors_in(value: Any, depth: int = 3) -> list[Tensor]:
    """Return the tensors in a nest of sequences, mappings and plain objects, e.g. what a network returned."""
    found: list[Tensor] = []
    _collect(value, depth, found)
    return found


def _collect(value: Any, depth: int, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif depth == 0 or type(value) in _BARE or isinstance(value, str | bytes | int | float | nn.Module):
        return
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            if type(part) not in _BARE:
                _collect(part, depth - 1, found)
    elif isinstance(value, Mapping):
        for part in value.values():
            _collect(part, depth - 1, found)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            _collect(getattr(value, f.name, None), depth - 1, found)
    elif type(value).__module__ not in ("builtins", "numpy") and len(inside := getattr(value, "__dict__", {})) < 20:
        for part in inside.values():
            _collect(part, depth - 1, found)


def is_parameter(value: Tensor) -> bool:
    """Say whether a tensor is a parameter; of a plain one, its type says so at once."""
    return type(value) is not Tensor and isinstance(value, nn.Parameter)


class Taint:
    """The table of what each living tensor was made of."""

    def __init__(self) -> None:
        self._made: Any = WeakTensorKeyDictionary()
        self._bits: Any = WeakTensorKeyDictionary()
        self._params: list[Any] = []
        self._sharded: Any = WeakIdKeyDictionary()
        "By module, the bits of its parameters that are shared out over processes, by name."
        self.window = 0
        "Backwards so far."
        self.base = 0
        "Number of the first call that is remembered; older ones are forgotten."

    def bit(self, param: Tensor) -> int:
        """Return the parameter's own bit; given once, never used again for another."""
        found: int | None = self._bits.get(param)
        if found is None and len(self._sharded):
            found = self._stands_in_for(param)
        if found is None:
            found = len(self._params)
            self._params.append(torch.utils.weak.TensorWeakRef(param))
        self._bits[param] = found
        return 1 << found

    def note_sharded(self, module: nn.Module) -> None:
        """Note the parameters below a module that are shared out: while it computes, whole ones stand in their place.

        The optimizer steps the shares and autograd knows the whole ones: what they have in common is their name.
        """
        for part in module.modules():
            for name, p in torch_internals.parameters_of(part).items():
                if p is not None and is_wrapper(p):
                    self._sharded.setdefault(part, {})[name] = self.bit(p).bit_length() - 1

    def _stands_in_for(self, param: Tensor) -> int | None:
        """Return the bit of the shared-out parameter in whose place a module holds this one."""
        for part, bits in self._sharded.items():
            for name, bit in bits.items():
                if torch_internals.parameters_of(part).get(name) is param:
                    return int(bit)
        return None

    def parameters(self, mask: int) -> list[nn.Parameter]:
        """Return the parameters of a mask that are still alive."""
        found = []
        while mask:
            low = mask & -mask
            param = self._params[low.bit_length() - 1]()
            if param is not None:
                found.append(param)
            mask ^= low
        return found

    def mask(self, params: Iterable[Tensor]) -> int:
        """Return the mask of these parameters."""
        whole = 0
        for param in params:
            whole |= self.bit(param)
        return whole

    def moved_by(self, leaves: Iterable[Tensor]) -> int:
        """Return the mask of what a gradient at these leaves trains; a copy of a parameter stands for it.

        One number that networks' answers went into is no copy: a loss that was cut from its graph, and trains nothing.
        """
        whole = 0
        for leaf in leaves:
            if isinstance(leaf, nn.Parameter):
                whole |= self.bit(leaf)
            elif leaf.numel() > 1 or not self.of(leaf).calls:
                whole |= self.of(leaf).params
        return whole

    def of(self, value: Any, ids: bool = False) -> Made:
        """Return what a tensor, or all tensors in a nest of them, was made of.

        Whole numbers are data, whoever chose them; with `ids` they are what chose them.
        """
        params = calls = 0
        for tensor in (value,) if isinstance(value, Tensor) else tensors_in(value):
            if is_parameter(tensor):
                params |= self.bit(tensor)
                continue
            if not ids and not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            made = self._made.get(tensor)
            if made is not None:
                params |= made.params
                calls |= made.calls >> (self.base - made.base)
        return Made(params, calls, self.base) if params or calls else NOTHING

    def add(self, value: Any, made: Made) -> None:
        """Say that the tensors in `value` are made of this too."""
        for tensor in (value,) if isinstance(value, Tensor) else tensors_in(value):
            if is_parameter(tensor):
                continue
            old = self._made.get(tensor, NOTHING)
            calls = made.calls | old.calls >> (made.base - old.base)
            self._made[tensor] = Made(old.params | made.params, calls, made.base)

    def put(self, value: Any, made: Made) -> None:
        """Say that the tensors in `value` are made of exactly this."""
        for tensor in (value,) if isinstance(value, Tensor) else tensors_in(value):
            if not is_parameter(tensor):
                self._made[tensor] = made


class Mode(TorchFunctionMode):
    """Tells of each call of a torch function: the function, its arguments, what it returned."""

    def __init__(self, tell: Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]) -> None:
        super().__init__()
        self._tell = tell
        self.is_over = False
        "Whether nobody listens any more; it stays while another mode is above it."

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and tell of it."""
        out = func(*args, **(kwargs or {}))
        if not torch_internals.is_recorded():
            self._tell(func, args, kwargs or {}, out)
        return out


def gets_no_numbers(func: Any, out: Any) -> bool:
    """Say whether an attribute's value is no tensor, or a gradient, which is no part of what reaches a loss."""
    return not isinstance(out, Tensor) or id(getattr(func, "__self__", None)) in _GETTERS_TO_SKIP


def push(mode: Mode) -> None:
    """Put the mode on top of this thread's stack."""
    mode.__enter__()


def pop_if_on_top(mode: Mode) -> bool:
    """Take the mode off the stack if it is on top of it; a user's own mode above it stays undisturbed.

    With it go those right below it that nobody listens to any more.
    """
    top = _top()
    if top is not mode:
        return False
    mode.__exit__(None, None, None)
    while isinstance(left := _top(), Mode) and left.is_over:
        left.__exit__(None, None, None)
    return True


def _top() -> Any:
    depth = torch_internals.mode_depth()
    return torch_internals.mode_at(depth - 1) if depth else None
