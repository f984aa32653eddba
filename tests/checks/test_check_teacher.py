"""Verdicts on where the teacher comes from and what it knows, to the number, on traces made by hand."""

import math
from typing import Any

import pytest
import torch
from specimens import (
    BACKWARD,
    DECLARED,
    MANY,
    OTHER,
    TEACHER,
    A,
    Cases,
    change,
    explained,
    fails,
    finding,
    hits,
    judge,
    loaded,
    named,
    passes,
    put,
    sight,
    step,
    tenths,
    trace,
    undecided,
)

from kdbench.audits.checks.teacher import at_least, at_most
from kdbench.audits.trace import Hits, Provenance, Trace

CASES: Cases = {}


def provenance(equal: int, total: int = 4, *, differing: Any = (), unexpected: Any = (), aliases: Any = ()) -> Trace:
    found = Provenance(equal, total, list(differing), list(unexpected), list(aliases))
    return trace(teacher=TEACHER, provenance=found)


def whence(share: float, differing: Any = (), aliases: Any = (), unexpected: Any = ()) -> dict[str, Any]:
    return {
        "loaded_fraction": share,
        "differing": list(differing)[:10],
        "differing_count": len(differing),
        "aliases": list(aliases)[:10],
        "unexpected": list(unexpected)[:10],
        "unexpected_count": len(unexpected),
    }


def came(covered: float, route: str = "loaded", missing: Any = (), aliases: Any = (), changed: Any = ()):
    return {
        "covered_fraction": covered,
        "missing": list(missing)[:10],
        "missing_count": len(missing),
        "aliases": list(aliases)[:10],
        "changed": list(changed)[:10],
        "route": route,
    }


WEIGHTS = "teacher_weights=torch.load(path)"
KNOWS, COIN = tenths(80), tenths(20)
OWN_TENSORS = "the weights declared are the teacher's own tensors"
ITSELF = "loaded from the teacher itself"
SELF_TAUGHT = trace(script=True, sights=[sight(), sight(self_taught=True)])

TAKEN = [step(1, norm=1e-8, distils=False), *(step(n, norm=0.2, distils=True) for n in (2, 3))]
AS_ONE = fails("teacher and student begin as one: they hold the same weights", BACKWARD, **came(1.0))
TRAINED = passes("all of the teacher was loaded", **came(1.0))


def begun(label_weight: float | None = 0.0, student_remade: bool = False) -> Trace:
    made = loaded(4, began_as_one=True, student_remade=student_remade)
    return put(made, sights=[sight(explained(label_weight=label_weight))])


