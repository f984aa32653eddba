"""Which losses hold the student against something that is no label, and what went into them?"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.contrast import contrast_of
from kdbench.audits.infer.depths import depths_of
from kdbench.audits.infer.layers import describe
from kdbench.audits.infer.meeting import cosine_over, drives_apart, lowers_all_alike, order_of
from kdbench.audits.infer.names import Names
from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.policy import policy_of, weighs_words
from kdbench.audits.infer.reindexed import reindexed
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.same_again import same_again
from kdbench.audits.infer.squashed import squashed_twice
from kdbench.audits.infer.still import is_still
from kdbench.audits.infer.targets import lookup_of, stored_probabilities
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import DISTANCES, FunctionCall, ModuleCall, RawWindow, leaves_of
from kdbench.audits.trace import Sight, Term, Trace

_SUM = 2e-2
"Distance from one up to which a row sums to one: half precision over a thousand classes."
_LOOKED_AT = 64
"Rows that tell whether they are log-probabilities."
_MOST_NODES = 10_000
"Graph nodes between a loss and the answers that it is made of: a loss has some tens."
_OF_SCORES = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
"Losses whose targets are scores from 0 to 1."
_ONE_NUMBER = 1e-6
"Difference of probabilities up to which they are one, in single precision."
_FEWEST = 8
"Rows below which an order of rows may be chance."
_COMPARE_FEATURES = frozenset({*DISTANCES, "sub", "__sub__", "rsub"})
"Functions that hold one feature against another."
_ABSOLUTE, _DIFFERENCE = "AbsBackward0", "SubBackward0"
"The nodes of a graph that take an absolute value and a difference."
_PAIRS = 32
"Of them, those in a window whose features are looked for in the networks' stacks of blocks."


class Terms(Observer):
    """Takes down the terms of the distillation, and what was done to the answers before they went in."""

    def __init__(self, trace: Trace, taint: Taint, names: Names) -> None:
        self._trace, self._taint, self._names = trace, taint, names

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Read the terms of the first windows, and whether the student is asked twice of each."""
        sight.asked_twice = _asked_twice(raw, cast)
        if len(self._trace.losses.sights) < EXPLAINED:
            sight.terms = [*self._terms(raw, cast), *_of_teacher_alone(raw, cast)]
            sight.overwritten = _overwritten(raw, cast)
            sight.same_again = same_again(raw, cast)
            compared = [f for f in cast.soft if f.name in _COMPARE_FEATURES][:_PAIRS]
            met = [(d, f.where) for f in compared if (d := depths_of(raw, cast, f)) is not None]
            sight.depths = dict(reversed(met))
            sight.reindexed = reindexed(raw, cast)
            sight.probabilities, sight.squashed_by = squashed_twice(raw, cast)

    def _terms(self, raw: RawWindow, cast: Cast) -> list[Term]:
        student = cast.student_mask
        projectors = [(self._names.group(g), g.mask) for g in cast.projectors]
        terms: list[Term] = []
        done: set[Any] = set()
        for f in cast.soft:
            masks = [made.params for _, made, _ in f.operands]
            key = f.name if f.where is None else (f.where["file"], f.where["line"], f.name)
            if not any(m & student for m in masks) or key in done or not f.operands:
                continue
            shapes = [shape for _, _, shape in f.operands[:2]]
            if max(len(s) for s in shapes) == 0 or _is_scale(f, student):
                continue
            done.add(key)
            soft = f.name == "kl_div" or _is_logit_shaped(shapes, cast) or _are_of_classes(f, cast)
            soft = soft or stored_probabilities(f, raw, student) is not None
            if not soft and max(len(s) for s in shapes) < 2 and not _are_of_samples(f, cast):
                continue
            leaves = self._taint.mask(leaves_of([f.grad_fn])) if f.grad_fn is not None else 0
            mine = [t for t, made, _ in f.operands if made.params & student]
            term = Term(
                "soft" if soft else "feature",
                f.name,
                f.where,
                bool(leaves & student),
                all(t is not None and not t.requires_grad for t in mine) and not f.requires_grad,
                _missed(f, projectors, leaves),
                shapes,
                against_itself=not any(m & ~student for m in masks) and not cast.cached,
            )
            self._read_operands(term, raw, cast, f)
            through = any(
                made.params & student and any(made.params & m for _, m in projectors) for _, made, _ in f.operands
            )
            taught = any(leaves & m for _, m in projectors)
            term.projector_alone = soft and through and taught and not leaves & student
            term.entropy = not soft and _is_entropy(raw, cast, f)
            term.of_one = _over_one(raw, cast, f)
            term.lowers_all = lowers_all_alike(raw, cast, f)
            term.contrast = contrast_of(raw, cast, self._taint, f)
            term.unsigned = _loses_signs(f, cast)
            term.weighs_words = weighs_words(cast, f)
            term.policy = policy_of(raw, cast, f) if term.weighs_words else None
            term.beyond = soft and f.name in _SQUARES and _is_beyond(f, student)
            if not soft:
                self._read_feature(term, raw, cast, f)
            terms.append(term)
        return terms

    def _read_feature(self, term: Term, raw: RawWindow, cast: Cast, f: FunctionCall) -> None:
        """Read in which order the rows of features meet, and whether the loss draws them together."""
        term.still = is_still(raw, cast, self._taint, f)
        order = order_of(raw, cast, f)
        term.permutation = order is False or _rows_moved(raw, cast, f)
        batch = {len(t) for g in cast.students for c in g.calls for t in c.given[:1] if t.ndim}
        term.whole_rows = bool(order) or all(bool(s) and s[0] in batch for s in term.shapes)
        if f.name in DISTANCES and order and term.reaches_student:
            term.apart = drives_apart(raw, f)
            term.across = cosine_over(raw, cast, f)

    def _read_operands(self, term: Term, raw: RawWindow, cast: Cast, f: FunctionCall) -> None:
        """Read what went into a Kullback-Leibler divergence, and its weight; into a loss of scores, the targets."""
        if f.name in _OF_SCORES and len(f.operands) > 1:
            scores = f.operands[1][0]
            if scores is not None and scores.numel():
                term.target_least, term.target_most = (float(x) for x in scores.detach().aminmax())
        if f.name != "kl_div" or len(f.operands) < 2:
            return
        student = cast.student_mask
        (x, made_x, _), (target, made_t, _) = f.operands[:2]
        term.reduction = f.reduction
        term.log_target = bool(f.arg(5, "log_target", False))
        if target is not None and target.requires_grad and not made_t.params & student:
            term.target_grad = bool(self._taint.moved_by(leaves_of([target.grad_fn])) & cast.teacher_mask)
        elif target is not None and target.requires_grad and made_t.params & cast.teacher_mask:
            own = [p for p in leaves_of([target.grad_fn]) if self._taint.bit(p) & student]
            if own and all(p.numel() == 1 for p in own):
                term.target_scale = [self._names.param(p) for p in own]
        if term.against_itself:
            term.target_grad = _draws_its_target(raw, cast, f)
        unknown = not made_x.params and x is not None and x.requires_grad  # it was made before anybody looked
        term.swapped = bool(made_t.params & student and not made_x.params & student and not unknown)
        some = lookup_of(f, raw) is not None  # some classes of each row, whose probabilities sum to less than one
        with torch.no_grad():
            term.own_answer = not (made_x.params | made_t.params) & ~student and _says_the_same(
                x, target, term.log_target
            )
            if target is not None and target.numel():
                rows = target.detach().double().exp() if term.log_target else target.detach().double()
                term.target_sum = None if some else _least_even_sum(rows)
                term.target_least = float(rows.min())
            if x is not None and x.numel():
                probabilities = x.detach().double().exp()
                term.input_sum = None if some else _least_even_sum(probabilities)
                term.across = _across(probabilities, {label.classes for label in cast.labels if label.classes})
                if target is not None and target.shape == x.shape and not some:
                    term.over_others = _over_others(probabilities, rows)
        out = f.out
        if isinstance(out, Tensor) and out.ndim == 0 and out.requires_grad and len(raw.roots) == 1:
            (w,) = gradients_of(raw.roots[0], out)
            term.weight = None if w is None else float(w)


