"""Gradient clipping: which gradients it reached, and whether the bound holds over all that is stepped."""

from audits.checks import Verdict, audit, failed, passed, undecided
from audits.events import Step, Trace

TOLERANCE = 1e-3
"On the norm after clipping: torch divides by the norm plus 1e-6, and sums differ in the last bits."


def _missed(step: Step) -> list[int]:
    """Return the positions in `stepped` that no clip reached."""
    reached = frozenset().union(*(clip.ids for clip in step.clips))
    # A GradScaler writes to gradients too, so under one only torch's own clip calls count.
    if step.written is not None and not (step.scaled and step.clips):
        reached |= step.written
    return [i for i, param in enumerate(step.stepped) if id(param) not in reached]


def _is_judged(trace: Trace, step: Step) -> bool:
    """Say whether something was clipped, so that everything should have been.

    Without a clip declared, a write to gradients is no clip; nor is it where the norm stayed clear of the bound, so
    that a clip by hand had nothing to do. One group at a time, such a clip may leave groups alone that are small
    enough, so it decides nothing about the others.
    """
    if step.clips:
        return True
    if trace.clip is None:
        return False
    if step.clipped_elsewhere:
        return True
    by_hand = trace.clip.scope == "global" and not step.scaled and bool(step.written)
    return by_hand and float(step.norm) >= trace.clip.max_norm * 0.99


def _shared_with_hand(step: Step) -> bool:
    """Say whether gradients that no torch clip reached were written to."""
    reached = frozenset().union(*(clip.ids for clip in step.clips))
    return bool(step.written and step.written - reached)


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
    written to between its accumulation and the step (a write to ``grad.data`` is invisible). Decidable at the first
    step, whatever the size of the norms.
    """
    if not trace.steps:
        return undecided("not-in-these-steps", "no step of a watched optimizer was seen")
    # Without a torch clip call, writes to gradients are a clip only if a clip was declared.
    judged = [step for step in trace.steps if _is_judged(trace, step)]
    if not judged:
        return undecided(
            "no-clip-call",
            f"no clip was seen in the {len(trace.steps)} steps that were watched",
            None if trace.clip is not None else "clip=audits.Clip(max_norm), if gradients are clipped by hand",
        )
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
    unknown: Verdict | None = None
    worst: tuple[float, float, Step] | None = None
    for step in trace.steps:
        bound = _bound(trace, step)
        if isinstance(bound, Verdict):
            unknown = unknown or bound
            continue
        norm = float(step.norm)
        if norm - norm != 0:  # a GradScaler skips such a step, and no bound speaks of it
            continue
        excess = norm / (bound * (1 + max(TOLERANCE, 4 * step.resolution)))
        if worst is None or excess > worst[0]:
            worst = (excess, bound, step)
    if worst is None:
        return unknown or undecided("not-in-these-steps", "no step with finite gradients was seen")
    excess, bound, step = worst
    norm = float(step.norm)
    observed = {"step": step.number, "largest_norm": norm, "bound": bound}
    if excess <= 1:
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
    if trace.clip is not None and trace.clip.scope == "global":
        return float(trace.clip.max_norm)
    option = "clip=audits.Clip(max_norm)"
    calls = [clip for clip in step.clips if clip.ids] or step.clips  # without those that a later backward undid
    if trace.clip is not None:
        if not calls or _shared_with_hand(step):
            return undecided("no-clip-call", "groups clipped by hand cannot be counted")
        return float(trace.clip.max_norm * len(calls) ** 0.5)
    if not calls:
        return undecided("no-clip-call", f"no clip was declared, and step {step.number} made no clip call", option)
    if len(calls) > 1 or _shared_with_hand(step):
        return undecided("intent-unknown", "several clips a step: one bound, or one each?", option)
    norms = calls[0].norms
    if norms is None or abs(float(norms[0]) - float(norms[1])) > TOLERANCE * float(norms[1]):
        return undecided("intent-unknown", "the clip call bounds something other than the 2-norm", option)
    return calls[0].bound


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
