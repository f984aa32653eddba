"""Verdicts on which tokens are distilled and with which weight, on traces made by hand."""

from typing import Any

import pytest
from specimens import (
    BACKWARD,
    OTHER,
    TERM,
    Cases,
    coverage,
    explained,
    fails,
    judge,
    named,
    passes,
    sight,
    term,
    tokens,
    trace,
    undecided,
)

from kdbench.audits.infer.tokens import Copied, Features, Sample, Tokens
from kdbench.audits.trace import Sight, Trace

CASES: Cases = {}


def at(step: int, *seen: Tokens, **fields: Any) -> Sight:
    return sight(term(), explained(), step=step, number=step, tokens=list(seen), **fields)


def windows(*sights: Sight) -> Trace:
    """Windows in a row; several may be of one step."""
    for number, one in enumerate(sights):
        one.number = number
    return trace(script=True, sights=list(sights))


def pieces(*counts: int, by: str = "all", **fields: Any) -> list[Tokens]:
    """Pieces of ten places each: divided by their own tokens, or by all."""
    total = sum(counts)
    return [
        tokens(
            tokens=n,
            places=80,
            weight=0.9 / (n if by == "own" else total),
            coverage=coverage(
                labelled=n, distilled=n, padding=0, start=10 * i, width=10, beyond=total - sum(counts[: i + 1])
            ),
            **fields,
        )
        for i, n in enumerate(counts)
    ]  # fmt: skip


def text(count: int, weight: float, spread: float = 0.0) -> Sample:
    return Sample(count, weight, spread)


def lone(**fields: Any) -> Trace:
    return windows(at(0, tokens(**fields)))


EQUAL = {"fewest": 25, "most": 25}
NO_TOKENS = "no term over rows of tokens was read"
CASES["KD351"] = {
    "no texts": (windows(at(0)), undecided("out-of-scope", NO_TOKENS)),
    "a form that is not known": (lone(form="unknown", weight=None), undecided("form-not-recognised", "no token's")),
    "texts of different lengths": (lone(), passes("the tokens of texts of different lengths have one weight")),
    "texts of one length": (lone(**EQUAL), undecided("not-in-these-steps", "proves nothing", "--steps")),
    "micro-batches by the step's tokens": (
        windows(at(0, tokens(), micro=2), at(0, tokens(tokens=100), micro=2)),
        passes("every token has one weight"),
    ),
    "micro-batches by their own": (
        windows(at(0, tokens(weight=0.4 / 200), micro=2), at(0, tokens(tokens=100, weight=0.4 / 100), micro=2)),
        fails(
            "each micro-batch is divided by its own tokens: in one step of 2, a token weighs 2 times another (100 to "
            "200 of them)",
            TERM,
            tokens=[200.0, 100.0],
            weights=[0.002, 0.004],
            step=0,
        ),
    ),
    "and their sum by nothing": (
        windows(at(0, tokens(), micro=2), at(0, tokens(tokens=100, weight=0.9 / 100), micro=2)),
        fails(
            "of them); and nothing divides the sum by the 2 backwards of a step",
            TERM,
            tokens=[200.0, 100.0],
            weights=[0.9 / 200, 0.9 / 100],
            step=0,
        ),
    ),
    "micro-batches by all their places": (
        windows(
            at(0, tokens(weight=0.4 / 320), micro=2), at(0, tokens(tokens=180, places=240, weight=0.4 / 240), micro=2)
        ),
        fails(
            "each micro-batch is divided by its own places, padding too",
            TERM,
            tokens=[200.0, 180.0],
            weights=[0.4 / 320, 0.4 / 240],
            step=0,
        ),
    ),
    "micro-batches of one count": (
        windows(at(0, tokens(), micro=2), at(0, tokens(tokens=201, weight=0.9 / 201), micro=2)),
        undecided("not-in-these-steps", "no two of one step were seen that teach different numbers", "--steps"),
    ),
    "micro-batches in steps of their own": (
        windows(at(0, tokens()), at(1, tokens(tokens=100, weight=0.9 / 100))),
        passes("the tokens of texts of different lengths have one weight"),
    ),
    "by a rule of their own": (
        windows(at(0, tokens(), micro=2), at(0, tokens(tokens=100, weight=0.7 / 200), micro=2)),
        undecided("not-in-these-steps", "no two of one step", "--steps"),
    ),
    "at several depths": (
        windows(at(0, tokens(), tokens(tokens=100, weight=0.9 / 100))),
        passes("the tokens of texts of different lengths have one weight"),
    ),
    "pieces by all tokens": (windows(at(0, *pieces(80, 59, 10))), passes("every token has one weight")),
    "pieces by their own": (
        windows(at(0, *pieces(80, 40, 10, by="own"))),
        fails(
            "each piece of the sequence is divided by its own tokens: in one step of 3, a token weighs 8 times another",
            TERM,
            "error",
            tokens=[80.0, 40.0, 10.0],
            weights=[0.9 / 80, 0.9 / 40, 0.9 / 10],
            step=0,
        ),
    ),
    "each text by its own": (
        lone(weight=None, samples=[text(10, 0.02), text(20, 0.01), text(40, 0.005)]),
        fails(
            "the term is the mean over 8 texts of each one's mean: a token of the text of 10 weighs 4 times one of the "
            "text of 40",
            TERM,
            tokens=[10, 20, 40],
            weights=[0.02, 0.01, 0.005],
        ),
    ),
    "two texts alone": (
        lone(weight=None, samples=[text(10, 0.02), text(20, 0.01)]),
        undecided("form-not-recognised", "weights of their own, by no rule"),
    ),
    "texts with weights of their own": (
        lone(weight=None, samples=[text(10, 0.02), text(20, 0.02), text(40, 0.007)]),
        undecided("form-not-recognised", "weights of their own, by no rule"),
    ),
    "tokens with weights of their own": (
        lone(weight=None, samples=[text(10, 0.02, 0.5), text(20, 0.01, 0.5), text(40, 0.005, 0.5)]),
        undecided("form-not-recognised", "weights of their own, by no rule"),
    ),
    "by padding too": (
        windows(at(0, tokens(weight=0.9 / 312)), at(1, tokens(tokens=150, weight=0.9 / 312))),
        fails(
            "the term is divided by all 312 places, padding too, and the labels' loss by its tokens: beside the "
            "labels' weight 0.1 the distillation acts with 0.433 to 0.577, as padding goes, instead of 0.9",
            TERM,
            tokens=[200.0, 150.0],
            places=[312.0, 312.0],
            weights=[0.9 / 312 * 200, 0.9 / 312 * 150],
        ),
    ),
    "by a constant": (
        windows(at(0, tokens(weight=0.9 / 273)), at(1, tokens(tokens=150, weight=0.9 / 273))),
        passes("the tokens of texts of different lengths have one weight"),
    ),
    "labels by padding too": (
        windows(
            at(0, tokens(weight=0.9 / 312, label_weight=0.064)),
            at(1, tokens(tokens=150, weight=0.9 / 312, label_weight=0.048)),
        ),
        passes("the tokens of texts of different lengths have one weight"),
    ),
}


