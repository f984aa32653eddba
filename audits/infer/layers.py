"""Layers below a call: which there are, what they are called, and whether training mode changes what they answer."""

from torch import Tensor, nn

from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import ModuleCall, RawWindow


def descendants(raw: RawWindow, roots: list[ModuleCall]) -> list[ModuleCall]:
    """Return these calls and all that were made within them."""
    inside = {c.index for c in roots}
    found = list(roots)
    for call in raw.calls:
        if call.parent in inside:
            inside.add(call.index)
            found.append(call)
    return found


def depends_on_mode(module: nn.Module) -> bool:
    """Say whether training mode changes what a dropout or a norm answers."""
    if isinstance(module, torch_internals.Dropout):
        return module.p > 0
    if isinstance(module, torch_internals.InstanceNorm):
        return bool(module.track_running_stats)
    return not isinstance(module, torch_internals.BatchNorm) or module.track_running_stats


def may_drop(module: nn.Module) -> bool:
    """Say whether a module that is no dropout itself keeps a rate of one, which it hands to a function in training."""
    rates = (v for name, v in vars(module).items() if "drop" in name and isinstance(v, float))
    return not isinstance(module, torch_internals.Dropout) and any(0 < rate < 1 for rate in rates)


def describe(call: ModuleCall, roots: list[ModuleCall]) -> str:
    """Return how a report calls a layer: its path below one of the roots, and its class."""
    for root in roots:
        for name, module in root.module.named_modules():
            if module is call.module:
                return f"{name or type(module).__name__} ({type(module).__name__ if name else 'functional'})"
    return type(call.module).__name__


def path_of(call: ModuleCall, roots: list[ModuleCall]) -> str:
    """Return a layer's path below one of the roots, or its class."""
    for root in roots:
        for name, module in root.module.named_modules():
            if module is call.module and name:
                return name
    return type(call.module).__name__


def plain_name(name: str) -> str:
    """Return a tensor's name without what DataParallel and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in ("module", torch_internals.COMPILED))


def shown_to(raw: RawWindow, taint: Taint, mask: int) -> list[Tensor]:
    """Return the first dozen batches that reached the loss through modules with parameters of the mask."""
    found: list[Tensor] = []
    for call in raw.calls:
        fed_data = raw.root.calls >> call.index & 1 and not call.fed.params and call.given
        if not fed_data or not taint.mask(call.module.parameters()) & mask:
            continue
        if all(call.given[0] is not t for t in found):
            found.append(call.given[0])
    return found[:12]
