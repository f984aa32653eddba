"""What of its operands a function's result is made of, where some of them are whole numbers.

Numbers that a network chose, as the words that it wrote or the places of its largest answers, are data for whoever is
shown them: to look a row up by them makes nothing of the network that chose them. Held against as labels, they are its
answer. So they keep what chose them, which is asked for by name (`Taint.of(..., ids=True)`) and passed on as numbers.
"""

from torch import Tensor, nn

from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import DISTANCES, LABEL_LOSSES, LOOKUPS, SOFTMAXES, ModuleCall

_BY_INDEX = LOOKUPS | {"embedding", "embedding_bag", "take"}
"Functions that read at places, and make nothing of the places' own numbers."

INPLACE = frozenset({"__imul__", "__itruediv__", "__idiv__", "__iadd__", "__isub__"})
SHAPE_ONLY = frozenset({f"{word}_like" for word in ("zeros", "ones", "full", "empty", "rand", "randn", "randint")}) | {
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
}
"What takes a tensor's shape and place, and nothing of what is in it."
KEPT_WHOLE = LABEL_LOSSES | DISTANCES | SOFTMAXES | LOOKUPS | {"kl_div"}
"Functions whose arguments are kept as they were given; a user's own are too."
PRODUCTS = frozenset({"mul", "__mul__", "__rmul__", "multiply", "sub", "__sub__", "rsub", "__rsub__", "subtract"})
"By which a loss is written by hand."
LOG_SUM = 2e-2
"Up to which the logarithm of a sum of probabilities is zero: half precision over a thousand classes."
_LOOKED_AT = 64
"Rows that tell whether they are log-probabilities."
NO_WRITES = frozenset({"zero_", "detach_", "requires_grad_", "_foreach_zero_", "retain_grad"})


def passed_on(name: str, given: list[Tensor], mades: list[Made]) -> tuple[int, int]:
    """Return the masks of parameters and calls that a function passes on from its operands to what it returns."""
    params = calls = 0
    reads_numbers = name in _BY_INDEX and any(value.is_floating_point() for value in given)
    for value, made in zip(given, mades, strict=True):
        if reads_numbers and not value.is_floating_point() and not is_a_label(given, mades, value, made):
            continue
        params |= made.params
        calls |= made.calls
    return params, calls


def is_a_label(given: list[Tensor], mades: list[Made], index: Tensor, made: Made) -> bool:
    """Say whether an index picks, of each row of an answer that learns, the class that another network named."""
    source = given[0]
    one_a_row = source.ndim > 1 and index.numel() * source.shape[-1] == source.numel()
    return source.requires_grad and one_a_row and not made.params & mades[0].params


def meet_numbers(name: str, given: list[Tensor], mades: list[Made]) -> bool:
    """Say whether log-probabilities that learn meet numbers of their own shape that no network gave; or whatever learns
    is weighed by probabilities that none gave.

    So it is in a loss written by hand, against labels or against answers that were stored.
    """
    if name not in PRODUCTS or len(given) < 2:
        return False
    (a, b), made = given[:2], [bool(m.params) for m in mades[:2]]
    if a.shape != b.shape or a.ndim < 2 or a.shape[-1] < 2 or made[0] == made[1]:
        return False
    mine, its = (a, b) if made[0] else (b, a)
    if not (mine.is_floating_point() and its.is_floating_point() and mine.requires_grad) or its.requires_grad:
        return False
    if not is_readable(mine) or not is_readable(its):
        return False
    return are_parts_of_log_probabilities(mine) or ("mul" in name and _are_probabilities(its))


def _are_probabilities(value: Tensor) -> bool:
    """Say whether the rows (..., K) are probabilities, and not all of one class, as rows of labels are."""
    rows = _some(value)
    even = bool(rows.numel()) and bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < LOG_SUM).all())
    return even and float(rows.max(-1).values.mean()) < _OF_ONE


_OF_ONE = 0.999
"Largest probability in the mean from which rows name one class each."


def are_parts_of_log_probabilities(value: Tensor) -> bool:
    """Say whether the rows (..., K) may be logarithms of probabilities, of all classes or of some."""
    rows = _some(value)
    return bool(rows.numel()) and bool((rows <= 0).all()) and bool((rows.logsumexp(-1) < LOG_SUM).all())


def _some(value: Tensor) -> Tensor:
    rows = value.detach()
    while rows.ndim > 2:  # a few of them tell; flattened, a part of an answer would be copied whole
        rows = rows[0]
    return rows[:_LOOKED_AT].float()


def two_meet(given: list[Tensor], mades: list[Made]) -> bool:
    """Say whether two answers are among these that each hold parameters which the other does not."""
    answers = [
        m.params for t, m in zip(given, mades, strict=True) if t.is_floating_point() and not isinstance(t, nn.Parameter)
    ]
    return any(a & ~b and b & ~a for a in answers for b in answers)


def meets_itself(given: list[Tensor], mades: list[Made], calls: list[ModuleCall]) -> bool:
    """Say whether a network's answer is among these, and what it answered to the same batch without a gradient."""
    answers = [
        (t.requires_grad, m)
        for t, m in zip(given, mades, strict=True)
        if t.is_floating_point() and not isinstance(t, nn.Parameter) and m.calls
    ]
    for learns, mine in answers:
        for other, its in answers if learns else ():
            if other or its.params & ~mine.params or not its.calls & ~mine.calls:
                continue
            asked = [c for c in calls if its.calls >> c.index & 1 and not mine.calls >> c.index & 1 and not c.grad]
            again = [c for c in calls if mine.calls >> c.index & 1 and c.grad]
            if any(a.module is b.module and _same_batch(a, b) for a in asked for b in again):
                return True
    return False


def _same_batch(one: ModuleCall, other: ModuleCall) -> bool:
    """Say whether two calls were shown the same data."""
    if not one.given or not other.given or one.fed.params or other.fed.params:
        return False
    a, b = one.given[0], other.given[0]
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and is_readable(a) and bool((a == b).all()))
