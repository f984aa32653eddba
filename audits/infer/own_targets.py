"""Is the student held against its own answer as a target that carries a gradient, so that the target gives way?"""

import torch
from torch import Tensor

from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import SOFTMAXES, FunctionCall, RawWindow
from kdbench.audits.trace import Sight, Trace

_ROWS, _CLOSE = 16, 1e-4
"Rows compared, and up to which two probabilities are one: a logarithm and an exponential in single precision."


class OwnTargets(Observer):
    """Notes the divergences whose target is the trained network's own answer, gradient and all."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Look at the first windows."""
        if not cast.self_taught or len(self._trace.losses.sights) >= EXPLAINED:
            return
        held = [f for f in cast.soft if f.name in ("kl_div", "cross_entropy") and len(f.operands) > 1]
        for f in held:
            if _gives_way(raw, f, cast.trained) and not any(_turned(f, g) for g in held if g is not f):
                sight.own_target = f.where or raw.where
                return


def _gives_way(raw: RawWindow, f: FunctionCall, trained: int) -> bool:
    """Say whether both sides learn, the same parameters are in both, and the one is not made of the other, as the
    middle of several answers is of each."""
    (x, made_x, _), (target, made_t, _) = f.operands[:2]
    if x is None or target is None or not (x.requires_grad and target.requires_grad):
        return False
    return bool(made_x.params & made_t.params & trained) and not _softmaxes(raw, made_x) & _softmaxes(raw, made_t)


def _softmaxes(raw: RawWindow, made: Made) -> set[int]:
    """Return the softmaxes that something is made of; those of attention, within a module, are none of a loss."""
    inside = 0
    for call in raw.calls:
        inside |= call.out.calls if made.calls >> call.index & 1 else 0
    return {f.index for f in raw.functions if f.name in SOFTMAXES and made.calls & ~inside & 1 << f.index}


def _turned(f: FunctionCall, g: FunctionCall) -> bool:
    """Say whether two divergences hold the same two answers against each other, once this way and once that."""
    sides = [t for call in (f, g) for t, *_ in call.operands[:2]]
    if f.name != "kl_div" or g.name != "kl_div" or any(t is None for t in sides):
        return False
    (x, p, y, q), logs = sides, [bool(call.arg(5, "log_target", False)) for call in (f, g)]
    return _are_one(x, q, logs[1]) and _are_one(y, p, logs[0])


def _are_one(logs: Tensor, target: Tensor, is_log: bool) -> bool:
    if logs.shape != target.shape or logs.ndim < 2:
        return False
    a, b = (t.detach().reshape(-1, t.shape[-1])[:_ROWS].float() for t in (logs, target))
    return bool(torch.allclose(a.exp(), b.exp() if is_log else b, atol=_CLOSE))
