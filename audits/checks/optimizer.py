"""What is optimised: every parameter that should be, nothing that should not, once for each backward."""

from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, some, undecided
from kdbench.audits.observe.custom import CHECKPOINT
from kdbench.audits.trace import Trace
from kdbench.audits.updates import Step

_NEVER = 8
"Calls of a scaler, all of them skipped, after which it finds no scale: it halves at each, from 65536 to 256."
_CALLS, _SKIPPED = 20, 0.05
"Calls that a share needs to be one, and the share of skipped ones above which updates are lost."
_EMPTY = 8
"Steps without one gradient from which an optimizer has none: networks that alternate are given some before."
_TAIL = 10
"Steps from the first that held on among which one more skip still belongs to the search: the scale is halved again."
_FEW, _HELD = 3, 5
"""In a short observation of which less than a third is skipped: further skips, and steps taken in a row at its end,
with which the scale is likely found."""


@audit(
    "KD101",
    severity="error",
    phase="first",
    follows=("KD103",),
    mend="give it to the optimizer when it is built, or add it: "
    "optimizer.add_param_group({'params': projector.parameters()})",
)
def optimizer_coverage(trace: Trace) -> Verdict:
    """Whatever the loss gives a gradient to is optimised, or is the teacher's.

    Fails when, in the distillation's first backwards, a parameter that is no teacher's gets a gradient, stands in no
    optimizer, and was not moved by hand either: a projector that keeps its random weights, one side of a split of
    parameter groups that was lost.
    """
    updates = trace.updates
    if updates.leaves is None:
        return no_distillation(trace)
    if not updates.steps:
        return undecided("not-in-these-steps", "no optimizer step was seen")
    if not updates.leaves:
        return undecided("not-in-these-steps", "no parameter of the student or a projector got a gradient")
    lost = [leaf.name for leaf in updates.leaves if not leaf.optimised]
    observed = {"with_gradient": len(updates.leaves), "not_optimised": lost}
    if lost:
        return failed(
            f"{len(lost)} of {len(updates.leaves)} parameters that get a gradient are in no optimizer: {some(lost)}",
            observed,
            _first_where(trace),
        )
    return passed(f"all {len(updates.leaves)} parameters with a gradient are optimised", observed)


def _first_where(trace: Trace) -> dict[str, object] | None:
    updates = trace.updates
    return next(
        (s.where for s in updates.steps if s.distils),
        updates.steps[0].where if updates.steps else None,
    )


@audit(
    "KD102",
    severity="error",
    phase="first",
    mend="build the optimizer from the student's and the projectors' parameters only, "
    "and ask the teacher under no_grad",
)
def teacher_not_optimised(trace: Trace) -> Verdict:
    """The teacher stands still: no optimizer moves it by the student's loss.

    Fails when an optimizer step of the distillation moves parameters of a teacher that has no loss of its own,
    be they the student's as well: layers handed over, not copied, or the weights below adapters that are switched off.
    Peers that teach each other have a label loss each; an agent whose policy is distilled while it learns has a
    backward and an optimizer apart from the student's.
    """
    if trace.teacher.stepped is None:
        return no_distillation(trace)
    if trace.peers:
        return undecided("out-of-scope", "the teacher has a loss of its own, as where peers teach each other")
    if trace.teacher.shared is not None:
        teacher, names = trace.teacher.shared
        return failed(
            f"{len(names)} parameters of the teacher ({teacher}) are the student's own, and trained: {some(names)}",
            {"shared": names},
            _first_where(trace),
            mend="copy what is taken over: copy.deepcopy(module)",
        )
    if trace.teacher.moving_base is not None:
        teacher, names = trace.teacher.moving_base
        return failed(
            f"the teacher is {teacher} with its adapters off, and {len(names)} of the parameters that answer then are "
            f"trained along: {some(names)}",
            {"moved": names},
            _first_where(trace),
            mend="freeze what lies below the adapters before the optimizer is built",
        )
    moved = trace.teacher.stepped
    if moved:
        return failed(
            f"the optimizer moves {len(moved)} parameters of the teacher: {some(moved)}",
            {"moved": moved},
            _first_where(trace),
        )
    if not trace.roles.get("teacher"):
        return undecided("no-teacher-seen", "the student is taught by stored answers: no teacher to move")
    return passed("no optimizer step moved the teacher")


