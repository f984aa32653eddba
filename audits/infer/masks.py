"""Is a mask made by comparing a network's answer with the number that marks places without a label?"""

from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import LABEL_LOSSES, RawWindow
from kdbench.audits.trace import BlindMask, Sight, Trace

_IGNORED = -100
"What torch's cross-entropy leaves out where nothing else is said."


class Masks(Observer):
    """Notes comparisons of answers with the labels' ignored number that come out the same everywhere."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Hold each comparison of an answer with a number against what the label losses leave out."""
        if len(self._trace.losses.sights) >= EXPLAINED or not raw.compared:
            return
        for label in cast.labels:
            if label.call.name not in LABEL_LOSSES or label.target is None:
                continue
            ignored = float(label.call.arg(4 if label.call.name == "cross_entropy" else 5, "ignore_index", _IGNORED))
            places = int((label.target == ignored).sum()) if not label.target.is_floating_point() else 0
            for c in raw.compared if places else ():
                answer = c.answer.detach()
                if c.number != ignored or answer.min() <= ignored <= answer.max():
                    continue
                whose = "student" if c.params & cast.student_mask else "teacher"
                sight.blind_mask = BlindMask(whose, c.number, places, c.where)
                return
