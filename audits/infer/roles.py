"""Who is who in a window: student, teacher, projectors, read off what reached the loss, not off names.

The student is what the label loss was computed from. What else reached the root of the backward is grouped by the
outermost modules that hold nothing of the student: fed with data it is a teacher, fed with the student's or the
teacher's answers and trained it is a projector.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from kdbench.audits.infer.adapters import trained_base
from kdbench.audits.infer.by_parts import driven
from kdbench.audits.infer.labels import Label, labels_in
from kdbench.audits.infer.rebuilt import parts_of_one, rebuilt
from kdbench.audits.infer.sources import sources, take_for_data, trains_its_samples
from kdbench.audits.infer.targets import (
    holds_kept,
    is_against_itself,
    is_against_stored,
    looks_like_labels,
    one_answer,
    stored_probabilities,
)
from kdbench.audits.infer.trained_along import trained_along
from kdbench.audits.observe.taint import Made, Taint
from kdbench.audits.observe.windows import DISTANCES, LABEL_LOSSES, FunctionCall, ModuleCall, RawWindow, learns

ParamsOf = Callable[[nn.Module], int]


@dataclass(eq=False)
class Group:
    """Parameters that play one role together."""

    mask: int
    module: nn.Module | None
    calls: list[ModuleCall] = field(default_factory=list)
    is_base: bool = False
    "Whether it is what answers of a network while the part that is trained is switched off, as with adapters."
    is_branch: bool = False
    "Whether parts of its own answer in place of those, as a second adapter does."

    @property
    def call(self) -> ModuleCall | None:
        """Its last call."""
        return self.calls[-1] if self.calls else None


@dataclass
class Cast:
    """The roles in one window."""

    students: list[Group] = field(default_factory=list)
    teachers: list[Group] = field(default_factory=list)
    projectors: list[Group] = field(default_factory=list)
    idle: list[Group] = field(default_factory=list)
    "Answered the student's own batch without a gradient, and reached nothing."
    labels: list[Label] = field(default_factory=list)
    trained: int = 0
    "What this backward gives a gradient to."
    soft: list[FunctionCall] = field(default_factory=list)
    "Calls of losses between the student and something that is no label."
    cached: bool = False
    "Whether the student is taught by answers that no network gave in this window."
    doubtful: bool = False
    "Whether these may as well be labels: nothing but a distance to numbers tells of them."
    stored_rows: tuple[int, int] | None = None
    "Stored answers that some network was seen to give, and those among them that it gave to another sample."
    blank_rows: tuple[int, int] | None = None
    "Stored answers that tell no class from another, though the network was seen to say more; and rows in all."
    stored: Tensor | None = None
    "What the network that gave the stored answers was seen to say of the samples of this window."
    kept: bool = False
    "Whether stored answers are the student's own, of an earlier window: of a network that has learned on since."
    self_taught: bool = False
    "Whether it is only taught by its own."
    own_target: bool = False
    "Whether a part of the loss holds it against its own."
    shown_answers: bool = False
    "Whether what both are shown is what a third network answers."
    shared: tuple[nn.Module, int] | None = None
    "A network that answers without a gradient, and those of its parameters that are the student's and trained."
    moving_base: tuple[nn.Module, int] | None = None
    "A network that teaches with its adapters off, and those of its parameters below them that are trained."
    along: int = 0
    "Parameters of networks that had learned before, and that a backward without labels draws towards a new one."

    @property
    def is_distillation(self) -> bool:
        """Whether a second model's answer, or a stored one, reached the loss."""
        return bool(self.teachers or self.cached or self.self_taught)

    @property
    def strength(self) -> int:
        """How sure it is that this is a distillation: 2 where a network was seen to teach, 1 else, 0 if it is none."""
        if not self.is_distillation:
            return 0
        seen = (self.teachers and not self.cached) or self.stored_rows is not None or (self.cached and self.teachers)
        return 2 if seen or (self.self_taught and self.idle) else 1

    @property
    def student_mask(self) -> int:
        """The parameters of all students."""
        return _union(g.mask for g in self.students)

    @property
    def teacher_mask(self) -> int:
        """The parameters of all teachers."""
        return _union(g.mask for g in self.teachers)