@audit(
    "KD103",
    severity="error",
    phase="first",
    mend="build the optimizer after the last change to the networks (new heads, projectors, conversions)",
)
def no_stale_parameters(trace: Trace) -> Verdict:
    """The optimizer holds the networks' present parameters, not those of a module that was replaced.

    Fails when the student's optimizer holds parameters that no living module has and that got no gradient, while
    parameters with a gradient stand in no optimizer.
    """
    updates = trace.updates
    if updates.stale is None:
        return (
            no_distillation(trace)
            if updates.leaves is None
            else undecided("not-in-these-steps", "fewer than three steps of the student's optimizer were seen")
        )
    lost = [leaf.name for leaf in updates.leaves or [] if not leaf.optimised]
    if updates.stale:
        return failed(
            f"the optimizer holds {len(updates.stale)} parameters that no module has any more "
            f"({some(updates.stale, 3)})"
            + (f", and {len(lost)} that train are in none: {some(lost, 3)}" if lost else ""),
            {"stale": updates.stale, "not_optimised": lost},
            _first_where(trace),
            None if lost else "warn",
        )
    return passed("every parameter of the student's optimizer gets a gradient or belongs to a living module")


def _judged(trace: Trace) -> list[Step]:
    of_it = [s for s in trace.updates.steps if s.distils]
    # Of a distillation whose gradients are all thrown away there are none; what came before it is another training.
    return of_it if trace.script and trace.losses.sights else of_it or trace.updates.steps


@audit(
    "KD211",
    severity="error",
    phase="burn-in",
    mend="optimizer.zero_grad(set_to_none=True) before the backward of each step",
)
def gradients_zeroed(trace: Trace) -> Verdict:
    """A step uses this step's gradients: what an earlier step used is gone before the next backward adds to it.

    Fails when a stepped gradient still held, before the backward, what the optimizer's step before had used. To
    accumulate over several backwards before one step is something else.
    """
    steps = _judged(trace)
    if len(steps) < 2:
        return undecided("not-in-these-steps", f"{len(steps)} steps were seen; two are needed")
    for step in steps:
        if step.stale_grads:
            names = [trace.name(p) for p in step.stale_grads]
            return failed(
                f"at step {step.number} the gradients of {len(names)} of {len(step.stepped)} parameters still hold "
                f"those of the step before: {some(names, 3)}",
                {"step": step.number, "parameters": len(names), "stepped": len(step.stepped)},
                step.where,
            )
    return passed(f"gradients were fresh in all {len(steps)} steps watched", {"steps": len(steps)})


@audit("KD212", severity="error", phase="burn-in", mend="one optimizer.step() for each backward; remove the other")
def one_step_per_backward(trace: Trace) -> Verdict:
    """Each step has a backward of its own.

    Fails when an optimizer steps again with no backward and no write to its gradients since its last step.
    """
    steps = _judged(trace)
    if len(steps) < 2:
        return undecided("not-in-these-steps", f"{len(steps)} steps were seen; two are needed")
    repeated = [s for s in steps if s.repeated]
    if repeated:
        return failed(
            f"{len(repeated)} of {len(steps)} steps used the gradients of the step before again",
            {"steps": [s.number for s in repeated[:10]], "watched": len(steps)},
            repeated[0].where,
        )
    return passed(f"each of the {len(steps)} steps watched followed a backward", {"steps": len(steps)})


