"""In which mode do student and teacher answer?"""

from kdbench.audits.infer.layers import depends_on_mode, descendants, describe, may_drop
from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.stored import may_be_stored
from kdbench.audits.observe import hooks, torch_internals
from kdbench.audits.observe.windows import MOODY, ModuleCall, RawWindow
from kdbench.audits.trace import Sight, Trace
from kdbench.audits.updates import Where


class Modes(Observer):
    """Says which layers of the teacher answer in training mode, and when the student answers in evaluation mode."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._when_stored: dict[int, tuple[list[str], Where | None]] = {}
        "By network, the layers that answered in training mode when its answers may have been stored, and its call."

    def answered(self, raw: RawWindow, call: ModuleCall) -> None:
        """Note the mode of a network whose answers may be stored."""
        if may_be_stored(call):
            self._when_stored[id(call.module)] = _in_training(raw, [call]), call.where

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Note the modes of both."""
        asked = [c for g in (*cast.teachers, *cast.idle) for c in g.calls]
        sight.teacher_training = _in_training(raw, asked)
        sight.teacher_in_training = any(c.training for c in asked)
        sight.teacher_where = next((c.where for c in asked if c.where is not None), None)
        sight.student_where = next((c.where for g in cast.students for c in g.calls if c.where is not None), None)
        if cast.cached:
            stored = [self._when_stored[id(g.module)] for g in cast.teachers if id(g.module) in self._when_stored]
            sight.teacher_training += [m for layers, _ in stored for m in layers]
            sight.teacher_where = sight.teacher_where or next((where for _, where in stored), None)
        calls = [c for g in cast.students for c in g.calls if c.grad and raw.root.calls >> c.index & 1]
        held = [m for g in cast.students if g.module is not None for m in g.module.modules() if isinstance(m, MOODY)]
        below = [c for c in descendants(raw, calls) if isinstance(c.module, MOODY) and depends_on_mode(c.module)]
        sight.student_eval = bool(calls) and all(not c.training for c in [*calls, *below])
        sight.student_is_moody = any(depends_on_mode(m) for m in held) or bool(below) or self._drops(raw, cast, calls)

    def _drops(self, raw: RawWindow, cast: Cast, calls: list[ModuleCall]) -> bool:
        """Say whether the student has parts that hand a rate of dropout to a function where they train."""
        inside = descendants(raw, calls)
        if any(c.moody for c in inside):
            return any(c.training for c in inside if c.moody)  # in evaluation mode it drops whatever the mode
        return any(may_drop(m) for g in cast.students if g.module is not None for m in g.module.modules())

    def backward(self, modes: list[bool], step: int) -> None:
        """Note a backward before which the student answered in evaluation mode only."""
        losses = self._trace.losses
        if not any(modes) and any(s.student_is_moody for s in losses.sights[-1:]):
            losses.eval_steps.append(step)
            losses.eval_where = losses.eval_where or hooks.call_site()


def _in_training(raw: RawWindow, calls: list[ModuleCall]) -> list[str]:
    """Return the layers below these calls that answered in training mode and answer otherwise in it."""
    seen = {
        describe(c, calls)
        for c in descendants(raw, calls)
        if (isinstance(c.module, MOODY) and c.training and depends_on_mode(c.module)) or c.moody
    }
    inside = {  # where nothing below was seen, as in compiled code
        type(m).__name__
        for c in calls
        if not c.has_children or _is_dark(raw, c)
        for m in c.module.modules()
        if isinstance(m, MOODY) and getattr(m, "training", False) and depends_on_mode(m)
    }
    return sorted(seen | inside)


def _is_dark(raw: RawWindow, call: ModuleCall) -> bool:
    """Say whether a network is compiled: the modules that were called within it are none of its own."""
    network = getattr(call.module, torch_internals.COMPILED, call.module)
    own = {id(m) for m in network.modules() if m is not network}
    return bool(own) and not any(id(c.module) in own for c in descendants(raw, [call]))