CASES["KD104"] = {
    "no teacher": (trace(), undecided("no-teacher-seen", "no teacher was declared", "teacher=")),
    "no weights": (trace(teacher=TEACHER), undecided("intent-unknown", "was not declared", WEIGHTS)),
    "its own": (provenance(0, aliases=["fc.bias"]), undecided("intent-unknown", OWN_TENSORS, WEIGHTS)),
    "whole": (provenance(4), passes("the declared checkpoint, bitwise", loaded_fraction=1.0)),
    "one tensor differs": (
        provenance(3, differing=["fc.bias"]),
        fails(
            "75.0% of the teacher's numbers are those of the declared checkpoint (1 tensors differ, first fc.bias)",
            DECLARED,
            **whence(0.75, ["fc.bias"]),
        ),
    ),
    "all differ": (
        provenance(0, differing=MANY),
        fails("only 0.0% of the teacher's numbers", DECLARED, **whence(0.0, MANY)),
    ),
    "tensors without a place": (
        provenance(4, unexpected=MANY),
        fails(
            "25 tensors of the checkpoint have no place in the teacher, first layer0",
            DECLARED,
            **whence(1.0, unexpected=MANY),
        ),
    ),
    "partly its own": (
        provenance(1, aliases=MANY),
        fails(f"25 tensors were {ITSELF}, first layer0", DECLARED, **whence(0.25, aliases=MANY)),
    ),
    "all of it": (
        provenance(2, differing=["a", "x"], aliases=["b", "y"], unexpected=["c", "z"]),
        fails("first a); 2 tensors were loaded", DECLARED, **whence(0.5, ["a", "x"], ["b", "y"], ["c", "z"])),
    ),
    "one number, and a tensor without a place": (
        provenance(1, 1, unexpected=["c"]),
        fails("have no place in the teacher", DECLARED, **whence(1.0, unexpected=["c"])),
    ),
    "no tensors at all": (provenance(0, 0, unexpected=["c"]), fails("", DECLARED, **whence(0.0, unexpected=["c"]))),
    "seen: peers": (loaded(0, peers=True), undecided("out-of-scope", "the teacher is trained along")),
    "seen: an average": (loaded(0, change=change(rate=0.1)), undecided("out-of-scope", "or follows the student")),
    "seen: no average": (loaded(4, change=change(1)), passes("all of the teacher was loaded", **came(1.0))),
    "seen: no module": (trace(script=True, sights=[sight()]), undecided("no-teacher-seen", "its module was not found")),
    "seen: no numbers": (loaded(0, 0), undecided("no-teacher-seen", "its module was not found")),
    "seen: taught by itself": (SELF_TAUGHT, undecided("no-teacher-seen", "no separate teacher")),
    "seen: whole": (
        loaded(4, route="trained in this process", same_as_student=False),
        passes("all of the teacher was trained in this process", **came(1.0, "trained in this process")),
    ),
    "seen: the student's": (
        loaded(4, same_as_student=True, hits=COIN),
        fails("from the student's own start, which nothing had trained", BACKWARD, **came(1.0)),
    ),
    "seen: the student's, once trained as a teacher": (
        loaded(4, same_as_student=True, hits=KNOWS, where=OTHER),
        fails("from the student's own start, which nothing had trained", OTHER, "warn", **came(1.0)),
    ),
    **{
        f"seen: begun as one, {said}": (put(begun(**fields), steps=taken), verdict)
        for said, fields, taken, verdict in (
            ("and no gradient at first", {}, TAKEN, AS_ONE),
            ("and a gradient at first", {}, [step(1, norm=0.3), *TAKEN[1:]], TRAINED),
            ("and the first step is of others", {}, [step(1, norm=1e-8, stepped=[A]), *TAKEN[1:]], TRAINED),
            ("and labels beside", {"label_weight": 0.3}, TAKEN, TRAINED),
            ("and labels that were not read", {"label_weight": None}, TAKEN, TRAINED),
            ("and pruned since", {"student_remade": True}, TAKEN, TRAINED),
        )
    },
    "seen: one start, and no gradient at it": (
        put(loaded(4, same_start=True), sights=[sight(explained("nothing", label_weight=0.0))]),
        AS_ONE,
    ),
    "seen: one start, no gradient at it, and pruned since": (
        put(loaded(4, same_start=True, student_remade=True), sights=[sight(explained("nothing", label_weight=0.0))]),
        passes("all of the teacher was loaded", **came(1.0)),
    ),
    "seen: overwritten": (
        loaded(1, changed=MANY, aliases=["b"], missing=["c"], where=OTHER),
        fails(
            "25 tensors of the teacher were overwritten after they were loaded or trained: layer0, layer1, layer2, "
            "and 22 more",
            OTHER,
            **came(0.25, missing=["c"], aliases=["b"], changed=MANY),
        ),
    ),
    "seen: its own": (
        loaded(1, aliases=MANY, missing=["c"]),
        fails(
            f"25 tensors of the teacher were {ITSELF}: its own values were put into the state dict first "
            "(layer0, layer1, layer2, and 22 more)",
            BACKWARD,
            **came(0.25, missing=["c"], aliases=MANY),
        ),
    ),
    "seen: nothing": (
        loaded(0, route="not seen", missing=MANY),
        fails("nothing was loaded into the teacher", BACKWARD, **came(0.0, "not seen", MANY)),
    ),
    "seen: nothing covered": (
        loaded(0, missing=["c"], hits=COIN),
        fails("nothing was loaded into the teacher", BACKWARD, **came(0.0, missing=["c"])),
    ),
    "seen: route not known": (
        loaded(3, route="not seen", missing=["c"]),
        fails("nothing was loaded into the teacher", BACKWARD, **came(0.75, "not seen", ["c"])),
    ),
    "seen: nothing, yet it knows two classes": (
        loaded(0, hits=hits(100, 50, 50)),
        undecided("route-not-seen", "it is right on 100.0% of 100 labels"),
    ),
    "seen: nothing, yet it knows": (
        loaded(0, route="not seen", missing=MANY, hits=KNOWS),
        undecided("route-not-seen", "a route that was not seen, yet it is right on 80.0% of 100 labels"),
    ),
    "seen: made by a library": (
        loaded(0, route="not seen", made_from="org/model"),
        undecided("route-not-seen", "the teacher was made by a library of its own from org/model"),
    ),
    "seen: made by a library, and it knows": (
        loaded(0, route="not seen", made_from="org/model", hits=KNOWS),
        undecided("route-not-seen", "was made by a library of its own from org/model"),
    ),
    "seen: made by a library, and partly loaded": (
        loaded(3, missing=["c"], made_from="org/model"),
        fails("only 75.0%", BACKWARD, **came(0.75, missing=["c"])),
    ),
    "seen: part, of a teacher that knows nothing": (
        loaded(3, missing=["c"], hits=COIN),
        fails("only 75.0%", BACKWARD, **came(0.75, missing=["c"])),
    ),
    "seen: overwritten, yet it knows": (
        loaded(1, changed=["a"], hits=KNOWS),
        fails("1 tensors of the teacher were overwritten", BACKWARD, "warn", **came(0.25, changed=["a"])),
    ),
    "seen: its own, yet it knows": (
        loaded(1, aliases=["b"], hits=KNOWS),
        fails("1 tensors of the teacher were loaded", BACKWARD, **came(0.25, aliases=["b"])),
    ),
    "seen: part, in the first backward of two": (
        put(loaded(3, missing=["c"]), sights=[sight(), sight(where=OTHER)]),
        fails("only 75.0%", BACKWARD, **came(0.75, missing=["c"])),
    ),
    "seen: part": (
        loaded(3, missing=MANY[:5], hits=KNOWS),
        fails(
            "only 75.0% of the teacher's numbers were loaded or trained; missing: layer0, layer1, layer2, layer3, "
            "and 1 more",
            BACKWARD,
            "warn",
            **came(0.75, missing=MANY[:5]),
        ),
    ),
}

