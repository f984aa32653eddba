"""Which calls of functions a window keeps, and what of the others is noted beside them: factors and pools."""

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.audits.observe import hooks
from kdbench.audits.observe.flow import is_a_label, meet_numbers
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.taint import Made, Taint
from kdbench.audits.observe.windows import (
    COMPARISONS,
    DIFFERENCES,
    DISTANCES,
    IGNORED,
    LABEL_LOSSES,
    LOOKUPS,
    SMALL,
    SOFTMAXES,
    Compared,
    Joined,
    ModuleCall,
    RawWindow,
)

SCALES = frozenset({"mul", "__mul__", "__rmul__", "div", "__truediv__", "true_divide", "multiply", "__imul__", "mul_"})
"Functions by which a term of a loss gets its weight."
POOLS = frozenset({"max_pool2d", "boolean_dispatch", "max_pool2d_with_indices"})
_JOINS = DIFFERENCES | {"add", "__add__", "__radd__", "stack", "lerp"}
"Functions in which two answers are taken from each other, or mixed."
_SIZES = frozenset({"interpolate", "upsample", "avg_pool2d", "adaptive_avg_pool2d"})
"Functions that give an answer by pixels another size."
_JOINED = 32
"Such calls that a window keeps: an ensemble has fewer."
LEAVES = frozenset(
    {"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__", "__index__", "__format__", "__repr__"}
)
"Functions by which numbers leave torch."


def passed_over(mades: list[Made], params: int, out: Tensor) -> int:
    """Return the parameters of answers that a function was given and of which its result, made of `params`, is not
    made, as what is looked up is not of the index and what is true is not of the numbers compared."""
    given = 0
    for made in mades:
        given |= made.params
    return given if out.dtype == torch.bool else given & ~params


def matters(
    name: str, given: list[Tensor], mades: list[Made], outs: list[Tensor], one_hot: list[Tensor], picked: Any
) -> bool:
    """Say whether a call may be a part of a loss: a loss of torch's, a softmax, a lookup, or where two answers meet.

    `one_hot` are the window's rows of ones and zeros; `picked` has the parameters of what a tensor was picked from.
    """
    if name in LABEL_LOSSES or name in DISTANCES or name == "kl_div":
        return True
    if name in SOFTMAXES:
        return given[0].ndim in (2, 3, 4) and given[0].numel() <= SMALL and given[0].is_floating_point()
    if name in LOOKUPS:
        return (
            len(given) > 1
            and bool(mades[0].params)
            and given[0].is_floating_point()
            and any(
                not t.is_floating_point() and (not m.params or is_a_label(given, mades, t, m))
                for t, m in zip(given[1:], mades[1:], strict=True)
            )
        )
    if len(given) < 2 or not outs[0].is_floating_point() or name.startswith("_foreach"):
        return False
    first, second = (picked.get(t, m.params) for t, m in zip(given[:2], mades[:2], strict=True))
    if any(t is h for h in one_hot for t in given[:2]):
        return bool(first | second)
    if isinstance(given[0], nn.Parameter) or isinstance(given[1], nn.Parameter):
        return False
    if meet_numbers(name, given, mades):
        return True
    # Two answers meet that each hold parameters which the other does not; scalars are only summed.
    return bool(first & ~second) and bool(second & ~first) and max(given[0].ndim, given[1].ndim) > 0


def note_beside(
    raw: RawWindow,
    name: str,
    args: tuple[Any, ...],
    given: list[Tensor],
    mades: list[Made],
    out: Tensor,
    around: ModuleCall | None,
) -> None:
    """Note in the window what calls say that are no part of a loss themselves.

    Several classes a row that were looked up in an answer, classes put in another order, numbers that an answer is
    compared with; and, where no module that learns is `around`, answers of one network that are taken from each other
    or mixed, and pictures of another size that were made of an answer.
    """
    first = given[0]
    if name in ("gather", "take_along_dim"):
        if len(given) > 1 and given[1].shape[-1:] > (1,):
            raw.picks.append((first, given[1], out))
    elif name in LOOKUPS:
        if _takes_columns(name, args, first, out):
            raw.columns.append((mades[0], out.detach()))
    elif name in COMPARISONS and len(given) == 1 and first.is_floating_point():
        number = next((a for a in args if isinstance(a, int | float)), None)
        if number is not None and first.ndim > 1 and is_readable(first):
            raw.compared.append(Compared(first, float(number), mades[0].params, hooks.call_site()))
    elif name in _SIZES and out.ndim == 4 and out.numel() <= SMALL and _is_outside(around):
        raw.columns.append((mades[0], out.detach()))
    elif name in _JOINS and len(given) > 1 and len(raw.joined) < _JOINED and _is_outside(around):
        one, other = mades[:2]
        alike = one.params == other.params and one.calls != other.calls and first.shape == given[1].shape
        if alike and first.is_floating_point() and not any(t.requires_grad for t in given):
            is_zero = name in DIFFERENCES and out.numel() > 1 and is_readable(out) and not bool(out.any())
            raw.joined.append(Joined(name, one, other, is_zero, hooks.call_site()))


def note_mask(raw: RawWindow, name: str, args: tuple[Any, ...], given: list[Tensor]) -> None:
    """Note in the window labels (B, L) of which it is asked where there are none."""
    first = given[0]
    rows = len(given) == 1 and first.ndim == 2 and not first.is_floating_point()
    if rows and name in COMPARISONS and len(args) > 1 and args[1] == IGNORED:
        raw.masks.append(first)


def _is_outside(around: ModuleCall | None) -> bool:
    """Say whether a function is called by no module, or by one that holds no weights, as a loss."""
    return around is None or next(around.module.parameters(), None) is None


def _takes_columns(name: str, args: tuple[Any, ...], source: Tensor, out: Tensor) -> bool:
    """Say whether a lookup takes the same places of the last dimension in every row, by their numbers."""
    if out.ndim != source.ndim or out.ndim < 2 or out.shape[:-1] != source.shape[:-1] or not 1 < out.numel() <= SMALL:
        return False
    if name == "index_select":
        return out.is_floating_point() and len(args) > 1 and args[1] in (-1, source.ndim - 1)
    index = args[1] if len(args) > 1 else None
    last = index[-1] if isinstance(index, tuple) and len(index) > 1 else None
    return out.is_floating_point() and isinstance(last, Tensor | list)


def factor_of(name: str, args: tuple[Any, ...], taint: Taint) -> float | None:
    """Return the number that a tensor of few dimensions is multiplied by, where a call of `SCALES` does that."""
    if len(args) < 2:
        return None
    scalar, number = (args[0], args[1]) if isinstance(args[0], Tensor) else (args[1], args[0])
    if not isinstance(scalar, Tensor) or scalar.ndim > 3:
        return None
    if isinstance(number, Tensor):
        if number.ndim != 0 or taint.of(number).params:
            return None
        number = number.item() if number.device.type == "cpu" else None
    if not isinstance(number, int | float):
        return None
    return 1 / number if "div" in name and number else float(number)


def pool_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], image: Tensor, out: Tensor
) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Return a pool's kernel and stride, the largest of both sides, and the sizes of what it was given and returned."""
    kernel = args[1] if len(args) > 1 else kwargs.get("kernel_size", 2)
    stride = args[2] if len(args) > 2 else kwargs.get("stride")
    return _largest(kernel), _largest(stride or kernel), tuple(image.shape[-2:]), tuple(out.shape[-2:])


def _largest(value: Any) -> int:
    return max(value) if isinstance(value, tuple | list) else int(value)
