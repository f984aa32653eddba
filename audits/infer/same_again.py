"""One pair of answers that a line of the loss holds against each other again and again, where several pairs are due.

As where functions are made in a loop and each takes what the loop's variable names last.
"""

from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.readable import are_equal, is_readable
from kdbench.audits.observe.windows import DIFFERENCES, DISTANCES, SMALL, FunctionCall, RawWindow
from kdbench.audits.updates import Where

_NAMES = DISTANCES | DIFFERENCES | {"kl_div"}
_MOST = 32
"Calls of a window that are held against each other."


def same_again(raw: RawWindow, cast: Cast) -> tuple[int, Where] | None:
    """Return how often one line compares the same student's numbers with the same others, and the line; None for once.

    Each is a part of the loss, and two lines may well compare one pair in two ways.
    """
    calls = [f for f in cast.soft if f.name in _NAMES and f.where is not None and f.requires_grad]
    calls = [f for f in calls if raw.root.calls >> f.index & 1 and _sides(f) is not None][:_MOST]
    for i, f in enumerate(calls):
        alike = [g for g in calls[i + 1 :] if g.where == f.where and g.name == f.name and _are_one_pair(f, g)]
        if alike and f.where is not None:
            return 1 + len(alike), f.where
    return None


def _sides(f: FunctionCall) -> tuple[Tensor, Tensor] | None:
    """Return both operands of a comparison, if each holds several numbers that can be read."""
    sides = [t for t, *_ in f.operands[:2]]
    return (sides[0], sides[1]) if len(sides) == 2 and all(map(_holds_several, sides)) else None


def _holds_several(t: Tensor | None) -> bool:
    if t is None or t.ndim < 2 or not 1 < t.numel() <= SMALL or not is_readable(t):
        return False
    least, most = t.detach().aminmax()
    return bool(least < most)


def _are_one_pair(f: FunctionCall, g: FunctionCall) -> bool:
    one, other = _sides(f), _sides(g)
    return one is not None and other is not None and all(map(are_equal, one, other))
