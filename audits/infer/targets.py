"""What a loss holds the student's answer against: its own answer, or numbers that no network gave in this window."""

from torch import Tensor

from kdbench.audits.observe.windows import FunctionCall

_ROWS, _ONE_ANSWER, _TINIEST = 64, 0.99, 1e-30
"Rows compared, the cosine above which two answers, centred, are one, and what is kept from dividing by zero."


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