# P(X >= 33) = 0.00057 and P(X >= 32) = 0.00114 where X counts 100 answers, each right with probability 0.19.
for name, knowledge, is_known in (
    ("32 of 100", tenths(32), False),
    ("33 of 100", tenths(33), True),
    ("33 of 50 where half are of one class", hits(33, 25, 25), False),
    ("labels nearly all of one class", hits(100, 99, 1), False),
    ("labels of one class", hits(100, 100, 0), False),
    ("no labels", hits(0, 0, 0), False),
):
    CASES["KD104"][f"seen: nothing, and right on {name}"] = (
        loaded(0, hits=knowledge),
        undecided("route-not-seen", "it is right on 33.0% of 100 labels")
        if is_known
        else fails("nothing was loaded", BACKWARD, **came(0.0)),
    )


def told(right: Hits | None, **fields: Any) -> Trace:
    return trace(**{"teacher": TEACHER, "labels_shown": True, "hits": right, "student_width": None} | fields)


def rate(right: int, labels: int = 100, chance: float = 0.1, threshold: float = 0.19) -> dict[str, Any]:
    return {"accuracy": right / labels, "labels": labels, "chance": chance, "threshold": threshold}


SHOW, MORE = "w.labels(y) in the loop", "burn_in= (more steps)"

