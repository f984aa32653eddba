"""Gradient clipping: which gradients it reached, and whether the bound holds over all that is stepped."""

import math
from typing import NamedTuple

from torch import nn

from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, some, undecided
from kdbench.audits.trace import Trace
from kdbench.audits.updates import ClipCall, Step

TOLERANCE = 1e-3
"On the norm after clipping: torch divides by the norm plus 1e-6, and sums differ in the last bits."
_ROUNDING = 1e-6
"On a factor that is 1 but for single precision."
_FEW = 3
"Steps below which what a loop does to gradients may be chance."
_CLEAR = 0.99
"Share of the bound below which a clip by hand surely had nothing to do."
_CLIPS, _ALWAYS = 10, 0.95
"Clips below which nothing is said of how often one binds, and the share above which it always does."


def _steps(trace: Trace) -> list[Step]:
    """Return the steps to judge: of a whole script those of the distillation, if one was seen.

    There may be none, where every gradient of it is thrown away: what was trained before it is another training.
    """
    of_it = [s for s in trace.updates.steps if s.distils]
    return of_it if trace.script and (of_it or trace.losses.sights) else trace.updates.steps


def _option(trace: Trace) -> str:
    return "clip" if trace.script else "clip=kdbench.Clip(max_norm), if clipped by hand"


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
    binding = [norm for _, norm, _, factor in seen if factor < 1 - _ROUNDING]
    idle = [norm for _, norm, _, factor in seen if factor >= 1 - _ROUNDING]
    bound = max(binding, default=None)
    if len(seen) < _FEW or (bound is not None and any(abs(n / bound - 1) > TOLERANCE for n in binding)):
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


class _Each(NamedTuple):
    """A clip by hand that bounds each gradient on its own."""

    bound: float
    steps: int
    sure: bool
    "Whether several are bounded, and one of them, in another step, had no need of it."
    over: tuple[Step, list[nn.Parameter]] | None
    "A step, and those in it that were let be beyond the bound."


def _each_by_hand(trace: Trace) -> _Each | None:
    """Read gradients that were written to and all end at one norm, each on its own, while others stay below it.

    Where every one always ends at that norm it is a normalisation, and where it is always the same one, or the same
    ones, it may be a clip of these alone: such a step looks the same.
    """
    steps = _steps(trace)
    seen = [s for s in steps if s.hand_norms is not None and math.isfinite(float(s.norm))]
    if len(seen) < _FEW or any(s.clips for s in steps):
        return None
    bounded: list[tuple[Step, nn.Parameter, float]] = []
    let_be: list[tuple[Step, nn.Parameter, float]] = []
    multiplied: set[int] = set()
    for step in seen:
        assert step.hand_norms is not None
        if step.hand_factors is None or max(step.hand_factors.values(), default=1.0) > 1 + _ROUNDING:
            return None
        shrunk = {key for key, factor in step.hand_factors.items() if factor < 1 - _ROUNDING}
        multiplied |= step.hand_factors.keys() - shrunk
        # With a clip declared, what gradients were before it was not kept.
        ends = shrunk if trace.declared.clip is None else step.written or frozenset()
        for param, norm in zip(step.stepped, step.hand_norms.tolist(), strict=True):
            if norm:
                (bounded if id(param) in ends else let_be).append((step, param, norm))
    bound = (
        max((n for _, _, n in bounded), default=0.0) if trace.declared.clip is None else trace.declared.clip.max_norm
    )
    slack = bound * max(TOLERANCE, *(4 * s.resolution for s in seen))
    if not bounded or not let_be or any(abs(n - bound) > slack for _, _, n in bounded):
        return None
    reached, spared = {id(p) for _, p, _ in bounded}, {id(p) for _, p, _ in let_be}
    if multiplied and spared - reached - multiplied:  # it writes to what it lets be, and so never saw the others
        return None
    over = [(s, p) for s, p, n in let_be if n > bound + slack and id(p) not in (s.written or ())]
    sure = len(reached) > 1 and bool(reached & spared)
    return _Each(bound, len(seen), sure, (over[0][0], [p for s, p in over if s is over[0][0]]) if over else None)


def _is_judged(trace: Trace, step: Step) -> bool:
    """Say whether something was clipped, so that everything should have been.

    Without a clip declared, a write to gradients is no clip; nor is it where the norm stayed clear of the bound, so
    that a clip by hand had nothing to do. One group at a time, such a clip may leave groups alone that are small
    enough, so it decides nothing about the others.
    """
    if step.clips:
        return True
    if trace.declared.clip is None:
        return False
    if step.clipped_elsewhere:
        return True
    by_hand = trace.declared.clip.scope == "global" and not step.scaled and bool(step.written)
    return by_hand and float(step.norm) >= trace.declared.clip.max_norm * _CLEAR


