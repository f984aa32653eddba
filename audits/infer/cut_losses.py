"""Is a part of the loss a number cut from its graph that asks for a gradient anew, and then trains nothing?"""

from torch import nn

from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import Sight, Term, Trace


class CutLosses(Observer):
    """Notes distillation losses at which the graph of a backward ends."""

    def __init__(self, trace: Trace, taint: Taint) -> None:
        self._trace, self._taint = trace, taint

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Look at the leaves of the first windows for a number that both the student's and a teacher's answer made."""
        if len(self._trace.losses.sights) >= EXPLAINED:
            return
        for leaf in raw.leaves:
            if isinstance(leaf, nn.Parameter) or leaf.numel() > 1:
                continue
            made = self._taint.of(leaf)
            if made.calls and made.params & cast.student_mask and made.params & cast.teacher_mask & ~cast.student_mask:
                said = "a number that asks for a gradient anew"
                sight.terms.append(Term("soft", said, raw.where, False, True, [], [], anew=True))
                return
