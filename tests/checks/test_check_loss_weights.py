"""Verdicts on the weights of the losses, to the number, on traces made by hand."""

from typing import Any

import pytest
from specimens import (
    BACKWARD,
    BY_B,
    BY_BB,
    BY_C,
    NOTHING,
    OTHER,
    T1,
    T2,
    TERM,
    Cases,
    Wanted,
    explained,
    fails,
    feature,
    finding,
    judge,
    named,
    passes,
    put,
    seen,
    sight,
    term,
    trace,
    undecided,
)

from kdbench.audits.trace import KD, Trace

CASES: Cases = {}


def weighed(kd: float, labels: float | None = 0.1, **fields: Any) -> dict[str, Any]:
    return {
        "kd_weight": kd,
        "label_weight": labels,
        "temperature": 4.0,
        "classes": 10,
        "rows": 8,
        "residual": 1e-7,
    } | fields


def scaled(
    wanted: tuple[str, ...],
    kd: float,
    labels: float | None = 0.1,
    extra: dict[str, Any] | None = None,
    micro: int = 1,
    meant: KD | None = None,
    **fields: Any,
) -> tuple[Trace, Wanted]:
    """One soft term at temperature 4 over 8 rows of 10 classes with these weights, and the verdict on its scale."""
    made = seen(explained(weight=kd, label_weight=labels, **fields), term(), kd=meant, micro=micro)
    shown_of = {key: value for key, value in fields.items() if key in ("classes", "rows")}
    if "temperature" in fields:
        shown_of["temperature"] = fields["temperature"][0]
    observed = weighed(kd, labels, **shown_of) | (extra or {})
    status, message, *rest = wanted
    if status == "fail":
        return made, fails(message, TERM, *rest, **observed)
    if status == "pass":
        return made, passes(message, **observed)
    return made, undecided(status, message, *rest, **observed)


FREE = ("intent-unknown", "whether that is meant cannot be seen", "--alpha or --kd-weight")
ALPHA, WEIGHT = KD(alpha=0.9), KD(kd_weight=0.9)


def factor(name: str, value: float) -> dict[str, Any]:
    """The arguments of `scaled` for a factor on 0.9 beside 0.1."""
    return {
        "wanted": (
            "fail",
            f"weight is {0.9 * value:.4g}; 0.9 is expected beside the labels' weight 0.1. The ratio is {name}",
        ),
        "kd": 0.9 * value,
        "extra": {"factor": value},
    }