@audit(
    "KD215",
    severity="error",
    phase="burn-in",
    follows=("KD101", "KD311"),
    mend="optimizer.zero_grad() once for each step, before the first of its backwards; and a loss on what is optimised",
)
def gradients_used(trace: Trace) -> Verdict:
    """Each backward's gradients reach a step, and each step has gradients.

    Fails when, in most steps, gradients of a backward at the same line were zeroed since the step before with nothing
    done with them: accumulation that is undone, so that only the last part of each batch trains. And when an optimizer
    of the student or a projector steps, and none of its parameters ever has a gradient; when the student's gradients
    are zeroed again and again, while another optimizer steps and the student's own never does; when the backward of a
    loss ends at an answer that was cut off, as in pieces, and that answer's gradient is never handed on; when a weight
    is used past its module, whose other parameters are optimised and get nothing; and when layers of the student that
    are optimised answer within a function whose backward hands them nothing, as a checkpoint with use_reentrant=True
    around layers whose input requires no gradient. Warns of a head that answers beside another one of its kind in each
    step, is optimised, and is in no loss; and of a projector that is never called while others beside it are.
    """
    if (verdict := _never_stepped(trace)) is not None:
        return verdict
    if behind := trace.updates.cut_off:
        return failed(
            f"the backward ends at an answer that was cut off (detach), and its gradient is not handed on: "
            f"{len(behind)} parameters behind it, which the optimizer holds, get none: {some(behind, 3)}",
            {"parameters": behind[:20]},
            _first_where(trace),
            mend="hidden.backward(leaf.grad) takes the gradient through the body",
        )
    if past := trace.updates.passed_by:
        return failed(
            f"{len(past)} parameters that the optimizer holds get no gradient: the module that they are part of is not "
            f"called for the loss, and another weight of its is used past it: {some(past, 3)}",
            {"parameters": past[:20]},
            _first_where(trace),
            mend="call the module, which adds what its wrapper trains",
        )
    if heads := trace.updates.unheard_heads:
        return failed(
            f"{some(heads, 3)} answers beside a head of its kind in each step, and no loss hears it: its parameters, "
            "which the optimizer holds, get no gradient",
            {"layers": heads},
            _first_where(trace),
            "warn",  # it may be meant for later
            mend="hold each term against the head that it is meant for, or leave this one out of what is scored",
        )
    if idle := trace.updates.idle_projectors:
        return failed(
            f"{len(idle)} projectors that are optimised are never called, while others beside them are in each step: "
            f"{some(idle, 3)}; the features of their layers teach nothing",
            {"layers": idle},
            _first_where(trace),
            "warn",  # it may be meant for later
            mend="take each layer's features under its own name: a hook made in a loop takes what the loop's variable "
            "names last (name=name binds it)",
        )
    if hidden := trace.updates.hidden:
        return _hidden(trace, hidden)
    for empty in trace.updates.empty.values():
        if empty.steps >= _EMPTY and (empty.names or empty.thrown == empty.steps):
            why = (
                "zero_grad stands between backward and step"
                if empty.thrown >= empty.steps - 1
                else f"no loss reaches {some(empty.names, 3)}"
            )
            return failed(
                f"an optimizer ({empty.kind}) stepped {empty.steps} times without one gradient: {why}",
                {"steps": empty.steps, "parameters": empty.names[:20]},
                empty.zeroed_at or empty.where,
            )
    steps = _judged(trace)
    if len(steps) < 2:
        return undecided("not-in-these-steps", f"{len(steps)} steps were seen; two are needed")
    thrown = [s for s in steps if s.thrown]
    if 2 * len(thrown) > len(steps):
        most = max(s.thrown for s in thrown)
        return failed(
            f"in {len(thrown)} of {len(steps)} steps the gradients of {most} of {most + 1} backwards were zeroed "
            "before the step: accumulation is undone, and only the last of them trains",
            {"steps": [s.number for s in thrown[:10]], "thrown": most},
            thrown[0].zeroed_at,
        )
    return passed(f"the gradients of every backward reached one of {len(steps)} steps", {"steps": len(steps)})


def _hidden(trace: Trace, hidden: list[tuple[str, str]]) -> Verdict:
    """Say of parameters that answer within a function with a backward of its own that it hands them no gradient."""
    names, function = [name for name, _ in hidden], hidden[0][1]
    is_checkpoint = function == CHECKPOINT
    why = (
        "the checkpoint around them (use_reentrant=True) is given nothing that requires one, and so hands on none"
        if is_checkpoint
        else f"the function around them ({function}) hands them none"
    )
    return failed(
        f"{len(names)} parameters of the student are in the loss and in the optimizer, and never get a gradient: "
        f"{why}: {some(names, 3)}",
        {"parameters": names[:20], "function": function},
        _first_where(trace),
        mend="checkpoint(..., use_reentrant=False), or input.requires_grad_() (enable_input_require_grads() of a model)"
        if is_checkpoint
        else "return a gradient for each input from backward, the parameters among them",
    )


def _never_stepped(trace: Trace) -> Verdict | None:
    """Say that the student's gradients are thrown away each time, while the optimizer that steps is another's."""
    updates = trace.updates
    lost = [leaf for leaf in updates.unstepped if updates.undone.get(id(leaf.param), (0, None))[0] >= _EMPTY]
    steps = sum(step.distils for step in updates.steps)
    if not lost or len(lost) < len(updates.unstepped) or steps < _EMPTY:
        return None
    often, zeroed_at = updates.undone[id(lost[0].param)]
    names = [leaf.name for leaf in lost]
    return failed(
        f"the gradients of {len(lost)} parameters of the student were zeroed {often} times and never stepped, although "
        f"an optimizer holds them: {some(names, 3)}; the optimizer that steps ({steps} times) is another",
        {"parameters": names[:20], "zeroed": often, "steps": steps},
        zeroed_at,
        mend="step the optimizer that holds them, once for each of their backwards",
    )


