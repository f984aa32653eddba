"""A distillation loss of one's own: what any of them must hold, whatever its form."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdbench.audits.checks.catalogue import Verdict, failed, passed
from kdbench.audits.laws.answers import OddAnswerError, close, short
from kdbench.audits.laws.registry import law

_ROWS, _CLASSES = 12, 7
_HOT = (20.0, 40.0)
"Temperatures at which softmaxes are nearly flat, so that only the factor before the loss changes the gradient."
_FLAT = 0.1
"Share by which the gradients at these two may differ: what is left of the softmaxes' own bend."
_STILL = 1e-6
"Part of the usual gradient that counts as none, in double precision."


class Checked(NamedTuple):
    """A function of the user's that was found right, by where it is written."""

    name: str
    file: str
    lines: tuple[int, int]


CHECKED: list[Checked] = []
"The loss functions that were found right in this process: an audit knows their terms by it."


@law(
    "KD313",
    "target-form",
    mend="F.kl_div(F.log_softmax(student / T, dim=1), F.softmax(teacher / T, dim=1), reduction='batchmean') * T * T",
)
def check_soft_loss(loss: Callable[..., Any], temperature: bool = False, shift: bool = True) -> Verdict:
    """A distillation loss is least where student and teacher agree, and sees nothing but what it should.

    ``loss(student, teacher)`` gets two sets of logits (N, C), float64, and returns one number with a gradient for the
    student; with `temperature` it is ``loss(student, teacher, T)``. Fails when equal answers leave a gradient, when
    they have a larger loss than others, when the order of samples or of classes matters, when the same batch twice is
    another loss (no mean over the rows), when a constant added to a row's logits changes it (`shift`; False for a
    distance of logits), and when the gradient grows or shrinks with a high temperature: T * T is missing.
    """
    g = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(_ROWS, _CLASSES, generator=g, dtype=torch.float64) for _ in range(2))
    at = (3.0,) if temperature else ()

    def value(student: Tensor, teacher: Tensor, *more: float) -> float:
        return float(_one_number(loss(student, teacher, *(more or at))).detach())

    def gradient(student: Tensor, teacher: Tensor, *more: float) -> Tensor:
        leaf = student.clone().requires_grad_(True)
        out = _one_number(loss(leaf, teacher, *(more or at)))
        if not out.requires_grad:
            raise OddAnswerError("the loss has no gradient for the student's logits")
        (found,) = torch.autograd.grad(out, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if found is None else found

    usual, equal = float(gradient(s, t).norm()), float(gradient(t.clone(), t).norm())
    if not usual > 0:
        return failed("the loss gives the student's logits no gradient", {"gradient": usual})
    if equal > _STILL * usual:
        return failed(
            f"equal answers are not where the loss is least: they leave a gradient of {equal / usual:.2g} of the usual",
            {"gradient": usual, "at_equality": equal},
        )
    start, agreed = value(s, t), value(t.clone(), t)
    if not agreed < start:
        return failed(
            f"equal answers have a loss of {agreed:.4g} and others of {start:.4g}: it drives the student away from the "
            "teacher, its sign is wrong",
            {"loss": start, "at_equality": agreed},
        )
    rows, classes = torch.randperm(_ROWS, generator=g), torch.randperm(_CLASSES, generator=g)
    constant = torch.randn(_ROWS, 1, generator=g, dtype=torch.float64)
    same: list[tuple[str, float]] = [
        ("the order of the samples changes the loss", value(s[rows], t[rows])),
        ("the order of the classes changes the loss", value(s[:, classes], t[:, classes])),
    ]
    if shift:
        same += [
            ("a constant added to a row of the student's logits changes the loss", value(s + constant, t)),
            ("a constant added to a row of the teacher's logits changes the loss", value(s, t + constant)),
        ]
    for said, found in same:
        if not close(found, start):
            return failed(f"{said}: {start:.4g} becomes {found:.4g}", {"loss": start, "changed": found})
    twice = value(torch.cat([s, s]), torch.cat([t, t]))
    if not close(twice, start):
        what = "not divided by the batch" if twice > start else "divided by the batch twice"
        return failed(
            f"the same batch twice is {twice / start:.3g} times the loss: it is {what}", {"ratio": twice / start}
        )
    if temperature and (verdict := _under_temperature(gradient, s, t)) is not None:
        return verdict
    _remember(loss)
    return passed("the loss is least at equal answers and depends on nothing that it should not", {"gradient": usual})


def _under_temperature(gradient: Callable[..., Tensor], s: Tensor, t: Tensor) -> Verdict | None:
    """Judge how the gradient goes with a high temperature: T^2 before the loss keeps its size."""
    low, high = (float(gradient(s, t, temperature).norm()) for temperature in _HOT)
    ratio = high / low if low else float("inf")
    if abs(ratio - 1) <= _FLAT:
        return None
    factor = _HOT[1] / _HOT[0]
    powers = {-2: "T * T is missing", -1: "it is multiplied by T instead of T * T", 1: "it is multiplied by T^3"}
    named = next((said for n, said in powers.items() if abs(ratio / factor**n - 1) <= _FLAT), "")
    return failed(
        f"from temperature {_HOT[0]:g} to {_HOT[1]:g} the gradient becomes {ratio:.3g} times what it was"
        + (f": {named}" if named else ""),
        {"ratio": ratio, "temperatures": list(_HOT)},
    )


def _one_number(out: Any) -> Tensor:
    if not isinstance(out, Tensor) or out.numel() != 1:
        raise OddAnswerError(f"the loss is {short(out)}, not a tensor of one number")
    return out.reshape(())


def _remember(loss: Callable[..., Any]) -> None:
    """Note where a function that was found right is written."""
    function: Any = getattr(loss, "forward", loss)
    function = inspect.unwrap(getattr(function, "__func__", getattr(function, "func", function)))
    code = getattr(function, "__code__", None)
    if code is not None:
        last = max((line for *_, line in code.co_lines() if line is not None), default=code.co_firstlineno)
        CHECKED.append(Checked(code.co_name, code.co_filename, (code.co_firstlineno, last)))
