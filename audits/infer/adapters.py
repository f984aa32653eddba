"""A network that teaches itself while its low-rank adapters are off: what is left is the teacher, and stands still.

An adapter adds B A to a weight (out, in), with A (r, in) and B (out, r). The answer without it is that of the weights
below, which are the teacher's; an optimizer that holds them moves the teacher as well.
"""

from collections.abc import Callable

from torch import nn

from kdbench.audits.observe.windows import ModuleCall

MaskOf = Callable[[nn.Parameter], int]


def trained_base(
    reached: list[ModuleCall], params_of: Callable[[nn.Module], int], mask_of: MaskOf, trained: int
) -> tuple[nn.Module, int] | None:
    """Return a network that answers without a gradient and without its adapters, beside its answer that learns with
    them, and which of its parameters below the adapters are trained; None where there is no such answer."""
    for call in reached:
        base = call.out.params
        if call.grad or not base & trained:
            continue
        for other in reached:
            added = other.out.params & ~base & params_of(call.module)
            learns = other.module is call.module and other.grad and added & trained and not base & ~other.out.params
            if learns and _are_adapters(call.module, base, added, mask_of):
                return call.module, base & trained
    return None


def _are_adapters(network: nn.Module, base: int, added: int, mask_of: MaskOf) -> bool:
    """Say whether all that a network adds is of low rank beside a weight below it."""
    found = 0
    for module in network.modules():
        own = list(module.parameters())
        below = {tuple(p.shape) for p in own if p.ndim == 2 and mask_of(p) & base}
        beside = [p for p in own if p.ndim == 2 and mask_of(p) & added]
        for a in beside if len(beside) == 2 else ():
            for b in beside:
                whole, rank = (b.shape[0], a.shape[1]), a.shape[0]
                if a is not b and b.shape[1] == rank <= min(whole) and {whole, whole[::-1]} & below:
                    found |= mask_of(a) | mask_of(b)
    return bool(found) and not added & ~found
