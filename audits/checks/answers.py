"""What is wrong with the answers that are held against each other, before any form is asked for."""

from kdbench.audits.checks.catalogue import Verdict, failed
from kdbench.audits.checks.reading import explained, term_place
from kdbench.audits.trace import Trace

_CAPPED = 0.5
"Part of a cap from which it changes a logit by a twelfth or more."
_PADDING = 0.01
"Part of the probability from which a class that is named several times is no rounding."
_TOLD, _BLANK = 2, 3
"Backwards that must show a target with classes, or stored answers without, or a term made anew; and blank ones after."
_COLLAPSED = 3
"Backwards in which one target must stand for all samples: a centre may lag behind at first."


def collapsed(trace: Trace) -> Verdict | None:
    """Judge targets that name one class for every sample, though the teacher names others."""
    found = trace.losses.collapsed
    if found is None or found.windows < _COLLAPSED:
        return None
    return failed(
        f"the target names one class for every sample in {found.windows} of the backwards seen (class {found.named} "
        f"for all of {found.rows} rows), and the teacher's own answers tell them apart: what is taken from the answers "
        "outweighs them",
        {"windows": found.windows, "class": found.named, "rows": found.rows},
        found.where,
        mend="a centre is the mean of earlier answers, their sum divided by their number",
    )


def padded_answers(trace: Trace) -> Verdict | None:
    """Judge stored answers of some classes a row that name one class several times, each time with a probability."""
    for sight, e in explained(trace):
        if e.repeated is not None and e.repeated[1] > _PADDING:
            name, part = e.repeated
            return failed(
                f"rows of the stored answers name class {name} several times, and give it {part:.0%} of the "
                "probability: places of a row that hold no answer were filled with a number that counts as one",
                {"class": name, "probability": part},
                term_place(trace, sight),
                mend="fill the places that hold no answer with -inf, whose probability is 0",
            )
    return None


def unscaled(trace: Trace) -> Verdict | None:
    """Judge logits that skip the cap or the factor that the student's own configuration sets for them."""
    for sight, e in explained(trace):
        if e.skipped is None:
            continue
        name, value, largest = e.skipped
        what = f"the cap of {value:g}" if "cap" in name else f"the factor of {value:g}"
        slight = "cap" in name and largest < _CAPPED * value
        return failed(
            f"the student's logits skip {what} that its own configuration sets ({name}): they are the answer of its "
            f"head alone, up to {largest:.3g}, and the model that is used answers otherwise",
            {"name": name, "value": value, "largest": largest},
            term_place(trace, sight),
            "warn" if slight else None,
            mend="take the logits that the model returns, or do to the head's what its forward does",
        )
    return None


def emptied(trace: Trace) -> Verdict | None:
    """Judge targets that tell no class from another: a store that ended, or that was never filled for some samples."""
    for blank in trace.losses.blanks:
        if blank.told >= _TOLD and blank.windows >= _BLANK:
            return failed(
                f"the target of the distillation term is one number for every class in the last {blank.windows} "
                f"backwards, after {blank.told} in which it told them apart: no answer of the teacher is in it",
                {"told": blank.told, "windows": blank.windows},
                blank.where,
            )
    lost = [(s, s.blank_rows) for s in trace.losses.sights if s.blank_rows is not None]
    if len(lost) < _TOLD:
        return None
    sight, (empty, rows) = lost[0]
    return failed(
        f"{empty} of {rows} stored answers are one number for every class, and the teacher said otherwise of these "
        "samples: they were not stored",
        {"blank": empty, "rows": rows},
        term_place(trace, sight),
    )


def made_anew(trace: Trace) -> Verdict | None:
    """Judge a term that is no more than a number when it is added: torch.tensor(value, requires_grad=True)."""
    remade = trace.losses.remade
    if remade is None or remade.windows <= _TOLD:  # a constant counts once
        return None
    return failed(
        f"a term of the loss is a number that was made into a new tensor before each of {remade.windows} backwards: no "
        "gradient goes from it to a network",
        {"windows": remade.windows},
        remade.where,
        mend="return the term as it was computed, with its graph: no .item(), float(), .data, torch.tensor(...) or "
        "Variable(...) around it",
        explains=False,
    )