def _is_scale(f: FunctionCall, student: int) -> bool:
    """Say whether the student's side of a product or quotient is one number: a temperature for others' scores."""
    mine = [shape for _, made, shape in f.operands[:2] if made.params & student]
    return f.name in (*_TIMES, *_QUOTIENTS) and bool(mine) and all(math.prod(shape) <= 1 for shape in mine)


def _says_the_same(x: Tensor | None, target: Tensor | None, log_target: bool) -> bool:
    """Say whether log-probabilities (..., C) and a target hold the same probabilities, and more than one class."""
    if x is None or target is None or x.shape != target.shape or x.ndim < 2 or x.shape[-1] < 2 or not x.numel():
        return False
    p, q = x.detach().double().exp(), target.detach().double()
    return bool(((p - (q.exp() if log_target else q)).abs() <= _ONE_NUMBER).all())


def _is_entropy(raw: RawWindow, cast: Cast, f: FunctionCall) -> bool:
    """Say whether a product is of a teacher's probabilities with the student's log-probabilities, over one dimension,
    and the loss falls where the student's are nearer; or a quotient of both's probabilities, whose logarithm these
    weigh."""
    if f.name in _QUOTIENTS:
        return _is_ratio(raw, cast, f)
    mine = [t for t, made, _ in f.operands[:2] if t is not None and made.params & cast.student_mask]
    its = [t for t, made, _ in f.operands[:2] if t is not None and not made.params & cast.student_mask]
    if f.name not in _TIMES or len(mine) != 1 or len(its) != 1 or mine[0].shape != its[0].shape or its[0].ndim < 2:
        return False
    p, log_q = its[0].detach().double(), mine[0].detach().double()
    dims = [d for d in range(p.ndim) if p.shape[d] > 1 and bool(((p.sum(d) - 1).abs() < _SUM).all())]
    if not bool((p >= 0).all()) or not any(bool((log_q.logsumexp(d).abs() < _SUM).all()) for d in dims):
        return False
    if not isinstance(f.out, Tensor) or not f.out.requires_grad or len(raw.roots) != 1:
        return False
    (w,) = gradients_of(raw.roots[0], f.out)
    return w is not None and bool((w <= 0).all()) and bool((w < 0).any())


