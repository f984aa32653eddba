"""Gradient clipping: which gradients it reached, and whether the bound holds over all that is stepped."""

from audits.checks import Verdict, audit, failed, passed, undecided
from audits.events import Step, Trace

TOLERANCE = 1e-3
"On the norm after clipping: torch divides by the norm plus 1e-6, and fp32 sums differ in the last bits."


def _missed(step: Step) -> list[int]:
    """Return the positions in `stepped` that no clip reached."""
    ids = frozenset().union(*(clip.ids for clip in step.clips))
    # A GradScaler writes to gradients too, so under one only torch's own clip calls count.
    touched = None if step.scaled and step.clips else step.touched
    return [
        i for i, param in enumerate(step.stepped) if id(param) not in ids and not (touched is not None and touched[i])
    ]


@audit(
    "KD201",
    severity="error",
    phase="burn-in",
    mend="clip one list that holds everything the optimizer moves: "
    "clip_grad_norm_([*student.parameters(), *projector.parameters()], max_norm)",
)
def clip_coverage(trace: Trace) -> Verdict:
    """Whatever is stepped is clipped: a clip that leaves parameters out bounds nothing for them.

    Fails when, in a step in which something was clipped, a stepped gradient was in no torch clip call and was not
    written to between its accumulation and the step. Decidable at the first step, whatever the size of the norms.
    """
    if not trace.steps:
        return undecided("not-in-these-steps", "no step of a watched optimizer was seen")
    # Without a torch clip call, writes to gradients are a clip only if a clip was declared.
    judged = [
        s for s in trace.steps if s.clips or (trace.clip is not None and not s.scaled and s.touched and any(s.touched))
    ]
    if not judged:
        return undecided("no-clip-call", f"nothing was clipped in the {len(trace.steps)} steps that were watched")
    for step in judged:
        missed = _missed(step)
        if missed:
            names = [trace.name(step.stepped[i]) for i in missed]
            calls = [{"bound": c.bound, "parameters": len(c.ids), "where": c.where} for c in step.clips]
            return failed(
                f"{len(names)} of {len(step.stepped)} parameters that the optimizer steps are left out of the clip: "
                f"{_some(names)}",
                {"step": step.number, "missed": names, "stepped": len(step.stepped), "clip_calls": calls},
                step.clips[0].where if step.clips else step.where,
            )
    return passed(f"every stepped gradient was clipped in all {len(judged)} steps watched", {"steps": len(judged)})


@audit(
    "KD204",
    severity="error",
    phase="burn-in",
    follows="KD201",
    mend="one clip call over everything the optimizer moves, after the last backward and before the step",
)
def norm_bound(trace: Trace) -> Verdict:
    """After clipping, the norm over all that is stepped is at most max_norm.

    Fails when, in some step, the 2-norm over all gradients that the optimizer got exceeds max_norm by more than one
    part in a thousand (times the square root of the number of groups where clipping by group is declared). Usually a
    consequence of KD201; and KD201 can fail while this holds, for as long as the norms left out stay small.
    """
    if not trace.steps:
        return undecided("not-in-these-steps", "no step of a watched optimizer was seen")
    worst: tuple[float, float, Step] | None = None
    for step in trace.steps:
        bound = _bound(trace, step)
        if isinstance(bound, Verdict):
            return bound
        norm = float(step.norm)
        if norm - norm != 0:  # a GradScaler skips such a step, and no bound speaks of it
            continue
        if worst is None or norm / bound > worst[0] / worst[1]:
            worst = (norm, bound, step)
    if worst is None:
        return undecided("not-in-these-steps", "no step with finite gradients was seen")
    norm, bound, step = worst
    observed = {"step": step.number, "largest_norm": norm, "bound": bound}
    if norm <= bound * (1 + TOLERANCE):
        return passed(f"the largest norm was {norm:.4g}, bound {bound:.4g}", observed)
    return failed(
        f"at step {step.number} the optimizer got gradients of norm {norm:.4g} over all its parameters, "
        f"bound {bound:.4g}",
        observed,
        step.clips[0].where if step.clips else step.where,
        None if trace.clip is not None else "warn",
    )


def _bound(trace: Trace, step: Step) -> float | Verdict:
    """Return the bound that holds for the step, or why none is known."""
    if trace.clip is not None:
        groups = max(1, len(step.clips)) if trace.clip.scope == "per_group" else 1
        return float(trace.clip.max_norm * groups**0.5)
    option = "clip=audits.Clip(max_norm)"
    if not step.clips:
        return undecided("no-clip-call", f"no clip was declared, and step {step.number} made no clip call", option)
    (first, *others) = step.clips
    if others:
        return undecided("intent-unknown", "several clip calls a step: one bound, or one each?", option)
    if first.norms is None or abs(float(first.norms[0]) - float(first.norms[1])) > TOLERANCE * float(first.norms[1]):
        return undecided("intent-unknown", "the clip call bounds something other than the 2-norm", option)
    return first.bound


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