CASES["KD312"] = {
    "sum to one": scaled(("pass", "the weights sum to one: labels 0.1, distillation 0.9"), 0.9),
    "sum to 1.0019": scaled(("pass", "sum to one: labels 0.1, distillation 0.9019"), 0.9019),
    "sum to 1.0021": scaled(FREE, 0.9021),
    "sum to 0.9981": scaled(("pass", "sum to one: labels 0.1, distillation 0.8981"), 0.8981),
    "sum to 0.9979": scaled(FREE, 0.8979),
    "sum to one over four backwards": scaled(
        ("pass", "sum to one: labels 0.1, distillation 0.9"), 0.225, 0.025, micro=4
    ),
    "sum to one each of four backwards": scaled(("pass", "labels 0.1, distillation 0.9"), 0.9, micro=4),
    "T^2": scaled(**factor(T2, 1 / 16)),
    "T": scaled(**factor(T1, 1 / 4)),
    "C": scaled(**factor(BY_C, 1 / 10)),
    "C and T^2": scaled(**factor("1/(C T^2) (reduction 'mean', and T * T is missing)", 1 / 160)),
    "sum": scaled(**factor(BY_B, 8.0)),
    "twice": scaled(**factor(BY_BB, 1 / 8)),
    "tokens": scaled(
        **factor("rows/B (divided by the sequences, not by their tokens)", 4.0), rows=32, batch=8, classes=100
    ),
    "three teachers, by the batch": scaled(
        **factor("3/B (the sum over 3 teachers was divided by the batch)", 3 / 8), members=3
    ),
    "three teachers, by nothing": scaled(
        **factor("3 (the sum over 3 teachers was not divided by their number)", 3.0), members=3
    ),
    "one teacher, three times": scaled(FREE, 2.7),
    "the factor itself a little off": scaled(
        ("fail", f"0.9018 is expected beside the labels' weight 0.1. The ratio is {T2}"),
        0.9018 / 16,
        extra={"factor": 1 / 16},
    ),
    "a factor that is none": scaled(FREE, 0.903 / 16),
    "T^2 over four backwards": scaled(
        ("fail", f"weight is 0.05625; 0.9 is expected beside the labels' weight 0.1. The ratio is {T2}"),
        0.225 / 16,
        0.025,
        extra={"factor": 1 / 16},
        micro=4,
    ),
    "at temperature 1, C": scaled(**factor(BY_C, 1 / 10), temperature=(1.0, 1.0)),
    "at temperature 1, no T": scaled(FREE, 0.9 / 16, temperature=(1.0, 1.0)),
    "two names of one number": scaled(**factor(f"{T2}, or {BY_C}", 1 / 16), classes=16),
    "two numbers that fit": scaled(FREE, 0.03 / 102, 0.97, classes=100, rows=104, batch=104),
    "a weight too small to tell": scaled(FREE, 0.019 / 16, 0.981),
    "a weight that just cannot tell": scaled(FREE, 0.02 / 16, 0.98),
    "two numbers that are almost one": scaled(
        ("fail", f"0.8983 is expected beside the labels' weight 0.1. The ratio is {BY_C}, or {BY_BB}"),
        0.8983 / 250,
        extra={"factor": 1 / 250},
        classes=250,
        rows=251,
        batch=251,
    ),
    "T^2 in each of four backwards": scaled(
        ("fail", f"weight is 0.05625; 0.9 is expected beside the labels' weight 0.1. The ratio is {T2}"),
        0.9 / 16,
        extra={"factor": 1 / 16},
        micro=4,
    ),
    "a small weight": scaled(
        ("fail", "0.023 is expected beside the labels' weight 0.977"), 0.023 / 16, 0.977, extra={"factor": 1 / 16}
    ),
    "tokens of sequences decide nothing": scaled(FREE, 0.9 / 16, sequence=True),
    "labels at almost 1": scaled(FREE, 0.0015, 0.9985),
    "labels at not quite 1": scaled(("pass", "labels 0.9975, distillation 0.0025"), 0.0025, 0.9975),
    "labels at just 0.998": scaled(FREE, 0.002, 0.998),
    "labels at 1": scaled(FREE, 0.5, 1.0),
    "labels at 0": scaled(FREE, 1.0, 0.0),
    "labels at next to nothing": scaled((FREE[0], "labels act with weight 1e-05", FREE[2]), 0.5, 1e-5),
    "labels unknown": scaled((FREE[0], "labels act with weight unknown, distillation with 0.5", FREE[2]), 0.5, None),
    "free": scaled(
        (
            FREE[0],
            "labels act with weight 1, distillation with 0.5 at temperature 4 (it would read 8 with T * T missing)",
            FREE[2],
        ),
        0.5,
        1.0,
    ),
    "free, at temperature 1": scaled(
        (FREE[0], "distillation with 0.5 at temperature 1 (it would read 0.5)", FREE[2]),
        0.5,
        1.0,
        temperature=(1.0, 1.0),
    ),
    "as alpha says": scaled(("pass", "the effective KD weight is 0.9, as declared"), 0.9, 1.0, meant=ALPHA),
    "as alpha says, within two in a thousand": scaled(("pass", "0.9017, as declared"), 0.9017, 1.0, meant=ALPHA),
    "beyond two in a thousand": scaled(
        ("fail", "weight is 0.902; 0.9 is declared. The ratio is 1.002"), 0.902, meant=ALPHA
    ),
    "without T^2, over two backwards": scaled(
        ("fail", f"weight is 0.02813; 0.9 is declared. The ratio is {T2}"), 0.9 / 32, meant=ALPHA, micro=2
    ),
    "declared off, and on": scaled(("fail", "weight is 0.9; 0 is declared"), 0.9, meant=KD(alpha=0.0)),
    "as alpha says, over four backwards": scaled(("pass", "weight is 0.9, as declared"), 0.225, meant=ALPHA, micro=4),
    "as alpha says, in each of four backwards": scaled(("pass", "0.9, as declared"), 0.9, meant=ALPHA, micro=4),
    "in half precision, within twice the residual": scaled(
        ("pass", "as declared"), 0.9 * 1.009, meant=ALPHA, residual=5e-3, extra={"residual": 5e-3}
    ),
    "in half precision, beyond": scaled(
        ("fail", "declared. The ratio is 1.011"),
        0.9 * 1.011,
        meant=ALPHA,
        residual=5e-3,
        extra={"residual": 5e-3},
    ),
    "in half precision, by just twice the residual": scaled(
        ("pass", "as declared"), 1 + 2**-8, meant=KD(kd_weight=1.0), residual=2**-9, extra={"residual": 2**-9}
    ),
    "in half precision, sum to just that": scaled(
        ("pass", "sum to one"), 0.5 + 2**-8, 0.5, residual=2**-9, extra={"residual": 2**-9}
    ),
    "in half precision, sum to one": scaled(("pass", "sum to one"), 0.909, residual=5e-3, extra={"residual": 5e-3}),
    "in half precision, sum to more": scaled(FREE, 0.911, residual=5e-3, extra={"residual": 5e-3}),
    "as the weight says": scaled(("pass", "weight is 0.9, as declared"), 0.9, 1.0, meant=WEIGHT),
    "alpha before the weight": scaled(("pass", "0.9, as declared"), 0.9, meant=KD(alpha=0.9, kd_weight=0.5)),
    "not as alpha says, by T^2": scaled(("fail", f"0.9 is declared. The ratio is {T2}"), 0.9 / 16, meant=ALPHA),
    "not as the weight says, by C": scaled(("fail", f"0.9 is declared. The ratio is {BY_C}"), 0.09, 1.0, meant=WEIGHT),
    "not as alpha says, by two that are one": scaled(
        ("fail", f"0.9 is declared. The ratio is {T2}, or {BY_C}"), 0.9 / 16, meant=ALPHA, classes=16
    ),
    "a named factor within four in a thousand": scaled(("fail", f"The ratio is {T2}"), 0.9 / 16 * 1.0035, meant=ALPHA),
    "a factor beyond four in a thousand": scaled(("fail", "The ratio is 0.06283"), 0.9 / 16 * 1.0052, meant=ALPHA),
    "some rows alone, as declared": scaled(("pass", "as declared"), 0.9, meant=ALPHA, partial=True),
    "some rows alone": scaled(("form-not-recognised", "only some rows are distilled", "--alpha"), 0.9, partial=True),
    "squared distance": (seen(explained("mse-logits")), undecided("out-of-scope", "a squared distance or hard labels")),
    "squared distance of probabilities": (
        seen(explained("mse-probabilities"), term(reduction="mean")),
        undecided("out-of-scope", "a squared distance or hard labels"),
    ),
    "labels of the teacher's": (
        seen(explained("hard-labels")),
        undecided("out-of-scope", "a squared distance or hard labels"),
    ),
    "squared distance, and a form not known": (
        seen(explained("mse-logits"), explained("unknown")),
        undecided("out-of-scope", "a squared distance or hard labels"),
    ),
    "rows permuted, and a form not known": (
        seen(explained("permuted"), explained("unknown")),
        undecided("form-not-recognised", "the rows do not belong together"),
    ),
    "not as declared, in the second backward": (
        trace(sights=[sight(), sight(explained(weight=0.5), where=OTHER)], kd=ALPHA),
        fails("The ratio is 0.5556", OTHER, **weighed(0.5)),
    ),
    "of two that were read the first": (
        seen(explained(), explained(weight=0.5)),
        passes("distillation 0.9", **weighed(0.9)),
    ),
    "rows permuted": (seen(explained("permuted")), undecided("form-not-recognised", "the rows do not belong together")),
    "a form not known": (seen(explained("unknown")), undecided("form-not-recognised", "no soft term of a known form")),
    "no weight read": (seen(explained(weight=None)), undecided("form-not-recognised", "no soft term of a known form")),
    "no temperature read": (seen(explained(temperature=None)), undecided("form-not-recognised", "of a known form")),
    "the first that was read": (
        trace(
            sights=[sight(explained("unknown"), micro=3), sight(explained(weight=0.225, label_weight=0.025), micro=4)]
        ),
        passes("labels 0.1, distillation 0.9", **weighed(0.225, 0.025)),
    ),
}