def _is_ratio(raw: RawWindow, cast: Cast, f: FunctionCall) -> bool:
    (p, of_p, _), (q, of_q, _) = f.operands[:2]
    if p is None or q is None or of_p.params & cast.student_mask or not of_q.params & cast.student_mask:
        return False
    if p.shape != q.shape or p.ndim < 2 or not isinstance(f.out, Tensor) or not f.out.requires_grad:
        return False
    a, b = p.detach().double(), q.detach().double()
    even = any(all(bool(((x.sum(d) - 1).abs() < _SUM).all()) for x in (a, b)) for d in range(a.ndim))
    if not even or not bool((a > 0).all()) or not bool((b > 0).all()) or len(raw.roots) != 1:
        return False
    (w,) = gradients_of(raw.roots[0], f.out)
    if w is None:
        return False
    pull = w.double() / b  # of p log(p / q) that is one number
    return float(pull.min()) > 0 and float(pull.max() - pull.min()) <= _PULL * float(pull.max())


_PULL = 1e-2
"Share by which it may differ: what is added to both sides, to keep from dividing by zero, is in it."
_QUOTIENTS = ("div", "__truediv__", "true_divide")
_TIMES = ("mul", "__mul__", "__rmul__", "multiply")
"Products, number by number."


def _over_one(raw: RawWindow, cast: Cast, f: FunctionCall) -> int | None:
    """Return the dimension over which a softmax runs that made an operand of the student's, if it holds one number."""
    for t, made, _ in f.operands[:2]:
        for g in raw.functions if made.params & cast.student_mask else ():
            if g.name not in ("softmax", "log_softmax") or g.out is None or g.out is not t or not g.operands:
                continue
            shape, dim = g.operands[0][2], g.arg(1, "dim")
            if isinstance(dim, int) and shape[dim] == 1 and math.prod(shape) > 1:
                return dim % len(shape)
    return None


_SQUARES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"Distances that are least where both sides are one, number by number."


def _is_beyond(f: FunctionCall, student: int) -> bool:
    """Say whether the student's probabilities over the classes are held against what none can reach."""
    if len(f.operands) < 2:
        return False
    (x, made_x, _), (y, made_y, _) = f.operands[:2]
    if x is None or y is None or x.shape != y.shape or x.ndim < 2 or not x.numel():
        return False
    mine, other = (x, y) if made_x.params & student else (y, x)
    if (made_x.params & student and made_y.params & student) or not other.is_floating_point():
        return False
    rows = mine.detach().double()
    even = bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < _SUM).all())
    return even and float(other.detach().double().min()) < -_SUM


def _draws_its_target(raw: RawWindow, cast: Cast, f: FunctionCall) -> bool:
    """Say whether what the student's answer is held against is another answer of its own, with its graph.

    Not where the two are held against each other in both directions, nor where the one is mixed into the other.
    """
    target = f.operands[1][0]
    if target is None or not target.requires_grad:
        return False
    answers = {out.grad_fn for c in raw.calls if c.outputs is not None and (out := c.outputs()) is not None}

    def sides(g: FunctionCall) -> list[set[Any]]:
        return [_first_met(t.grad_fn, answers) if t is not None else set() for t, *_ in g.operands[:2]]

    mine, its = sides(f)
    if not mine or not its or mine <= its or its <= mine:
        return False
    others = [g for g in cast.soft if g.name == "kl_div" and len(g.operands) > 1 and g is not f]
    return not any(sides(g) == [its, mine] for g in others)


