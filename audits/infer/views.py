"""Which view of a batch the answer to another view is held against, where both networks are shown several."""

from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import ModuleCall, RawWindow


def uncrossed(raw: RawWindow, cast: Cast) -> int:
    """Return how many views of one batch both networks are shown whose answers meet within each view alone.

    0 where answers to different views meet, where it is not seen which do, and where there is one view.
    """
    mine = _views(raw, cast.student_mask, [c for g in cast.students for c in g.calls])
    its = _views(raw, cast.teacher_mask, [c for g in cast.teachers for c in g.calls])
    shown = {id(t) for t in mine.values()} & {id(t) for t in its.values()}
    if len(shown) < 2 or len({t.shape for t in mine.values()}) != 1:
        return 0
    met = set()
    for f in cast.soft:
        sides = [_seen(made, mine, its) for _, made, _ in f.operands[:2]]
        met |= {(a, b) for a, _ in sides for _, b in sides if a is not None and b is not None}
    return len(met) if len(met) > 1 and all(a == b != _SEVERAL for a, b in met) else 0


_SEVERAL = -1
"In place of a view's id: an answer to several."


def _views(raw: RawWindow, mask: int, calls: list[ModuleCall]) -> dict[int, Tensor]:
    """Return, by call, the view that a network was shown."""
    return {c.index: c.given[0] for c in calls if c.given and not c.fed.params and c.out.params & mask}


def _seen(made: Made, mine: dict[int, Tensor], its: dict[int, Tensor]) -> tuple[int | None, int | None]:
    """Return the view that an operand is the student's answer to, and the teacher's."""
    one, other = ({id(t) for index, t in views.items() if made.calls >> index & 1} for views in (mine, its))
    return _only(one), _only(other)


def _only(found: set[int]) -> int | None:
    return None if not found else found.pop() if len(found) == 1 else _SEVERAL
