"""Fitting the closed forms to what the label losses leave of a gradient: which form, with which weight, how well."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.explain.forms import FORMS, FORWARD, Form, Sides, Try
from kdbench.audits.infer.explain.heads import are_probabilities
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.softening import Said, Softening
from kdbench.audits.infer.explain.support import Support

_CLEAR = 0.1
"Part of the tolerance at which the canonical form is taken without a look at the rest: nothing else fits this well."
_BETTER = 0.5
"A form replaces another where it halves the residual: forms that agree to rounding leave the first, the likelier."
_BETTER_CANONICAL = 0.999
"The canonical form replaces another where it fits better at all: it is the likeliest."
_TINY, _TINIEST = 1e-12, 1e-30
"Sizes that count as nothing, and what is kept from dividing by zero: gradients in use are above 1e-9."
_LEAST_BESIDE = 1e-4
"Part of the label term below which a term fitted beside it is left out: the tolerance lets the labels leave as much."
_TOLERANCE_BESIDE, _SHARE_BESIDE = 3e-3, 0.01
"""Beside labels that are fitted too, the residual at which the canonical form still stands, where its term is at least
so large: a label loss by hand (class weights, mixtures of labels) has other gradients by a little."""
_SCREENED = 2**16
"Numbers on which forms are compared before the best are held against all rows: a form costs about 10 passes."
_LEAST_SCREENED = 4
"Rows that forms are compared on however many classes there are."
_CONFIRMED = 4
"Forms held against all rows: those that fit best, where several agree to rounding."
_FREE = 8
"Numbers that must be left over when each row has a coefficient of its own, so that a fit is none by chance."
_OF_ONE_SIGN = 0.99
"Part of the rows whose own coefficients must agree in sign."


class Handed(NamedTuple):
    """Rows of a loss that was handed labels, in numbers."""

    labelled: int
    untaught: int
    "Labelled ones without a gradient."
    left_out: int
    "Those whose label says that there is none."
    taught: int
    "Of these, those with a gradient."


@dataclass
class Explanation:
    """What the gradient at one set of logits says of the distillation term."""

    form: str
    """A form of forms.py, one-sided, negative (the sign is wrong), one of the top k (topk, topk-sum, topk-tail,
    topk-scatter, topk-of-student), sum (several terms), decoupled, normalised, undivided (the label's class apart),
    correlated, permuted, across (a softmax over another dimension), nothing (no gradient at all), or unknown."""
    residual: float
    share: float
    "Size of the distillation term's gradient, relative to the label term's."
    rows: int
    classes: int
    batch: int
    temperature: tuple[float, float] | None = None
    "Of the student and of the teacher."
    weight: float | None = None
    "With which the canonical term acts."
    label_weight: float | None = None
    permutation: list[int] | None = None
    "By row, which row of the teacher's teaches it."
    permuted_rows: list[int] | None = None
    "The rows that `permutation` tells of; None where it tells of all."
    shift: int | None = None
    "By how many positions the teacher's answers are ahead, where that is what is wrong."
    partial: bool = False
    "Whether only some rows are distilled."
    sequence: bool = False
    factors_known: bool = False
    factors: list[float] = field(default_factory=list)
    "Numbers that the term was multiplied by on its way to the sum, as written."
    teacher_logits: Tensor | None = None
    "The teacher's answers to the rows, to be held against labels."
    labels: Tensor | None = None
    beta: float | None = None
    "Of a generalized JSD: the teacher's part of the mixture."
    kept: int | None = None
    "Of a term over the teacher's k largest: how many."
    mass: float | None = None
    "The part of the teacher's probability that they hold, in the mean; or of the student's, of words filled up."
    cut: str = ""
    """How an answer over more words was cut wrongly (front: its front is gone; after: it was cut after the softmax), or
    that the student's was filled up with zeros (filled)."""
    wider: int = 0
    "How many words that answer tells apart."
    across: str = ""
    "What a softmax runs over where that is not the classes."
    parts: list[str] = field(default_factory=list)
    "Of several terms added, their forms."
    centre: tuple[float, float] | None = None
    "The largest number of a centre that was taken from the teacher's answers, and of these answers."
    members: int = 1
    "Of how many teachers it is the mean."
    negated: str = ""
    "The form whose sign is wrong."
    uneven: bool = False
    "Whether rows have coefficients of their own."
    coefficients: Tensor | None = None
    "By row that was looked at, what the form's gradient, in the scale of T^2 times one row's divergence, is times."
    coefficient_rows: Tensor | None = None
    "The numbers of these rows."
    looked_at: int = 0
    "Rows that were looked at."
    pictures: bool = False
    "Whether the logits are those of pixels."
    vanishes: bool = False
    "Whether a term has a weight and is in the student's logits, and yet leaves no gradient there."
    attempt: Try | None = None
    "The form with its numbers, to be tried first in the next window."
    support: Support | None = None
    "Of answers by token: which rows get a gradient."
    call: int | None = None
    "The number of the call of a module that gave the logits."
    placed: bool = True
    "Whether it is known which rows of the networks' answers met: a loss may be handed rows of its own."
    source: int = 0
    "The id of the module that gave the logits: pieces of one sequence come from one."
    fused: bool = False
    "Whether a loss with a backward of its own made the logits, of hidden states and a head's weights."
    largest: float = 0.0
    "The largest logit of the rows that were looked at."
    tolerance: float = 0.0
    "The residual up to which a form is the right one."
    block: tuple[int, int] | None = None
    """Of a teacher that tells fewer classes apart: the first of the student's classes that its are held against, and
    the first of those whose answers are the teacher's very own, as those of a copy are that has grown."""
    repeated: tuple[int, float] | None = None
    "Of stored answers of some classes: one that a row names several times, and its part of the probability."
    handed: Handed | None = None
    "Of a loss with a backward of its own, how what it teaches goes with the labels that it was handed."
    skipped: tuple[str, float, float] | None = None
    "A scale of the logits that the student's configuration sets and that was not applied: name, value, largest logit."

    @property
    def term(self) -> str:
        """The form, or the one whose sign is wrong."""
        return self.negated or self.form


class Fitted(NamedTuple):
    """How one gradient explains what is left."""

    weight: float
    residual: float
    share: float
    label_weight: float | None
    coefficients: Tensor
    "By row."
    uneven: bool = False


def fit(rest: Rest, basis: Tensor) -> Fitted | None:
    """Fit a form's gradient (n, C), in the scale of one row: by one coefficient, or else one a row."""
    basis = rest.project(basis)
    if not float(basis.norm()) > _TINY or not bool(basis.isfinite().all()):
        return None
    if not rest.known:
        return _fit_beside(rest, basis)
    by_row = (basis * basis).sum(1)
    products = (rest.kd * basis).sum(1)
    one = float(products.sum() / by_row.sum())
    size = float(rest.kd.norm()) or 1.0
    residual = float((rest.kd - one * basis).norm()) / size
    coefficients = torch.full((len(basis),), one, dtype=basis.dtype, device=basis.device)
    even = Fitted(one * rest.rows, residual, rest.share, rest.label_weight, coefficients)
    n, classes = basis.shape
    if residual <= rest.tolerance or n * (classes - 2) < _FREE or classes < 4:
        return even
    own = products / by_row.clamp_min(_TINIEST)
    residual = float((rest.kd - own[:, None] * basis).norm()) / size
    signs = float((own > 0).double().mean())
    if residual > rest.tolerance or max(signs, 1 - signs) < _OF_ONE_SIGN:
        return even
    return Fitted(float(own.mean()) * rest.rows, residual, rest.share, rest.label_weight, own, True)


def _fit_beside(rest: Rest, basis: Tensor) -> Fitted | None:
    """Fit one form and the labels' part at once; None where the form takes next to nothing."""
    basis = basis / rest.rows
    stack = torch.stack([*(c.reshape(-1) for c in rest.columns), basis.reshape(-1)], 1)
    scale = stack.norm(dim=0).clamp_min(_TINIEST)
    solution = torch.linalg.lstsq(stack / scale, rest.kd.reshape(-1, 1)).solution.squeeze(1) / scale
    weight = float(solution[-1])
    fitted = (stack @ solution).reshape_as(rest.kd)
    left = rest.kd - (stack[:, :-1] @ solution[:-1]).reshape_as(rest.kd)
    residual = float((rest.kd - fitted).norm() / left.norm().clamp_min(_TINIEST))
    label_weight = float(solution[0] + solution[1])
    share = abs(weight) * float(basis.norm()) / (abs(label_weight) * rest.label_size + _TINIEST)
    if share < _LEAST_BESIDE:
        return None
    coefficients = torch.full((len(basis),), weight / rest.rows, dtype=basis.dtype, device=basis.device)
    return Fitted(weight, residual, share, label_weight, coefficients)


def fits(rest: Rest, e: Explanation) -> bool:
    """Say whether a form explains what is left."""
    if e.residual <= rest.tolerance:
        return True
    beside = not rest.known and e.share > _SHARE_BESIDE
    return e.residual <= _TOLERANCE_BESIDE and e.form == "forward" and beside


def described(
    rest: Rest, found: Fitted, blank: Explanation, said: Said | None, name: str, **fields: Any
) -> Explanation:
    """Return what a fit says, in the words of an explanation."""
    fields.setdefault("members", 1 if said is None else said.members)
    fields.setdefault("repeated", None if said is None else said.repeated)
    negative = found.weight < 0 and name not in ("permuted", "sum")
    return replace(
        blank,
        form="negative" if negative else name,
        negated=name if negative else "",
        residual=found.residual,
        share=found.share,
        rows=rest.rows,
        weight=found.weight,
        label_weight=found.label_weight,
        partial=rest.partial and not rest.together,
        uneven=found.uneven,
        coefficients=found.coefficients,
        coefficient_rows=rest.index,
        looked_at=len(rest.z),
        teacher_logits=blank.teacher_logits if said is None else answers_of(rest, said),
        centre=None if said is None else said.centre,
        **fields,
    )  # fmt: skip


def answers_of(rest: Rest, said: Said) -> Tensor:
    """Return the teacher's logits row by row: all where they lie ready, else those of the rows looked at."""
    if said.whole is not None and len(said.whole) == rest.layout.rows:
        return said.whole
    return said.rows.clamp_min(_TINIEST).log() if said.kind == "probabilities" else said.rows


def tried(rest: Rest, said: Said, one: Try, blank: Explanation, sides: Sides | None = None) -> Explanation | None:
    """Return how well one form of one answer explains what is left."""
    found = fit(rest, one.gradient(rest.z, said.rows, said.kind, sides))
    if found is None:
        return None
    return described(rest, found, blank, said, one.name, temperature=(one.ts, one.tt), beta=one.beta, attempt=one)


def eligible(rest: Rest, said: Said) -> list[Form]:
    """Return the forms that may explain what is left, as far as the sums of its rows tell."""
    forms = [f for f in FORMS if not (f.logits and said.kind == "probabilities")]
    if said.kind == "logits" and are_probabilities(said.rows):  # as a target they are right
        forms = [f for f in forms if f.name != "logits-as-target"]
    return forms if rest.is_invariant is None else [f for f in forms if f.invariant == rest.is_invariant]


def screened(rest: Rest) -> Rest:
    """Return few enough of the rows to compare many forms on."""
    return rest.part(max(_LEAST_SCREENED, _SCREENED // rest.layout.classes))


def seen_fit(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return the form that explains best what is left, at the temperatures seen; None if none can be tried."""
    first = next(((said, pair) for said in softening.answers for pair in softening.pairs(said)), None)
    if first is not None and softening.is_seen and rest.is_invariant is not False:
        e = tried(rest, first[0], Try(FORWARD, *first[1]), blank)
        if e is not None and e.residual <= _CLEAR * rest.tolerance and not e.uneven:
            return e
    for hint in softening.hints:
        for said in softening.answers:
            e = tried(rest, said, hint, blank)
            if e is not None and e.residual <= rest.tolerance:
                return e
    small = screened(rest)
    ranked: list[tuple[float, int, Said, Try]] = []
    for said in softening.answers:
        part = cut(rest, small, said)
        every = softening.pairs(said, not rest.known) if softening.is_seen or not rest.known else [(1.0, 1.0)]
        for ts, tt in every:
            sides = Sides(small.z, part.rows, part.kind, ts, tt)
            # Where no temperature was seen, those that soften are searched for.
            for form in (f for f in eligible(rest, said) if not f.softens or softening.is_seen or not rest.known):
                one = Try(form, ts, tt)
                found = tried(small, part, one, blank, sides)
                if found is not None:
                    ranked.append((found.residual, len(ranked), said, one))
    return confirmed(rest, ranked, blank)


def cut(rest: Rest, small: Rest, said: Said) -> Said:
    """Return an answer by the rows of a smaller part."""
    if small is rest:
        return said
    place = {int(i): n for n, i in enumerate(rest.index)}
    return replace(said, rows=said.rows[[place[int(i)] for i in small.index]], whole=None)


def confirmed(rest: Rest, ranked: list[tuple[float, int, Said, Try]], blank: Explanation) -> Explanation | None:
    """Hold the forms that fit best on some rows against all that are looked at, and return the best."""
    best = sorted(ranked, key=lambda r: r[:2])[:_CONFIRMED]
    canonical = [r for r in ranked if r[3].form is FORWARD and r not in best][:1]
    in_order = sorted([*best, *canonical], key=lambda r: r[1])
    return better(None, (e for _, _, said, one in in_order if (e := tried(rest, said, one, blank)) is not None), rest)


def better(best: Explanation | None, found: Iterable[Explanation], rest: Rest) -> Explanation | None:
    """Return the better of what there is and what is found; no more is looked for once the canonical form fits well."""
    for e in found:
        factor = _BETTER_CANONICAL if e.form == "forward" else _BETTER
        plainer = best is not None and best.uneven and not e.uneven and e.residual <= rest.tolerance
        if best is None or plainer or e.residual < best.residual * factor:
            best = e
        if best.form == "forward" and best.residual <= _CLEAR * rest.tolerance:
            break
    return best


def beside_each_other(rest: Rest, softening: Softening, blank: Explanation) -> Explanation | None:
    """Return several terms added that explain what is left, the fewest; None where two or three do not."""
    tries = list(_columns(rest, softening))
    if len(tries) < 2 or not rest.known:
        return None
    bases = [basis for _, _, basis in tries]
    stack = torch.stack([b.reshape(-1) for b in bases], 1)
    stack = stack / stack.norm(dim=0).clamp_min(_TINIEST)
    gram, right = stack.T @ stack, stack.T @ rest.kd.reshape(-1)
    for count in (2, 3):
        for chosen in torch.combinations(torch.arange(len(tries)), count).tolist():
            square = gram[chosen][:, chosen]
            if float(torch.linalg.det(square)) < _APART:
                continue
            solution = torch.linalg.solve(square, right[chosen])
            left = rest.kd.reshape(-1) - stack[:, chosen] @ solution
            size = float(rest.kd.norm())
            if float(left.norm()) <= rest.tolerance * size and bool((solution > _LEAST_PART * size).all()):
                parts = [tries[i][1].name for i in chosen]
                if (
                    e := _of_several(rest, [tries[i] for i in chosen], solution, float(left.norm()), blank)
                ) is not None:
                    return e
                share = Fitted(0.0, float(left.norm()) / size, rest.share, rest.label_weight, solution)
                e = described(rest, share, blank, tries[chosen[0]][0], "sum", parts=parts)
                return replace(e, weight=None, coefficients=None, coefficient_rows=None)
    return _weighed_by_sample(rest, tries, blank)


def _weighed_by_sample(rest: Rest, tries: list[tuple[Said, Try, Tensor]], blank: Explanation) -> Explanation | None:
    """Return the terms of several teachers that explain what is left where each sample weighs them in its own way."""
    canonical = [t for t in tries if t[1].form is FORWARD and t[1].ts == t[1].tt]
    n, classes = rest.kd.shape
    several = (chosen for count in (2, 3) for chosen in combinations(canonical, count))
    for chosen in several:
        count = len(chosen)
        over = classes - 1 - count
        if over < _LEFT_OVER or n * over < _FREE or len({(one.ts, id(said)) for said, one, _ in chosen}) < count:
            continue
        stack = torch.stack([basis for *_, basis in chosen], 2)
        if len({one.ts for _, one, _ in chosen}) > 1 or float(torch.linalg.matrix_rank(stack).min()) < count:
            continue
        own = torch.linalg.lstsq(stack, rest.kd.unsqueeze(2)).solution
        left = float((rest.kd - (stack @ own).squeeze(2)).norm()) / (float(rest.kd.norm()) or 1.0)
        if left > rest.tolerance or not bool((own > -rest.tolerance * own.abs().max()).all()):
            continue
        share = Fitted(0.0, left, rest.share, rest.label_weight, own.flatten(), True)
        e = described(rest, share, blank, chosen[0][0], "sum", parts=[FORWARD.name] * count)
        return replace(e, weight=None, coefficients=None, coefficient_rows=None)
    return None


_LEFT_OVER = 2
"Numbers of a row that must be left over, so that a fit is none by chance."


def _of_several(
    rest: Rest, chosen: list[tuple[Said, Try, Tensor]], solution: Tensor, left: float, blank: Explanation
) -> Explanation | None:
    """Return the canonical term with what several teachers say in the mean, where that is what was added."""
    own = [float(s) / float(basis.norm()) for s, (_, _, basis) in zip(solution, chosen, strict=True)]
    ways = {(one.name, one.ts, one.tt) for _, one, _ in chosen}
    several = len({id(said) for said, _, _ in chosen}) == len(chosen)
    if len(ways) != 1 or not several or max(own) > (1 + _ONE_WEIGHT) * min(own) or chosen[0][1].name != FORWARD.name:
        return None
    coefficients = torch.full((len(rest.kd),), sum(own), dtype=rest.kd.dtype, device=rest.kd.device)
    size = float(rest.kd.norm())
    whole = Fitted(sum(own) * rest.rows, left / size, rest.share, rest.label_weight, coefficients)
    said, one, _ = chosen[0]
    return described(rest, whole, blank, said, one.name, temperature=(one.ts, one.tt), members=len(chosen))


_ONE_WEIGHT = 1e-2
"Share by which the weights of several teachers may differ and be one: each is read off a sum."
_APART = 1e-8
"Determinant of unit gradients below which two or three of them are one: what fits then says nothing."
_LEAST_PART = 1e-3
"Part of the whole that each of several terms must take."
_MOST_COLUMNS = 12
"Gradients of which two or three are put together: more would fit by chance."


def _columns(rest: Rest, softening: Softening) -> Iterator[tuple[Said, Try, Tensor]]:
    """Yield the gradients that several terms added may be made of."""
    count = 0
    for said in softening.answers:
        pairs = softening.pairs(said)
        seen = [p for p in pairs if p[0] == p[1] and softening.is_seen] or [(1.0, 1.0)]
        for name in ("forward", "mse-logits", "hard-labels", "reversed", "cosine"):
            form = next(f for f in FORMS if f.name == name)
            for ts, tt in seen[:2] if form.softens else seen[:1]:
                if count >= _MOST_COLUMNS or (form.logits and said.kind == "probabilities"):
                    continue
                basis = Try(form, ts, tt).gradient(rest.z, said.rows, said.kind)
                if float(basis.norm()) > _TINY and bool(basis.isfinite().all()):
                    count += 1
                    yield said, Try(form, ts, tt), basis
