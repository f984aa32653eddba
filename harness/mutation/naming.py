"""How well the audits name a bug that is known to be there."""

from collections.abc import Collection, Sequence
from typing import Literal

Answer = Literal["first", "named", "other", "undecided", "silent"]


def answer(expected: Collection[str], failed: Sequence[str], undecided: bool) -> Answer:
    """Return how well audits named a bug.

    `expected` are the ids of the audits that should tell, `failed` those that failed, the causes first; `undecided`
    says that the bug made the training one that the audits do not understand.
    """
    if failed and failed[0] in expected:
        return "first"
    if {*failed} & {*expected}:
        return "named"
    if failed:
        return "other"
    return "undecided" if undecided else "silent"
