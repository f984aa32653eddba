"""What gradient does the distillation send into the student's logits, and are the teacher's answers right?"""

from functools import partial

import torch
from torch import nn

from kdbench.audits.hits import Hits
from kdbench.audits.infer.explain import Explanation, Try, explain
from kdbench.audits.infer.explain.fused import listen
from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.own_scale import own_scale, rescale, skipped
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.words import are_words
from kdbench.audits.observe.freed import give_back
from kdbench.audits.observe.windows import SMALL, RawWindow
from kdbench.audits.trace import Sight, Trace

_AGAIN = 5
"Windows from one look at a term without a gradient to the next."
_SLIGHT = 1e-3
"Share of the labels' gradient below which a form may be lost in rounding: a student that begins as its teacher."
_LABELS = 1000
"Labels that the teacher's answers are held against: enough to tell a trained teacher from chance nearly always."


_PIECES = 8
"Windows up to which a step is read whole: a sequence is seldom cut into more pieces."
_HINTS = 4
"Forms of earlier windows that are tried first: a term that is annealed has another in each."


class Gradients(Observer):
    """Explains the gradient at the student's logits, and counts how often the teacher agrees with the labels."""

    def __init__(self, trace: Trace, windows: int) -> None:
        self._trace, self._windows = trace, windows
        "Windows up to which one is explained for the sake of its labels."
        self._hints: tuple[Try, ...] = ()
        "What explained the windows before."
        self._steps = 0

    def restart(self) -> None:
        """Count steps anew."""
        self._steps = 0

    def step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        """Count the steps: the first one is read whole, where it has several backwards over tokens."""
        self._steps += 1

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Explain the gradient."""
        first = len(self._trace.losses.sights) < EXPLAINED or self._awaits_step()
        if first or self._awaits_labels() or self._awaits_share() or self._awaits_scale(raw):
            sight.explanations = explain(raw, cast, self._hints)
            if any(e.rows * e.classes > SMALL for e in sight.explanations):
                give_back()
            scale = own_scale(raw, cast)
            for e in sight.explanations:
                self._learn(e)
                if scale is not None:
                    e.skipped = skipped(e, scale, raw.calls)
                    rescale(e, *scale)
            listen(raw, cast, self._hints, partial(self._heard, sight, scale), self._break)
        by_place = any(e.sequence for e in sight.explanations)
        shown = [t for g in cast.students if by_place for c in g.calls for t in c.given if are_words(t)]
        for e in sight.explanations:
            # Words that go in are what comes out, unless there are more of them.
            self._count_hits(e, all(int(t.max()) >= e.classes for t in shown))

    def _learn(self, e: Explanation) -> None:
        """Remember a form that explained a window."""
        if e.attempt is not None and e.form != "unknown":
            self._hints = tuple(dict.fromkeys([e.attempt, *self._hints]))[:_HINTS]

    def _heard(self, sight: Sight, scale: tuple[str, float] | None, e: Explanation) -> None:
        """Take in what a loss with a backward of its own left: it tells more than what lies below it."""
        self._learn(e)
        e.skipped = None if scale is None else skipped(e, scale, [])
        sight.explanations = [e, *(o for o in sight.explanations if o.form not in ("unknown", "nothing"))]

    def _break(self, error: Exception) -> None:
        self._trace.broken = self._trace.broken or f"{type(error).__name__}: {error}"

    def _awaits_step(self) -> bool:
        """Say whether the first step goes on, over tokens: its micro-batches or pieces mean one thing together."""
        sights = self._trace.losses.sights
        if self._steps > 1 or len(sights) >= _PIECES:
            return False
        return any(e.sequence and e.form != "nothing" for s in sights for e in s.explanations)

    def _awaits_share(self) -> bool:
        """Say whether the term had no gradient so far, or one too slight to be read, and is looked at again: its weight
        may be on the way up, or the student on its way from its teacher's place."""
        sights = self._trace.losses.sights
        if len(sights) >= self._windows or len(sights) % _AGAIN:
            return False
        read = [e for s in sights for e in s.explanations]
        return bool(read) and all(e.form == "nothing" or (e.form == "unknown" and e.share < _SLIGHT) for e in read)

    def _awaits_scale(self, raw: RawWindow) -> bool:
        """Say whether no gradient was read so far under a gradient scaler: its first scales are often too large."""
        sights = self._trace.losses.sights
        return raw.root_scale != 1 and len(sights) < self._windows and not any(s.explanations for s in sights)

    def _awaits_labels(self) -> bool:
        sights, hits = self._trace.losses.sights, self._trace.teacher.hits
        if not self._trace.script or len(sights) >= self._windows:
            return False
        read = any(e.form not in ("unknown", "nothing") for s in sights for e in s.explanations)
        counted = 0 if hits is None else int(hits.by_class.sum())
        return read and 0 < counted < _LABELS

    def _count_hits(self, e: Explanation, names_no_words: bool) -> None:
        """Hold the teacher's answers against the labels of the label loss."""
        if not self._trace.script or e.teacher_logits is None or e.labels is None:
            return
        labels, logits, teacher = e.labels.reshape(-1).cpu(), e.teacher_logits, self._trace.teacher
        if e.form == "permuted" or len(labels) != len(logits) or labels.dtype.is_floating_point:
            return
        hits = Hits.of(logits, labels)
        old = teacher.by_place if e.sequence else teacher.hits
        if old is not None and len(old.by_class) == logits.shape[1]:
            hits = old + hits
        if not e.sequence:
            teacher.hits, teacher.labels_shown = hits, True
        elif names_no_words:
            teacher.by_place = hits