@dataclass
class Declared:
    """Roles that the user declared, as masks; 0 where nothing was."""

    student: nn.Module | None = None
    teacher: nn.Module | None = None
    projectors: dict[str, nn.Module] = field(default_factory=dict)
    stored: bool = False
    "Whether the answers that teach are stored ones, be they as they will."


def _union(masks: Iterable[int]) -> int:
    whole = 0
    for mask in masks:
        whole |= mask
    return whole


def cast(
    raw: RawWindow,
    taint: Taint,
    declared: Declared,
    known: list[nn.Module],
    trainee: int = 0,
    learned: Callable[[], int] = int,
) -> Cast:
    """Assign the roles in a window; `known` are modules that answered data on their own before.

    `trainee` are the parameters that are about to be trained, as far as that is known: those of new optimizers.
    `learned` tells those that had learned before the distillation.
    """
    trained = taint.moved_by(raw.leaves)
    own: dict[int, int] = {}

    def params_of(module: nn.Module) -> int:
        if id(module) not in own:
            own[id(module)] = taint.mask(module.parameters())
        return own[id(module)]

    reached = [c for c in raw.calls if raw.root.calls >> c.index & 1]
    before = sources(raw, reached, params_of, trained, taint)
    if before:
        take_for_data(raw, before)
    labels = [replace(label, made=label.made & ~before) for label in labels_in(raw, taint)]
    result = Cast(labels=labels, trained=trained, shown_answers=bool(before))
    fed_data = {c.index for c in reached if not c.fed.params}
    reaching = raw.root.params | trained
    peer = params_of(declared.teacher) if declared.teacher is not None else 0
    if declared.student is not None:
        theirs = params_of(declared.student)
        of_a_peer = peer & trained and not theirs & trained
        if not theirs & reaching or of_a_peer or trains_its_samples(reached, params_of, theirs, peer, trained):
            return result  # the backward of another training
    if not result.labels and declared.student is None and declared.teacher is None:
        result.along = trained_along(raw, reached, fed_data, params_of, trained, learned)
    own_way, due = trained & ~result.along, trainee & ~result.along
    masks = _student_masks(raw, reached, fed_data, params_of, own_way, declared, result.labels, due)
    network = None
    if not result.labels and declared.student is None and declared.teacher is None and len(masks) == 1:
        mine = [c for c in reached if c.index in fed_data and params_of(c.module) & masks[0] & trained]
        network = driven(mine, {id(p) for p in taint.parameters(own_way)})
        if network is not None and params_of(network) & raw.root.params & ~own_way:
            network = None  # it holds a teacher too
        if network is not None:
            masks = [params_of(network) & (raw.root.params | trained)]
    if not masks and declared.student is None and declared.teacher is None:
        masks = rebuilt(raw, reached, params_of, trained) or parts_of_one(raw, reached, params_of, trained, taint)
    base = _base(reached, fed_data, params_of, _union(masks), trained)
    if base is None and declared.teacher is None:
        base = _branch(raw, reached, fed_data, _union(masks), trained)
    if base is not None:
        result.teachers.append(base)
        masks = [m & ~base.mask for m in masks if m & ~base.mask]
    student = _union(masks)
    if not student:
        return result
    rest = (raw.root.params | trained) & ~student & ~result.teacher_mask
    meeting = [f for f in raw.functions if raw.root.calls >> f.index & 1 and _meets(f, student)]
    if base is not None:  # what it is made of goes into the student too: only its answer tells of it
        meeting = [f for f in meeting if any(_went_through(made, base.calls) for _, made, _ in f.operands)]
    groups = _groups(raw, reached, params_of, student, rest, fed_data, trained)
    covered = _sort(result, groups, meeting, params_of, student, trained, declared)
    for call in reached:
        held = params_of(call.module)
        # Neither the student itself, with or without more around it, nor a part of it.
        if call.index in fed_data and not call.grad and held & student & trained and held & rest and student & ~held:
            result.shared = (call.module, held & student & trained)
            if declared.teacher is None:
                result.teachers = [g for g in result.teachers if g.mask & ~held]
                result.teachers.append(Group(held & rest, call.module, [call]))
                covered |= held
            break
    if base is None and declared.teacher is None and not result.teachers:
        result.moving_base = trained_base(reached, params_of, taint.bit, trained)
    loose = rest & ~covered & ~trained & _union(f.made.params for f in meeting)
    if loose and not result.teachers:
        holder = next((m for m in reversed(known) if params_of(m) & loose), None)
        result.teachers.append(Group(loose, holder))
        result.cached = True
    apart = _union(g.mask for g in result.teachers if not g.is_base)
    result.students = [Group(mask, *_holder(mask, reached, params_of, apart)) for mask in masks]
    if network is not None:
        parts = [c for c in reached if c.parent is None and params_of(c.module) & masks[0]]
        result.students = [Group(masks[0], network, parts)]
    heard = [f for f in raw.functions if raw.root.calls >> f.index & 1 and f.made.params & student]
    heard = [f for f in heard if all(f is not label.call for label in result.labels)]
    losses = {"kl_div", *DISTANCES, *LABEL_LOSSES}
    by_hand = [] if result.teachers else [f for f in heard if stored_probabilities(f, raw, student) is not None]
    result.soft = [f for f in heard if f.name in losses or f in meeting or f in by_hand or f.itself]
    # Heads of the student that this window's labels do not train, as those of earlier tasks, are its own all the same.
    whole = student | _union(params_of(c.module) & trained for c in reached if c.grad and params_of(c.module) & student)
    modules = _union(1 << c.index for c in reached)
    kept = [f for f in result.soft if holds_kept(f, whole, modules)]
    result.own_target = any(is_against_itself(f, whole) for f in result.soft if f not in kept)
    if not result.teachers:
        result.kept = bool(kept)
        stored = [f for f in result.soft if f in by_hand + kept or is_against_stored(f, student, declared.stored)]
        sure = declared.stored or bool(by_hand + kept) or any(_is_no_label(f, student, result.labels) for f in stored)
        result.cached, result.doubtful = bool(stored), bool(stored) and not sure
        result.idle = _idle(raw, params_of, student, reached)
        result.self_taught = not (stored and sure) and result.own_target
        if result.self_taught and not result.idle:  # a teacher that is shown a view of its own, and is not heard
            result.idle = _idle(raw, params_of, student, reached, views=True)
    return result


