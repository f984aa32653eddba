"""Gradient clipping: which gradients it reached, and whether the bound holds over all that is stepped."""

from audits.checks import Verdict, audit, failed, passed, some, undecided
from audits.events import Step, Trace

TOLERANCE = 1e-3
"On the norm after clipping: torch divides by the norm plus 1e-6, and sums differ in the last bits."


def _steps(trace: Trace) -> list[Step]:
    """Return the steps to judge: of a whole script those of the distillation, if there is one."""
    return [s for s in trace.steps if s.distils or not trace.script] or trace.steps


def _option(trace: Trace) -> str:
    return "--max-norm and --clip-scope" if trace.script else "clip=audits.Clip(max_norm), if clipped by hand"


def _missed(step: Step) -> list[int]:
    """Return the positions in `stepped` that no clip reached."""
    reached = frozenset().union(*(clip.ids for clip in step.clips))
    # A GradScaler writes to gradients too, so under one only torch's own clip calls count.
    if step.written is not None and not (step.scaled and step.clips):
        reached |= step.written
    return [i for i, param in enumerate(step.stepped) if id(param) not in reached]


def _by_hand(trace: Trace) -> Verdict | None:
    """Judge a clip that nobody declared: gradients multiplied by a factor of at most 1, as the norm wants it.

    Where it binds, it leaves one and the same norm; where it does not, a clip multiplies by 1, which nothing else does.
    """
    seen = [(s, *s.hand_bound) for s in _steps(trace) if s.hand_bound is not None]
    binding = [norm for _, norm, _, factor in seen if factor < 1 - 1e-6]
    idle = [norm for _, norm, _, factor in seen if factor >= 1 - 1e-6]
    bound = max(binding, default=None)
    if len(seen) < 3 or (bound is not None and any(abs(n / bound - 1) > TOLERANCE for n in binding)):
        return None
    if bound is not None and max(idle, default=0.0) > bound * (1 + TOLERANCE):
        return None
    what = f"to norm {bound:.4g}" if bound is not None else "(it multiplied by 1 in the steps seen)"
    for step, _, ids, _ in seen:
        missed = [trace.name(p) for p in step.stepped if id(p) not in ids and id(p) not in (step.written or ())]
        if missed:
            return failed(
                f"a clip by hand {what} leaves out {len(missed)} of {len(step.stepped)} parameters that the optimizer "
                f"steps: {some(missed)}",
                {"step": step.number, "missed": missed, "stepped": len(step.stepped), "bound": bound},
                step.where,
            )
    return passed(f"a clip by hand {what} reached every stepped gradient in {len(seen)} steps")


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
    follows=("KD202",),
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
    steps = _steps(trace)
    judged = [step for step in steps if _is_judged(trace, step)]
    if not judged and trace.clip is None:
        verdict = _by_hand(trace)
        if verdict is not None:
            return verdict
    if not judged:
        return undecided(
            "no-clip-call",
            f"no clip was seen in the {len(steps)} steps that were watched",
            None if trace.clip is not None else _option(trace),
        )
    for step in judged:
        missed = _missed(step)
        if missed:
            names = [trace.name(step.stepped[i]) for i in missed]
            calls = [{"bound": c.bound, "parameters": len(c.ids), "where": c.where} for c in step.clips]
            return failed(
                f"{len(names)} of {len(step.stepped)} parameters that the optimizer steps are left out of the clip: "
                f"{some(names)}",
                {"step": step.number, "missed": names, "stepped": len(step.stepped), "clip_calls": calls},
                step.clips[0].where if step.clips else step.where,
            )
    return passed(f"every stepped gradient was clipped in all {len(judged)} steps watched", {"steps": len(judged)})


