"""Networks that begin as one: the same weights in both, and one answer to one batch."""

import torch
from torch import Tensor, nn

from kdbench.audits.observe.readable import are_equal, is_still, numbers
from kdbench.audits.observe.windows import ModuleCall, RawWindow, learns

_SAME = 1e-5
"Part of the largest number of an answer by which two may differ and be one: another kernel answers without a gradient."
_CUT = 0.02
"Part of a weight's numbers that become 0 where it is pruned: no optimizer's step ends at 0 exactly."
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"Buffers that a training moves by itself."


def twins_in(raw: RawWindow) -> list[tuple[nn.Module, nn.Module]]:
    """Return the pairs of networks in a loss that hold the same weights and give one batch the same answer, of which
    the first learns and the second answers without a gradient."""
    reached = [c for c in raw.calls if c.parent is None and raw.root.calls >> c.index & 1 and not c.fed.params]
    asked = [c for c in reached if not learns(c)]
    return [(a.module, b.module) for a in reached if learns(a) for b in asked if _are_twins(a, b)]


def _are_twins(a: ModuleCall, b: ModuleCall) -> bool:
    if a.module is b.module or type(a.module) is not type(b.module) or a.output is None or b.output is None:
        return False
    if not a.given or len(a.given) != len(b.given) or not all(map(are_equal, a.given, b.given)):
        return False
    return _are_near(a.output[1], b.output[1]) and hold_the_same([*a.module.parameters()], [*b.module.parameters()])


def _are_near(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or not a.numel():
        return False
    return float((a.detach() - b.detach()).abs().max()) <= _SAME * float(b.detach().abs().max())


def hold_the_same(some: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    """Say whether parameters hold the same numbers one by one, and are there."""
    pairs = [(numbers(a), numbers(b)) for a, b in zip(some, others, strict=False)]
    return len(some) == len(others) > 0 and all(
        a is not None and b is not None and a.shape == b.shape and torch.equal(a, b) for a, b in pairs
    )


def is_remade(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Say whether a network is another one than it was by more than its optimizer's steps, as where it is pruned or
    rounded step by step: it lost or gained tensors, its buffers changed, or many of its weights became 0."""
    now = dict([*module.named_parameters(), *module.named_buffers()])
    if not all(name in before for name in now):
        return True
    for name, live in now.items():
        old = before[name]
        if live.shape != old.shape:
            return True
        if not isinstance(live, nn.Parameter):
            if not name.endswith(_STATISTICS) and not is_still(live, old):
                return True
        elif live.ndim > 1 and _zeros(live) - _zeros(old) > _CUT * live.numel():
            return True
    return False


def _zeros(value: Tensor) -> int:
    here = numbers(value)
    return 0 if here is None else int((here == 0).sum())
