"""Are student and teacher shown the same batch, and is it what the teacher learned on?"""

from collections import Counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kdbench.audits.infer.attended import looks_behind, other_context
from kdbench.audits.infer.layers import descendants, describe, shown_to
from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.one_row import one_row
from kdbench.audits.infer.repeated import repeated
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.told import Told
from kdbench.audits.infer.views import uncrossed
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.lineage import Lineage
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import ModuleCall, RawWindow
from kdbench.audits.trace import Inputs, Sight, Trace

_ORDER = ("same", "permuted", "flipped", "affine", "view", "differ", "shapes")
"Relations of two batches, the nearest first: of several pairs the nearest counts."
_SHIFTED, _NARROWER, _WIDER = 0.5, 0.6, 1.7
"""Deviations by which the mean of a batch may lie off what the teacher learned on, and factors between which its
deviation may lie: batches of one normalisation stay well within, another normalisation goes beyond."""
_LEARNED = 24
"Batches of its own training that a network is remembered by: where single batches differ much, one says little."
_PADDED = 0.05
"Part of a vocabulary by which two tables of one tokenizer may differ: they are padded to round numbers."
_SETTLED = 30
"Batches after which a batch norm's running statistics are those of the data."
_VALUES_A_CHANNEL = 16
"Numbers that a channel must be given for its mean and deviation to say anything."
_FARTHEST, _WIDEST = 1.0, 2.0
"Deviations by which what a batch norm is given may be shifted, and the factor by which it may be wider or narrower."
_EQUAL, _AFFINE = 1e-5, 1e-4
"""Of the largest pixel: differences up to which two images are one, and up to which one is the other scaled and
shifted, where a rounding of scale and of shift adds up."""