def _base(
    reached: list[ModuleCall], fed_data: set[int], params_of: ParamsOf, student: int, trained: int
) -> Group | None:
    """Return what answered of the student's own network without any of its trained parameters, as adapters switched off
    leave it; None where there is no such answer."""
    for call in reached:
        held, said = params_of(call.module), call.out.params
        if call.index not in fed_data or not held & student & trained or not said or said & trained:
            continue
        beside = _union(c.out.params for c in reached if c.module is call.module and c.out.params & trained)
        if not call.grad or (beside and not learns(call)):
            own = said & held & ~beside if beside else 0
            return Group(said & held, call.module, [call], is_base=True, is_branch=bool(own))
    return None


def _branch(raw: RawWindow, reached: list[ModuleCall], fed_data: set[int], student: int, trained: int) -> Group | None:
    """Return another answer of the student's own network, from parts of its own that are trained along, as a second
    adapter over one frozen network gives, where a loss that the student learns from holds the student against it."""
    mine = {id(c.module) for c in reached if c.parent is None and c.out.params & student & trained}
    for call in reached:
        own = call.out.params & ~student
        if id(call.module) not in mine or call.index not in fed_data or not own & trained:
            continue
        if call.out.params & student & trained or not call.out.params & student:
            continue
        for f in raw.functions:
            taught = [t for t, made, _ in f.operands if made.params & student & trained and not made.params & own]
            told = [
                t for t, made, _ in f.operands if _went_through(made, [call]) and not made.params & student & trained
            ]
            if told and any(t is not None and t.requires_grad for t in taught) and raw.root.calls >> f.index & 1:
                return Group(own, call.module, [call], is_base=True, is_branch=True)
    return None


def _went_through(made: Made, calls: list[ModuleCall]) -> bool:
    """Say whether a tensor is made of what one of these calls answered."""
    return any(made.calls >> call.index & 1 for call in calls)