CASES["KD303"] = {
    "no teacher": (trace(), undecided("no-teacher-seen", "no teacher was declared", "teacher=")),
    "no teacher named, in a script": (
        told(tenths(80), teacher=None, script=True, sights=[sight()]),
        passes("right on 80.0% of 100 labels, chance 10.0%", **rate(80)),
    ),
    "peers": (told(tenths(0), peers=True), undecided("out-of-scope", "the teacher is trained along")),
    "an average": (told(tenths(0), change=change(1, rate=0.1)), undecided("out-of-scope", "or follows the student")),
    "no average": (told(tenths(80), change=change(1)), passes("right on 80.0%", **rate(80))),
    "labels not shown": (told(tenths(0), labels_shown=False), undecided("intent-unknown", "were not shown", SHOW)),
    "labels not seen in a script": (
        told(tenths(0), labels_shown=False, script=True, sights=[sight()]),
        undecided("form-not-recognised", "no labels to go with the teacher's logits"),
    ),
    "no logits": (told(None), undecided("form-not-recognised", "no logits (B, C) of the student's width")),
    "logits of another width": (told(tenths(0), student_width=11), undecided("form-not-recognised", "no logits")),
    "logits of the student's width": (
        told(tenths(80), student_width=10),
        passes("right on 80.0% of 100 labels", **rate(80)),
    ),
    "labels to ignore": (
        told(hits(0, 0, 0)),
        undecided("too-few-labels", "all labels shown were ones to ignore", SHOW),
    ),
    "labels of one class": (
        told(hits(50, 50, 0)),
        undecided("out-of-scope", "all labels seen are the same", **rate(50, 50, 1.0, 1.0)),
    ),
    # P(X <= 7) = 0.00065 and P(X <= 8) = 0.0018, X as above.
    "7 of 100": (
        told(tenths(7)),
        fails("right on 7.0% of 100 labels, and the commonest label alone on 10.0%", DECLARED, **rate(7)),
    ),
    "8 of 100": (told(tenths(8)), undecided("too-few-labels", "about 123 labels would", MORE, **rate(8))),
    "8 of 100 in a script": (
        told(tenths(8), script=True, sights=[sight()]),
        undecided("too-few-labels", "about 123 labels would", "--steps", **rate(8)),
    ),
    "19 of 100": (
        told(tenths(19)),
        undecided("too-few-labels", "19 of 100 right decides nothing against 19.0%", MORE, **rate(19)),
    ),
    "32 of 100": (told(tenths(32)), undecided("too-few-labels", "about 124 labels would", MORE, **rate(32))),
    "33 of 100": (told(tenths(33)), passes("right on 33.0% of 100 labels, chance 10.0%", **rate(33))),
    "a threshold of twice a small chance": (
        told(hits(20, *[5] * 20)),
        undecided("too-few-labels", "against 10.0%", MORE, **rate(20, 100, 0.05, 0.1)),
    ),
    "at the threshold": (
        told(hits(55, 50, 50)),
        undecided("too-few-labels", "no number of labels would", MORE, **rate(55, 100, 0.5, 0.55)),
    ),
    "the new classes of a continual learner": (
        told(Hits(torch.tensor(0), torch.tensor([0] * 5 + [32] * 3), torch.tensor([20] * 4 + [12, 4, 0, 0]))),
        undecided(
            "out-of-scope",
            "the teacher names other classes than the 3 that are labelled",
            **rate(0, 96, 1 / 3, 1 / 3 + (1 - 1 / 3) / 10),
        ),
    ),
    "new classes, of which it names some": (
        told(Hits(torch.tensor(0), torch.tensor([0] * 5 + [32] * 3), torch.tensor([20] * 4 + [1, 5, 5, 5]))),
        fails("right on 0.0% of 96 labels", DECLARED, **rate(0, 96, 1 / 3, 1 / 3 + (1 - 1 / 3) / 10)),
    ),
    "two classes exchanged, and right for most": (
        told(
            Hits(torch.tensor(62), torch.tensor([60, 20, 20]), None, torch.tensor([[58, 1, 1], [0, 2, 18], [1, 17, 2]]))
        ),
        fails(
            "numbers 2 classes otherwise than the labels: 1 is 2, 2 is 1; by its own numbers it is right on 87.5% of "
            "their 40 labels, by theirs on 10.0%",
            DECLARED,
            renumbered={"1": 2, "2": 1},
            labels=40,
        ),
    ),
    "two classes mistaken for one": (
        told(
            Hits(torch.tensor(80), torch.tensor([60, 20, 20]), None, torch.tensor([[58, 1, 1], [0, 2, 18], [0, 0, 20]]))
        ),
        passes("right on 80.0% of 100 labels", **rate(80, 100, 0.6, 0.64)),
    ),
    "most of one class, in a loop": (
        told(hits(30, 60, 40)),
        fails("right on 30.0% of 100 labels", DECLARED, **rate(30, 100, 0.6, 0.64)),
    ),
    "half of one class, in a script": (
        told(hits(30, 50, 50), script=True, sights=[sight()]),
        fails("right on 30.0% of 100 labels", DECLARED, **rate(30, 100, 0.5, 0.55)),
    ),
    "most of one class, in a script": (
        told(hits(30, 60, 40), script=True, sights=[sight()]),
        undecided("out-of-scope", "most labels are of one class", **rate(30, 100, 0.6, 0.64)),
    ),
    "most of one class, and right, in a script": (
        told(hits(95, 60, 40), script=True, sights=[sight()]),
        passes("right on 95.0% of 100 labels", **rate(95, 100, 0.6, 0.64)),
    ),
    "most of one class, and too few, in a script": (
        told(hits(60, 60, 40), script=True, sights=[sight()]),
        undecided("too-few-labels", "60 of 100 right", "--steps", **rate(60, 100, 0.6, 0.64)),
    ),
    "unbalanced": (
        told(hits(85, 80, 20)),
        undecided("too-few-labels", "85 of 100 right", MORE, **rate(85, 100, 0.8, 0.8 + (1 - 0.8) / 10)),
    ),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])