@audit(
    "KD213",
    severity="error",
    phase="burn-in",
    follows=("KD101", "KD103", "KD214"),
    mend="look at the group's learning rate and at the dtype of the weights: an update below their resolution is lost",
)
def update_effective(trace: Trace) -> Verdict:
    """Steps change what they step.

    Fails when a parameter got gradients that are not zero, at a learning rate that is not zero, and holds its first
    value still at the end.
    """
    updates = trace.updates
    if updates.ineffective is None:
        return (
            no_distillation(trace)
            if updates.leaves is None
            else undecided("not-in-these-steps", "fewer than three steps of the student's optimizer were seen")
        )
    if updates.ineffective:
        return failed(
            f"{len(updates.ineffective)} parameters were stepped and never changed: {some(updates.ineffective)}",
            {"parameters": updates.ineffective},
            _first_where(trace),
        )
    if updates.frozen:
        return failed(
            f"the optimizer holds {len(updates.frozen)} parameters of the student that are set to get no gradient: "
            f"{some(updates.frozen)}",
            {"frozen": updates.frozen},
            _first_where(trace),
            "info",  # layers are frozen on purpose as well
        )
    return passed("every stepped parameter changed")


@audit(
    "KD214",
    severity="warn",
    phase="end",
    mend="look for NaN or infinity in the losses, the teacher's answers first; then lower the scaler's init_scale",
)
def skipped_steps(trace: Trace) -> Verdict:
    """A GradScaler skips few steps once it has found its scale.

    Warns when more than one in twenty is skipped after the first step that held, and is an error when none was taken.
    """
    updates = trace.updates
    calls, skips = updates.scaler_calls, updates.scaler_skips
    if not calls:
        return undecided("out-of-scope", "no GradScaler stepped in the distillation")
    observed = {"calls": calls, "skipped": skips, "search": updates.scaler_search}
    if skips == calls and calls >= _NEVER:
        said = f"all {calls} steps were skipped: the gradients are never finite"
        return failed(said, observed, _first_where(trace), "error")
    after, lost = calls - updates.scaler_search, skips - updates.scaler_search
    if skips == calls or after < _CALLS:
        once = lost == 1 and after >= _TAIL
        once = once or (lost <= _FEW and 3 * skips < calls and updates.scaler_held >= _HELD)
        if (once or lost <= _SKIPPED * max(after, 1)) and skips < calls:
            return passed(f"{calls - skips} of {calls} steps were taken", observed)
        return undecided(
            "not-in-these-steps", f"{calls - skips} of {calls} steps were taken: too few to judge", "steps"
        )
    if lost > after * _SKIPPED:
        said = f"{lost} of {after} steps after the search for a scale were skipped"
        return failed(said, observed, _first_where(trace))
    return passed(f"{calls - skips} of {calls} steps were taken", observed)


@audit(
    "KD344",
    severity="error",
    phase="burn-in",
    mend="set the rate of every group, or build the scheduler after the last group was added",
)
def group_schedule(trace: Trace) -> Verdict:
    """A schedule moves the learning rate of every parameter group.

    Fails when, over the steps seen, one group's rate changes and another's, not zero, stays where it began.
    """
    updates = trace.updates
    rows = [row for row in updates.lr_rows if len(row) == len(updates.group_names)]
    if len(updates.group_names) < 2:
        return undecided(
            "out-of-scope",
            "the student's optimizer has one parameter group"
            if updates.group_names
            else "no step of the student's optimizer was seen",
        )
    if len(rows) < 2:
        return undecided("not-in-these-steps", "fewer than two steps were seen", "steps")
    moves = [len({row[i] for row in rows}) > 1 for i in range(len(updates.group_names))]
    still = [i for i, moved in enumerate(moves) if not moved and rows[0][i] > 0]
    if not any(moves):
        return undecided("not-in-these-steps", "no learning rate changed in the steps seen", "all steps")
    if still and updates.scheduled_groups == len(moves):
        return undecided("intent-unknown", "a scheduler sets every group, and holds some where they are")
    if still:
        names = [f"group {i} ({updates.group_names[i]}, ...)" for i in still]
        return failed(
            f"the schedule moves {sum(moves)} of {len(moves)} parameter groups; {some(names, 3)} stays at "
            f"{rows[0][still[0]]:.3g}",
            {"first": list(rows[0]), "last": list(rows[-1]), "still": still},
            _first_where(trace),
            None if updates.scheduled_groups is not None else "warn",  # set by hand, it may be meant
        )
    held = "" if all(moves) else " whose rate is not zero"
    return passed(f"the schedule moves all {sum(moves)} parameter groups{held}")