def _student_masks(
    raw: RawWindow,
    reached: list[ModuleCall],
    fed_data: set[int],
    params_of: ParamsOf,
    trained: int,
    declared: Declared,
    labels: list[Label],
    trainee: int,
) -> list[int]:
    """Return the students: the declared one, or what the label losses were computed from, or what data trains."""
    teacher = params_of(declared.teacher) if declared.teacher is not None else 0
    if declared.student is not None:
        mask = params_of(declared.student)
        return [mask & ~teacher or mask]
    masks = _merge([label.made for label in labels])
    masks = masks or _trained_by_data(raw, reached, fed_data, params_of, trained, trainee)
    if teacher and not (raw.root.params | trained) & ~teacher:
        # Nothing but the teacher: a training of its own, unless a network that is its own base teaches itself.
        return masks if any(not c.grad and params_of(c.module) & teacher for c in reached) else []
    return [m & ~teacher for m in masks if m & ~teacher] or masks


def _sort(
    result: Cast,
    groups: list[tuple[Group, bool]],
    meeting: list[FunctionCall],
    params_of: ParamsOf,
    student: int,
    trained: int,
    declared: Declared,
) -> int:
    """Put each group among the teachers or the projectors, and return the mask of all that were looked at."""
    teacher_declared = params_of(declared.teacher) if declared.teacher is not None else 0
    projector_declared = _union(params_of(m) for m in declared.projectors.values())
    covered = 0
    for group, is_fed_data in groups:
        if group.mask & ~covered == 0:
            continue
        covered |= group.mask
        if teacher_declared and group.mask & teacher_declared:
            result.teachers.append(group)
        elif projector_declared and group.mask & projector_declared:
            result.projectors.append(group)
        elif is_fed_data and not _are_numbers(group):
            if declared.teacher is None and _is_met(group, meeting, student):
                result.teachers.append(group)
        elif group.mask & trained:
            result.projectors.append(group)
        elif declared.teacher is None and not any(c.fed.params & student for c in group.calls):
            result.teachers.append(group)  # the teacher's own layers, called one by one
    return covered


def _merge(masks: list[int]) -> list[int]:
    merged: list[int] = []
    for mask in masks:
        apart = [m for m in merged if not m & mask]
        merged = [*apart, mask | _union(m for m in merged if m & mask)]
    return [m for m in merged if m]


def _trained_by_data(
    raw: RawWindow, reached: list[ModuleCall], fed_data: set[int], params_of: ParamsOf, trained: int, trainee: int
) -> list[int]:
    """Without a label loss: what is trained, fed with data and called outermost.

    Where a new optimizer's network is among what reached the loss, that one, though its side be cut from the graph.
    """
    mine = [c for c in reached if c.index in fed_data and params_of(c.module) & trainee and not c.out.params & ~trainee]
    if mine:
        trained = trained & trainee or _union(c.out.params for c in mine)
    found = 0
    for call in reached:
        if call.index in fed_data and params_of(call.module) & trained and not params_of(call.module) & found:
            mask = params_of(call.module)
            inner = [c for c in reached if c.parent is not None and _inside(c, call, raw)]
            frozen = [c for c in inner if c.index in fed_data and not params_of(c.module) & trained]
            taught = [c for c in inner if params_of(c.module) & trained]
            if any(params_of(c.module) and not any(t.fed.params & params_of(c.module) for t in taught) for c in frozen):
                continue  # it holds a frozen network whose answer nothing trained goes on from: a wrapper of both
            found |= mask & (trained | call.out.params)
    # Layers of its own that follow, in one network or head by head, are the student's if nothing else feeds them.
    return [found] if found else []


def _inside(call: ModuleCall, outer: ModuleCall, raw: RawWindow) -> bool:
    parents = {c.index: c.parent for c in raw.calls}
    at = call.parent
    while at is not None:
        if at == outer.index:
            return True
        at = parents.get(at)
    return False


