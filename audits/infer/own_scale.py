"""What a language model does to its logits by its own configuration, and a loss that goes by its head alone skips."""

import math
from typing import NamedTuple

from kdbench.audits.infer.explain import Explanation
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import ModuleCall, RawWindow

_CAP, _DIVISOR = "final_logit_softcapping", "logits_scaling"
_FACTORS = (_DIVISOR, "logit_scale", "lm_head_multiplier")
"Names that Transformers' configurations have for a cap, for a divisor, and for factors."
_ONE = 1e-3
"Share by which a temperature of one may be off it: then nothing else was divided by."
_SEEN = 5.0
"""By how much what a cap takes from the largest logit, a third of the square of their quotient, must exceed what a
right form may leave."""


class Skipped(NamedTuple):
    """A scale that is set and was not applied."""

    name: str
    value: float
    largest: float
    "The largest logit of the rows that were looked at."


def own_scale(raw: RawWindow, cast: Cast) -> tuple[str, float] | None:
    """Return the cap or the factor that the configuration of a part of the student sets for its logits."""
    for call in raw.calls:
        config = getattr(call.module, "config", None) if call.out.params & cast.student_mask else None
        for name in (_CAP, *_FACTORS) if config is not None else ():
            value = getattr(config, name, None)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if 0 < value < math.inf and (name == _CAP or value != 1):
                return name, float(value)
    return None


def skipped(e: Explanation, scale: tuple[str, float], calls: list[ModuleCall]) -> Skipped | None:
    """Return that scale if the logits that a form explains are a head's own answer, which nothing scaled.

    Of logits far below a cap that cannot be told; nor of a factor where they were divided by a temperature.
    """
    if e.form in ("nothing", "unknown") or (e.call is None and not e.fused):
        return None
    by_index = {c.index: c for c in calls}
    around = by_index.get(e.call) if e.call is not None else None
    while around is not None:
        if getattr(around.module, "config", None) is not None:
            return None  # it scales what it answers
        around = None if around.parent is None else by_index.get(around.parent)
    name, value = scale
    if name == _CAP:
        seen = (e.largest / value) ** 2 / 3 > _SEEN * e.tolerance
    else:
        seen = e.temperature is not None and abs(e.temperature[0] - 1) <= _ONE
    return Skipped(name, value, e.largest) if seen else None


def rescale(e: Explanation, name: str, value: float) -> None:
    """Read a term as that of scaled logits, where what is explained is a head's answer before that.

    A head's answer that is divided seems softened by as much more than the teacher's.
    """
    divisor = value if name == _DIVISOR else 1 / value
    if name == _CAP or e.form != "one-sided" or e.temperature is None or e.weight is None:
        return
    ts, tt = e.temperature
    if abs(ts / divisor - tt) > _ONE * tt:
        return
    e.form, e.temperature, e.weight = "forward", (tt, tt), e.weight * divisor**2
    if e.coefficients is not None:
        e.coefficients = e.coefficients * divisor**2
