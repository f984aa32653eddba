"""Weighting: the label loss and the distillation loss, and their sum."""

from collections.abc import Callable
from typing import Any

import torch

from kdbench.audits.checks.catalogue import Verdict, failed, passed
from kdbench.audits.laws.answers import close, number
from kdbench.audits.laws.registry import law


@law(
    "KD341",
    "weight-endpoints",
    mend="loss = ce_weight * ce + kd_weight * kd, in the paper's form (1 - alpha) * ce + alpha * kd; T**2 in kd itself",
)
def check_weighting(combine: Callable[..., Any], alpha: bool = False) -> Verdict:
    """A term whose weight is 0 is gone, and the other counts by its weight.

    ``combine(ce, kd, ce_weight, kd_weight)`` gets two losses (float64 tensors of shape ()) and two floats; with
    `alpha` it is ``combine(ce, kd, alpha)``, alpha the weight of the distillation term and 1 - alpha that of the labels
    (the paper, eq. 1). Returns one number. Fails when that is not ``ce_weight * ce + kd_weight * kd``
    with either weight 0, or with both in use.
    """

    def loss(ce: float, kd: float, weights: tuple[float, ...]) -> float:
        tensors = (torch.tensor(value, dtype=torch.float64) for value in (ce, kd))
        return number(combine(*tensors, *weights), "the loss")

    points: dict[tuple[float, ...], tuple[float, float]] = (
        {(0.0,): (1.0, 0.0), (1.0,): (0.0, 1.0), (0.3,): (0.7, 0.3)}
        if alpha
        else {point: point for point in ((0.7, 0.0), (0.0, 0.7), (0.3, 0.6))}
    )
    for weights, (of_ce, of_kd) in points.items():
        start = loss(2, 3, weights)
        # The weights that are in force, read off the losses.
        a, b = loss(3, 3, weights) - start, loss(2, 4, weights) - start
        rest = start - 2 * a - 3 * b
        at = f"alpha {weights[0]:g}" if alpha else f"label weight {weights[0]:g} and distillation weight {weights[1]:g}"
        observed = {"weights": list(weights), "expected": [of_ce, of_kd], "found": [a, b], "constant": rest}
        if not close(loss(5, 7, weights), 5 * a + 7 * b + rest):
            return failed(f"with {at} the loss is no weighted sum of the two terms", observed)
        if close(a, of_ce) and close(b, of_kd) and close(rest, 0):
            continue
        if close(a, of_kd) and close(b, of_ce) and close(rest, 0):
            slips = ["the weights are swapped"]
        else:
            slips = []
            for term, found, wanted in (("label", a, of_ce), ("distillation", b, of_kd)):
                if close(found, wanted):
                    continue
                if not wanted:
                    slips.append(f"the {term} term stays although its weight is 0")
                elif close(found, 1):
                    slips.append(f"the weight of the {term} term is ignored")
                else:
                    slips.append(f"the {term} term counts {found / wanted:.4g} times its weight")
            if not close(rest, 0):
                slips.append(f"a constant {rest:.4g} is added")
        form = f"{a:.4g} ce + {b:.4g} kd" + ("" if close(rest, 0) else f" + {rest:.4g}")
        return failed(f"with {at} the loss is {form}, not {of_ce:g} ce + {of_kd:g} kd: {', '.join(slips)}", observed)
    return passed(f"both terms count by their weights at {len(points)} settings", {"settings": len(points)})
