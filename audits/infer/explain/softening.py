"""How both sides were softened, as far as softmaxes show it, and the teacher's answers to the rows explained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.explain.forms import Try
from kdbench.audits.infer.explain.heads import Answer, Kind
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.rows import Layout, places
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow

GRID = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 16.0, 20.0)
"Temperatures tried where no softmax shows one: those that papers and their codes use lie between 1 and 20."
_SAME = {torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Part of the largest logit by which logits and T times their quotient may differ: bfloat16 rounds by up to 4e-3, and
twice."""
_SAME_ELSE = 1e-3
"The same in single precision, whose own rounding is 1e-7: the rest is for a T that was itself rounded when written."
_DIGITS = 3
"Nobody writes a temperature with more digits than these."
_ROUNDED = 2e-3
"A fitted T this near to one of three digits is taken to be it: twice the tolerance of the comparison it comes from."
_MOST_UNMATCHED = 4
"Answers tried of which no softmax was seen: each costs a search, and hints come after the network's own."
_PADDED = 1.1
"How much wider a table of the same words may be: they are padded to round numbers. What is wider still are features."
_MOST_MEMBERS = 16
"Networks whose answers are told apart in one tensor."
_LEAST_PROBABILITY = 1e-38
"Near the least normal number of single precision: its logarithm is still finite."


@dataclass(eq=False)
class Said:
    """One of the teacher's answers, by the rows of the head that is explained."""

    kind: Kind
    rows: Tensor
    "Its rows (n, C) that belong to those explained, in double precision."
    at: Callable[[Tensor], Tensor]
    "Returns its rows that belong to others, by their numbers."
    argument: bool = False
    "Whether it is what a softmax was taken of, with the temperature in it."
    whole: Tensor | None = None
    "All its rows (N, C), where they lie ready."
    centre: tuple[float, float] | None = None
    "The largest number of a centre that was taken from it, and of what it was taken from."
    kept: Tensor | None = None
    "Which classes (n, C) of the rows it tells of, where it tells of some alone."
    members: int = 1
    "Of how many networks' answers it is the mean."
    repeated: tuple[int, float] | None = None
    "A class that rows of some classes name several times with a probability, and its part of it."


class Softening(NamedTuple):
    """How both sides were softened, as far as softmaxes show it."""

    student: list[float]
    teacher: list[float]
    "Temperatures; none where no softmax was seen."
    answers: list[Said]
    "The teacher's logits, or its probabilities where the logits behind them were not seen."
    hints: tuple[Try, ...] = ()
    "What explained earlier windows."

    @property
    def is_seen(self) -> bool:
        """Whether any softmax showed a temperature."""
        return bool(self.student or self.teacher)

    def of(self, answers: list[Said]) -> "Softening":
        """Return the same with other answers."""
        return self._replace(answers=answers)

    def pairs(self, said: Said, every: bool = False) -> list[tuple[float, float]]:
        """Return the temperatures of student and teacher to try, the likeliest first; or every pair, where none is
        searched for later."""
        if said.kind == "probabilities":
            return [(t, t) for t in (self.student or GRID)]
        if said.argument:
            return [(t, 1.0) for t in (self.student or GRID)]
        if self.student and self.teacher:
            same = [(t, t) for t in self.student if t in self.teacher]
            return same + [(s, t) for s in self.student for t in self.teacher if s != t]
        if not self.is_seen and not every:
            return [(t, t) for t in GRID]
        one = self.student or self.teacher or GRID
        return [(t, t) for t in one] + [(t, 1.0) for t in one if t != 1.0] + [(1.0, t) for t in one if t != 1.0]


def temperature_of(argument: Tensor, logits: Tensor, dtype: torch.dtype = torch.float32) -> float | None:
    """Return T if the argument of a softmax (n, C) is the logits divided by T; `dtype` is what it was computed in."""
    if argument.shape != logits.shape:
        return None
    x, z = argument, logits
    for shift in (False, True):
        if shift:  # softmax does not see a constant by row: some subtract the largest
            x, z = x - x.mean(1, keepdim=True), z - z.mean(1, keepdim=True)
        product = float((x * z).sum())
        if product <= 0:
            continue
        t = float((z * z).sum()) / product
        if float((x * t - z).abs().max()) <= _SAME.get(dtype, _SAME_ELSE) * float(z.abs().max()):
            return as_written(t)
    return None