def _surely_none(steps: list[Step]) -> bool:
    """Say whether nothing clipped: no call of torch's, no write to a gradient, and no look at one before its step."""
    clipped = any(s.clips or s.clipped_elsewhere or s.strays or s.written != frozenset() or s.touched for s in steps)
    return not clipped and sum(s.touched is False for s in steps) >= _FEW


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
    """Whatever the optimizer steps is clipped: a parameter outside the clip has no bound.

    Fails when, in a step in which something was clipped, a stepped gradient was in no torch clip call and was not
    written to between its accumulation and the step (a write to ``grad.data`` is invisible). Decidable at the first
    step, whatever the size of the norms. Fails, too, when a clip is declared and nothing is clipped, nor any gradient
    looked at before its step.
    """
    if not _steps(trace):
        return undecided("not-in-these-steps", "no step of a watched optimizer was seen")
    # Without a torch clip call, writes to gradients are a clip only if a clip was declared.
    steps = _steps(trace)
    each = _each_by_hand(trace)
    if each is not None and each.over is None:
        if each.sure:
            return passed(
                f"a clip by hand bounds each gradient on its own to norm {each.bound:.4g}, and none was beyond it in "
                f"{each.steps} steps"
            )
        return undecided(
            "intent-unknown",
            f"a clip by hand to norm {each.bound:.4g} was seen in {each.steps} steps; the gradients that it let be "
            "were below it, so whether it leaves them out is not to be seen",
            "steps" if trace.script else None,
        )
    if each is not None and each.sure and each.over is not None:
        step, params = each.over
        names = [trace.name(p) for p in params]
        return failed(
            f"a clip by hand of each gradient to norm {each.bound:.4g} leaves out {len(names)} of {len(step.stepped)} "
            f"parameters that the optimizer steps, beyond that norm: {some(names)}",
            {"step": step.number, "missed": names, "stepped": len(step.stepped), "bound": each.bound},
            step.where,
        )
    judged = [step for step in steps if _is_judged(trace, step)]
    if not judged and trace.declared.clip is None:
        verdict = _by_hand(trace)
        if verdict is not None:
            return verdict
    if not judged and _surely_none(steps) and trace.declared.clip is not None:
        bound, first = trace.declared.clip.max_norm, steps[0]
        names = [trace.name(p) for p in first.stepped]
        return failed(
            f"a clip to norm {bound:g} is declared, but no gradient is clipped in {len(steps)} steps",
            {"step": first.number, "missed": names, "stepped": len(names), "clip_calls": [], "bound": bound},
            first.where,
        )
    if not judged and trace.script and _surely_none(steps):
        return undecided("no-clip-call", f"nothing clips a gradient in the {len(steps)} steps that were watched")
    if not judged:
        return undecided(
            "no-clip-call",
            f"no clip was seen in the {len(steps)} steps that were watched",
            None if trace.declared.clip is not None else _option(trace),
        )
    for step in judged:
        missed = _missed(step)
        if missed:
            names = [trace.name(step.stepped[i]) for i in missed]
            calls = [{"bound": c.bound, "parameters": len(c.ids), "where": c.where} for c in step.clips]
            return failed(
                f"{len(names)} of {len(step.stepped)} parameters that the optimizer steps are not clipped: "
                f"{some(names)}",
                {"step": step.number, "missed": names, "stepped": len(step.stepped), "clip_calls": calls},
                step.clips[0].where if step.clips else step.where,
            )
    return passed(f"every stepped gradient was clipped in all {len(judged)} steps watched", {"steps": len(judged)})


@audit(
    "KD202",
    severity="error",
    phase="burn-in",
    mend="clip between the last backward and the step; hand the clip what the optimizer steps, as a list, not as a "
    "generator that was used before",
)
def clip_order(trace: Trace) -> Verdict:
    """A clip comes after the last backward and before the step, and finds gradients there.

    Fails when no clip between two steps reached the gradients that the second used: it was handed none, it came after
    the step that had used them, a backward followed that it did not see, or it was handed the parameters of a network
    that nothing steps. One in the middle of an accumulation is no fault if another follows the last backward.
    """
    if not _steps(trace):
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
        return _astray(trace, steps) or undecided(
            "no-clip-call", f"no clip was seen in the {len(steps)} steps that were watched"
        )
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


