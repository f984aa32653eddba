"""Selection: which epoch is reported."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from kdbench.audits.checks.catalogue import Verdict, failed, passed
from kdbench.audits.laws.answers import OddAnswerError, short
from kdbench.audits.laws.registry import law, same_random_state

CURVES = (
    (0.5, 0.7, 0.8, 0.85, 0.9),
    (0.5, 0.8, 0.92, 0.91, 0.88),
    (0.9, 0.8, 0.7, 0.6, 0.5),
    (0.5, 0.92, 0.92, 0.92, 0.8),
    (0.5, 0.9199, 0.92, 0.9198, 0.8),
    (0.7, 0.7, 0.7, 0.7, 0.7),
)
"Validation accuracies: the best epoch at the end, within, at the start, tied, nearly tied, all tied."


def _where_is(curve: Sequence[float], value: float) -> list[int]:
    return [epoch for epoch, score in enumerate(curve) if score == value]


PICKS: dict[str, Callable[[Sequence[float], Sequence[float], int], bool]] = {
    "takes the epoch best on test": lambda val, test, pick: pick in _where_is(test, max(test)),
    "lets test decide between epochs equally good on validation": lambda val, _, pick: pick in _where_is(val, max(val)),
    "takes the epoch lowest on validation": lambda val, _, pick: pick in _where_is(val, min(val)),
    "takes the last epoch": lambda val, _, pick: pick == len(val) - 1,
    "takes the first epoch": lambda val, _, pick: pick == 0,
    "counts epochs from 1": lambda val, _, pick: pick - 1 in _where_is(val, max(val)),
}
"Likely slips of a selection: whether each would pick this epoch."


@law(
    "KD333",
    "selection-ignores-test",
    mend="pick by validation alone: max(range(len(val)), key=lambda epoch: (val[epoch], epoch)); test only scores it",
)
def check_selection(select: Callable[[list[float], list[float]], Any]) -> Verdict:
    """The reported epoch is one of the best on validation, whatever the test scores are.

    ``select(val, test)`` gets accuracies by epoch (higher is better) and returns the index of an epoch, from 0. Fails
    when the pick moves when only test moves, or is not among the best epochs on validation.
    """
    seen: list[tuple[Sequence[float], Sequence[float], int]] = []

    def ask(val: Sequence[float], test: Sequence[float]) -> int:
        with same_random_state():  # so that drawing lots between equals is not taken for looking at test
            answer = select(list(val), list(test))
        try:
            pick = operator.index(answer)
        except TypeError:
            raise OddAnswerError(f"select returned {short(answer)}, not the index of an epoch") from None
        seen.append((val, test, pick))
        return pick

    moved: dict[str, Any] | None = None
    missed: dict[str, Any] | None = None
    for val in CURVES:
        flat = [0.3] * len(val)
        pick = ask(val, flat)
        best = _where_is(val, max(val))
        if pick not in best:
            missed = missed or {"validation": list(val), "test": flat, "pick": pick, "best": best}
        if ask(val, flat) != pick:
            return failed("two calls with the same curves pick different epochs", {"validation": list(val)})
        for epoch in range(len(val)):
            for score in (0.99, 0.1):
                test = [score if e == epoch else 0.3 for e in range(len(val))]
                other = ask(val, test)
                if other != pick:
                    moved = moved or {"validation": list(val), "test": test, "pick": other, "pick_with_flat_test": pick}
    if not moved and not missed:
        return passed(f"the pick is best on validation and stays for {len(seen)} pairs of curves", {"pairs": len(seen)})
    slips = (f": it {phrase}" for phrase, would_pick in PICKS.items() if all(would_pick(*one) for one in seen))
    slip = next(slips, "")
    if moved:
        return failed(
            f"with validation {moved['validation']} the pick moves from epoch {moved['pick_with_flat_test']} to "
            f"{moved['pick']} when only test moves{slip}",
            moved,
        )
    assert missed is not None
    return failed(
        f"with validation {missed['validation']} the pick is {missed['pick']}, and best is "
        f"{' or '.join(map(str, missed['best']))}{slip}",
        missed,
    )
