"""The explanation of each head's gradient in a window: the parts put together."""

from dataclasses import replace

from kdbench.audits.infer.explain.fit import Explanation, best_fit, rest_of, shifted_fit
from kdbench.audits.infer.explain.forms import Answer, softening
from kdbench.audits.infer.explain.heads import Head, gradients_at, heads, teacher_answers
from kdbench.audits.infer.explain.permutation import permutation_of
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.windows import RawWindow


def explain(raw: RawWindow, cast: Cast) -> list[Explanation]:
    """Explain the gradient at each head of each student that is taught in this window."""
    if len(raw.roots) != 1 or raw.roots[0].numel() != 1 or not raw.roots[0].requires_grad:
        return []
    found = []
    for group in cast.students:
        answers = teacher_answers(raw, cast, group.mask)
        if not answers and not cast.self_taught:
            continue
        for head in heads(raw, cast, group.mask, answers):
            explanation = _explain_head(raw, cast, group.mask, head, answers)
            if explanation is not None:
                found.append(explanation)
    # Of several heads the one that is distilled speaks; the others have no distillation term to explain.
    telling = [e for e in found if e.form != "nothing"]
    if telling:
        label_weights = [e.label_weight for e in found if e.label_weight]
        for e in telling:
            if not e.label_weight and label_weights:
                e.label_weight = label_weights[0]
    return telling or found[:1]


def _explain_head(raw: RawWindow, cast: Cast, student: int, head: Head, answers: list[Answer]) -> Explanation | None:
    gradients = gradients_at(raw, head)
    if gradients is None or not bool(gradients.whole.isfinite().all()):
        return None
    rest = rest_of(head, gradients)
    if rest is None:
        return None
    n, classes = rest.z.shape
    blank = Explanation("nothing", 0.0, 0.0, n, classes, head.value.shape[0], sequence=head.value.ndim == 3)
    is_nothing = rest.is_nothing
    if is_nothing and rest.of_labels is None:
        return blank
    blank = replace(blank, share=rest.share, label_weight=gradients.label_weight)
    targets = (label.target for label in head.labels if label.target is not None)
    blank.labels = next((t for t in targets if not t.is_floating_point() and t.numel() == n), None)
    if is_nothing:
        return blank
    softened = softening(raw, cast, student, rest.z, answers)
    best = best_fit(rest, softened, blank)
    if best is None:
        return replace(blank, form="unknown", residual=1.0)
    best.factors = _factors(raw, cast, student, tuple(head.value.shape))
    best.factors_known = bool(cast.teacher_mask) or any(f.name == "kl_div" for f in cast.soft)
    if rest.fits(best):
        return best
    if rest.of_labels is not None:
        if head.value.ndim == 3:
            shifted = shifted_fit(rest, softened, blank, tuple(head.value.shape))
            if shifted is not None:
                return shifted
        permutation = permutation_of(rest.kd, rest.z, softened)
        if permutation is not None:
            return replace(best, form="permuted", permutation=permutation)
    return replace(best, form="unknown")


def _factors(raw: RawWindow, cast: Cast, student: int, logits: tuple[int, ...]) -> list[float]:
    """Return the numbers that a distillation term was multiplied by before it was added to the label term."""
    labels = 0
    for label in cast.labels:
        labels |= 1 << label.call.index
    soft = 0
    for f in cast.soft:
        if f.name == "kl_div" or any(shape == logits for _, _, shape in f.operands):
            soft |= 1 << f.index
    return [
        factor
        for made, factor in raw.scales
        if not made.calls & labels
        and made.params & student
        and made.calls & soft
        and raw.root.calls | made.calls == raw.root.calls
    ]