def _astray(trace: Trace, steps: list[Step]) -> Verdict | None:
    """Judge clips of parameters that nothing steps, where nothing else may have clipped."""
    found: list[tuple[Step, ClipCall]] = []
    for step in steps:
        # The parameters of an optimizer that may yet step are clipped in their place; what a loop did not declare may
        # be stepped by one that is not watched.
        calls = [c for c in step.strays if not c.handed_ids & trace.updates.movable]
        calls = [c for c in calls if trace.script or c.handed_ids <= trace.names.keys()]
        found += [(step, c) for c in calls[-1:]]
    if len(found) < _FEW or len(found) * 2 <= len(steps) or any(s.written != frozenset() for s in steps):
        return None
    # Parameters may be moved by hand; a gradient that is left over stays as it is once it was clipped.
    sizes = [0.0 if not c.ids else float(c.norms[1]) if c.norms else math.nan for _, c in found[1:]]
    if not max(sizes) - min(sizes) <= TOLERANCE * max(sizes):
        return None
    step, clip = found[0]
    names = sorted(trace.names[key] for key in clip.handed_ids if key in trace.names)
    return failed(
        f"in {len(found)} of {len(steps)} steps the clip is handed {clip.handed} parameters that no optimizer steps "
        f"and that get no gradient{': ' if names else ''}{some(names, 2)}; nothing else is clipped",
        {"step": step.number, "handed": clip.handed, "bound": clip.bound},
        clip.where,
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
    if by_hand and trace.declared.clip is not None and not clips:
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
    consequence of KD201; and KD201 can fail while this holds, for as long as the norms left out stay small. Undeclared,
    a clip by hand that bounds each gradient on its own is only warned of: it may be meant.
    """
    if not _steps(trace):
        return undecided("not-in-these-steps", "no step of a watched optimizer was seen")
    each = _each_by_hand(trace)
    each = each if each is not None and each.sure and each.over is None else None
    unknown: Verdict | None = None
    worst: tuple[float, float, Step] | None = None
    for step in _steps(trace):
        bound = _bound(trace, step)
        if each is not None and trace.declared.clip is None and step.hand_norms is not None:
            bound = each.bound
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
    why = "" if each is None else f": a clip by hand bounds each of {len(step.stepped)} gradients on its own"
    return failed(
        f"at step {step.number} the optimizer got gradients of norm {norm:.4g} over all its parameters, "
        f"bound {bound:.4g}{why}",
        observed,
        step.clips[0].where if step.clips else step.where,
        None if trace.declared.clip is not None else "warn",
    )


def _bound(trace: Trace, step: Step) -> float | Verdict:
    """Return the bound that holds for the step, or why none is known."""
    if trace.declared.clip is not None and trace.declared.clip.scope == "global":
        return float(trace.declared.clip.max_norm)
    option = _option(trace)
    calls = [clip for clip in step.clips if clip.ids] or step.clips  # without those that a later backward undid
    if trace.declared.clip is not None:
        if not calls or _shared_with_hand(step):
            return undecided("no-clip-call", "groups clipped by hand cannot be counted")
        return float(trace.declared.clip.max_norm * len(calls) ** 0.5)
    if not calls:
        none = trace.script and _surely_none(_steps(trace))
        return undecided(
            "no-clip-call", f"no clip was declared, and step {step.number} made no clip call", None if none else option
        )
    if len(calls) > 1 or _shared_with_hand(step):
        return undecided("intent-unknown", "several clips a step: one bound, or one each?", option)
    norms = calls[0].norms
    if norms is None or abs(float(norms[0]) - float(norms[1])) > TOLERANCE * float(norms[1]):
        return undecided("intent-unknown", "the clip call bounds something other than the 2-norm", option)
    return calls[0].bound


@audit("KD205", severity="info", phase="burn-in", mend="choose max_norm from the norms seen")
def clip_active(trace: Trace) -> Verdict:
    """The clip binds sometimes, and not always: one that never binds or always does is no safeguard."""
    clips = [(c, float(c.norms[0])) for s in _steps(trace) for c in s.clips if c.norms is not None and c.ids]
    norms = [(norm, clip.bound) for clip, norm in clips]
    if not norms:
        return undecided("no-clip-call", "no clip by norm was seen")
    share = sum(norm > bound for norm, bound in norms) / len(norms)
    observed = {"clips": len(norms), "share": share, "largest_norm": max(n for n, _ in norms)}
    if len(norms) < _CLIPS:
        return undecided("not-in-these-steps", f"{len(norms)} clips are too few to tell", "steps", observed)
    active = sum(norm > bound for norm, bound in norms)
    if share == 0 or share > _ALWAYS:
        often = "never" if share == 0 else "nearly always" if share < 1 else "always"
        bounds = sorted({bound for _, bound in norms})
        bound = (
            f"the bound is {bounds[0]:.3g}" if len(bounds) == 1 else f"bounds are {bounds[0]:.3g} to {bounds[-1]:.3g}"
        )
        least, most = min(n for n, _ in norms), max(n for n, _ in norms)
        said = (
            f"gradient clipping was {often} active ({active} of {len(norms)} calls): the norms are {least:.3g} to "
            f"{most:.3g}, and {bound}"
        )
        return failed(said, observed, clips[0][0].where)
    return passed(f"gradient clipping was active in {active} of {len(norms)} calls", observed)
