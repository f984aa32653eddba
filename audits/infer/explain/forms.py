"""The gradient that each form of a distillation term leaves at the student's logits, row by row.

Each in the scale of T^2 times the divergence of one row, so that of T^2 KL(teacher || student) it is
T (softmax(z/T) - softmax(t/T)); a mean over N rows has 1/N of it. T is the student's temperature.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.explain.heads import Kind

_LEAST_PROBABILITY = 1e-38
"Near the least normal number of single precision, where a softmax written by hand ends: its logarithm is still finite."
_EPSILON = 1e-7
"What logit standardisation adds to the deviation."


class Sides:
    """Student and teacher (n, C) at their temperatures, with what several forms are made of."""

    def __init__(self, z: Tensor, t: Tensor, kind: Kind, ts: float, tt: float) -> None:
        self.z, self.t, self.kind, self.ts, self.tt = z, t, kind, ts, tt

    @cached_property
    def log_s(self) -> Tensor:
        """The student's log-probabilities."""
        return (self.z / self.ts).log_softmax(1)

    @cached_property
    def ps(self) -> Tensor:
        """The student's probabilities."""
        return self.log_s.exp()

    @cached_property
    def log_t(self) -> Tensor:
        """The teacher's log-probabilities."""
        if self.kind == "probabilities":
            return self.t.clamp_min(_LEAST_PROBABILITY).log()
        return (self.t / self.tt).log_softmax(1)

    @cached_property
    def pt(self) -> Tensor:
        """The teacher's probabilities."""
        return self.t if self.kind == "probabilities" else self.log_t.exp()

    def through(self, u: Tensor) -> Tensor:
        """Return the gradient at z, in the scale of T^2, of a loss whose gradient at the log-probabilities is u."""
        return self.ts * (u - self.ps * u.sum(1, keepdim=True))


def forward(s: Sides) -> Tensor:
    """KL(teacher || student), and a cross-entropy with the teacher's probabilities."""
    return s.ts * (s.ps - s.pt)


def reversed_(s: Sides) -> Tensor:
    """KL(student || teacher)."""
    ratio = s.log_s - s.log_t
    return s.ts * s.ps * (ratio - (s.ps * ratio).sum(1, keepdim=True))


def _probabilities(s: Sides) -> Tensor:
    return -s.ts * s.ps * (s.pt - (s.ps * s.pt).sum(1, keepdim=True))


def _log_target(s: Sides) -> Tensor:
    return s.through(-s.log_t)


def _log_weights(s: Sides) -> Tensor:
    return s.through(2 * s.log_s - s.log_t)


def _mse_probabilities(s: Sides) -> Tensor:
    d = s.ps - s.pt
    return 2 / s.ts * s.ps * (d - (s.ps * d).sum(1, keepdim=True)) / s.z.shape[1]


def _logits_as_target(s: Sides) -> Tensor:
    return s.through(-s.t / s.tt)


def _hard_labels(s: Sides) -> Tensor:
    hard = torch.zeros_like(s.t).scatter_(1, s.t.argmax(1, keepdim=True), 1.0)
    return s.z.softmax(1) - hard


def _mse_logits(s: Sides) -> Tensor:
    return 2 * (s.z - s.t) / s.z.shape[1]


def _cosine(s: Sides) -> Tensor:
    u, v = (x / x.norm(dim=1, keepdim=True).clamp_min(_EPSILON) for x in (s.z, s.t))
    return ((u * v).sum(1, keepdim=True) * u - v) / s.z.norm(dim=1, keepdim=True).clamp_min(_EPSILON)


def _sigmoids(s: Sides) -> Tensor:
    y = s.t if s.kind == "probabilities" else (s.t / s.tt).sigmoid()
    return s.ts * ((s.z / s.ts).sigmoid() - y) / s.z.shape[1]


def _sigmoids_to_softmax(s: Sides) -> Tensor:
    return s.ts * ((s.z / s.ts).sigmoid() - s.pt) / s.z.shape[1]


