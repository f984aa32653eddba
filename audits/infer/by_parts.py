"""A network that is driven part by part: its layers are called one after the other, and the network itself never is."""

from weakref import WeakKeyDictionary, ref

from torch import nn

from kdbench.audits.observe.living import living
from kdbench.audits.observe.windows import ModuleCall

_owners: WeakKeyDictionary[nn.Module, "ref[nn.Module] | None"] = WeakKeyDictionary()
"By layer, the network found for it: each search goes through all living objects."


def driven(calls: list[ModuleCall], needed: set[int]) -> nn.Module | None:
    """Return the smallest living module of the user's that holds the layers of these calls, and all that is needed.

    `needed` are the ids of the parameters that are trained. None where one of the calls is of more than a layer: that
    is a network of its own, and what is trained behind it is no part of it.
    """
    layers = {id(c.module): c.module for c in calls}
    if not layers or any(True for layer in layers.values() for _ in layer.children()):
        return None
    first = next(iter(layers.values()))
    if first not in _owners:
        best: nn.Module | None = None
        for module in living(nn.Module):
            own = {id(p) for p in module.parameters()}
            if module is not first and needed <= own and all(_holds(module, layer) for layer in layers.values()):
                best = module if best is None or len(own) < sum(1 for _ in best.parameters()) else best
        users = best is not None and not type(best).__module__.startswith("torch.nn")
        _owners[first] = ref(best) if best is not None and users else None
    found = _owners[first]
    return None if found is None else found()


def _holds(module: nn.Module, layer: nn.Module) -> bool:
    return any(part is layer for part in module.modules())
