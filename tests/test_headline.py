"""The headline: a study in one or two sentences, each case of it."""

import dataclasses

import pytest

from kdbench.harness.analysis.because import Because
from kdbench.harness.analysis.headline import headline
from kdbench.harness.analysis.rows import Again, ArmRow, ComparisonRow, ControlsRow, Positive

MARGIN = 0.5


def row(kind, **said):
    """A row of which only this is known."""
    return kind(**{**dict.fromkeys(field.name for field in dataclasses.fields(kind)), **said})


def gain(verdict, method="logit", difference=0.86, pair="r34-r18", n=(3, 3), seeds=43, **more):
    said = {"verdict": verdict, "difference_pp": difference, "ci95_pp": [0.14, 1.58], "warnings": []}
    said |= {"seeds_for_power_80": seeds, "n": list(n), "pair": pair, "method": method, "a": "baseline", "b": method}
    return row(ComparisonRow, **{**said, **more})


def bug(verdict, name="imagenet-stem", difference=-1.8):
    return dataclasses.replace(gain(verdict, difference=difference), a="corrected", b=name)


def controls(again="identical", by_audit=True, in_accuracy=True):
    repeat = row(Again, verdict=again)
    positive = row(Positive, fault="teacher-rows-shuffled", seen_by_audit=by_audit, seen_in_accuracy=in_accuracy)
    return row(ControlsRow, again=repeat, positive=positive)


CORRECTED, BUGGED = row(ArmRow, fault=None), row(ArmRow, fault="imagenet-stem")


def told(gains=(), bugs=(), reasons=(), seen="sound", arms=(CORRECTED,)):
    seen = controls() if seen == "sound" else seen
    return headline(arms, list(reasons), list(gains), list(bugs), seen, MARGIN)


def reason(kind, what, message="", seeds=(0, 1, 2), method="logit", fault=None, audit=None, explanation=None):
    whose = "teacher" if method == "teacher" else "arm"
    return Because(
        whose, "r34-r18", method, fault, list(seeds), kind, audit, what, message, explanation, None, "runs/trials/key"
    )


GAINS = {
    "undecided": (
        [gain("undecided")],
        "Code clean. Logit-KD's gain is undecided at 3 seeds; about 43 would decide ±0.5 pp.",
    ),
    "undecided, and nobody knows how many seeds it takes": (
        [gain("undecided", seeds=None)],
        "Code clean. Logit-KD's gain is undecided at 3 seeds.",
    ),
    "undecided, though there are seeds enough for the margin": (
        [gain("undecided", seeds=5, n=(5, 5))],
        "Code clean. Logit-KD's gain is undecided at 5 seeds.",
    ),
    "different": (
        [gain("different")],
        "Code clean. Logit-KD gains 0.86 pp against the baseline (95% interval +0.14 to +1.58).",
    ),
    "lower": (
        [gain("different", difference=-0.86, ci95_pp=[-1.58, -0.14])],
        "Code clean. Logit-KD loses 0.86 pp against the baseline (95% interval -1.58 to -0.14).",
    ),
    "both": (
        [gain("both", difference=0.2, ci95_pp=[0.1, 0.3])],
        "Code clean. Logit-KD gains 0.20 pp against the baseline (95% interval +0.10 to +0.30), less than the margin "
        "of 0.5 pp.",
    ),
    "equivalent": (
        [gain("equivalent", n=(12, 12))],
        "Code clean. Logit-KD is equivalent to the baseline within ±0.5 pp at 12 seeds.",
    ),
    "undefined": (
        [gain("undefined", difference=None, warnings=["one seed has no spread"])],
        "Code clean. Logit-KD's gain cannot be computed: one seed has no spread.",
    ),
    "two undecided": (
        [gain("undecided"), gain("undecided", "feature", seeds=5)],
        "Code clean. Logit-KD's and Feature-KD's gains are undecided at 3 seeds; about 43 would decide ±0.5 pp.",
    ),
    "two verdicts": (
        [gain("undecided"), gain("different", "feature")],
        "Code clean. Feature-KD gains 0.86 pp against the baseline (95% interval +0.14 to +1.58). Logit-KD's gain is "
        "undecided at 3 seeds; about 43 would decide ±0.5 pp.",
    ),
    "two pairs": (
        [gain("equivalent"), gain("equivalent", pair="r50-r18")],
        "Code clean. Logit-KD (r34-r18) and Logit-KD (r50-r18) are equivalent to the baseline within ±0.5 pp at 3 "
        "seeds.",
    ),
    "many": (
        [gain("undecided")] * 4 + [gain("different")],
        "Code clean. The 5 gains over the baseline are 1 different, higher and 4 undecided, at 3 seeds.",
    ),
    "seeds that a trial is missing from": (
        [gain("undecided", n=(3, 5))],
        "Code clean. Logit-KD's gain is undecided at 3 to 5 seeds; about 43 would decide ±0.5 pp.",
    ),
}


@pytest.mark.parametrize(("gains", "text"), GAINS.values(), ids=GAINS)
def test_the_gains_in_a_sentence(gains, text):
    assert told(gains) == ("good", text)