class Batches(Observer):
    """Compares what the student is shown with what the teacher is shown."""

    def __init__(self, trace: Trace, taint: Taint, lineage: Lineage) -> None:
        self._trace, self._taint, self._lineage = trace, taint, lineage
        self._told = Told()
        self._trained_on: Any = WeakKeyDictionary()
        "By network, mean and deviation of the first batches that it was shown when it learned for itself."
        self._of_kind: dict[Any, list[tuple[int, list[tuple[float, float]]]]] = {}
        "The same by class and shapes, of networks that may be gone since: their weights are read back into others."

    def answered(self, raw: RawWindow, call: ModuleCall) -> None:
        """Note what a network is shown that learns for itself."""
        if call.grad and call.training:
            self._told.note(call)
        if call.grad and call.training and call.given and call.given[0].is_floating_point() and _is_data(call.given[0]):
            learned = self._trained_on.get(call.module)
            if learned is None:
                learned = self._trained_on[call.module] = []
                self._of_kind.setdefault(_kind(call.module), []).append((id(call.module), learned))
            if len(learned) < _LEARNED:
                learned.append(_spread(call.given[0]))

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Compare the batches."""
        if len(self._trace.losses.sights) < EXPLAINED:
            sight.inputs = self._compare(raw, cast)
            sight.repeated = repeated(raw, cast)
            sight.one_row = one_row(raw, cast)
            sight.uncrossed = 0 if cast.labels else uncrossed(raw, cast)
            if sight.inputs is not None:
                given = [t for g in (*cast.students, *cast.teachers) for c in g.calls for t in c.given]
                sight.inputs.traced = any(self._lineage.is_known(t) for t in given)

    def _compare(self, raw: RawWindow, cast: Cast) -> Inputs | None:
        teachers = [c for g in cast.teachers for c in g.calls if c.given and not c.fed.params]
        students = [c for g in cast.students for c in g.calls if c.given and not c.fed.params and _reaches(raw, c)]
        of_teacher = [t for c in teachers if _is_data(t := c.given[0])]
        # What the network itself is shown; where it was never called as a whole, what its parts are.
        of_student = [c.given[0] for c in students] or shown_to(raw, self._taint, cast.student_mask)
        of_student = [s for s in of_student if is_readable(s)]
        if not of_student or not of_teacher:
            return None
        best: Inputs | None = None
        for t in of_teacher:
            for s in of_student:
                found = self._relation(s, t)
                if best is None or _ORDER.index(found.relation) < _ORDER.index(best.relation):
                    best = found
        if (crossed := self._crossed(students, teachers)) is not None:
            return crossed
        if best is not None and best.relation == "differ" and self._are_prepared(students, teachers):
            best = Inputs("view", "each is made of one batch, within a wrapper of both")
        if best is not None and best.relation == "affine" and self._has_its_own(raw, cast, of_student):
            best = Inputs("view", "the teacher is shown what it was trained on, the student the same scaled otherwise")
        if best is not None and not of_teacher[0].is_floating_point():
            best = _of_words(
                raw, students, teachers, best, max((self._told.knows(c) or 0 for c in teachers), default=0)
            )
            if best.relation == "same":
                best = (
                    self._told_less(teachers)
                    or other_context(raw, students, teachers)
                    or looks_behind(raw, students, teachers)
                    or best
                )
        if best is not None and best.relation in ("same", "shapes") and not cast.shown_answers:
            best = self._untrained_on(raw, cast) or _unknown_to_its_norms(raw, cast) or best
        return best

    def _relation(self, s: Tensor, t: Tensor) -> Inputs:
        """Say how two batches are related; a copy of the teacher's that was changed on the way is a view of it."""
        found = relation(s, t)
        if found.relation == "differ" and s is not t and self._lineage.is_made_of(s, t):
            return Inputs("view", "the student's is made of the teacher's, and changed")
        return found

    def _are_prepared(self, students: list[ModuleCall], teachers: list[ModuleCall]) -> bool:
        """Say whether one module around both hands each its own version of one batch."""
        return any(
            s.parent is not None and s.parent == t.parent and self._lineage.share(s.given[0], t.given[0])
            for s in students
            for t in teachers
        )

    def _crossed(self, students: list[ModuleCall], teachers: list[ModuleCall]) -> Inputs | None:
        """Say which input of several the student is not shown, and which other one stands in its place."""
        for t in teachers:
            for s in students:
                if len(t.given) != len(s.given) or len(t.given) < 2 or any(g.ndim < 2 for g in (*s.given, *t.given)):
                    continue
                if not all(is_readable(g) for g in (*s.given, *t.given)):
                    continue
                if any(a.shape != b.shape for a, b in zip(s.given, t.given, strict=True)):
                    continue
                sources = [[k for k, b in enumerate(t.given) if self._is_of(a, b)] for a in s.given]
                seen = {k for of_one in sources for k in of_one}
                for k, of_one in enumerate(sources):
                    if of_one and k not in of_one and k not in seen:
                        return Inputs(
                            "crossed",
                            f"its input {k + 1} is made of the teacher's input {of_one[0] + 1}, and it never sees the "
                            f"teacher's input {k + 1}",
                        )
        return None

    def _is_of(self, mine: Tensor, its: Tensor) -> bool:
        return self._lineage.is_made_of(mine, its) or (mine.dtype == its.dtype and torch.equal(mine, its))

    def _learned_on(self, raw: RawWindow, cast: Cast) -> list[tuple[Tensor, list[tuple[float, float]]]]:
        """Return, of teachers that were seen to learn, what each is shown, and mean and deviation of what it learned
        on; not of those that are shown what the student's answers led to, as in a world that it acts in."""
        found = []
        led = {id(c.module) for c in raw.calls if c.fed.params & cast.student_mask}
        for group in cast.teachers:
            if id(group.module) in led:
                continue
            learned = self._trained_on.get(group.module) or self._by_kind(group.module, cast)
            given = [c.given[0] for c in group.calls if c.module is group.module and c.given and not c.fed.params]
            if learned and given and given[0].is_floating_point() and _is_data(given[0]):
                found.append((given[0], learned))
        return found

    def _by_kind(self, module: nn.Module | None, cast: Cast) -> list[tuple[float, float]] | None:
        """Return what the only network of this one's class and shapes, that is no student, learned on; the teacher's
        weights are trained ones then (KD104 tells), and whose they are is plain."""
        loaded = self._trace.teacher.loaded
        if module is None or loaded is None or not loaded.total or loaded.covered < loaded.total:
            return None
        students = {id(g.module) for g in cast.students}
        found = [learned for key, learned in self._of_kind.get(_kind(module), []) if key not in students]
        return found[0] if len(found) == 1 else None

    def _told_less(self, teachers: list[ModuleCall]) -> Inputs | None:
        """Say what a teacher was told of these very texts when it learned on them, and is not told now."""
        for call in teachers:
            if (found := self._told.lacking(call)) is not None:
                names = ", ".join(found.names)
                return Inputs(
                    "lacking", f"of {found.rows} texts that it learned on with {names}, it is shown the words alone"
                )
        return None

    def _has_its_own(self, raw: RawWindow, cast: Cast, of_student: list[Tensor]) -> bool:
        """Say whether each teacher is shown what is like its training, where what the student is shown is not."""
        learned = self._learned_on(raw, cast)
        return len(learned) == len(cast.teachers) and all(
            not _is_new(given, batches) and all(_is_new(s, batches) for s in of_student) for given, batches in learned
        )

    def _untrained_on(self, raw: RawWindow, cast: Cast) -> Inputs | None:
        """Say how what the teacher is shown differs in mean or deviation from every batch that it learned on."""
        for given, learned in self._learned_on(raw, cast):
            if _is_new(given, learned):
                (now, spread), (mean, deviation) = _spread(given), learned[0]
                trained = f"{mean:.3g} and {deviation:.3g}"
                return Inputs(
                    "untrained", f"mean {now:.3g} and deviation {spread:.3g}, where it was trained on {trained}"
                )
        return None


