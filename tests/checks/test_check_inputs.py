"""Verdicts on what student and teacher are shown, to the number, on traces made by hand."""

from typing import Any

import pytest
from specimens import (
    BACKWARD,
    OTHER,
    TERM,
    TURN,
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
    term,
    trace,
    undecided,
)

from kdbench.audits.infer.explain import Explanation
from kdbench.audits.trace import Inputs, Term, Trace

CASES: Cases = {}


def shaped(*shapes: tuple[int, ...], name: str = "mse_loss", kind: Any = "feature") -> Term:
    return term(name, kind, shapes=list(shapes))


CASES["KD106"] = {
    "overwritten": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), overwritten=("bn", "ReLU"))]),
        fails(
            "a hook on bn is handed what ReLU overwrites in place: the features compared are those after it",
            BACKWARD,
            hooked="bn",
            overwritten_by="ReLU",
        ),
    ),
    "embeddings for a block": (
        trace(sights=[sight(feature("cosine_similarity"), depths={((1, 2), (0, 3)): TERM})]),
        fails(
            "behind its block 1 of 2 are compared with what the teacher's first block is given, its embeddings",
            TERM,
            student_blocks=[1, 2],
            teacher_blocks=[0, 3],
        ),
    ),
    "one pair again and again": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), same_again=(3, TERM)) for _ in range(2)]),
        fails("one pair of answers is compared 3 times, by one line", TERM, times=3),
    ),
    "one pair again, once": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), same_again=(3, TERM)), sight(shaped((8, 4), (8, 4)))]),
        passes("one shape in 2 distances"),
    ),
    "one pair again, seen once": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), same_again=(3, TERM))]),
        passes("one shape in 1 distances"),
    ),
    "embeddings for embeddings": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), depths={((0, 2), (0, 3)): TERM})]),
        passes("one shape in 1 distances"),
    ),
    "a block for a block": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), depths={((2, 2), (1, 3)): TERM})]),
        passes("one shape in 1 distances"),
    ),
    "each block early": (
        trace(sights=[sight(depths={((0, 2), (0, 4)): TERM, ((1, 2), (1, 4)): TERM, ((2, 2), (3, 4)): TERM})]),
        fails("2 blocks is held against the block before its place", TERM, pairs=[[1, 1], [2, 3]], blocks=[2, 4]),
    ),
    "the last in its place": (
        trace(sights=[sight(shaped((8, 4), (8, 4)), depths={((1, 2), (1, 4)): TERM, ((2, 2), (4, 4)): TERM})]),
        passes("one shape in 1 distances"),
    ),
    "no distance": (seen(feature("normalize")), undecided("out-of-scope", "no distance between features")),
    "equal": (
        seen(shaped((8, 4), (8, 4)), shaped((8, 2), (8, 2)), feature("cosine_similarity")),
        passes("one shape in 2 distances"),
    ),
    "unequal": (
        seen(shaped((8, 4), (8, 4)), shaped((8, 4), (8, 1))),
        fails("mse_loss compares features of shapes (8, 4) and (8, 1)", TERM, shapes=[[8, 4], [8, 1]]),
    ),
    "unequal logits": (
        seen(shaped((8, 10), (10,), kind="soft", name="sub")),
        fails("sub compares features of shapes (8, 10) and (10,)", TERM, shapes=[[8, 10], [10]]),
    ),
    "unequal, where it may be": (seen(shaped((8, 4), (8, 1), name="cosine_similarity")), undecided("out-of-scope", "")),
    "with a number": (seen(shaped((8, 4), ())), passes("one shape in 1 distances")),
    "one operand": (seen(shaped((8, 4))), passes("one shape in 1 distances")),
    "three operands": (seen(shaped((8, 4), (8, 1), (8, 1))), passes("one shape in 1 distances")),
    **{
        f"unequal in {name}": (
            seen(shaped((8, 4), (8, 1), name=name)),
            fails(f"{name} compares features", TERM, shapes=[[8, 4], [8, 1]]),
        )
        for name in ("l1_loss", "smooth_l1_loss", "huber_loss", "sub", "__sub__", "rsub")
    },
}


def shown(*relations: Any, detail: str = "by 2 pixels") -> Trace:
    return trace(sights=[sight(inputs=Inputs(r, detail) if r else None, number=i) for i, r in enumerate(relations)])


