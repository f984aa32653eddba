"""What was done to gradients by hand between a backward and its step: one factor for all of them is a clip."""

import torch
from torch import Tensor, nn

from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.readable import numbers

_ONE_FACTOR, _ROUNDING = 1e-3, 1e-6
"Share by which gradients multiplied by one factor may be off it, in half precision; and off a factor of 1, in single."


def factors_of(params: list[nn.Parameter], kept: dict[int, Tensor]) -> dict[int, float] | None:
    """Return what each gradient was multiplied by, by its parameter's id; None if anything else was done to one.

    `kept` holds the gradients that were written to as the backward left them, by the same ids.
    """
    factors = {}
    for param in params:
        now, old = None if param.grad is None else numbers(param.grad), kept.get(id(param))
        if now is None or old is None or not bool(old.any()):
            continue
        factor = float((now * old).sum() / (old * old).sum())
        if not float((now - factor * old).norm()) <= _ONE_FACTOR * float(old.norm()):
            return None
        factors[id(param)] = factor
    return factors


def bound_of(
    params: list[nn.Parameter], factors: dict[int, float], kept: dict[int, Tensor]
) -> tuple[float, frozenset[int], float] | None:
    """Return the norm that a clip by hand left, of what, and its factor: one for all, at most 1."""
    least, most = min(factors.values()), max(factors.values())
    if not 0 < most <= 1 + _ROUNDING or most - least > _ONE_FACTOR * most:
        return None
    norm = float(nn.utils.get_total_norm([p.grad for p in params if p.grad is not None and id(p) in factors]))
    return norm, frozenset(id(p) for p in params if id(p) in kept), most


def norms_of(grads: list[Tensor]) -> Tensor:
    """Return the 2-norm of each gradient, (len(grads),)."""
    return torch.stack([n.to(grads[0].device) for n in torch_internals.foreach_norm(grads)]).detach()