MEAN = {"reduction": "mean", "shape": [8, 10]}
CASES["KD312"] |= {
    "reduction mean, a form not known": (
        seen(explained("unknown"), term(), term(reduction="mean", where=OTHER)),
        fails("reduction is 'mean', which divides by the 10 classes too", OTHER, "warn", **MEAN),
    ),
    "reduction mean, rows permuted": (
        seen(explained("permuted"), term(reduction="mean")),
        fails("divides by the 10 classes too", TERM, "warn", **MEAN),
    ),
    "reduction mean, weights free": (
        seen(explained(label_weight=1.0), term(reduction="mean")),
        fails("divides by the 10 classes too", TERM, "warn", **MEAN),
    ),
    "reduction mean, made up for": (
        seen(explained(), term(reduction="mean")),
        passes("the weights sum to one", **weighed(0.9)),
    ),
    "reduction mean of another function": (
        seen(explained("unknown"), term("mse_loss", reduction="mean")),
        undecided("form-not-recognised", "of a known form"),
    ),
    "reduction mean over one column": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(8, 1)])),
        undecided("form-not-recognised", "of a known form"),
    ),
    "reduction mean over two columns": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(8, 2)])),
        fails("divides by the 2 classes too", TERM, "warn", reduction="mean", shape=[8, 2]),
    ),
    "reduction mean of sequences": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(8, 1, 10), (8, 1, 1)])),
        fails("divides by the 10 classes too", TERM, "warn", reduction="mean", shape=[8, 1, 10]),
    ),
    "reduction mean of a number": (
        seen(explained("unknown"), term(reduction="mean", shapes=[(), (8, 10)])),
        undecided("form-not-recognised", "of a known form"),
    ),
    "reduction mean of what was not seen": (
        seen(explained("unknown"), term(reduction="mean", shapes=[])),
        undecided("form-not-recognised", "of a known form"),
    ),
}