CASES["KD304"] = {
    "unfamiliar, though one batch for both": (
        trace(sights=[sight(inputs=Inputs("untrained", "x"))], same_input=True),
        fails("the teacher is shown unfamiliar inputs: x", BACKWARD, relation="untrained", detail="x"),
    ),
    "another mask": (
        shown("context"),
        fails(
            "the student's words with another attention mask: by 2 pixels",
            BACKWARD,
            relation="context",
            detail="by 2 pixels",
        ),
    ),
    "told less than it was trained with": (
        shown("lacking"),
        fails(
            "the teacher is not told what it was trained with: by 2 pixels",
            BACKWARD,
            relation="lacking",
            detail="by 2 pixels",
        ),
    ),
    "views that are not crossed": (
        trace(sights=[sight(inputs=Inputs("same"), uncrossed=2)] * 2, change=change(1, rate=0.02)),
        fails("both networks are shown 2 views", BACKWARD, relation="uncrossed", views=2),
    ),
    "views that are crossed now and then": (
        trace(
            sights=[sight(inputs=Inputs("same"), uncrossed=2), sight(inputs=Inputs("same"))],
            change=change(1, rate=0.02),
        ),
        passes("shown the same values"),
    ),
    "views that a frozen teacher is shown": (
        trace(sights=[sight(inputs=Inputs("same"), uncrossed=2)], change=change()),
        passes("shown the same values"),
    ),
    "no live teacher": (shown(None), undecided("no-teacher-seen", "nothing to compare")),
    "stored answers": (
        trace(sights=[sight(inputs=Inputs("flipped")), sight(inputs=Inputs("flipped"), cached=True)]),
        undecided("no-teacher-seen", "nothing to compare"),
    ),
    "an answer that a second student takes over": (
        trace(sights=[sight(inputs=Inputs("flipped", "x")), sight(student="Other", cached=True)] * 2),
        fails("the teacher is shown mirrored inputs: x", BACKWARD, relation="flipped", detail="x"),
    ),
    "an answer stored over two backwards": (
        trace(
            sights=[
                sight(inputs=Inputs("flipped")),
                sight(student="Other", cached=True),
                sight(cached=True),
            ]
        ),
        undecided("no-teacher-seen", "nothing to compare"),
    ),
    "same": (shown(None, "same", "shapes"), passes("shown the same values")),
    "permuted": (shown("permuted"), passes("shown the same values")),
    "shapes": (
        trace(sights=[sight(inputs=Inputs("shapes", "(8, 1) and (8, 2)")), sight(inputs=Inputs("shapes", "odd"))]),
        undecided("out-of-scope", "the inputs have another form ((8, 1) and (8, 2))"),
    ),
    **{
        relation: (
            shown("same", relation),
            fails(
                f"the teacher is shown {word} inputs: by 2 pixels", BACKWARD, relation=relation, detail="by 2 pixels"
            ),
        )
        for relation, word in (
            ("flipped", "mirrored"),
            ("affine", "normalised otherwise"),
            ("differ", "different"),
            ("untrained", "unfamiliar"),
        )
    },
}

BACK = [2, 0, 1]

READ = ("forward", "one-sided", "reversed", "mse-logits", "mse-probabilities", "hard-labels")


def turned(order: list[int] | None = None, *parts: Term | Explanation, **fields: Any) -> Trace:
    """The teacher is shown the rows in another order."""
    return seen(*parts, inputs=Inputs("permuted" if order else "same", "", order), **fields)