def _standardised(s: Sides) -> Tensor:
    def standardise(x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + _EPSILON)

    def loss(z: Tensor) -> Tensor:
        target = (standardise(s.t) / s.tt).softmax(1)
        return -(s.ts * s.ts * target * (standardise(z) / s.ts).log_softmax(1)).sum()

    return by_autograd(loss, s.z)


def by_autograd(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return the gradient of a loss of one's own at these rows."""
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


def jsd(s: Sides, beta: float) -> Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student."""
    ratio = s.log_s - (beta * s.pt + (1 - beta) * s.ps).clamp_min(_LEAST_PROBABILITY).log()
    return (1 - beta) * s.ts * s.ps * (ratio - (s.ps * ratio).sum(1, keepdim=True))


def _jsd_swapped(s: Sides, beta: float) -> Tensor:
    """The same with the mixture before the bar."""

    def loss(log_s: Tensor) -> Tensor:
        q = log_s.exp()
        m = beta * s.pt + (1 - beta) * q
        log_m = m.clamp_min(_LEAST_PROBABILITY).log()
        return (m * (log_m - beta * s.log_t - (1 - beta) * log_s)).sum()

    return s.through(by_autograd(loss, s.log_s))


def _jsd_of_logits(s: Sides, beta: float) -> Tensor:
    """The same with a mixture of logits."""

    def loss(log_s: Tensor) -> Tensor:
        log_m = (beta * s.log_t + (1 - beta) * log_s).log_softmax(1)
        q = log_s.exp()
        return (beta * s.pt * (s.log_t - log_m) + (1 - beta) * q * (log_s - log_m)).sum()

    return s.through(by_autograd(loss, s.log_s))


class Form(NamedTuple):
    """A form of the term, by its gradient."""

    name: str
    gradient: Callable[..., Tensor]
    softens: bool = True
    "Whether temperatures enter."
    invariant: bool = True
    "Whether a constant added to a row of the student's logits leaves the loss, so that a row's gradient sums to zero."
    logits: bool = False
    "Whether it needs the teacher's logits, so that its probabilities are not enough."
    mixes: bool = False
    "Whether it has a beta."


FORWARD = Form("forward", forward)
REVERSED = Form("reversed", reversed_)
JSD = Form("jsd", jsd, mixes=True)
FORMS = (
    FORWARD,
    REVERSED,
    Form("probabilities", _probabilities),
    Form("log-target", _log_target),
    Form("log-weights", _log_weights),
    Form("mse-probabilities", _mse_probabilities),
    Form("logits-as-target", _logits_as_target, logits=True),
    Form("hard-labels", _hard_labels, softens=False, logits=True),
    Form("mse-logits", _mse_logits, softens=False, invariant=False, logits=True),
    Form("cosine", _cosine, softens=False, invariant=False, logits=True),
    Form("sigmoids", _sigmoids, invariant=False),
    Form("sigmoids-to-softmax", _sigmoids_to_softmax, invariant=False),
    Form("standardised", _standardised, logits=True),
)
"The forms without a beta, the likeliest first."
MIXED = (JSD, Form("jsd-swapped", _jsd_swapped, mixes=True), Form("jsd-of-logits", _jsd_of_logits, mixes=True))


class Try(NamedTuple):
    """A form with its numbers."""

    form: Form
    ts: float
    tt: float
    beta: float | None = None

    def gradient(self, z: Tensor, t: Tensor, kind: Kind, sides: Sides | None = None) -> Tensor:
        """Return what it leaves at the logits z (n, C)."""
        s = sides or Sides(z, t, kind, self.ts, self.tt)
        return self.form.gradient(s) if self.beta is None else self.form.gradient(s, self.beta)

    @property
    def name(self) -> str:
        """The name of the form, told apart where the two sides have different temperatures."""
        return "one-sided" if self.form is FORWARD and self.ts != self.tt else self.form.name