def written(slip: str | None, kd: float, *factors: float, known: bool = True, **fields: Any) -> tuple[Trace, Wanted]:
    """A soft term of free weight `kd` at temperature 4, multiplied by `factors` on its way to the sum."""
    t = fields.get("temperature", (4.0,))[0]
    wanted: tuple[str, ...] = FREE
    if slip is not None:
        wanted = ("fail", f"weight is {kd:.4g} at temperature {t:g}: off by a factor {slip}", "warn")
    return scaled(wanted, kd, 1.0, factors=list(factors), factors_known=known, **fields)


ONE_C = "1/C (the mean divides by the classes too)"
AT_ONE = {"temperature": (1.0, 1.0)}
CASES["KD312"] |= {
    "written with T^2": written(None, 0.5, 0.5, 16.0),
    "written over all numbers, times the classes": written(None, 0.5, 0.5, 16.0, 10.0, 1 / 80),
    "written with T twice": written(None, 0.5, 0.5, 4.0, 4.0),
    "written with T^2 in one number": written(None, 0.5, 8.0),
    "written without T^2": written(T2, 0.5 / 16, 0.5),
    "written without T^2, within five in a thousand": written(T2, 0.5 / 16 * 1.004, 0.5),
    "written without T^2, beyond": written(None, 0.5 / 16 * 1.006, 0.5),
    "written without any factor": written(T2, 1 / 16),
    "written without T^2, of many digits": written(None, 0.5123 / 16, 0.5123),
    "written without T^2, of four digits": written(None, 1.625 / 16, 1.625),
    "written without T^2, almost of three digits": written(T2, 0.33305 / 16, 0.33305),
    "written without T^2, not quite of three digits": written(None, 0.3331 / 16, 0.3331),
    "written without T^2, of three digits": written(T2, 0.337 / 16, 0.337),
    **{
        f"alpha twice, {name}": scaled(
            (
                "fail",
                "weight is 0.09; 0.3 is expected beside the labels' weight 0.7. The term is multiplied by 0.3 twice",
                "warn",
            ),
            0.09,
            0.7,
            factors=factors,
            factors_known=True,
            extra={"factors": factors},
        )
        for name, factors in {"and T^2": [16.0, 0.3, 0.3], "with T^2 in one": [4.8, 0.3]}.items()
    },
    "a weight that T^2 makes T": scaled(FREE, 1.0, 0.75, factors=[4.0, 4.0], factors_known=True),
    "written with T": written(T1, 2 / 16, 0.5, 4.0),
    "written with T in one number": written(T1, 2.8 / 16, 2.8),
    "written with T in one number that is as round": written(T2, 2.2 / 16, 2.2),
    "factors not known": written(None, 0.5 / 16, 0.5, known=False),
    "a negative product": written(None, 0.5 / 16, -0.5),
    "a product of 0": written(None, 0.5 / 16, 0.0),
    "divided by C": written(ONE_C, 0.05, 0.5, 16.0),
    "divided by C, within five in a thousand": written(ONE_C, 0.05 * 1.004, 0.5, 16.0),
    "divided by C, beyond": written(None, 0.05 * 1.006, 0.5, 16.0),
    "divided by C, and multiplied by it": written(None, 0.5, 0.5, 16.0, 10.0),
    "divided by C, and multiplied by almost it": written(None, 0.5 * 1.0015, 0.5, 16.0, 10.015),
    "divided by C, and multiplied by something else": written(ONE_C, 0.5 * 1.1, 0.5, 16.0, 11.0),
    "divided by C at temperature 1": written(ONE_C, 0.05, 0.5, **AT_ONE),
    "divided by C and by T^2": written(ONE_C, 0.05 / 16, 0.5),
    "a mean over C, and divided by the batch": written(ONE_C, 0.05, 0.5, 16.0, 1 / 8),
    "summed": written(BY_B, 4.0, 0.5, 16.0),
    "summed, within five in a thousand": written(BY_B, 4.0 * 1.004, 0.5, 16.0),
    "summed, beyond": written(None, 4.0 * 1.006, 0.5, 16.0),
    "summed, and divided by the batch": written(None, 0.5, 0.5, 16.0, 1 / 8),
    "summed, and divided by almost the batch": written(None, 0.5 * 1.0015, 0.5, 16.0, 1.0015 / 8),
    "summed over the rows of sequences, and divided by the batch": written(
        None, 0.5 * 4, 0.5, 16.0, 1 / 8, rows=32, batch=8
    ),
    "summed over one row": written(None, 0.5, 0.5, 16.0, rows=1, batch=1),
    "divided by the tokens of the whole step": written(None, 0.5 * 8 / 20, 0.5, 16.0, 1 / 20, sequence=True),
    "divided by what is no number of tokens": written(BY_B, 4.0 / 20.5, 0.5, 16.0, 1 / 20.5, sequence=True),
    "divided by fewer": written(BY_B, 4.0 / 5, 0.5, 16.0, 1 / 5, sequence=True),
    "summed without T^2": written(BY_B, 4.0 / 16, 0.5),
    "divided by the batch twice": written(BY_BB, 0.5 / 8, 0.5, 16.0, 1 / 8),
    "divided by the batch twice, within five in a thousand": written(BY_BB, 0.5 / 8 * 1.004, 0.5, 16.0, 1 / 8),
    "divided by the batch twice, beyond": written(None, 0.5 / 8 * 1.006, 0.5, 16.0, 1 / 8),
    "summed over two rows": written(BY_B, 1.4, 0.7, 16.0, rows=2, batch=2),
    "divided by two rows twice": written(BY_BB, 0.35, 0.7, 16.0, 0.5, rows=2, batch=2),
    "over seven rows, without T^2": written(T2, 0.5 / 16, 0.5, 1 / 7, rows=7, batch=7),
    "divided by the batch thrice": written(None, 0.5 / 64, 0.5, 16.0, 1 / 8, 1 / 8),
    "divided by one row": written(None, 0.5, 0.5, 16.0, 1.0, rows=1, batch=1),
    "at temperature 1": written(None, 0.5, 0.5, **AT_ONE),
    "at temperature 1, without any factor": written(None, 1.0, **AT_ONE),
    "written with almost T^2, which is less round": written(
        None, 0.5 * 10.9 / 10.89, 0.5, 10.9, temperature=(3.3, 3.3)
    ),
    "summed, divided, without T^2": written(T2, 0.5 / 16, 0.5, 1 / 8),
    "over the tokens, divided by the batch, without T^2": written(T2, 0.5 / 16 * 4, 0.5, 1 / 8, rows=32, batch=8),
    "divided by C, multiplied by it, without T^2": written(T2, 0.5 / 16, 0.5, 10.0),
    "no known reduction": written(None, 0.5 / 16 / 3, 0.5),
}


