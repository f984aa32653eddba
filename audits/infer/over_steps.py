"""What several steps show and one does not: a teacher that goes on saying what the student says, and an early answer of
the teacher's that is compared with every later batch."""

from collections import Counter
from typing import Any

from torch import Tensor

from kdbench.audits.infer.layers import depends_on_mode, may_drop
from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.lost import Echoed, Standing
from kdbench.audits.observe.readable import are_equal, is_readable
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.windows import MOODY, FunctionCall, ModuleCall, RawWindow, learns
from kdbench.audits.trace import Sight, Trace

_ROWS, _FEWEST = 16, 4
"Rows of a batch that tell it from others, and those that a batch has at least."
_ROUNDING = 1e-4
"Part of the largest number of an answer up to which two kernels may differ."
_WINDOWS = 8
"Windows in which a term is looked at."


class Echo(Observer):
    """Counts the windows in which the teacher answered bit for bit as the student, up to the first other.

    Its copy does so until the student's first step: weights that were moved answer with other bits.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.restart()

    def restart(self) -> None:
        """Forget what was seen of another training."""
        self._found: Echoed | None = None
        self._apart = False

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Hold the answers of this window against each other."""
        sight.other_weights = _has_other_weights(cast)
        if self._apart or not cast.teachers or cast.cached:
            return
        of_students, of_teachers = ([c for g in groups for c in g.calls] for groups in (cast.students, cast.teachers))
        # One module may answer as both, once with a gradient and once without.
        mine = [o[1] for c in of_students if learns(c) and (o := c.output) is not None]
        its = [o[1] for c in of_teachers if not learns(c) and (o := c.output) is not None]
        self._apart = not its or not all(any(are_equal(t, s) for s in mine) for t in its)
        windows = 1 if self._found is None else self._found.windows + 1
        self._found = None if self._apart else Echoed(windows, sight.where)

    def finish(self, optimizers: list[Any]) -> None:
        """Say in how many windows it was so."""
        self._trace.losses.echoed = self._found


def _has_other_weights(cast: Cast) -> bool:
    """Say whether the student's network answered its batch otherwise without a gradient: a copy of its weights did."""
    calls = [c for g in cast.students for c in g.calls if c.given and c.parent is None]
    learned, asked = [c for c in calls if learns(c)], [c for c in calls if not learns(c)]
    pairs = [(a, b) for a in asked for b in learned if a.module is b.module and _are_shown_the_same(a, b)]
    return any(_differ(a, b) and not _draws(b) for a, b in pairs)


def _are_shown_the_same(a: ModuleCall, b: ModuleCall) -> bool:
    return list(map(id, a.given)) == list(map(id, b.given))


def _differ(a: ModuleCall, b: ModuleCall) -> bool:
    """Say whether two answers differ by more than rounding, which may be another one without a gradient."""
    if a.output is None or b.output is None:
        return False
    x, y = a.output[1].detach(), b.output[1].detach()
    return x.shape == y.shape and bool((x - y).abs().max() > _ROUNDING * y.abs().max())


def _draws(call: ModuleCall) -> bool:
    """Say whether something in a network answers otherwise each time, or in another mode."""
    return bool(call.moody) or any(
        may_drop(m) or (isinstance(m, MOODY) and depends_on_mode(m)) for m in call.module.modules()
    )


class StandingSides(Observer):
    """Follows, by the line that compares them, whether the teacher's side changes with the batch."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.restart()

    def restart(self) -> None:
        """Forget what was seen of another training."""
        self._windows = 0
        self._shown: list[bytes] | None = None
        self._last: dict[Any, tuple[list[bytes], list[bytes]]] = {}
        self._still: dict[Any, Standing | None] = {}

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Compare the teacher's sides of this window's terms with those of the last one."""
        shown = next((k for g in cast.students for c in g.calls if c.given and (k := _keys(c.given[0]))), None)
        if self._windows >= _WINDOWS or shown is None:
            return
        self._windows += 1
        other, self._shown = shown != self._shown, shown
        times: Counter[Any] = Counter()  # a line may compare several layers
        for f in cast.soft:
            if f.where is not None:
                line = f.where["file"], f.where["line"], f.name
                times[line] += 1
                self._follow((*line, times[line]), f, raw, cast, other)

    def _follow(self, place: Any, f: FunctionCall, raw: RawWindow, cast: Cast, other: bool) -> None:
        mine = next((k for t, made, _ in f.operands[:2] if made.params & cast.student_mask and (k := _keys(t))), None)
        its = next(
            (
                (k, shape)
                for t, made, shape in f.operands[:2]
                if made.params & cast.teacher_mask and not made.params & cast.student_mask and (k := _keys(t))
            ),
            None,
        )
        if mine is None or its is None:
            return
        before, (now, shape) = self._last.get(place), its
        self._last[place] = mine, now
        if before is None:
            self._still.setdefault(place, Standing(0, f.name, f.where))
            return
        # The teacher gave an answer of this very form in the step: what is compared is not that one.
        anew = any(c.out.params & cast.teacher_mask and c.shape == tuple(shape) for c in raw.calls)
        stands = other and anew and before[1] == now and before[0] != mine
        last = self._still.get(place)
        self._still[place] = Standing(last.windows + 1, f.name, f.where) if stands and last is not None else None

    def finish(self, optimizers: list[Any]) -> None:
        """Say which term's teacher stood still the longest, all the while that it was looked at."""
        found = [s for s in self._still.values() if s is not None and s.windows]
        self._trace.losses.standing = max(found, key=lambda s: s.windows, default=None)


def _keys(t: Tensor | None) -> list[bytes] | None:
    """Return what tells the first rows of a batch; None of what is no batch, or of one whose rows are alike."""
    if t is None or t.ndim < 2 or len(t) < _FEWEST or not is_readable(t):
        return None
    keys = row_keys(t[:_ROWS])
    return keys if len(set(keys)) >= _FEWEST else None