def _kind(module: nn.Module) -> Any:
    """Return a network's class and the shapes of its parameters."""
    return type(module), tuple(tuple(p.shape) for p in module.parameters())


def _is_new(values: Tensor, learned: list[tuple[float, float]]) -> bool:
    """Say whether a batch is unlike all that was learned on."""
    now, spread = _spread(values)
    return all(_is_unlike(now, spread, *batch) for batch in learned)


def _is_unlike(now: float, spread: float, mean: float, deviation: float) -> bool:
    """Say whether a batch has another mean or deviation than one that was learned on."""
    shifted = abs(now - mean) > _SHIFTED * deviation
    return deviation > 0 and (shifted or not _NARROWER < spread / deviation < _WIDER)


def _reaches(raw: RawWindow, call: ModuleCall) -> bool:
    return bool(raw.root.calls >> call.index & 1)


def _is_data(value: Tensor) -> bool:
    return is_readable(value) and (value.is_floating_point() or value.dtype in (torch.long, torch.int))


def _of_words(
    raw: RawWindow, students: list[ModuleCall], teachers: list[ModuleCall], found: Inputs, learned: int
) -> Inputs:
    """Hold what both are shown as words against how many words each knows.

    `learned` is up to which word the teacher was seen to learn; 0 where that was not seen.
    """
    sizes = []
    for calls in (students, teachers):
        below = sorted(descendants(raw, calls), key=lambda c: c.index)
        words = next((c.module for c in below if isinstance(c.module, nn.Embedding)), None)
        sizes.append(words.num_embeddings if isinstance(words, nn.Embedding) else 0)
    mine, its = sizes
    # The same tokenizer's tables are padded to different sizes; what is beyond the words that it learned is padding.
    if not mine or not its or abs(mine - its) <= _PADDED * max(mine, its) or 0 < learned <= mine < its:
        return found
    if found.relation == "same":
        return Inputs(
            "vocabulary", f"one text for both, of the {its} words that it knows and the {mine} of the student"
        )
    return Inputs("shapes", f"words of vocabularies of {its} and {mine}")


def _unknown_to_its_norms(raw: RawWindow, cast: Cast) -> Inputs | None:
    """Say how what the teacher's first batch norm is given differs from what it learned to expect."""
    for group in cast.teachers:
        below = sorted(descendants(raw, group.calls), key=lambda c: c.index)
        first = next((c for c in below if isinstance(c.module, torch_internals.BatchNorm)), None)
        if first is None or first.training or not first.given or not is_readable(first.given[0]):
            continue
        assert isinstance(first.module, torch_internals.BatchNorm)
        norm, x = first.module, first.given[0].detach().float()
        mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
        if mean is None or var is None or count is None or int(count) < _SETTLED:
            continue
        if x.numel() < _VALUES_A_CHANNEL * len(mean):
            continue
        rows = x.transpose(0, 1).flatten(1)
        deviation = (var + norm.eps).sqrt()
        shift = float(((rows.mean(1) - mean).abs() / deviation).median())
        spread = float((rows.std(1) / deviation).median())
        if shift > _FARTHEST or not 1 / _WIDEST < spread < _WIDEST:
            name = describe(first, group.calls)
            return Inputs(
                "untrained",
                f"its first batch norm, {name}, is given {spread:.2g} times the deviation that it learned, and a "
                f"mean {shift:.2g} deviations away",
            )
    return None


