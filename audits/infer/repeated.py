"""A teacher that is asked one question several times, and whose answers are taken for several."""

from itertools import combinations

import torch
from torch import Tensor, nn

from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.twins import hold_the_same
from kdbench.audits.lost import Repeated
from kdbench.audits.observe.living import living
from kdbench.audits.observe.readable import are_equal, is_readable
from kdbench.audits.observe.windows import DIFFERENCES, Joined, ModuleCall, RawWindow


def repeated(raw: RawWindow, cast: Cast) -> Repeated | None:
    """Return where answers of one teacher to one input are taken from each other, mixed, or taken for the answers of
    teachers that nobody asks; None where none are."""
    calls = [c for g in cast.teachers for c in g.calls if raw.root.calls >> c.index & 1]
    alike = [(a, b) for i, a in enumerate(calls) for b in calls[:i] if _are_one(a, b)]
    pairs = [(a, b) for a, b in alike if a.module is b.module]
    for joined in raw.joined if pairs else ():
        if any(_meet(joined, a, b) or _meet(joined, b, a) for a, b in pairs):
            if joined.is_zero:
                return Repeated("difference", joined.where)
            if joined.name not in DIFFERENCES:
                return Repeated("mixture", joined.where)
    for a, b in alike:
        if a.module is not b.module and _are_mixed(a, b, cast) and _are_twins(a.module, b.module, cast):
            return Repeated("twins", a.where)
    return _for_others(raw, cast, pairs) if pairs else None


def _meet(joined: Joined, a: ModuleCall, b: ModuleCall) -> bool:
    """Say whether one side was made of a call and not of the other, and the other side the other way round."""
    one, other = joined.one.calls, joined.other.calls
    return bool(one >> a.index & 1 and other >> b.index & 1 and not one >> b.index & 1 and not other >> a.index & 1)


def _are_one(a: ModuleCall, b: ModuleCall) -> bool:
    """Say whether two calls were given the same and answered the same, neither with a gradient."""
    if a.grad or b.grad or not a.given or len(a.given) != len(b.given) or not all(map(are_equal, a.given, b.given)):
        return False
    return a.value is not None and b.value is not None and torch.equal(a.value, b.value)


def _are_mixed(a: ModuleCall, b: ModuleCall, cast: Cast) -> bool:
    """Say whether one target is made of both answers."""
    both = 1 << a.index | 1 << b.index
    targets = (made for f in cast.soft for _, made, _ in f.operands[:2] if not made.params & cast.student_mask)
    return any(made.calls & both == both for made in targets)


def _are_twins(one: nn.Module, other: nn.Module, cast: Cast) -> bool:
    """Say whether two teachers hold the same numbers, and not the student's, as copies that are to follow it do."""
    own, its = [*one.parameters()], [*other.parameters()]
    if type(one) is not type(other) or any(p is q for p, q in zip(own, its, strict=False)):
        return False  # one and the same, wrapped or shared
    if not hold_the_same(own, its):
        return False
    students = [[*g.module.parameters()] for g in cast.students if g.module is not None]
    return not any(hold_the_same(own, params) for params in students)


def _for_others(raw: RawWindow, cast: Cast, pairs: list[tuple[ModuleCall, ModuleCall]]) -> Repeated | None:
    """Return where each answer of one network teaches a part of the student's answer of its own, and as many networks
    like it stand by as would make one for each part.

    One teacher may well teach several exits; that just as many others are there, and are never asked, is no chance.
    """
    asked = pairs[0][1]
    alike = [asked, *(a for a, b in pairs if b is asked)]
    taught = [t for t in (_taught_by(raw, cast, call, alike) for call in alike) if t is not None]
    if len(taught) != len(alike) or any(are_equal(t, u) for t, u in combinations(taught, 2)):
        return None
    busy = {id(call.module) for call in raw.calls}
    others = [m for m in living(type(asked.module)) if id(m) not in busy and _is_like(m, asked.module)]
    return Repeated("each", asked.where, len(alike)) if len(others) == len(alike) - 1 else None


def _taught_by(raw: RawWindow, cast: Cast, call: ModuleCall, alike: list[ModuleCall]) -> Tensor | None:
    """Return what of the student's this answer teaches, where it is one thing, and no other of the answers does."""
    rest = sum(1 << c.index for c in alike if c is not call)
    found = []
    for f in cast.soft:
        mine = [t for t, made, _ in f.operands[:2] if made.params & cast.student_mask]
        its = [made.calls for _, made, _ in f.operands[:2] if not made.params & cast.student_mask]
        if not raw.root.calls >> f.index & 1 or not mine or not any(c >> call.index & 1 for c in its):
            continue
        if mine[0] is None or not is_readable(mine[0]) or any(c & rest for c in its):
            return None
        found.append(mine[0])
    return found[0] if len(found) == 1 else None


def _is_like(module: nn.Module, asked: nn.Module) -> bool:
    """Say whether a network could teach as another does: with layers like its, and frozen; or of its very shapes, where
    nothing says that it is frozen."""
    own, its = list(module.parameters()), list(asked.parameters())
    if not its or len(own) != len(its) or any(p is q for p, q in zip(own, its, strict=True)):
        return False
    if any(p.requires_grad for p in its):
        return [p.shape for p in own] == [p.shape for p in its]
    return not any(p.requires_grad for p in own) and [p.ndim for p in own] == [p.ndim for p in its]