def covered(**fields: Any) -> Trace:
    return lone(coverage=coverage(**fields))


LATE = coverage(late=True, undistilled=8, prompt=80)


def featured(compared: int) -> Trace:
    return windows(at(0, token_features=[Features("mse_loss", OTHER, 100, compared)]))


def dropped(*seen: Tokens) -> Trace:
    """A step of pieces, a backward each, and the step after it."""
    return windows(*(at(0, t, micro=3) for t in seen), at(1, seen[0], micro=3))


CASES["KD352"] = {
    "no texts": (windows(at(0)), undecided("out-of-scope", NO_TOKENS)),
    "places that are not known": (lone(coverage=None), undecided("form-not-recognised", "which tokens")),
    "a form that is not known": (lone(form="unknown"), undecided("form-not-recognised", "which tokens")),
    "those labelled": (lone(), passes("the tokens that are distilled are those that are labelled")),
    "all that is no padding": (covered(labelled=None, distilled=208), passes("no padding is distilled")),
    "all of full texts": (covered(how=None, padding=0, distilled=300), passes("all tokens that are labelled")),
    "neither labels nor padding": (
        covered(how=None, padding=0, labelled=None),
        undecided("not-in-these-steps", "no padding was seen", "--steps"),
    ),
    "padding": (
        covered(padding_distilled=100, distilled=300),
        fails(
            "padding is distilled: 100 of 112 places of padding (the attention mask is 0 there) take part, among 300",
            TERM,
            padding=112,
            padding_distilled=100,
            distilled=300,
        ),
    ),
    "padding, in a sum of terms": (
        lone(form="sum", weight=None, coverage=coverage(padding_distilled=100)),
        fails("padding is distilled", TERM, padding=112, padding_distilled=100, distilled=200),
    ),
    "padding, as labels tell": (
        covered(how="labels", padding_distilled=100, distilled=300),
        fails("(no label is there)", TERM, padding=112, padding_distilled=100, distilled=300),
    ),
    "padding here and there": (covered(padding_distilled=50, distilled=250), passes("no padding is distilled")),
    "a place of padding": (covered(padding=3, padding_distilled=3, distilled=203), passes("no padding is distilled")),
    "one place late, a form that is not known": (
        windows(*(at(i, tokens(form="unknown", coverage=LATE)) for i in range(2))),
        fails("one place late", TERM, labelled=200, undistilled=8, distilled=200),
    ),
    "one place late once, a form that is not known": (
        lone(form="unknown", coverage=LATE),
        undecided("form-not-recognised", "which tokens"),
    ),
    "one place late": (
        covered(late=True, undistilled=8, prompt=80),
        fails("one place late", TERM, labelled=200, undistilled=8, distilled=200),
    ),
    "of padded texts the last word": (
        covered(ended_distilled=7, distilled=207),
        fails(
            "the mask is not shifted with the logits: in each of 7 padded texts the last word is distilled",
            TERM,
            "warn",
            padded_texts=7,
            full_texts=1,
            distilled=207,
        ),
    ),
    "of all texts the last word": (
        covered(ended_distilled=7, full_distilled=1, distilled=208),
        passes("no padding is distilled"),
    ),
    "of padded texts alone": (covered(ended_distilled=7, full=0, distilled=207), passes("no padding is distilled")),
    "prompts": (
        covered(prompt=80, prompt_distilled=80, distilled=280),
        fails("That can be a choice", TERM, "warn", prompt=80, prompt_distilled=80, labelled=200),
    ),
    "a word before the first label": (
        covered(prompt=8, prompt_distilled=8, distilled=208),
        passes("no padding is distilled"),
    ),
    "an end that pads": (
        covered(endless=6, end=2),
        fails("in all 6 texts that end with it (number 2) it is neither labelled", TERM, "warn", texts=6, word=2),
    ),
    "an end that pads, of few texts": (covered(endless=3, end=2), passes("those that are labelled")),
    "no prompts": (covered(prompt=80), passes("those that are labelled")),
    "the end left out": (
        covered(undistilled=20, tail=25, distilled=180),
        fails("20 of 200 labelled places are not distilled: none from place 25", TERM, "warn",
              labelled=200, undistilled=20, tail=25),
    ),
    "some left out": (covered(undistilled=20, distilled=180), passes("no padding is distilled")),
    "a piece left out": (
        dropped(*pieces(80, 59, 10)[:2]),
        passes("the tokens that are distilled are those that are labelled"),
    ),
    "the last piece left out": (
        dropped(*pieces(80, 60, 40, 20)[:3]),
        fails(
            "the last piece of the sequence is dropped: the 3 pieces of a step end at place 30 of 39, and the 20 words",
            TERM,
            pieces=3,
            end=30,
            length=40,
            words=20,
            step=0,
        ),
    ),
    "a piece whose place is not known": (
        dropped(*pieces(80, 60, 40, 20)[:3], tokens(coverage=None)),
        passes("those that are labelled"),
    ),
    "nothing in the last piece": (dropped(*pieces(80, 60, 40)), passes("those that are labelled")),
    "hidden states of padding": (
        featured(100),
        fails("hidden states of padding are compared (mse_loss): 100 of 100", OTHER, "warn",
              padding=100, padding_compared=100),
    ),
    "hidden states of words": (featured(0), passes("no hidden states of padding are compared")),
}  # fmt: skip


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])