def _first_met(node: Any, answers: set[Any]) -> set[Any]:
    """Return the graph nodes of modules' answers that one comes upon first from a node, down every way."""
    found: set[Any] = set()
    seen: set[Any] = set()
    todo = [node]
    while todo and len(seen) < _MOST_NODES:
        at = todo.pop()
        if at is None or at in seen:
            continue
        seen.add(at)
        if at in answers:
            found.add(at)
        else:
            todo.extend(parent for parent, _ in at.next_functions)
    return found


def _missed(f: FunctionCall, projectors: list[tuple[str, int]], leaves: int) -> list[str]:
    """Return the projectors whose answer went into a distance and that get no gradient from it."""
    if f.name not in _COMPARE_FEATURES:
        return []
    return [
        name for name, mask in projectors if any(made.params & mask for _, made, _ in f.operands) and not leaves & mask
    ]


def _is_logit_shaped(shapes: list[tuple[int, ...]], cast: Cast) -> bool:
    widths = {tuple(label.logits.shape) for label in cast.labels if label.logits is not None and label.logits.ndim >= 2}
    return any(s in widths for s in shapes)


def _are_of_classes(f: FunctionCall, cast: Cast) -> bool:
    """Say whether what meets are log-probabilities over the classes, in whatever shape: no features."""
    classes = {label.classes for label in cast.labels if label.classes}
    sides = [t for t, _, shape in f.operands[:2] if t is not None and len(shape) > 1 and shape[-1] in classes]
    if len(sides) < 2 or not all(t.is_floating_point() for t in sides):
        return False
    rows = [t.detach().reshape(-1, t.shape[-1])[:_LOOKED_AT].float() for t in sides]
    return all(bool((r.logsumexp(1).abs() < _SUM).all()) for r in rows)


def _are_of_samples(f: FunctionCall, cast: Cast) -> bool:
    """Say whether a loss holds numbers of the student's against a network's, one a sample: margins, values, scores."""
    if f.name not in (*DISTANCES, *_OF_SCORES) or len(f.operands) < 2:
        return False
    (_, one, a), (_, other, b) = f.operands[:2]
    mine = [bool(made.params & cast.student_mask) for made in (one, other)]
    its = [bool(made.params & ~cast.student_mask) and not own for made, own in zip((one, other), mine, strict=True)]
    return sorted(mine) == sorted(its) == [False, True] and a == b and math.prod(a) > 1


def _loses_signs(f: FunctionCall, cast: Cast) -> bool:
    """Say whether a distance of margins, one a sample, is of their absolute values, on both sides."""
    if not _are_of_samples(f, cast) or any(t is None for t, _, _ in f.operands[:2]):
        return False
    (one, made, _), (other, _, _) = f.operands[:2]
    mine = one if made.params & cast.student_mask else other
    node = mine.grad_fn
    parents = [p.name() for p, _ in node.next_functions if p is not None] if node is not None else []
    both = bool((one >= 0).all()) and bool((other >= 0).all()) and mine.ndim == 1 and len(mine) >= _FEWEST
    return both and node.name() == _ABSOLUTE and parents[:1] == [_DIFFERENCE]


def _of_teacher_alone(raw: RawWindow, cast: Cast) -> list[Term]:
    """Return the distances in the loss both sides of which are one answer of a teacher's: they are constant."""
    found = []
    for f in raw.functions:
        if (
            f.name not in ("kl_div", *DISTANCES)
            or not raw.root.calls >> f.index & 1
            or f.made.params & ~cast.teacher_mask
        ):
            continue
        sides = [(t, shape) for t, made, shape in f.operands[:2] if t is not None and made.params and t.ndim > 1]
        if len(sides) == 2 and sides[0][1] == sides[1][1] and _are_one(sides[0][0], sides[1][0]):
            shapes = [shape for _, shape in sides]
            found.append(Term("feature", f.name, f.where, False, False, [], shapes, of_teacher_alone=True))
    return found


def _are_one(a: Tensor, b: Tensor) -> bool:
    """Say whether two sides are one answer, be the first its logarithm."""
    return torch.equal(a, b) or (float(a.detach().max()) <= 0 and torch.allclose(a.detach().exp(), b.detach()))