def balanced(*shares: float, limits: tuple[float, float] | None = None) -> Trace:
    return seen(*(explained(share=s) for s in shares), explained("nothing", share=9.0), kd=KD(share=limits))


CASES["KD314"] = {
    "nothing explained": (seen(NOTHING), undecided("form-not-recognised", "no gradient of a soft term")),
    "not declared": (
        balanced(1.0, 3.0),
        undecided("intent-unknown", "makes up about 62% of", share=0.625),
    ),
    "not declared in a loop": (
        put(balanced(1.0), script=False),
        undecided("intent-unknown", "makes up about 50% of", "kd=kdbench.KD(share=(low, high))", share=0.5),
    ),
    "within": (balanced(1.0, limits=(0.4, 0.6)), passes("makes up 50% of", share=0.5)),
    "at the lower end": (balanced(1.0, limits=(0.5, 0.6)), passes("makes up 50% of", share=0.5)),
    "at the upper end": (balanced(1.0, limits=(0.4, 0.5)), passes("makes up 50% of", share=0.5)),
    "no labels": (
        put(seen(explained(share=0.02, label_weight=0.0)), script=True),
        undecided("intent-unknown", "makes up about 100% of", share=1.0),
    ),
    "below": (
        balanced(1.0, limits=(0.51, 0.6)),
        fails("50% of the gradient at the logits; declared 51% to", BACKWARD, share=0.5),
    ),
    "above": (
        balanced(3.0, limits=(0.4, 0.7)),
        fails("75% of the gradient at the logits; declared 40% to", BACKWARD, share=0.75),
    ),
}