def _groups(
    raw: RawWindow,
    reached: list[ModuleCall],
    params_of: ParamsOf,
    student: int,
    rest: int,
    fed_data: set[int],
    trained: int,
) -> list[tuple[Group, bool]]:
    """Group the rest by the outermost calls of modules that hold nothing of the student."""
    groups: dict[int, tuple[Group, bool]] = {}
    children: dict[int | None, list[ModuleCall]] = {}
    for call in reached:
        children.setdefault(call.parent, []).append(call)

    def below(call: ModuleCall) -> list[ModuleCall]:
        return [d for c in children.get(call.index, []) for d in (c, *below(c))]

    def visit(call: ModuleCall) -> None:
        mask = params_of(call.module)
        eligible = mask & rest and not mask & student
        if eligible and call.index not in fed_data:
            # A loss module that owns and asks the teacher is looked into.
            eligible = not any(params_of(d.module) & rest and d.index in fed_data for d in below(call))
        if not eligible:
            for child in children.get(call.index, []):
                visit(child)
            return
        data = call.index in fed_data
        # A hint taken from inside a network whose own answer reaches nothing is that network's.
        while data and call.parent is not None and (above := by_index.get(call.parent)) is not None:
            whole = params_of(above.module)
            if above.fed.params or whole & student or whole & trained:
                break
            call, mask = above, whole
        if id(call.module) in groups:
            if call not in groups[id(call.module)][0].calls:
                groups[id(call.module)][0].calls.append(call)
        else:
            groups[id(call.module)] = (Group(mask & rest, call.module, [call]), data)

    by_index = {c.index: c for c in raw.calls}
    reached_indices = {c.index for c in reached}
    for call in reached:
        if call.parent is None or call.parent not in reached_indices:
            visit(call)
    return list(groups.values())


def _meets(call: FunctionCall, student: int) -> bool:
    """Say whether the student's answer met another network's in this call."""
    masks = [made.params for _, made, _ in call.operands]
    return (any(m & student for m in masks) and any(m and not m & student for m in masks)) or (
        call.name in ("kl_div", *DISTANCES, *LABEL_LOSSES) and len([m for m in masks if m & ~student]) > 0
    )


def _are_numbers(group: Group) -> bool:
    """Say whether all that a group ever answered is one number, as a temperature that is learned does."""
    shapes = [c.shape for c in group.calls]
    return bool(shapes) and all(s is not None and math.prod(s) <= 1 for s in shapes)


def _is_met(group: Group, meeting: list[FunctionCall], student: int) -> bool:
    """Say whether the student's answer met a group's, or a constant holds the group's against itself in its place."""

    def is_held(f: FunctionCall) -> bool:
        made = [m.params for _, m, _ in f.operands]
        if any(m & group.mask for m in made) and any(m & student for m in made):
            return True
        of_two = f.name in ("kl_div", *DISTANCES) and not f.requires_grad and len(made) > 1
        return of_two and all(m and not m & ~group.mask for m in made[:2])

    return any(is_held(f) for f in meeting)


def _holder(
    mask: int, reached: list[ModuleCall], params_of: ParamsOf, teacher: int
) -> tuple[nn.Module | None, list[ModuleCall]]:
    """Return the outermost called module that holds parameters of the mask and none of a teacher, and its calls."""
    best: nn.Module | None = None
    for call in reached:
        own = params_of(call.module)
        if (
            own & mask
            and not own & teacher
            and (best is None or (own & mask).bit_count() > (params_of(best) & mask).bit_count())
        ):
            best = call.module
    return best, [c for c in reached if c.module is best]


def _is_no_label(call: FunctionCall, student: int, labels: list[Label]) -> bool:
    """Say whether the numbers that the student is held against are surely a network's answers, and no labels.

    Probabilities over the classes that are spread out are; other numbers only where a label loss is computed from the
    very logits that are held against them: a depth, a box or a picture is a label too.
    """
    if call.name in ("kl_div", "cross_entropy"):
        targets = [t for t, made, _ in call.operands[1:2] if not made.params]
        return not any(t is not None and looks_like_labels(t) for t in targets)
    mine = [t for t, made, _ in call.operands[:2] if t is not None and made.params & student]
    return any(one_answer(t, label.logits) for t in mine for label in labels if isinstance(label.logits, Tensor))


def _idle(
    raw: RawWindow, params_of: ParamsOf, student: int, reached: list[ModuleCall], views: bool = False
) -> list[Group]:
    """Return the networks that answered the student's batch, or with `views` one of its shape, and reached nothing."""
    shown = [t for c in reached if params_of(c.module) & student and not c.fed.params for t in c.given[:1]]
    found = []
    for call in raw.calls:
        mask = params_of(call.module)
        learns = call.answer.requires_grad if call.answer is not None else call.grad
        if raw.root.calls >> call.index & 1 or call.heard or learns or call.fed.params or not mask or mask & student:
            continue
        if any(c.index == call.parent and not params_of(c.module) & student for c in raw.calls):
            continue
        if any(given is t or (views and given.shape == t.shape) for given in call.given[:1] for t in shown):
            found.append(Group(mask, call.module, [call]))
    return found