def as_written(t: float) -> float:
    """Return a temperature as somebody wrote it, if it is as near to that as it was read."""
    written = float(f"{t:.{_DIGITS}g}")
    return written if abs(t - written) < _ROUNDED * t else t


def said_by(rest: Rest, answer: Answer) -> list[Said]:
    """Return an answer by the rows of the head: as it stands in the head's shape, or as rows in order."""
    layout, values = rest.layout, answer.values
    if answer.among is not None:
        if answer.classes and answer.classes != layout.classes:
            return []  # a head of another width, as a layer within is
        return _said_of_some(rest, values, answer.among)
    if tuple(values.shape) == layout.shape:
        own, place = layout, torch.arange(layout.rows)
    elif is_wider(values, layout):  # vocabularies that are padded differ at the end
        own, place = Layout.of(values, layout.dim), torch.arange(layout.rows)
    elif values.ndim >= 2 and values.shape[-1] == layout.classes:
        own = Layout.of(values)
        found = [p for p in places(tuple(values.shape), layout, rest.live) if bool((p[rest.index] >= 0).all())]
        if not found:
            return []
        place = found[0]
    else:
        return []

    def at(index: Tensor) -> Tensor:
        return own.take(values, place[index.cpu()])[:, : layout.classes]

    ready = own.rows == layout.rows and own.classes == layout.classes and own.dim == values.ndim - 1
    whole = values.detach().reshape(-1, layout.classes) if ready else None
    return [Said(answer.kind, at(rest.index).to(rest.z.device), at, answer.kind == "argument", whole)]


def _said_of_some(rest: Rest, values: Tensor, among: Tensor) -> list[Said]:
    """Return probabilities (..., K) of some classes by the rows of the head, 0 elsewhere."""
    layout, own, classes = rest.layout, Layout.of(values), Layout.of(among)
    if own.lead == layout.lead:
        place = torch.arange(layout.rows)
    else:
        found = places((*own.lead, layout.classes), layout, rest.live)
        found = [p for p in found if bool((p[rest.index] >= 0).all())]
        if not found:
            return []
        place = found[0]

    if own.lead != classes.lead or own.classes != classes.classes:
        return []

    def picked(index: Tensor) -> tuple[Tensor, Tensor]:
        return own.take(values, place[index.cpu()]), classes.take(among, place[index.cpu()]).long()

    def at(index: Tensor) -> Tensor:
        rows, which = picked(index)
        return torch.zeros(len(rows), layout.classes, dtype=rows.dtype, device=rows.device).scatter_add_(1, which, rows)

    said = at(rest.index).to(rest.z.device)
    return [Said("probabilities", said, at, kept=said > 0, repeated=_repeated(*picked(rest.index)))]


def _repeated(rows: Tensor, which: Tensor) -> tuple[int, float] | None:
    """Return the class that rows name again and again, and its part of the probability in the mean of these rows."""
    order = which.sort(dim=1, stable=True)
    again = torch.zeros_like(which, dtype=torch.bool)
    again.scatter_(1, order.indices[:, 1:], order.values[:, 1:] == order.values[:, :-1])
    again &= rows > 0
    if not bool(again.any()):
        return None
    name = int(which[again].mode().values)
    mine = (again & (which == name)).any(1)
    return name, float((rows * (which == name)).sum(1)[mine].mean())


def members_of(layout: Layout, answer: Answer) -> list[Answer]:
    """Return the answers that one tensor holds of several networks side by side, as (B, M, C) does for logits (B, C);
    the answer itself where it is of one."""
    shape = tuple(answer.values.shape)
    if answer.among is not None or len(shape) != len(layout.shape) + 1 or layout.dim != len(layout.shape) - 1:
        return [answer]
    for dim in reversed(range(len(shape) - 1)):
        if (*shape[:dim], *shape[dim + 1 :]) == layout.shape and 1 < shape[dim] <= _MOST_MEMBERS:
            return [answer._replace(values=one) for one in answer.values.unbind(dim)]
    return [answer]