def ends(kd: float | None, labels: float | None, alpha: float | None, form: str = "forward") -> Trace:
    return seen(explained(form, weight=kd, label_weight=labels), term(), kd=KD(alpha=alpha))


def of(kd: float, labels: float, alpha: float | None = None) -> dict[str, float]:
    return {"label_weight": labels, "kd_weight": kd} | ({} if alpha is None else {"alpha": alpha})


CASES["KD341"] = {
    "nothing read": (seen(feature()), undecided("form-not-recognised", "the weights of the two terms were not read")),
    "another form": (ends(0.9, 0.1, 0.9, "reversed"), undecided("form-not-recognised", "were not read")),
    "no weight": (ends(None, 0.1, 0.9), undecided("form-not-recognised", "were not read")),
    "no label weight": (ends(0.9, None, 0.9), undecided("form-not-recognised", "were not read")),
    "not declared": (
        ends(0.25, 0.75, None),
        undecided(
            "intent-unknown", "the labels have weight 0.75 and the distillation has 0.25", "--alpha", **of(0.25, 0.75)
        ),
    ),
    "as declared": (ends(0.9, 0.1, 0.9), passes("1 - alpha = 0.1", **of(0.9, 0.1, 0.9))),
    "as declared, the other scaled": (ends(0.05, 0.1, 0.9), passes("1 - alpha = 0.1", **of(0.05, 0.1, 0.9))),
    "off by less than 0.002": (ends(0.9, 0.1019, 0.9), passes("1 - alpha = 0.1019", **of(0.9, 0.1019, 0.9))),
    "off by more": (
        ends(0.9, 0.1021, 0.9),
        undecided("intent-unknown", "the labels' weight is 0.1021, not 1 - alpha", **of(0.9, 0.1021, 0.9)),
    ),
    "exchanged": (
        ends(0.1, 0.9, 0.9),
        fails("exchanged: 0.1 on the distillation and 0.9 on the labels, alpha is 0.9", TERM, **of(0.1, 0.9, 0.9)),
    ),
    "exchanged, off by less than 0.002": (
        ends(0.1019, 0.9019, 0.9),
        fails("the weights are exchanged", TERM, **of(0.1019, 0.9019, 0.9)),
    ),
    "exchanged, off by just 0.002": (
        ends(1.0, 0.002, 0.0),
        fails("the weights are exchanged", TERM, **of(1.0, 0.002, 0.0)),
    ),
    "exchanged, the distillation off by just 0.002": (
        ends(0.002, 1.0, 1.0),
        fails("the weights are exchanged", TERM, **of(0.002, 1.0, 1.0)),
    ),
    "off by just 0.002": (ends(0.5, 0.002, 1.0), passes("1 - alpha = 0.002", **of(0.5, 0.002, 1.0))),
    "exchanged, in the second backward": (
        trace(sights=[sight(), sight(explained(weight=0.1, label_weight=0.9), where=OTHER)], kd=KD(alpha=0.9)),
        fails("the weights are exchanged", OTHER, **of(0.1, 0.9, 0.9)),
    ),
    "no label weight, then one": (
        seen(explained(label_weight=None), explained(), kd=KD(alpha=0.9)),
        undecided("form-not-recognised", "were not read"),
    ),
    "the labels off by more": (
        ends(0.1, 0.9021, 0.9),
        undecided("intent-unknown", "the weights are free", **of(0.1, 0.9021, 0.9)),
    ),
    "the distillation off by more": (
        ends(0.1021, 0.9, 0.9),
        undecided("intent-unknown", "the weights are free", **of(0.1021, 0.9, 0.9)),
    ),
    "half and half": (ends(0.5, 0.5, 0.5), passes("1 - alpha = 0.5", **of(0.5, 0.5, 0.5))),
    "nearly half and half": (ends(0.4991, 0.5009, 0.5009), passes("1 - alpha", **of(0.4991, 0.5009, 0.5009))),
    "not half and half": (
        ends(0.4985, 0.5015, 0.5015),
        fails("the weights are exchanged", TERM, **of(0.4985, 0.5015, 0.5015)),
    ),
    "labels alone, at weight 0": (ends(0.0, 1.0, 0.0), passes("1 - alpha = 1", **of(0.0, 1.0, 0.0))),
    "no labels": (ends(1.0, 0.0, 1.0), passes("1 - alpha = 0", **of(1.0, 0.0, 1.0))),
    "the first that was read": (
        seen(explained("unknown"), explained(), explained(label_weight=0.5), kd=KD(alpha=0.9)),
        passes("1 - alpha = 0.1", **of(0.9, 0.1, 0.9)),
    ),
}