def _rows_moved(raw: RawWindow, cast: Cast, f: FunctionCall) -> bool:
    """Say whether the teacher's operand is the rows of one of its answers in another order."""
    for t, made, _ in f.operands[:2]:
        if t is None or not made.params & cast.teacher_mask or made.params & cast.student_mask or len(t) < _FEWEST:
            continue
        for call in raw.calls:
            out = call.outputs() if call.outputs is not None else None
            if out is None or out.shape != t.shape or not call.out.params & cast.teacher_mask:
                continue
            if torch.equal(out, t):
                return False
            if torch.equal(_sums(out).sort().values, _sums(t).sort().values):
                return True
    return False


def _sums(rows: Tensor) -> Tensor:
    return rows.detach().reshape(len(rows), -1).sum(1)


def _overwritten(raw: RawWindow, cast: Cast) -> tuple[str, str] | None:
    """Return a hooked module whose output is compared as a feature, and what overwrote it since the hook."""
    compared = [t for f in cast.soft for t, *_ in f.operands]
    compared += [t for g in cast.projectors for c in g.calls for t in c.given]
    for call in raw.calls:
        if not _is_hooked(call.module) or call.outputs is None:
            continue
        out = call.outputs()
        if out is None or out.is_inference() or torch_internals.version_of(out) == call.version:
            continue
        later = [c for c in raw.calls if c.index > call.index and c.outputs is not None and c.outputs() is out]
        if any(t is out for t in compared) and not any(_is_hooked(c.module) for c in later):
            by = next((c for c in later if not c.has_children), None)
            roots = [c for g in (*cast.students, *cast.teachers) for c in g.calls]
            return describe(call, roots), type(by.module).__name__ if by else "an operation"
    return None


def _is_hooked(module: nn.Module) -> bool:
    """Say whether somebody other than torch is told of what the module answers."""
    hooks = torch_internals.forward_hooks_of(module).values()
    return any(not str(getattr(hook, "__module__", "")).startswith("torch") for hook in hooks)


def _asked_twice(raw: RawWindow, cast: Cast) -> bool:
    """Say whether the student was asked the very same again without a gradient, for a target: a hint beside the batch
    makes a teacher of it."""
    if any(f.itself for f in cast.soft):
        return True
    calls = [c for g in cast.students for c in g.calls if c.given and raw.root.calls >> c.index & 1]
    met = [f.made.calls for f in cast.soft]

    def are_held(a: ModuleCall, b: ModuleCall) -> bool:
        """Say whether the two meet, as far as it is seen whom the first one meets."""
        of_a = [calls for calls in met if calls >> a.index & 1]
        return not of_a or any(calls >> b.index & 1 for calls in of_a)

    return any(
        not a.grad and b.grad and a.module is b.module and list(map(id, a.given)) == list(map(id, b.given))
        for a in calls
        for b in calls
        if are_held(a, b)
    )


def _across(probabilities: Tensor, classes: set[int]) -> int | None:
    """Return the dimension over which probabilities sum to one, if it is not that of the classes.

    `classes` are the widths of the label losses' logits; where none is known, rows of a batch are over the last.
    """
    shape = probabilities.shape
    if probabilities.ndim not in (2, 3) or len(set(shape)) < probabilities.ndim or min(shape) < 2:
        return None
    even = _even(probabilities)
    if len(even) != 1 or even[0] == probabilities.ndim - 1:
        return None
    if not classes:
        return even[0] if probabilities.ndim == 2 else None
    return even[0] if shape[-1] in classes and shape[even[0]] not in classes else None


def _even(probabilities: Tensor) -> list[int]:
    """Return the dimensions of two and more over which numbers sum to one, wherever one looks."""
    sizes = enumerate(probabilities.shape)
    return [d for d, size in sizes if size > 1 and bool(((probabilities.sum(d) - 1).abs() < _SUM).all())]


def _over_others(mine: Tensor, its: Tensor) -> tuple[int, int] | None:
    """Return the dimensions over which the two sides of a divergence sum to one, where each has another one."""
    (of_input, of_target) = _even(mine), _even(its)
    if len(of_input) != 1 or len(of_target) != 1 or of_input == of_target:
        return None  # what sums to one both ways, as a plan of transport does, says nothing
    return of_input[0], of_target[0]


def _least_even_sum(values: Tensor) -> float | None:
    """Return, for the dimension whose sums are nearest to one, the sum farthest from it; rows of zeros are masked."""
    best: float | None = None
    for dim in range(values.ndim):
        if values.shape[dim] < 2:
            continue
        sums = values.sum(dim).flatten()
        sums = sums[sums != 0]
        if not sums.numel():
            continue
        worst = float(sums[(sums - 1).abs().argmax()])
        if best is None or abs(worst - 1) < abs(best - 1):
            best = worst
    return best