_SEVERAL_WORDS, _TIMES_EACH = 3, 4
"""Words, and places for each in the mean, that show which number of one network's is which of the other's."""


def _spread(values: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over all numbers."""
    values = values.detach().double()
    return float(values.mean()), float(values.std()) if values.numel() > 1 else 0.0


def relation(s: Tensor, t: Tensor) -> Inputs:
    """Say how the batch that the student is shown (B, ...) and the teacher's are related."""
    s, t = s.detach(), t.detach()
    rounded = s.to(t.device, t.dtype) if s.is_floating_point() else s.to(t.device)
    if s is t or (s.shape == t.shape and torch.allclose(rounded, t.to(rounded.dtype), 0, 0, equal_nan=True)):
        return Inputs("same")
    if s.shape != t.shape or s.ndim < 2:
        return Inputs("shapes", f"{tuple(s.shape)} and {tuple(t.shape)}")
    if s.is_floating_point() and not (bool(s.isfinite().all()) and bool(t.isfinite().all())):
        return Inputs("shapes", "numbers that are not finite")
    keys_s, keys_t = row_keys(s), row_keys(t.to(s.dtype))
    if Counter(keys_s) == Counter(keys_t):
        place: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys_s):
            place.setdefault(key, []).append(i)
        return Inputs("permuted", "the same rows in another order", [place[key].pop(0) for key in keys_t])
    if not s.is_floating_point():
        if _are_one_to_one(s, t):
            return Inputs("shapes", "the same words by other numbers")
        return Inputs("differ", "other values")
    a, b = s.double().cpu(), t.double().cpu()
    scale = float(b.abs().max()) + 1e-12
    return _flipped(a, b, scale) or _scaled(a, b, scale) or Inputs("differ", _rows_that_differ(a, b))


def _are_one_to_one(s: Tensor, t: Tensor) -> bool:
    """Say whether two batches hold the same words, each by numbers of its own, as two tokenizers number them."""
    pairs = torch.stack([s.flatten().cpu().long(), t.flatten().cpu().long()]).unique(dim=1)
    several = min(len(pairs[0].unique()), len(pairs[1].unique()))
    return pairs.shape[1] == several >= _SEVERAL_WORDS and s.numel() >= _TIMES_EACH * several


def _flipped(a: Tensor, b: Tensor, scale: float) -> Inputs | None:
    if a.ndim != 4:
        return None
    for dims, word in (((3,), "mirrored left to right"), ((2,), "mirrored top to bottom")):
        moved = (a.flip(dims) - b).flatten(1).abs().amax(1) <= _EQUAL * scale
        still = (a - b).flatten(1).abs().amax(1) <= _EQUAL * scale
        if bool((moved | still).all()):
            return Inputs("flipped", f"{int((moved & ~still).sum())} of {len(a)} images {word}")
    return None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Inputs | None:
    channels = a.transpose(0, 1).flatten(1) if a.ndim >= 3 else a.reshape(1, -1)
    others = b.transpose(0, 1).flatten(1) if b.ndim >= 3 else b.reshape(1, -1)
    x, y = channels - channels.mean(1, keepdim=True), others - others.mean(1, keepdim=True)
    slope = (x * y).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True).clamp_min(1e-30)
    if not float((y - slope * x).abs().max()) <= _AFFINE * scale:
        return None
    factors = ", ".join(f"{float(v):.3g}" for v in slope.flatten()[:4])
    return Inputs("affine", f"the teacher's pixels are the student's, scaled by {factors}")


def _rows_that_differ(a: Tensor, b: Tensor) -> str:
    equal = int((a == b).flatten(1).all(1).sum())
    return f"{len(a) - equal} of {len(a)} rows differ"