CASES["KD305"] = {
    "in order": (seen(explained()), passes("each row is taught by the teacher's answer to it")),
    "taught by others": (
        seen(explained("permuted", permutation=[0, 2, 1, *range(3, 40)])),
        fails(
            "2 of 40 rows are taught by the teacher's answer to another sample: row 0 by that to row 0, row 1 by that "
            "to row 2",
            BACKWARD,
            permutation=[0, 2, 1, *range(3, 32)],
            rows=40,
        ),
    ),
    "grown, and held against its old classes": (
        seen(explained(classes=4, block=(0, 0))),
        passes("each row is taught by the teacher's answer to it"),
    ),
    "grown, and held against its new classes": (
        seen(explained(classes=4, block=(6, 0))),
        fails(
            "the teacher's 4 classes are the student's from 0 on, where both gave the very same answers; they are held "
            "against its classes from 6 on",
            BACKWARD,
            held_against=6,
            own=0,
            classes=4,
        ),
    ),
    "shown others": (turned(TURN, explained()), fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3)),
    "shown others, but the term is not known": (
        turned(TURN, explained("unknown")),
        undecided("form-not-recognised", "not recognised, so its rows could not be told apart"),
    ),
    "turned and turned back": (turned(TURN, explained("permuted", permutation=BACK)), passes("each row is taught")),
    "turned twice": (
        turned(TURN, explained("permuted", permutation=TURN)),
        fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3),
    ),
    "turned, and one row turned back": (
        turned(TURN, explained("permuted", permutation=[2, 1, 0])),
        fails("2 of 3 rows are taught", BACKWARD, permutation=[2, 1, 0], rows=3),
    ),
    "an order that is none of the inputs'": (
        seen(explained(), inputs=Inputs("same", "", TURN)),
        passes("each row is taught"),
    ),
    "turned back, and another head that is not": (
        turned(TURN, explained("permuted", permutation=BACK), explained("permuted", permutation=TURN)),
        fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3),
    ),
    "features in another order": (
        seen(explained(), feature("cosine_similarity", permutation=True)),
        fails("features meet the student's in another order", TERM, term="cosine_similarity"),
    ),
    "features of inputs in another order": (
        turned(TURN, feature()),
        fails("features meet the student's in another order", TERM, term="mse_loss"),
    ),
    "features of inputs in another order, beside a label loss": (
        turned(TURN, feature(), explained("nothing")),
        fails("features meet the student's in another order", TERM, term="mse_loss"),
    ),
    "a soft term not explained, inputs in another order": (
        turned(TURN, term()),
        undecided("form-not-recognised", "not recognised"),
    ),
    "features of inputs turned and turned back": (
        turned(TURN, feature(), explained("permuted", permutation=BACK)),
        passes("each row is taught"),
    ),
    "inputs in another order, and nothing else seen": (
        turned([*range(1, 40), 0]),
        fails("is shown the batch's rows in another order", BACKWARD, permutation=list(range(1, 33))),
    ),
    "10 of 100 stored answers differ": (seen(cached=True, cached_rows=(100, 10)), passes("each row is taught")),
    "11 of 100 stored answers differ": (
        seen(cached=True, cached_rows=(100, 11)),
        fails(
            "11 of 100 stored answers are what the teacher said of other samples",
            BACKWARD,
            recognised=100,
            differing=11,
        ),
    ),
    "1 of 4 stored answers differs": (seen(cached=True, cached_rows=(4, 1)), passes("each row is taught")),
    "2 of 4 stored answers differ": (
        seen(cached=True, cached_rows=(4, 2)),
        fails(
            "2 of 4 stored answers",
            BACKWARD,
            recognised=4,
            differing=2,
        ),
    ),
    "stored, not seen to be given": (
        seen(explained(), cached=True),
        undecided("no-teacher-seen", "the answers are stored"),
    ),
    "stored, and the second backward live": (
        trace(sights=[sight(explained(), cached=True), sight(explained())]),
        passes("each row is taught"),
    ),
    "one known, one not": (seen(explained(), explained("unknown")), passes("each row is taught")),
    "one stored, one live, neither known": (
        trace(sights=[sight(explained("unknown"), cached=True), sight(explained("unknown"))]),
        undecided("form-not-recognised", "not recognised"),
    ),
    "features, in one backward of two, of the same inputs": (
        trace(sights=[sight(term("sub"), feature(), inputs=Inputs("same")), sight(term("sub"))]),
        passes("shown the same rows, and no index moves them"),
    ),
    **{
        f"{form} of inputs in another order": (
            turned(TURN, explained(form)),
            fails("3 of 3 rows are taught", BACKWARD, permutation=TURN, rows=3),
        )
        for form in READ
    },
    "features of the same inputs": (
        turned(None, feature()),
        passes("shown the same rows, and no index moves them"),
    ),
    "relations between samples, of the same inputs": (
        turned(None, feature("matmul", whole_rows=False)),
        passes("shown the same rows, and no index moves them"),
    ),
    "a term that does not reach the student": (
        turned(None, feature("matmul", reaches_student=False)),
        undecided("form-not-recognised", "not recognised"),
    ),
    "a distance of some of the rows": (
        turned(None, feature(whole_rows=False)),
        undecided("form-not-recognised", "not recognised"),
    ),
    "read by an index in another order": (
        seen(feature("matmul"), inputs=Inputs("same"), reindexed=True),
        fails("are read in another order of rows before they meet", TERM, term="matmul"),
    ),
    "read by an index that turns back what the teacher was shown": (
        turned(TURN, feature("matmul"), explained("permuted", permutation=BACK), reindexed=True),
        passes("each row is taught"),
    ),
    "read by an index, and the inputs not compared": (
        seen(feature("matmul"), inputs=Inputs("shapes"), reindexed=True),
        undecided("form-not-recognised", "not recognised"),
    ),
    "features, inputs not compared": (seen(feature()), undecided("form-not-recognised", "not recognised")),
    "features, inputs of other shapes": (
        seen(feature(), inputs=Inputs("shapes")),
        undecided("form-not-recognised", "not recognised"),
    ),
    "a soft term not explained": (turned(None, term()), undecided("form-not-recognised", "not recognised")),
    "a form not known": (turned(None, explained("unknown")), undecided("form-not-recognised", "not recognised")),
    **{f"{form}, in order": (seen(explained(form)), passes("each row is taught")) for form in READ},
}
CASES["KD332"] = {
    "not seen": (trace(), undecided("out-of-scope", "no evaluation loader", "kdbench.check_split(train, evaluation)")),
    "disjoint": (
        trace(split_overlap=(100, 0, "by index", True)),
        passes(
            "none of 100 evaluation samples is trained on (by index)",
            evaluation=100,
            also_trained_on=0,
            seen="by index",
        ),
    ),
    "one shared, perhaps": (
        trace(split_overlap=(100, 1, "by content", False)),
        fails("1 of 100 samples", None, "warn", evaluation=100, also_trained_on=1, seen="by content"),
    ),
    "one shared": (
        trace(split_overlap=(100, 1, "by index", True)),
        fails("1 of 100 samples", None, evaluation=100, also_trained_on=1, seen="by index"),
    ),
    "one shared, at a line": (
        trace(split_overlap=(100, 1, "by index", True), split_where=OTHER),
        fails("1 of 100 samples", OTHER, evaluation=100, also_trained_on=1, seen="by index"),
    ),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])
