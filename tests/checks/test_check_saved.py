"""Verdicts on what is saved and loaded back, to the number, on traces made by hand."""

from typing import Any

import pytest
from specimens import OTHER, Cases, change, explained, fails, judge, passes, sight, term, trace, undecided

from kdbench.audits.trace import Kept, Saved, Trace

TEACHERS = Saved(0.0, 1.0, OTHER)


def kept(*saves: Saved, **fields: Any) -> Trace:
    whole, more = fields.pop("whole", True), fields.pop("trace", {})
    return trace(script=True, sights=[sight(term(), explained())], kept=Kept([*saves], whole=whole, **fields), **more)


ALONE = "what is saved after the distillation are the teacher's numbers, and the student's are in no file"
CASES: Cases = {}
CASES["KD335"] = {
    "the teacher alone": (kept(TEACHERS, Saved(0.0, 0.2, None)), fails(ALONE, OTHER, saves=2)),
    "both": (kept(TEACHERS, Saved(0.99, 0.0, None)), passes("the student is in 1 of 2 files")),
    "the student without its head": (kept(TEACHERS, Saved(0.5, 0.0, None)), passes("the student is in 1 of 2 files")),
    "less than half of it": (kept(TEACHERS, Saved(0.49, 0.0, None)), fails(ALONE, OTHER, saves=2)),
    "a part of the teacher": (
        kept(Saved(0.0, 0.98, None)),
        undecided("not-in-these-steps", "nothing of the student was saved"),
    ),
    "an averaged teacher": (
        kept(TEACHERS, trace={"change": change(rate=0.01)}),
        undecided("not-in-these-steps", "nothing of the student was saved"),
    ),
    "not to its end": (
        kept(TEACHERS, whole=False),
        undecided("not-in-these-steps", "up to here; the script was not seen to its end", "--steps"),
    ),
    "by reference": (
        kept(Saved(1.0, 0.0, None), own=[OTHER, None]),
        fails("the state was kept by reference", OTHER, loads=2),
    ),
    "no name": (
        kept(nothing=[("Net", "module.fc.weight", OTHER)]),
        fails(
            "finds no name of Net in what it is given (which begins with module.fc.weight)",
            OTHER,
            module="Net",
            name="module.fc.weight",
        ),
    ),
    "nothing": (kept(), undecided("not-in-these-steps", "nothing of the student was saved")),
}


@pytest.mark.parametrize(("id", "case"), [(id, case) for id, cases in CASES.items() for case in cases])
def test_verdict(id: str, case: str) -> None:
    judge(id, *CASES[id][case])