def test_a_step_that_is_not_seen_to_end_drops_nothing() -> None:
    seen = [at(0, t) for t in pieces(80, 60, 40, 20)[:3]]
    judge("KD352", windows(*seen), passes("those that are labelled"))


def copied(own: float, following: float, words: int = 40) -> Trace:
    return lone(copied=Copied(own, following, words, OTHER))


def test_labels_that_are_the_words_shown_are_named_where_the_teacher_tells_the_next() -> None:
    found = fails("the labels' loss is not shifted", OTHER, own=-7.0, following=-3.0, tokens=40)
    judge("KD305", copied(-7.0, -3.0), found)


@pytest.mark.parametrize("made", [copied(-3.0, -7.0), copied(-3.2, -3.0), copied(-7.0, -3.0, 8)])
def test_a_teacher_that_copies_too_or_knows_nothing_accuses_nobody(made: Trace) -> None:
    judge("KD305", made, passes("each row is taught"))


def cut(**fields: Any) -> Trace:
    return trace(sights=[sight(term(), explained(wider=12, **fields))])


def test_vocabularies_cut_wrongly_are_named() -> None:
    observed = {"words": 10, "teacher_words": 12}
    front = fails(
        "cut at its front: each of the student's 10 words is taught by the word 2 further on", TERM, **observed
    )
    judge("KD305", cut(cut="front"), front)
    judge("KD305", cut(cut="after", mass=0.995), fails("after the softmax", TERM, "warn", **observed, sum=0.995))
    judge("KD305", cut(cut="after", mass=0.9), fails("they sum to 0.9", TERM, **observed, sum=0.9))
    judge("KD305", cut(cut="filled", mass=0.3), fails("filled up with zeros", TERM, **observed, lost=0.3))
    judge("KD305", cut(cut="filled", mass=0.01), fails("filled up with zeros", TERM, "warn", **observed, lost=0.01))
    judge("KD305", cut(), passes("each row is taught"))


def test_where_only_the_backward_is_known_it_is_named() -> None:
    seen = sight(explained(), tokens=[tokens(coverage=coverage(padding_distilled=100))])
    found = fails("padding is distilled", BACKWARD, padding=112, padding_distilled=100, distilled=200)
    judge("KD352", trace(script=True, sights=[seen]), found)
