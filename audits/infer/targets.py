"""What a loss holds the student's answer against: labels, its own answer, or numbers that no network gave here."""

import math

import torch
from torch import Tensor

from kdbench.audits.observe.flow import LOG_SUM, PRODUCTS
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import SMALL, FunctionCall, RawWindow

_ROWS, _ONE_ANSWER, _TINIEST = 64, 0.99, 1e-30
"Rows compared, the cosine above which two answers, centred, are one, and what is kept from dividing by zero."
_EXACT = 1e-6
"Up to which two probabilities that somebody wrote are one number: single precision."
MATRIX_PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum"})
_SUM = 2e-2
"Up to which a sum of probabilities is one: half precision over a thousand classes."
_LEAST_PART = 0.1
"Of the probability, what the likeliest classes that somebody stores hold at least, in the mean."


def is_against_stored(call: FunctionCall, student: int, declared: bool = False) -> bool:
    """Say whether the student's answer is held against what may be a stored one: floating numbers that no parameter
    made; one a sample, such as a margin of scores, only where stored answers are declared."""
    if call.name not in ("kl_div", "mse_loss", "cross_entropy", "smooth_l1_loss", "l1_loss", "huber_loss"):
        return False
    stored = [
        (t, shape) for t, made, shape in call.operands if not made.params and (t is None or t.is_floating_point())
    ]
    of_student = [shape for _, made, shape in call.operands if made.params & student]
    if declared:
        return any(shape == own and math.prod(shape) > 1 for _, shape in stored for own in of_student)
    return any(shape == own and len(shape) >= 2 and shape[-1] > 1 for _, shape in stored for own in of_student)


def lookup_of(call: FunctionCall, raw: RawWindow) -> FunctionCall | None:
    """Return the lookup of several classes in each row that a loss is computed from, as of a teacher's likeliest."""
    for f in raw.functions:
        if f.name not in ("gather", "take_along_dim") or not isinstance(f.out, Tensor) or len(f.operands) < 2:
            continue
        shape = tuple(f.out.shape)
        made = [made.calls >> f.index & 1 for _, made, own in call.operands[:2] if own == shape]
        if any(made) and len(shape) > 1 and 1 < shape[-1] < f.operands[0][2][-1]:
            return f
    return None


def stored_probabilities(call: FunctionCall, raw: RawWindow, student: int) -> Tensor | None:
    """Return the probabilities that a divergence written by hand holds the student's log-probabilities against.

    They are numbers that no network gave here, of all classes or of the likeliest, in a product or a difference.

    Numbers by which single tokens are weighed, or their earlier log-probabilities, are none: there the last dimension
    is no row of classes.
    """
    if call.name not in PRODUCTS or len(call.operands) < 2:
        return None
    mine = next((t for t, made, _ in call.operands[:2] if t is not None and made.params & student), None)
    its = next((t for t, made, _ in call.operands[:2] if t is not None and not made.params), None)
    if mine is None or its is None or mine.shape != its.shape or looks_like_labels(its):
        return None
    if not are_log_probabilities(mine) and lookup_of(call, raw) is None:
        return None
    return probabilities_in(its.detach())


def probabilities_in(value: Tensor) -> Tensor | None:
    """Return probabilities (..., K), given as they are or as logarithms; None where the numbers are neither."""
    rows = value.reshape(-1, value.shape[-1])[:_ROWS].float()
    for logs in (False, True):
        if bool(((rows <= 0) if logs else (rows >= 0)).all()):
            sums = (rows.exp() if logs else rows).sum(1)
            if bool((sums <= 1 + _SUM).all()) and float(sums.mean()) >= _LEAST_PART:
                return value.exp() if logs else value
    return None


def one_answer(one: Tensor, logits: Tensor) -> bool:
    """Say whether numbers are these logits, be they divided by a temperature or the probabilities of that."""
    if one.ndim < 2 or one.shape != logits.shape or one.shape[-1] < 2:
        return False

    def unit(rows: Tensor) -> Tensor:
        rows = rows - rows.mean(1, keepdim=True)
        return rows / rows.norm(dim=1, keepdim=True).clamp_min(_TINIEST)

    a, b = (t.detach().reshape(-1, t.shape[-1])[:_ROWS].double() for t in (one, logits))
    forms = [a, a.log()] if bool((a > 0).all()) else [a]
    return any(bool(((unit(form) * unit(b)).sum(1) > _ONE_ANSWER).all()) for form in forms)


def is_against_itself(call: FunctionCall, student: int) -> bool:
    """Say whether both sides of a loss are made of the student alone."""
    if call.itself:
        return not any(made.params & ~student for _, made, _ in call.operands)
    if call.name not in ("kl_div", "mse_loss") or len(call.operands) < 2:
        return False
    masks = [made.params for _, made, _ in call.operands[:2]]
    return all(m & student for m in masks) and not any(m & ~student for m in masks)


def holds_kept(call: FunctionCall, student: int, modules: int) -> bool:
    """Say whether a loss holds the student's answer against one that it gave in an earlier window: that one went
    through none of this window's calls of `modules`, and the other side did."""
    of_student = [made for _, made, _ in call.operands[:2] if made.params & student and not made.params & ~student]
    live = [made for made in of_student if made.calls & modules]
    return bool(live) and len(live) < len(of_student) and is_against_itself(call, student)


def are_scores(logits: Tensor, raw: RawWindow, taint: Taint) -> bool:
    """Say whether logits are a product of two networks' answers."""
    calls = taint.of(logits).calls
    return any(f.name in MATRIX_PRODUCTS and calls >> f.index & 1 for f in raw.functions)


def is_a_place(target: Tensor, width: int) -> bool:
    """Say whether the target is where a contrastive loss puts its positives: always first, or on the diagonal; of
    scores of this width, also on that of several squares, one below the other."""
    if target.numel() < 8 or (target.ndim > 1 and target.shape[-1] > 1):
        return False
    first = target.detach().cpu().flatten()
    places = torch.arange(len(first))
    diagonal = bool((first == places).all()) or (width > 2 and bool((first == places % width).all()))
    return diagonal or bool((first == first[0]).all())


def looks_like_labels(target: Tensor) -> bool:
    """Say whether rows of probabilities are one-hot, smoothed or a mixture of two labels, and no network's answer."""
    if target.ndim < 2:
        return True
    rows = target.detach().reshape(-1, target.shape[-1])[:64].float()
    if rows.shape[1] < 3:
        return bool(((rows - rows.round()).abs() < _EXACT).all())
    rest = rows.sort(dim=1).values[:, :-2]
    return (bool((rest.amax(1) - rest.amin(1)).max() <= _EXACT) and rows.shape[1] > 3) or bool(
        ((rows - rows.round()).abs() < _EXACT).all()
    )


def are_log_probabilities(value: Tensor) -> bool:
    """Say whether the rows (..., C) are logarithms of probabilities."""
    if value.ndim < 2 or not value.is_floating_point():
        return False
    rows = value.detach()
    if rows.numel() > SMALL:  # a few of them tell, and all in single precision would be as large as the answer, twice
        at = torch.linspace(0, rows[..., 0].numel() - 1, _ROWS).long().to(rows.device)
        rows = rows[torch.unravel_index(at, rows.shape[:-1])]
    return bool((rows.float().logsumexp(-1).abs() < LOG_SUM).all())
