"""Verdicts on what sets the processes of a training apart, on what each of them held and was shown."""

from dataclasses import replace
from typing import Any

import pytest
from specimens import A, Cases, clip, explained, fails, judge, passes, put, sight, step, term, trace, undecided

from kdbench.audits.infer.ranks import RankSeen
from kdbench.audits.trace import Trace

FEW, LOCAL, SHARED = ({"3": [count, weight, 0.0]} for count, weight in ((80, 0.01), (40, 0.02), (40, 0.01)))
SAME = {str(n): [f"0 {n}"] for n in range(5)}
BY_HAND: dict[str, Any] = {"wrapped": "", "peers": []}
AVERAGE: dict[str, Any] = {"follows": True, "teacher_buffers": {"running_mean": "e"}}
SHIFTED: dict[str, Any] = {"student_last": {"0.weight": "z"}}
AT = {"file": "train.py", "line": 9}


def rank(number: int, **changes: Any) -> RankSeen:
    """What a rank of a right training held and was shown."""
    right = RankSeen(
        number,
        began=True,
        steps=50,
        batches={str(n): [f"{number} {n}"] for n in range(5)},
        peers=[0, 1],
        wrapped="DistributedDataParallel",
        splits=True,
        epochs=[0, 1, 2],
        teacher={"0.weight": "a", "0.bias": "b"},
        student={"0.weight": "c"},
        student_last={"0.weight": "d"},
    )
    return replace(right, **changes)


def two(both: dict[str, Any] | None = None, **second: Any) -> Trace:
    """A script of two processes, in which the second one, or both, differ from a right one."""
    ranks = [rank(0, **(both or {})), rank(1, **{**(both or {}), **second})]
    return trace(script=True, sights=[sight(term(), explained())], ranks=ranks)


def alone() -> Trace:
    return trace(script=True, sights=[sight(term(), explained())])


