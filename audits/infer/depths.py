"""Behind which of a network's blocks was a feature taken, where the network is a stack of blocks?"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.windows import SMALL, FunctionCall, ModuleCall, RawWindow

_MOST = 64
"Rows that are looked for."


class Depth(NamedTuple):
    """Where in a stack a feature was taken."""

    passed: int
    "Blocks behind which it lies; 0 where it is what the first block is given."
    blocks: int


def depths_of(raw: RawWindow, cast: Cast, f: FunctionCall) -> tuple[Depth, Depth] | None:
    """Return where a distance's features were taken, the student's and the teacher's; None where either is unknown."""
    found = []
    for mask, other in ((cast.student_mask, 0), (cast.teacher_mask, cast.student_mask)):
        mine = [t for t, made, _ in f.operands[:2] if t is not None and made.params & mask and not made.params & other]
        call = _source(raw, cast, mine[0]) if mine else None
        depth = None if call is None else _depth(raw, call)
        if depth is None:
            return None
        found.append(depth)
    return found[0], found[1]


def _source(raw: RawWindow, cast: Cast, feature: Tensor) -> ModuleCall | None:
    """Return the call that answered the rows of a feature; of projected ones, that which the projector was fed by."""
    if feature.ndim not in (2, 3) or not feature.numel() or not is_readable(feature):
        return None
    rows = feature.detach().reshape(-1, feature.shape[-1])[:_MOST]
    for call in reversed(raw.calls):
        out = call.outputs() if call.outputs is not None else None
        if out is None or not _may_hold(out, rows):
            continue
        whole = out.detach().reshape(-1, out.shape[-1]).to(rows.dtype)
        if not bool((whole == rows[0].to(whole.device)).all(1).any()):
            continue  # most outputs are told by one row
        places = {key: i for i, key in enumerate(row_keys(whole))}
        found = [places.get(key, -1) for key in row_keys(rows)]
        if min(found) < 0:
            continue
        projects = any(g.module is call.module or any(c is call for c in g.calls) for g in cast.projectors)
        fed = call.given[0] if call.given else None
        if not projects:
            return call
        if fed is None or not _may_hold(fed, fed) or fed.shape[:-1] != out.shape[:-1]:
            return None
        rows = fed.detach().reshape(-1, fed.shape[-1])[torch.tensor(found)]
    return None


def _may_hold(out: Tensor, rows: Tensor) -> bool:
    if out.is_inference() or not out.is_floating_point() or out.ndim not in (2, 3) or out.numel() > SMALL:
        return False
    return out.shape[-1] == rows.shape[-1] and is_readable(out)


def _depth(raw: RawWindow, call: ModuleCall) -> Depth | None:
    """Return how many blocks of its network's stack stand before what a call answered."""
    by_index = {c.index: c for c in raw.calls}
    around = [call]
    while around[-1].parent is not None and around[-1].parent in by_index:
        around.append(by_index[around[-1].parent])
    stack = _stack_of(around[-1].module)
    if not stack:
        return None
    inside = {id(block) for block in stack}
    called = [c for c in raw.calls if c.index > around[-1].index and id(c.module) in inside]
    if len({id(c.module) for c in called}) < len(stack):
        return None  # compiled, or left out: what was not seen cannot be counted
    # What a block has within it lies behind it, as far as blocks go.
    return Depth(len({id(c.module) for c in called if c.index <= call.index}), len(stack))


def _stack_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network: the longest list of modules of one class."""
    lists = [[*m] for m in network.modules() if isinstance(m, nn.ModuleList) and len({type(b) for b in m}) == 1]
    return max((blocks for blocks in lists if len(blocks) > 1), key=len, default=[])
