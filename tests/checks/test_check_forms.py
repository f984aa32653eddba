"""Verdicts on the forms that a gradient shows, on traces made by hand: right ones pass, each wrong one is named."""

from typing import Any

import pytest
from specimens import (
    BACKWARD,
    TERM,
    Cases,
    explained,
    fails,
    feature,
    judge,
    named,
    passes,
    seen,
    sight,
    term,
    trace,
    undecided,
)

OWN_FORM = "--form own, kdbench.check_soft_loss(loss) in the script, or --waive KD313=REASON"


def read(form: str, **more: Any) -> dict[str, Any]:
    """What was read, as a finding of a failure or of a pass has it."""
    return {"form": form, "residual": 1e-7, **more}


WEIGHED = {
    "kd_weight": 0.9,
    "label_weight": 0.1,
    "temperature": 4.0,
    "classes": 10,
    "rows": 8,
    "residual": 1e-7,
}
AT = {"temperature": (4.0, 4.0)}
OVER = "the picture's rows (dimension 2 of (4, 5, 6, 6))"
FEATURES = {"shapes": [[8, 4], [8, 4]]}

CASES: Cases = {
    "KD313": {
        "a form that none is like, of many rows": (
            seen(term(), explained("unknown", rows=1024, looked_at=64)),
            undecided("form-not-recognised", "on 64 of its 1024 rows", OWN_FORM),
        ),
        "a mixture": (
            seen(term(), explained("jsd", beta=0.3)),
            passes("Jensen-Shannon divergence, temperature 4, beta 0.3", **read("jsd")),
        ),
        "a mixture of logits": (
            seen(term(), explained("jsd-of-logits")),
            fails("its mixture is one of logits", TERM, **read("jsd-of-logits", **AT)),
        ),
        "the student's likeliest": (
            seen(term(), explained("topk-of-student")),
            fails("the student's likeliest", TERM, **read("topk-of-student", **AT)),
        ),
        "a sum over the likeliest": (
            seen(term(), explained("topk-sum", kept=3, mass=0.75)),
            fails("which holds 25.0%", TERM, "warn", **read("topk-sum", **AT, kept=3, mass=0.75)),
        ),
        "a sum over nearly all": (
            seen(term(), explained("topk-sum", kept=3, mass=0.999)),
            passes("temperature 4, k = 3", **read("topk-sum")),
        ),
        "a sum of terms": (
            seen(term(), explained("sum", parts=["forward", "mse-logits"], weight=None)),
            passes("a sum of KL(teacher || student) and the squared distance of logits", **read("sum")),
        ),
        "reversed over tokens": (
            seen(term(), explained("reversed", sequence=True)),
            passes("KL(student || teacher), temperature 4", **read("reversed")),
        ),
        "reversed over pixels": (
            seen(term(), explained("reversed", sequence=True, pictures=True)),
            fails("the student stands in the teacher's place", TERM, "warn", **read("reversed", **AT)),
        ),
        "one side of a mixture softened": (
            seen(term(), explained("jsd", beta=0.3, temperature=(2.0, 1.0))),
            fails("only the student's side is softened", TERM, **read("jsd", temperature=(2.0, 1.0))),
        ),
        "a softmax over the height": (
            seen(term(), explained("across", across=OVER)),
            fails(f"the softmax runs over {OVER}, not over the classes", TERM, **read("across", **AT)),
        ),
        "a gradient that cancels": (
            trace(sights=[sight(term(), explained("nothing", vanishes=True)) for _ in range(2)]),
            fails("its gradient cancels at the student's logits", TERM, backwards=2),
        ),
        "a gradient that cancels once": (
            seen(term(), explained("nothing", vanishes=True)),
            undecided("not-in-these-steps", "no gradient in the steps seen", "--steps"),
        ),
        "features driven apart": (
            seen(feature(apart=True, **FEATURES), explained("nothing")),
            fails("(mse_loss) has the wrong sign", TERM, term="mse_loss", **FEATURES),
        ),
        "a cosine over the batch": (
            seen(feature("cosine_similarity", across=0, **FEATURES), explained("nothing")),
            fails("the cosine runs over the batch (dimension 0 of", TERM, dimension=0, shape=[8, 4]),
        ),
        "a cosine over the batch beside one over the features": (
            seen(feature("cosine_similarity", across=0), feature("cosine_similarity"), explained("nothing")),
            undecided("out-of-scope", "features are compared"),
        ),
    },
    "KD305": {
        "one token ahead": (
            seen(term(), explained("permuted", permutation=[1, 2, 3, 3], shift=1)),
            fails(
                "the student's token i is taught by the teacher's i + 1, in 3 of 4 rows looked at",
                BACKWARD,
                permutation=[1, 2, 3, 3],
                rows=4,
                shift=1,
            ),
        ),
        "some rows of many": (
            seen(term(), explained("permuted", permutation=[90, 50, 10], permuted_rows=[10, 50, 90])),
            fails("row 10 by that to row 90, row 90 by that to row 10", BACKWARD, permutation=[90, 50, 10], rows=3),
        ),
        "in order, whatever the form": (
            seen(term(), explained("jsd", beta=0.5)),
            passes("each row is taught by the teacher's answer to it"),
        ),
        "masked features whose rows have no known place": (
            seen(feature(whole_rows=False), explained("nothing")),
            undecided("form-not-recognised", "its rows could not be told apart"),
        ),
    },
    "KD312": {
        "rows of different weights": (
            seen(term(), explained(uneven=True)),
            undecided("form-not-recognised", "the rows have different weights", kd_weight=0.9, label_weight=0.1),
        ),
        "a mixture of the right weight": (
            seen(term(), explained("jsd", beta=0.3)),
            passes("the weights sum to one: labels 0.1, distillation 0.9", **WEIGHED),
        ),
    },
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])
