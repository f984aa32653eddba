"""The gradient that each form of a distillation term leaves at the student's logits, and the temperatures to try.

For T^2 KL(teacher || student) averaged over N rows that is T (softmax(z/T) - softmax(t/T)) / N.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow

Kind = Literal["logits", "argument", "probabilities"]

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
_LEAST_PROBABILITY = 1e-38
"Near the least normal number of single precision, where a softmax written by hand ends: its logarithm is still finite."
_MOST_UNMATCHED = 4
"Answers tried of which no softmax was seen: each costs a fit per temperature, and hints come after the network's own."


class Answer(NamedTuple):
    """What could be the teacher's answer to the student's batch."""

    kind: Kind
    "Logits, what a softmax was taken of (logits over a temperature), or probabilities."
    values: Tensor


class Softening(NamedTuple):
    """How both sides were softened, as far as softmaxes show it."""

    student: list[float]
    teacher: list[float]
    "Temperatures; none where no softmax was seen."
    answers: list[Answer]
    "The teacher's logits (N, C), or its probabilities where the logits behind them were not seen."

    def pairs(self, kind: Kind) -> list[tuple[float, float]]:
        """Return the temperatures of student and teacher to try, the likeliest first."""
        if kind == "probabilities":
            return [(t, t) for t in (self.student or GRID)]
        if self.student and self.teacher:
            same = [(t, t) for t in self.student if t in self.teacher]
            return same + [(s, t) for s in self.student for t in self.teacher if s != t]
        one = self.student or self.teacher or GRID
        return [(t, t) for t in one] + [(t, 1.0) for t in one if t != 1.0] + [(1.0, t) for t in one if t != 1.0]


def flat(value: Tensor) -> Tensor:
    """Return values as rows of classes (N, C), in double precision on the CPU."""
    return value.detach().reshape(-1, value.shape[-1]).to("cpu", torch.float64)


def gradients_of_forms(z: Tensor, t: Tensor, kind: Kind, ts: float, tt: float, n: int) -> list[tuple[str, Tensor]]:
    """Return the gradient at z of each form that a distillation term takes, in the scale of T^2 KL over n rows.

    `z` and `t` are (N, C); `ts` and `tt` the temperatures of the student and of the teacher.
    """
    log_s = (z / ts).log_softmax(1)
    ps = log_s.exp()
    pt = t if kind == "probabilities" else (t / tt).softmax(1)
    log_t = pt.clamp_min(_LEAST_PROBABILITY).log()
    name = "forward" if ts == tt or kind == "probabilities" else "one-sided"
    kl = (ps * (log_s - log_t)).sum(1, keepdim=True)
    forms = [
        (name, ts * (ps - pt) / n),
        ("reversed", ts * ps * (log_s - log_t - kl) / n),
        ("probabilities", -ts * ps * (pt - (ps * pt).sum(1, keepdim=True)) / n),
        ("log-target", -ts * (log_t - ps * log_t.sum(1, keepdim=True)) / n),
        ("mse-probabilities", 2 / ts * ps * ((ps - pt) - (ps * (ps - pt)).sum(1, keepdim=True)) / (n * z.shape[1])),
    ]
    if kind != "probabilities":
        forms.append(("logits-as-target", -ts * (t / tt - ps * (t / tt).sum(1, keepdim=True)) / n))
        hard = torch.zeros_like(pt).scatter_(1, t.argmax(1, keepdim=True), 1.0)
        forms.append(("hard-labels", (z.softmax(1) - hard) / n))
        forms.append(("mse-logits", 2 * (z - t) / (n * z.shape[1])))
        forms.append(("mse-logits", 2 * (z - t) / (n * z.shape[1] * ts * ts)))
    return forms


def temperature_of(argument: Tensor, logits: Tensor) -> float | None:
    """Return T if the argument of a softmax is the logits divided by T."""
    if argument.numel() != logits.numel() or argument.shape[-1] != logits.shape[-1]:
        return None
    x, z = flat(argument), flat(logits)
    for shift in (False, True):
        if shift:  # softmax does not see a constant by row: some subtract the largest
            x, z = x - x.mean(1, keepdim=True), z - z.mean(1, keepdim=True)
        product = float((x * z).sum())
        if product <= 0:
            continue
        t = float((z * z).sum()) / product
        if float((x * t - z).abs().max()) <= _SAME.get(argument.dtype, _SAME_ELSE) * float(z.abs().max()):
            written = float(f"{t:.{_DIGITS}g}")
            return written if abs(t - written) < _ROUNDED * t else t
    return None


def softening(raw: RawWindow, cast: Cast, student: int, z: Tensor, answers: list[Answer]) -> Softening:
    """Return the temperatures that were seen, and the teacher's answers of the size of the student's logits (N, C)."""
    of_student = _of_student(raw, student, z)
    sized = [Answer(k, flat(v)) for k, v in answers if v.numel() == z.numel() and v.shape[-1] == z.shape[-1]]
    logits = [answer for answer in sized if answer.kind == "logits"]
    of_teacher: list[float] = []
    matched: list[Answer] = []
    unmatched: list[Tensor] = []
    for x in (answer.values for answer in sized if answer.kind == "argument"):
        hits = ((answer, temperature_of(x, answer.values)) for answer in logits)
        answer, hit = next(((answer, hit) for answer, hit in hits if hit is not None), (None, None))
        if answer is None or hit is None:
            unmatched.append(x)
            continue
        if hit not in of_teacher:
            of_teacher.append(hit)
        if all(answer is not m for m in matched):
            matched.append(answer)
    rest = [answer for answer in logits if all(answer is not m for m in matched)]
    if not logits:  # stored answers: divided by the student's temperature, most likely
        t = max(of_student, default=1.0)
        matched += [Answer("logits", x * t) for x in unmatched]
        if unmatched and t not in of_teacher:
            of_teacher.append(t)
    if len(logits) > 1 and len(cast.teachers) > 1:
        rest = [*_averages(logits, of_teacher), *rest]
    # Probabilities fit whatever made them, so they speak only where the logits behind them were not seen.
    probabilities = [answer for answer in sized if answer.kind == "probabilities"]
    return Softening(of_student, of_teacher, [*matched, *rest[:_MOST_UNMATCHED]] or probabilities)


def _of_student(raw: RawWindow, student: int, z: Tensor) -> list[float]:
    """Return the temperatures of the softmaxes that were taken of the student's logits."""
    seen: list[float] = []
    for f in raw.functions:
        if f.name not in ("softmax", "log_softmax") or not f.operands:
            continue
        t, made, _ = f.operands[0]
        if t is None or not made.params & student or not raw.root.calls >> f.index & 1:
            continue
        found = temperature_of(t, z)
        if found is not None and found not in seen:
            seen.append(found)
    return seen


def _averages(logits: list[Answer], temperatures: list[float]) -> list[Answer]:
    """Return what several teachers say together: the mean of their probabilities at each temperature, or of logits."""
    found = [Answer("logits", torch.stack([v for _, v in logits]).mean(0))]
    for t in temperatures:  # the mean of their probabilities at a temperature is that of no logits at another
        mixed = torch.stack([(v / t).softmax(1) for _, v in logits]).mean(0)
        found.insert(0, Answer("logits", mixed.clamp_min(_LEAST_PROBABILITY).log() * t))
    return found