PUT_FIRST = "its own values were put into the state dict before it was loaded"
WHOLE = {
    ("KD104", "partly its own"): f"25 tensors were loaded from the teacher itself, first layer0: {PUT_FIRST}",
    ("KD104", "all of it"): "only 50.0% of the teacher's numbers are those of the declared checkpoint (2 tensors "
    f"differ, first a); 2 tensors were loaded from the teacher itself, first b: {PUT_FIRST}; 2 tensors of the "
    "checkpoint have no place in the teacher, first c",
}


@pytest.mark.parametrize(("id", "name"), WHOLE)
def test_what_is_not_so_is_not_said(id: str, name: str) -> None:
    assert finding(id, CASES[id][name][0]).message == WHOLE[id, name]


@pytest.mark.parametrize("id", ["KD104", "KD303"])
def test_the_teacher_of_a_script_without_a_distillation(id: str) -> None:
    found = finding(id, trace(script=True, windows_seen=7, hits=tenths(80), labels_shown=True))
    assert (found.reason, "in 7 backwards" in found.message) == ("no-teacher-seen", True)


@pytest.mark.parametrize(("right", "labels", "chance"), [(0, 10, 0.2), (3, 10, 0.2), (9, 10, 0.7), (10, 10, 0.7)])
def test_tails_are_those_of_the_binomial(right: int, labels: int, chance: float) -> None:
    exact = [math.comb(labels, k) * chance**k * (1 - chance) ** (labels - k) for k in range(labels + 1)]
    assert at_most(right, labels, chance) == pytest.approx(sum(exact[: right + 1]), rel=1e-9)
    assert at_least(right, labels, chance) == pytest.approx(sum(exact[right:]), rel=1e-9)


def test_tails_of_many_labels_neither_overflow_nor_pass_one() -> None:
    assert at_most(0, 50_000, 0.5) == 0.0
    assert at_most(49_999, 50_000, 0.5) == at_least(1, 50_000, 0.5) == 1.0
    assert at_most(25_000, 50_000, 0.5) == pytest.approx(0.5018, abs=1e-4)


@pytest.mark.parametrize(
    ("right", "by_class", "status"),
    [
        (0, [5, 3, 2, 2, 2, 2, 1, 1, 1, 1], "not_triggered"),  # a quarter of 20 are of one class by chance
        (0, [7, 5, 5, 5, 4, 4, 4, 4, 1, 1], "fail"),
        (0, [9, 3, 0, 0], "not_triggered"),  # of 12 labels
        (20, [125, 75, 50, 50, 50, 50, 25, 25, 25, 25], "fail"),
        (90, [125, 75, 50, 50, 50, 50, 25, 25, 25, 25], "fail"),  # of many labels the quarter is no chance
    ],
)
def test_a_few_labels_accuse_no_teacher_by_the_chance_of_their_mixture(right, by_class, status):
    seen = trace(script=True, sights=[sight()], labels_shown=True, hits=hits(right, *by_class))
    assert finding("KD303", seen).status == status


@pytest.mark.parametrize("stored", [True, False])
def test_what_mends_stored_answers_at_chance_is_the_number_that_they_are_kept_by(stored: bool) -> None:
    seen = trace(script=True, sights=[sight(cached=stored)], labels_shown=True, hits=tenths(0))
    found = finding("KD303", seen)
    assert found.status == "fail" and ("by which number each answer was stored" in found.mend) == stored
