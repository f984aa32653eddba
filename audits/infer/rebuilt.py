"""A student that is shown no data: it is fed what a frozen network answers, and is held against such an answer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdbench.audits.observe.living import living
from kdbench.audits.observe.taint import Made, Taint
from kdbench.audits.observe.windows import DISTANCES, ModuleCall, RawWindow


def rebuilt(
    raw: RawWindow, reached: list[ModuleCall], params_of: Callable[[nn.Module], int], trained: int
) -> list[int]:
    """Return the parameters of what is trained to give a frozen network's answer, as a decoder that rebuilds features.

    What it is fed by is its own too, where that is frozen and another network teaches.
    """
    parents = {c.index: c for c in raw.calls}
    mine = [
        c
        for c in reached
        if params_of(c.module) & trained
        and c.fed.params
        and not (c.parent in parents and params_of(parents[c.parent].module) & trained)
    ]
    ends = [c for c in mine if not any(d.fed.calls >> c.index & 1 for d in mine)]
    found = its = fed = 0
    for f in raw.functions if ends else ():
        if f.name not in DISTANCES or not raw.root.calls >> f.index & 1:
            continue
        sides = [(t, made) for t, made, _ in f.operands[:2] if t is not None]
        told = [(t, made) for t, made in sides if not made.params & trained and is_answered(raw, t, made)]
        held = [c for c in ends for _, made in sides if told and made.calls >> c.index & 1]
        for c in held:
            its |= told[0][1].params
            fed |= c.fed.params & ~trained
            found |= params_of(c.module) & trained
    return [found | fed & ~its] if found else []


def parts_of_one(
    raw: RawWindow, reached: list[ModuleCall], params_of: Callable[[nn.Module], int], trained: int, taint: Taint
) -> list[int]:
    """Return the parameters of a network of which only parts are called, and those that are shown data are frozen.

    It is the smallest living module that holds what is trained and what feeds it; another network must be beside it.
    """
    fed = 0
    for call in reached:
        fed |= call.fed.params & ~trained if params_of(call.module) & trained else 0
    needed = {id(p) for p in taint.parameters(trained | fed)}
    best: dict[int, nn.Parameter] | None = None
    for module in living(nn.Module) if fed else ():
        own = {id(p): p for p in module.parameters()}
        if needed <= own.keys() and (best is None or len(own) < len(best)):
            best = own
    mask = taint.mask(best.values()) & (raw.root.params | trained) if best else 0
    return [mask] if mask and raw.root.params & ~mask else []


def is_answered(raw: RawWindow, t: Tensor, made: Made) -> bool:
    """Say whether a tensor is what a module answered, number by number, in whichever shape."""
    for call in raw.calls:
        out = call.outputs() if call.outputs is not None and made.calls >> call.index & 1 else None
        if out is None or out.is_inference() or out.numel() != t.numel():
            continue
        if torch.equal(out.detach().reshape(-1), t.detach().reshape(-1)):
            return True
    return False