def _one_by_one(layout: Layout, answers: list[Answer]) -> tuple[list[Answer], bool]:
    """Return the answers with those of several networks taken apart, each once, and whether there were such."""
    found: list[Answer] = []
    for answer in answers:
        members = members_of(layout, answer)
        found += (
            members if len(members) == 1 else [one for one in members if not any(_are_equal(one, a) for a in answers)]
        )
    return found, any(len(members_of(layout, answer)) > 1 for answer in answers)


def _are_equal(one: Answer, other: Answer) -> bool:
    a, b = one.values, other.values
    return one.kind == other.kind and a.shape == b.shape and torch.equal(a, b)


def is_wider(values: Tensor, layout: Layout, most: float = _PADDED) -> bool:
    """Say whether an answer has the head's shape but for a few classes more, up to `most` times as many."""
    shape = tuple(values.shape)
    if len(shape) != len(layout.shape) or not layout.classes < shape[layout.dim] <= most * layout.classes:
        return False
    return (*shape[: layout.dim], *shape[layout.dim + 1 :]) == layout.lead


def softening(
    raw: RawWindow, cast: Cast, student: int, rest: Rest, answers: list[Answer], hints: tuple[Try, ...] = ()
) -> Softening:
    """Return the temperatures that were seen, and the teacher's answers to the rows that are explained."""
    of_student = _of_student(raw, student, rest)
    parts, is_stacked = _one_by_one(rest.layout, answers)
    sized = [(answer, said) for answer in parts for said in said_by(rest, answer)]
    logits = [said for answer, said in sized if answer.kind == "logits"]
    of_teacher: list[float] = []
    matched: list[Said] = []
    unmatched: list[Said] = []
    for answer, said in sized:
        if answer.kind != "argument":
            continue
        hits = ((one, temperature_of(said.rows, one.rows, answer.values.dtype)) for one in logits)
        one, hit = next(((one, hit) for one, hit in hits if hit is not None), (None, None))
        if one is None or hit is None:
            one, hit = _centred(said, logits, answer.values.dtype)
        if one is None or hit is None:
            one, hit = _mixed(said, logits)
        if one is None or hit is None:
            unmatched.append(said)
            continue
        if hit not in of_teacher:
            of_teacher.append(hit)
        if all(one is not m for m in matched):
            matched.append(one)
            if _was_rounded(said, one, hit):
                matched.insert(0, _times(said, hit))
    rest_of_logits = [one for one in logits if all(one is not m for m in matched)]
    if not logits:  # stored answers: divided by the student's temperature, most likely
        t = max(of_student, default=1.0)
        matched += [_times(said, t) for said in unmatched]
        if unmatched and t not in of_teacher:
            of_teacher.append(t)
    if len(logits) > 1 and (len(cast.teachers) > 1 or is_stacked):
        rest_of_logits = [*_averages(logits, of_teacher), *rest_of_logits]
    # Probabilities fit whatever made them, so they speak only where the logits behind them were not seen.
    probabilities = [said for answer, said in sized if answer.kind == "probabilities"]
    told = [*matched, *rest_of_logits[:_MOST_UNMATCHED]]
    return Softening(of_student, of_teacher, told or probabilities, hints)


def _was_rounded(said: Said, one: Said, t: float) -> bool:
    """Say whether what a softmax was taken of is these logits after a visit to half precision, as to be stored."""
    x, z = said.rows - said.rows.mean(1, keepdim=True), one.rows - one.rows.mean(1, keepdim=True)
    off = float((x * t - z).abs().max()) if x.shape == z.shape else 0.0
    return _EXACT * float(z.abs().max()) < off <= _HALF * float(z.abs().max())


_EXACT, _HALF = 1e-5, 1e-3
"Part of the largest logit by which logits are off after single precision, and after a visit to half precision."


