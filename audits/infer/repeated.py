"""A teacher that is asked one question several times, and whose answers are taken for several."""

import torch

from kdbench.audits.infer.roles import Cast
from kdbench.audits.lost import Repeated
from kdbench.audits.observe.readable import are_equal
from kdbench.audits.observe.windows import DIFFERENCES, Joined, ModuleCall, RawWindow


def repeated(raw: RawWindow, cast: Cast) -> Repeated | None:
    """Return where answers of one teacher to one input are taken from each other, or mixed; None where none are."""
    calls = [c for g in cast.teachers for c in g.calls if raw.root.calls >> c.index & 1]
    pairs = [(a, b) for i, a in enumerate(calls) for b in calls[:i] if a.module is b.module and _are_one(a, b)]
    for joined in raw.joined if pairs else ():
        if any(_meet(joined, a, b) or _meet(joined, b, a) for a, b in pairs):
            if joined.is_zero:
                return Repeated("difference", joined.where)
            if joined.name not in DIFFERENCES:
                return Repeated("mixture", joined.where)
    return None


def _meet(joined: Joined, a: ModuleCall, b: ModuleCall) -> bool:
    """Say whether one side was made of a call and not of the other, and the other side the other way round."""
    one, other = joined.one.calls, joined.other.calls
    return bool(one >> a.index & 1 and other >> b.index & 1 and not one >> b.index & 1 and not other >> a.index & 1)


def _are_one(a: ModuleCall, b: ModuleCall) -> bool:
    """Say whether two calls were given the same and answered the same, neither with a gradient."""
    if a.grad or b.grad or not a.given or len(a.given) != len(b.given) or not all(map(are_equal, a.given, b.given)):
        return False
    return a.value is not None and b.value is not None and torch.equal(a.value, b.value)
