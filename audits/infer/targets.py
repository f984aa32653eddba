"""What a loss holds the student's answer against: labels, its own answer, or numbers that no network gave here."""

import torch
from torch import Tensor

from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import FunctionCall, RawWindow

_ROWS, _ONE_ANSWER, _TINIEST = 64, 0.99, 1e-30
"Rows compared, the cosine above which two answers, centred, are one, and what is kept from dividing by zero."
_EXACT = 1e-6
"Up to which two probabilities that somebody wrote are one number: single precision."
PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum"})
_LOG_SUM = 2e-2
"Up to which the logarithm of a sum of probabilities is zero: half precision over a thousand classes."


def is_against_stored(call: FunctionCall, student: int) -> bool:
    """Say whether the student's answer is held against what may be a stored one: floating numbers that no parameter
    made."""
    if call.name not in ("kl_div", "mse_loss", "cross_entropy", "smooth_l1_loss", "l1_loss", "huber_loss"):
        return False
    stored = [
        (t, shape) for t, made, shape in call.operands if not made.params and (t is None or t.is_floating_point())
    ]
    of_student = [shape for _, made, shape in call.operands if made.params & student]
    return any(shape == own and len(shape) >= 2 and shape[-1] > 1 for _, shape in stored for own in of_student)


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
    if call.name not in ("kl_div", "mse_loss") or len(call.operands) < 2:
        return False
    masks = [made.params for _, made, _ in call.operands[:2]]
    return all(m & student for m in masks) and not any(m & ~student for m in masks)


def are_scores(logits: Tensor, raw: RawWindow, taint: Taint) -> bool:
    """Say whether logits are a product of two networks' answers."""
    calls = taint.of(logits).calls
    return any(f.name in PRODUCTS and calls >> f.index & 1 for f in raw.functions)


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
    with torch.no_grad():
        return bool((value.detach().float().logsumexp(-1).abs() < _LOG_SUM).all())
