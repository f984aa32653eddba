"""A teacher that is trained along with its student by nothing but the term between the two.

Where no label teaches and the optimizer holds both networks, their past tells who is who: the teacher has learned
before, and the student is new. Two with the same past stay peers.
"""

from collections.abc import Callable

from torch import nn

from kdbench.audits.observe.windows import DIFFERENCES, DISTANCES, FunctionCall, ModuleCall, RawWindow

ParamsOf = Callable[[nn.Module], int]

_HOLD_TOGETHER = frozenset({*DISTANCES, *DIFFERENCES, "kl_div"})


def trained_along(
    raw: RawWindow,
    reached: list[ModuleCall],
    fed_data: set[int],
    params_of: ParamsOf,
    trained: int,
    learned: Callable[[], int],
) -> int:
    """Return the parameters of networks that have learned before and are drawn towards a new one with the same input.

    `learned` gives the parameters that were trained or read from a file before. The result is 0 where there is no such
    pair, and where data say what to answer: then either may learn from them.
    """
    whole = [c for c in reached if c.parent is None and c.index in fed_data and params_of(c.module) & trained]
    pairs = [(a, b) for a in whole for b in whole if _is_shown_the_same(a, b, params_of)]
    if not pairs:
        return 0
    held = [f for f in raw.functions if raw.root.calls >> f.index & 1 and f.name in _HOLD_TOGETHER]
    if any(_is_against_data(f) for f in held):
        return 0
    before, found = learned(), 0
    for teacher, student in pairs:
        mine, its = params_of(student.module), params_of(teacher.module)
        if not its & ~before and not mine & before and any(_is_between(f, mine, its) for f in held):
            found |= its
    return found


def _is_shown_the_same(a: ModuleCall, b: ModuleCall, params_of: ParamsOf) -> bool:
    if params_of(a.module) & params_of(b.module):
        return False
    return bool(a.given) and bool(b.given) and a.given[0] is b.given[0]


def _is_between(f: FunctionCall, mine: int, its: int) -> bool:
    masks = [made.params for _, made, _ in f.operands]
    return any(m & mine and not m & its for m in masks) and any(m & its and not m & mine for m in masks)


def _is_against_data(f: FunctionCall) -> bool:
    """Say whether a function holds a network's answer against as many numbers that came from none."""
    shapes = {shape for _, made, shape in f.operands if made.params}
    return any(shape in shapes for _, made, shape in f.operands if not made.params)
