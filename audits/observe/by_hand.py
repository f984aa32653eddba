"""Logits that a loss makes by itself, of hidden states and a head's weights, as if the head had been called."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.living import living
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import SMALL, ModuleCall

_PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm"})
_FEWEST = 2
"Classes of which an answer can be logits."
_holders: Any = WeakTensorKeyDictionary()
"By weight, the layer that holds it, weakly: to look for it goes through all living objects."
_stand_ins: Any = WeakTensorKeyDictionary()
"By weight, what stands for a layer: pieces of one sequence come from one."


def head_of(name: str, given: list[Tensor], out: Any, around: ModuleCall | None) -> nn.Parameter | None:
    """Return the weights (C, D) of a head that a product applies to hidden states (..., D); None for other products.

    `around` is the call of a module that is at work: to apply its own weights is what a module is for.
    """
    if name not in _PRODUCTS or len(given) < 2 or given[0].ndim < 2 or not isinstance(out, Tensor):
        return None
    base = given[1] if isinstance(given[1], nn.Parameter) else given[1]._base
    if not isinstance(base, nn.Parameter) or base.ndim != 2 or isinstance(given[0], nn.Parameter):
        return None
    if out.shape[-1] != len(base) or len(base) < _FEWEST or given[0].shape[-1] != base.shape[1]:
        return None
    if around is not None and any(p is base for p in around.module.parameters()):
        return None
    return base


def call_of(
    weight: nn.Parameter, index: int, around: ModuleCall | None, hidden: Tensor, fed: Made, out: Tensor
) -> ModuleCall:
    """Return the call that the head would have been."""
    parent = None if around is None else around.index
    call = ModuleCall(_holder(weight), index, parent, fed, True, torch.is_grad_enabled(), [hidden])
    call.by_hand = True
    call.shape, call.outputs = tuple(out.shape), torch.utils.weak.TensorWeakRef(out)
    call.version = call.large_version = 0 if out.is_inference() else torch_internals.version_of(out)
    if out.ndim in (2, 3) and out.numel() <= SMALL:
        call.answer, call.value = out, out.detach().clone()
    else:
        call.large = torch.utils.weak.TensorWeakRef(out)
    return call


def _holder(weight: nn.Parameter) -> nn.Module:
    """Return the layer that holds a weight; where that is an embedding, whose own answers are others, a stand-in."""
    known = _holders.get(weight)
    found = known() if known is not None else None
    if found is None:
        holding = (m for m in living(nn.Module) if any(p is weight for p in torch_internals.parameters_of(m).values()))
        found = next((m for m in holding if not isinstance(m, nn.Embedding | Head)), None)
        if found is None:
            found = _stand_ins[weight] = Head(weight)
        _holders[weight] = ref(found)
    return found


class Head(nn.Module):
    """Holds the weights of a head weakly, so that nothing is kept alive that the training lets go."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self._weight = torch.utils.weak.TensorWeakRef(weight)

    def parameters(self, recurse: bool = True) -> Any:
        """Yield the weights, as long as they live."""
        weight = self._weight()
        if weight is not None:
            yield weight
