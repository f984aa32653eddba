"""Networks that make what the student and the teacher are shown: an encoder before both, a generator of inputs.

What such a network answers is data to both, as long as no gradient goes through it: a frozen backbone under two heads,
an autoencoder and a text encoder before two denoisers, a generator of samples.
"""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from kdbench.audits.infer.rebuilt import is_answered
from kdbench.audits.observe.readable import are_equal, is_readable
from kdbench.audits.observe.taint import Made, Taint
from kdbench.audits.observe.windows import DISTANCES, SMALL, ModuleCall, RawWindow

ParamsOf = Callable[[nn.Module], int]


def sources(raw: RawWindow, reached: list[ModuleCall], params_of: ParamsOf, trained: int, taint: Taint) -> int:
    """Return the parameters of networks whose answers a network that is trained and a frozen one are both shown.

    Also of those that a network is trained on alone, as a denoiser of codes is: what it is held against says no more of
    them than what it is shown. None where something that is trained is shown data itself: then the student is that, and
    what else is trained on a network's answers is a projector.
    """
    by_index = {c.index: c for c in raw.calls}
    found = 0
    shown: list[ModuleCall] = []
    for one in reached:
        if not params_of(one.module) & trained or not one.fed.params or one.fed.params & trained:
            continue
        around = by_index.get(one.parent) if one.parent is not None else None
        if around is not None and not params_of(around.module) & one.fed.params:
            continue  # a part of what is shown the answers, as an adapter beside its frozen layer is
        made = one.fed.params if _told_no_more(raw, one, trained) else 0
        for other in reached:
            made = made or _shared(one, other, reached, by_index, params_of, trained, taint)
        if made:
            found |= made
            shown.append(one)
    return found if shown and _all_below(reached, shown, by_index, params_of, trained) else 0


def _shared(
    one: ModuleCall,
    other: ModuleCall,
    reached: list[ModuleCall],
    by_index: dict[int, ModuleCall],
    params_of: ParamsOf,
    trained: int,
    taint: Taint,
) -> int:
    """Return what all was made of that a call of what is trained was given, if a frozen network was given it too."""
    mine, held = params_of(one.module), params_of(other.module)
    if not held or held & (trained | mine) or not other.fed.params:
        return 0
    made = _made_of_shared(one, other, taint)
    if one.fed.params & ~made or made & (mine | held | trained) or _are_joined(one, other, reached, params_of):
        return 0
    # What lies in one network with the other is a part of it, and no source.
    return 0 if _around(other, by_index, params_of, trained) & made else made


def _told_no_more(raw: RawWindow, one: ModuleCall, trained: int) -> bool:
    """Say whether what its answer is held against holds the answers that a call was fed, and no others of that network.

    Not where it is held against such an answer itself: it learns to give it then.
    """
    told = [
        (t, made)
        for f in raw.functions
        if f.name in DISTANCES and raw.root.calls >> f.index & 1
        for t, made, _ in f.operands[:2]
        if made.params & one.fed.params and not made.params & trained
    ]
    return bool(told) and all(
        not made.calls & ~one.fed.calls and t is not None and not is_answered(raw, t, made) for t, made in told
    )


def _are_joined(one: ModuleCall, other: ModuleCall, reached: list[ModuleCall], params_of: ParamsOf) -> bool:
    """Say whether a layer goes on from what both answered, as the output of an attention does from queries and keys."""
    return any(c.fed.calls >> one.index & 1 and c.fed.calls >> other.index & 1 and params_of(c.module) for c in reached)


def _made_of_shared(one: ModuleCall, other: ModuleCall, taint: Taint) -> int:
    """Return what the tensors were made of that two calls were both given, and that no gradient goes through."""
    made = 0
    for a in one.given:
        for b in other.given if not a.requires_grad and a.is_floating_point() else ():
            if a is b or _are_alike(a, b):
                made |= taint.of(a).params
    return made


def _are_alike(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors hold the same numbers; the first one tells most apart, without a look at the others."""
    if a.shape != b.shape or b.requires_grad or not 0 < a.numel() <= SMALL or not is_readable(a) or not is_readable(b):
        return False
    first = (0,) * a.ndim
    return a.device == b.device and bool(a[first] == b[first]) and are_equal(a, b)


def _around(call: ModuleCall, by_index: dict[int, ModuleCall], params_of: ParamsOf, trained: int) -> int:
    """Return the parameters of the outermost network that a call is a part of and that holds nothing trained."""
    for above in _above(call, by_index):
        if params_of(above.module) & trained:
            break
        call = above
    return params_of(call.module)


def _all_below(
    reached: list[ModuleCall],
    shown: list[ModuleCall],
    by_index: dict[int, ModuleCall],
    params_of: ParamsOf,
    trained: int,
) -> bool:
    """Say whether all that is trained and shown data is a part of one of these calls, goes into one, or lies around."""
    inside = {c.index for c in shown}
    around = {above.index for c in shown for above in _above(c, by_index)}
    fed = 0
    for call in shown:
        fed |= call.fed.params
    for call in reached:
        if call.fed.params or not params_of(call.module) & trained or call.index in around:
            continue
        if not any(above.index in inside for above in _above(call, by_index)) and not params_of(call.module) & fed:
            return False
    return True


def _above(call: ModuleCall, by_index: dict[int, ModuleCall]) -> Iterator[ModuleCall]:
    while call.parent is not None and call.parent in by_index:
        call = by_index[call.parent]
        yield call


def trains_its_samples(
    reached: list[ModuleCall], params_of: ParamsOf, student: int, teacher: int, trained: int
) -> bool:
    """Say whether a third network is trained by how student and teacher answer what it made: a generator's own step."""
    third = trained & ~(student | teacher)
    return all(any(params_of(c.module) & own and c.fed.params & third for c in reached) for own in (student, teacher))


def take_for_data(raw: RawWindow, mask: int) -> None:
    """Forget of all that a window holds that it was made of these parameters."""

    def less(made: Made) -> Made:
        return made._replace(params=made.params & ~mask)

    for call in raw.calls:
        call.fed, call.out = less(call.fed), less(call.out)
    for f in raw.functions:
        f.made = less(f.made)
        f.operands = [(t, less(made), shape) for t, made, shape in f.operands]
    raw.scales = [(less(made), factor) for made, factor in raw.scales]
    raw.columns = [(less(made), out) for made, out in raw.columns]
    raw.joined = [j._replace(one=less(j.one), other=less(j.other)) for j in raw.joined]
    raw.compared = [c._replace(params=c.params & ~mask) for c in raw.compared]
    raw.root, raw.left = less(raw.root), raw.left & ~mask