ONE = (alone(), undecided("out-of-scope", "the training has one process"))
UNSEEN = (
    two(began=False),
    undecided("no-teacher-seen", "no distillation was seen", "--student NAME --teacher NAME, or more --steps"),
)
CASES: Cases = {}
CASES["KD361"] = {
    "samples of their own": (two(), passes("no two ranks learn from the same batches (5 compared)")),
    "alone, and the same": (
        two({**BY_HAND, "batches": SAME, "batch_where": AT}),
        fails(
            "ranks 0 and 1 learn the same from the same samples, and no gradient passes",
            AT,
            "warn",
            batches=5,
            pairs=[[0, 1]],
        ),
    ),
    "the same": (
        two({"batch_where": AT}, batches=SAME),
        fails(
            "ranks 0 and 1 learn from the same samples: 5 of 5 batches are equal row by row",
            AT,
            batches=5,
            pairs=[[0, 1]],
        ),
    ),
    "the same but for one": (two(batches={**SAME, "4": ["other"]}), passes("no two ranks")),
    "nothing is averaged": (
        two({**BY_HAND, "batches": SAME}, **SHIFTED),
        undecided("out-of-scope", "are not seen to average gradients"),
    ),
    "averaged by hand": (
        two({**BY_HAND, "exchanged": True}, batches=SAME),
        fails("the same samples", None, batches=5, pairs=[[0, 1]]),
    ),
    "other backwards": (two(batches={"9": ["x"]}), undecided("not-in-these-steps", "too few batches", "--steps")),
    "one epoch": (
        two({"sampler_where": AT}, epochs=[0, 0, 0]),
        fails("gone through 3 times and its epoch is 0 each time", AT, "warn", epochs=[0, 0, 0]),
    ),
    "not gone through again": (two(epochs=[4]), passes("no two ranks")),
    "one process": ONE,
    "no distillation": UNSEEN,
}
CASES["KD362"] = {
    "one teacher": (two(), passes("all 2 tensors of the teacher are the same on 2 ranks")),
    "two": (
        two({"teacher_where": AT}, teacher={"0.weight": "z", "0.bias": "b"}),
        fails("1 of 2 tensors differ at the first distillation step: 0.weight", AT, tensors=["0.weight"]),
    ),
    "parts": (two(teacher_parts=2), undecided("out-of-scope", "each rank holds a part of it")),
    "stored answers": (two(teacher={}), undecided("no-teacher-seen", "no network that teaches was seen on every rank")),
    "one process": ONE,
}
CASES["KD363"] = {
    "one student": (two(), passes("all 1 parameters of the student are the same on 2 ranks, first and last")),
    "two from the first step": (
        two(student={"0.weight": "z"}),
        fails("the ranks begin with different students", None, parameters=["0.weight"]),
    ),
    "past the wrapper": (
        two(**SHIFTED),
        fails("and the wrapper does not see the gradients: 0.weight", None, parameters=["0.weight"]),
    ),
    "no wrapper": (
        two(BY_HAND, **SHIFTED),
        fails("and nothing averages the gradients: 0.weight", None, parameters=["0.weight"]),
    ),
    "runs of their own": (
        two({**BY_HAND, "splits": False}, **SHIFTED),
        undecided("out-of-scope", "whether they are meant to be one was not seen"),
    ),
    "averaged now and then": (
        two({**BY_HAND, "exchanged": True}, **SHIFTED),
        undecided("out-of-scope", "whether they are meant to be one was not seen"),
    ),
    "other steps": (two(**SHIFTED, steps=49), undecided("not-in-these-steps", "after the same number of steps")),
    "parts": (two(student={}), undecided("out-of-scope", "each rank holds a part of it")),
    "one process": ONE,
}
CASES["KD364"] = {
    "no average": (two(), undecided("out-of-scope", "the teacher is no average of the student")),
    "the same": (two(AVERAGE), passes("all 1 running statistics of the averaged teacher are the same")),
    "apart": (
        two({**AVERAGE, "teacher_where": AT}, teacher_buffers={"running_mean": "z"}),
        fails("differ between ranks after 50 steps: 1 of 1 buffers", AT, buffers=["running_mean"]),
    ),
    "other steps": (two(AVERAGE, steps=49), undecided("not-in-these-steps", "after the same number of steps")),
    "none": (two({**AVERAGE, "teacher_buffers": {}}), undecided("out-of-scope", "has no running statistics")),
    "one process": ONE,
}
CASES["KD365"] = {
    "within the backward": (two(), passes("averages the gradients within the backward, before any clip")),
    "too early": (
        two({**BY_HAND, "clipped": 9, "clipped_early": 9, "clip_where": AT}),
        fails("clipped before they are averaged over the ranks, in all of 9 steps", AT, steps=9),
    ),
    "between backwards": (
        put(two(), steps=[step(1, clip(A, grown=1), clip(A))]),
        undecided("out-of-scope", "a clip lies between two backwards of a step; within no_sync()"),
    ),
    "in time": (two({**BY_HAND, "clipped": 9}), passes("averaged their gradients before the clip in 9 steps")),
    "no clip": (two(BY_HAND), undecided("no-clip-call", "no clip beside an exchange of gradients")),
    "one process": ONE,
}
CASES["KD366"] = {
    "by their own": (
        two({"tokens": FEW, "token_where": AT}, tokens=LOCAL),
        fails(
            "one of the 40 tokens of rank 1 weighs 2 times one of the 80 of rank 0",
            AT,
            tokens=[80, 40],
            weights=[0.01, 0.02],
        ),
    ),
    "by those of all": (two({"tokens": FEW}, tokens=SHARED), passes("a token has the same weight on every rank")),
    "as many": (two({"tokens": FEW}), undecided("not-in-these-steps", "different numbers of tokens")),
    "not averaged": (
        two({**BY_HAND, "tokens": FEW}, tokens=LOCAL),
        undecided("out-of-scope", "not seen to average gradients"),
    ),
    "one process": ONE,
}


@pytest.mark.parametrize(("id", "case"), [(id, case) for id, cases in CASES.items() for case in cases])
def test_verdict(id: str, case: str) -> None:
    judge(id, *CASES[id][case])