@pytest.mark.parametrize(("id", "name"), named(CASES))
def test_verdict(id: str, name: str) -> None:
    judge(id, *CASES[id][name])


def of_a_step(*parts: tuple[int, float, float]) -> Trace:
    """Micro-batches of one step: rows, weights of the term and of the labels."""
    made = [
        explained(rows=rows, weight=k, label_weight=a, sequence=True, source=1, factors=[0.9]) for rows, k, a in parts
    ]
    return trace(script=True, sights=[sight(e, term(), micro=len(parts)) for e in made])


def test_a_term_that_is_divided_by_the_tokens_of_the_step_has_its_weight_over_all_of_it() -> None:
    found = finding("KD312", of_a_step((8, 0.9 * 8 / 20, 0.1 * 8 / 20), (12, 0.9 * 12 / 20, 0.1 * 12 / 20)))
    assert (found.status, found.message) == ("pass", "the weights sum to one: labels 0.1, distillation 0.9")
    found = finding("KD312", of_a_step((8, 0.9 * 8 / 320, 0.1 * 8 / 20), (12, 0.9 * 12 / 320, 0.1 * 12 / 20)))
    assert found.status == "fail" and T2 in found.message
    # Where one of them is not read, the step is not known.
    half = of_a_step((8, 0.9 * 8 / 20, 0.1 * 8 / 20), (12, 0.9 * 12 / 20, 0.1 * 12 / 20))
    half.losses.sights[1].explanations = []
    assert finding("KD312", half).status == "not_triggered"
