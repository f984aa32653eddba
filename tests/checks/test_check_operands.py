"""Verdicts on what student and teacher meet in, to the number, on traces made by hand."""

from typing import Any

import pytest
from specimens import (
    BACKWARD,
    TERM,
    Cases,
    change,
    explained,
    fails,
    feature,
    judge,
    named,
    passes,
    seen,
    sight,
    trace,
    undecided,
)

from kdbench.audits.trace import Term, Trace

CASES: Cases = {}
OWN_FORM = "--form own, kdbench.check_soft_loss(loss) in the script, or --waive KD313=REASON"


def twice(one: Term, other: Term | None = None) -> Trace:
    """Two backwards, each with a term."""
    return trace(script=True, sights=[sight(one), sight(other or one)])


def scored(least: float, most: float) -> Trace:
    return seen(feature("binary_cross_entropy_with_logits", target_least=least, target_most=most))


def centred(size: float, rate: float | None = 0.03) -> Trace:
    made = seen(explained("one-sided", temperature=(0.1, 0.06), centre=(size, 1.0)))
    made.teacher.change = change(1, rate=rate)
    return made


def sharpened(**fields: Any) -> dict[str, Any]:
    return {"form": "one-sided", "temperature": (0.1, 0.06), "residual": 1e-7, **fields}


CASES["KD311"] = {
    "a softmax over one number": (
        twice(feature("mul", of_one=1, shapes=[(8, 1), (8, 1)])),
        fails(
            "the term (mul) does not depend on the student's answer: its softmax runs over dimension 1",
            TERM,
            term="mul",
            dimension=1,
            shapes=[[8, 1], [8, 1]],
        ),
    ),
    "a softmax over one number, once": (
        twice(feature("mul", of_one=1), feature("mul")),
        passes("the distillation's gradient reaches the student"),
    ),
}
CASES["KD313"] = {
    "scores": (scored(0.0, 1.0), undecided("out-of-scope", "scores are compared")),
    "scores, but for half precision": (scored(-0.01, 1.01), undecided("out-of-scope", "scores are compared")),
    "no scores": (
        scored(-2.0, 3.0),
        fails(
            "is given as target what are no scores from 0 to 1, but numbers from -2 to 3",
            TERM,
            target_least=-2.0,
            target_most=3.0,
        ),
    ),
    "a contrast": (
        twice(feature("matmul", contrast=1.0)),
        undecided("out-of-scope", "features are compared (matmul)"),
    ),
    "a contrast of two temperatures": (
        twice(feature("matmul", contrast=10.0)),
        fails("drives the student from the others is 10 times what draws it", TERM, term="matmul", ratio=10.0),
    ),
    "a contrast of two temperatures, once": (
        twice(feature("matmul", contrast=10.0), feature("matmul", contrast=1.0)),
        undecided("out-of-scope", "features are compared (matmul)"),
    ),
    "a product of distributions": (
        seen(feature("mul", entropy=True)),
        undecided("out-of-scope", "features are compared (mul)"),
    ),
    "an advantage that carries a gradient": (
        seen(feature("sub", lowers_all=True, shapes=[(8, 4), (8, 4)])),
        fails("lowers each of the student's by one number", TERM, "warn", term="sub", shapes=[[8, 4], [8, 4]]),
    ),
    "a centre": (centred(1.9), passes("temperatures 0.1 and 0.06", form="one-sided", residual=1e-7)),
    "a centre that is no mean": (
        centred(2.1),
        fails("is no mean of them: it has numbers up to 2.1", BACKWARD, **sharpened()),
    ),
    "a centre of a teacher that stands still": (
        centred(2.1, None),
        undecided("form-not-recognised", "was not understood", decide_with=OWN_FORM),
    ),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])