DOUBTS = {
    "a bug": (
        [reason("failed", "KD201 clip-coverage failed", "2 of 66 parameters are never clipped")],
        "bad",
        "Bug found: KD201 clip-coverage failed in Logit-KD r34-r18, corrected (seeds 0, 1, 2): 2 of 66 parameters are "
        "never clipped. Fix it before you quote an accuracy.",
    ),
    "a teacher that learned too little": (
        [
            reason(
                "failed",
                "KD303 teacher-above-chance failed",
                "the teacher is right on 6% of 256 labels",
                (0,),
                audit="KD303",
                explanation="it was trained for 1 epoch only",
            )
        ],
        "open",
        "Teacher too weak: KD303 teacher-above-chance failed in Logit-KD r34-r18, corrected (seed 0): the teacher is "
        "right on 6% of 256 labels. Train the teacher longer before you quote an accuracy.",
    ),
    "undecided": (
        [reason("silent", "KD303 teacher-above-chance did not say that it passed", "no labels were seen", (1,))],
        "open",
        "Code not proven clean: KD303 teacher-above-chance did not say that it passed in Logit-KD r34-r18, corrected "
        "(seed 1): no labels were seen.",
    ),
    "broken": (
        [
            reason(
                "broken",
                "KD343 schedule-endpoints broke down, which is an error of kdbench and not of your study",
                "ZeroDivisionError",
                (0,),
                "teacher",
            )
        ],
        "open",
        "Code not proven clean: KD343 schedule-endpoints broke down, which is an error of kdbench and not of your "
        "study in the teacher r34-r18, corrected (seed 0): ZeroDivisionError.",
    ),
    "a planted bug that was missed": (
        [reason("escaped", "KD105 stem-resolution did not fail", "", (0,), fault="imagenet-stem")],
        "bad",
        "Not as declared: KD105 stem-resolution did not fail in Logit-KD r34-r18, imagenet-stem (seed 0).",
    ),
    "trials that could not run": (
        [reason("stopped", "its training is failed", "out of memory", seeds=(0, 2))],
        "open",
        "Not finished: 2 trials could not run.",
    ),
    "a trial that still runs": (
        [reason("unfinished", "it has no result yet", seeds=(0,))],
        "open",
        "Not finished: 1 trial still to run.",
    ),
    "the gravest first, and in how many arms": (
        [
            reason("unfinished", "it has no result yet"),
            reason("silent", "KD303 did not say that it passed"),
            *(reason("failed", "KD201 failed", method=name) for name in ("baseline", "logit", "feature", "dkd")),
        ],
        "bad",
        "Bug found: KD201 failed in Baseline r34-r18, corrected (seeds 0, 1, 2), Logit-KD r34-r18, corrected (seeds 0, "
        "1, 2) and 2 more. Fix it before you quote an accuracy. 2 other things are not as declared.",
    ),
}


@pytest.mark.parametrize(("reasons", "mark", "text"), DOUBTS.values(), ids=DOUBTS)
def test_while_the_code_is_in_doubt_no_gain_is_quoted(reasons, mark, text):
    assert told([gain("different")], reasons=reasons) == (mark, text)


CONTROLS = {
    "other bits": (
        controls(again="differs"),
        "bad",
        "Not reproducible: the same seed trained twice gave different weights.",
    ),
    "not caught": (
        controls(by_audit=False, in_accuracy=False),
        "bad",
        "Not as declared: exactly its own audit should catch the severe control bug (teacher-rows-shuffled).",
    ),
    "still running": (
        controls(again="missing"),
        "open",
        "Not finished: the control that trains one seed twice has not ended.",
    ),
    "not in accuracy": (
        controls(in_accuracy=False),
        "open",
        "Code clean. Logit-KD's gain is undecided at 3 seeds; about 43 would decide ±0.5 pp. These seeds do not show "
        "even the severe control bug in accuracy.",
    ),
    "none": (
        None,
        "open",
        "Code clean, but no controls were run. Logit-KD's gain is undecided at 3 seeds; about 43 would decide ±0.5 pp.",
    ),
    "a device that promises no equal bits": (
        controls(again="undecidable"),
        "good",
        "Code clean. Logit-KD's gain is undecided at 3 seeds; about 43 would decide ±0.5 pp.",
    ),
}


@pytest.mark.parametrize(("seen", "mark", "text"), CONTROLS.values(), ids=CONTROLS)
def test_what_the_controls_leave_of_it(seen, mark, text):
    assert told([gain("undecided")], seen=seen) == (mark, text)


def test_a_study_without_gains_tells_of_its_bugs():
    three = [bug("different"), bug("different", "random-teacher", -66.0), bug("undecided", "projector-unclipped")]
    assert told(bugs=three).text == (
        "Code clean. All 3 bugged arms were caught; against the corrected ones the accuracy is different, lower in 2 "
        "and undecided in 1."
    )
    assert told(bugs=three[:1]).text == (
        "Code clean. The bugged arm was caught; against the corrected one its accuracy is different, lower."
    )
    assert told(arms=(BUGGED,)).text == "Every planted bug was caught. There are no two arms to compare."