@audit(
    "KD202",
    severity="error",
    phase="burn-in",
    mend="clip between the last backward and the step; hand the clip a list, not a generator that was used before",
)
def clip_order(trace: Trace) -> Verdict:
    """A clip comes after the last backward and before the step, and finds gradients there.

    Fails when no clip between two steps reached the gradients that the second used: it was handed none, it came after
    the step that had used them, or a backward followed that it did not see. One in the middle of an accumulation is
    no fault if another follows the last backward.
    """
    if not trace.steps:
        return undecided("not-in-these-steps", "no step of a watched optimizer was seen")
    steps = _steps(trace)
    with_clips = [s for s in steps if s.clips]
    by_hand = [s for s in steps if s.hand_after_step]
    if len(by_hand) >= 2:
        return failed(
            f"gradients are written to after the step that used them, in {len(by_hand)} of {len(steps)} steps: "
            "a clip by hand there bounds nothing",
            {"steps": [s.number for s in by_hand[:10]]},
            by_hand[0].where,
        )
    if not with_clips:
        return undecided("no-clip-call", f"no clip was seen in the {len(steps)} steps that were watched")
    void = [s for s in with_clips if not any(c.ids for c in s.clips)]
    # The first of all steps has no gradients before its backward, so one such step may be a start.
    if void and len(void) * 2 > len(with_clips):
        step = next((s for s in void if any(c.grown for c in s.clips)), void[0])
        clip = step.clips[-1]
        if clip.grown and clip.after_step:
            why = "the clip comes after the step, on gradients already used"
        elif clip.grown:
            why = "a backward follows the clip before the step, which sees what the clip did not"
        elif clip.handed:
            why = (
                f"the clip finds no gradient on the {clip.handed} parameters it is handed: it comes before the backward"
            )
        else:
            why = "the clip is handed no parameters: a generator that was used before is empty"
        return failed(
            f"in {len(void)} of {len(with_clips)} steps with a clip it reached no gradient that was stepped: {why}",
            {"step": step.number, "handed": clip.handed, "bound": clip.bound},
            clip.where,
        )
    return passed(
        f"the clip came between backward and step in {len(with_clips) - len(void)} steps", {"steps": len(with_clips)}
    )


@audit("KD203", severity="error", phase="burn-in", mend="scaler.unscale_(optimizer) before the clip")
def clip_after_unscale(trace: Trace) -> Verdict:
    """Under a GradScaler the clip sees unscaled gradients.

    Fails when a clip is called while the gradients still carry the scaler's factor: at a scale of 65536 it leaves
    next to nothing of them.
    """
    steps = _steps(trace)
    clips = [c for s in steps for c in s.clips]
    if not any(s.scaled for s in steps) and not any(c.scaled for c in clips):
        return undecided("out-of-scope", "no GradScaler took part in the steps seen")
    early = [c for c in clips if c.scaled]
    if early:
        return failed(
            f"{len(early)} of {len(clips)} clips saw gradients that were still scaled",
            {"clips": len(clips), "early": len(early), "bound": early[0].bound},
            early[0].where,
        )
    by_hand = [s for s in steps if s.hand_scaled]
    if by_hand and trace.clip is not None and not clips:
        return failed(
            f"gradients were written to before they were unscaled, in {len(by_hand)} steps",
            {"steps": [s.number for s in by_hand[:10]]},
            by_hand[0].where,
        )
    if not clips:
        return undecided("no-clip-call", "no clip was seen under the GradScaler")
    return passed(f"all {len(clips)} clips saw unscaled gradients", {"clips": len(clips)})


@audit(
    "KD204",
    severity="error",
    phase="burn-in",
    follows=("KD201", "KD202", "KD203"),
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
    for step in _steps(trace):
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
    option = _option(trace)
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


@audit("KD205", severity="info", phase="burn-in", mend="choose max_norm from the norms seen")
def clip_active(trace: Trace) -> Verdict:
    """The clip binds sometimes, and not always: one that never binds or always does is no safeguard."""
    norms = [(float(c.norms[0]), c.bound) for s in _steps(trace) for c in s.clips if c.norms is not None and c.ids]
    if not norms:
        return undecided("no-clip-call", "no clip by norm was seen")
    share = sum(norm > bound for norm, bound in norms) / len(norms)
    observed = {"clips": len(norms), "share": share, "largest_norm": max(n for n, _ in norms)}
    if len(norms) < 10:
        return undecided("not-in-these-steps", f"{len(norms)} clips are too few to tell", "--steps", observed)
    if share == 0 or share > 0.95:
        return failed(f"the clip bound in {share:.0%} of {len(norms)} calls", observed, trace.steps[0].where)
    return passed(f"the clip bound in {share:.0%} of {len(norms)} calls", observed)