def _centred(said: Said, logits: list[Said], dtype: torch.dtype) -> tuple[Said | None, float | None]:
    """Return logits less a centre of each class, as self-distillation has them, and the temperature, if it is that.

    What a softmax was taken of is in the order in which it was used, so by itself it says nothing of the rows.
    """
    for one in logits:
        x, t = (rows - rows.mean(0) for rows in (said.rows, one.rows))
        if len(x) >= _CENTRED and (hit := temperature_of(x, t, dtype)) is not None:
            centre = (said.rows * hit - one.rows).mean(0)

            def at(index: Tensor, one: Said = one, centre: Tensor = centre) -> Tensor:
                return one.at(index) + centre.to(index.device)

            sizes = float(centre.abs().max()), float(one.rows.abs().max())
            return Said("logits", one.rows + centre, at, centre=sizes), hit
    return None, None


def _mixed(said: Said, logits: list[Said]) -> tuple[Said | None, float | None]:
    """Return what several teachers say together, each with a weight of its own, and the temperature, if it is that."""
    if not 1 < len(logits) <= _MOST_MIXED or said.rows.numel() < _CENTRED * len(logits):
        return None, None
    stack = torch.stack([one.rows.reshape(-1) for one in logits], 1)
    own = said.rows.reshape(-1, 1)
    weights = torch.linalg.lstsq(stack, own).solution.flatten()
    left = float((stack @ weights - own.flatten()).norm())
    if not bool((weights > _LEAST_MIXED).all()) or left > _LEAST_MIXED * float(own.norm()):
        return None, None
    t = as_written(1 / float(weights.sum()))
    shares = (weights / weights.sum()).tolist()

    def of(rows: list[Tensor]) -> Tensor:
        return torch.stack([share * r for share, r in zip(shares, rows, strict=True)]).sum(0)

    return Said("logits", of([one.rows for one in logits]), lambda index: of([one.at(index) for one in logits])), t


_MOST_MIXED, _LEAST_MIXED = 4, 1e-3
"Teachers whose answers are mixed; and the least weight of one, and what a mixture may leave of what it is."
_CENTRED = 8
"Rows from which a centre of each class is told from the logits: with two rows any two would fit."


def _times(said: Said, t: float) -> Said:
    """Return logits of which a softmax was taken at a temperature."""
    whole = None if said.whole is None else said.whole * t
    return Said("logits", said.rows * t, lambda index: said.at(index) * t, False, whole)


def _of_student(raw: RawWindow, student: int, rest: Rest) -> list[float]:
    """Return the temperatures of the softmaxes that were taken of the student's logits."""
    seen: list[float] = []
    for f in raw.functions:
        if f.name not in ("softmax", "log_softmax") or not f.operands:
            continue
        t, made, _ = f.operands[0]
        if t is None or not made.params & student or not raw.root.calls >> f.index & 1:
            continue
        for said in said_by(rest, Answer("argument", t)):
            found = temperature_of(said.rows, rest.z, t.dtype)
            if found is not None and found not in seen:
                seen.append(found)
    return seen


def _averages(logits: list[Said], temperatures: list[float]) -> list[Said]:
    """Return what several teachers say together: the mean of their probabilities at each temperature, or of logits."""

    def of_logits(rows: list[Tensor]) -> Tensor:
        return torch.stack(rows).mean(0)

    def of_probabilities(t: float) -> Callable[[list[Tensor]], Tensor]:
        def mixed(rows: list[Tensor]) -> Tensor:  # at another temperature it is the mean of no logits
            return torch.stack([(r / t).softmax(1) for r in rows]).mean(0).clamp_min(_LEAST_PROBABILITY).log() * t

        return mixed

    def together(mix: Callable[[list[Tensor]], Tensor]) -> Said:
        rows = mix([s.rows for s in logits])
        return Said("logits", rows, lambda index: mix([s.at(index) for s in logits]), members=len(logits))

    return [*(together(of_probabilities(t)) for t in reversed(temperatures)), together(of_logits)]
