"""Explain the gradient that the student's logits get, instead of reading the code that made it.

Whatever a distillation loss looks like in code, at the logits z of the student it leaves one gradient. From it the
gradient of the label loss is taken away, exactly; what is left is held against the canonical forms in closed form.
For T^2 KL(teacher || student) averaged over N rows that is T (softmax(z/T) - softmax(t/T)) / N, so one least-squares
coefficient is the weight in force, and a wrong form leaves a residual that a right one does not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audits.infer.roles import Cast, Label
from audits.observe.taint import Taint
from audits.observe.windows import SOFTMAXES, RawWindow

_GRID = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 16.0, 20.0)
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
_LOOSEST = 0.05
"A residual above this is another form's, in whatever precision."
_LEAST_SHARE = 1e-6


@dataclass
class Explanation:
    """What the gradient at one set of logits says of the distillation term."""

    form: str
    """forward, one-sided, reversed, probabilities, logits-as-target, log-target, mse-logits, mse-probabilities,
    hard-labels, permuted, nothing (no gradient at all), or unknown."""
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
    partial: bool = False
    "Whether only some rows are distilled."
    sequence: bool = False
    factors_known: bool = False
    factors: list[float] = field(default_factory=list)
    "Numbers that the term was multiplied by on its way to the sum, as written."
    teacher_logits: Tensor | None = None
    "The teacher's answers to the rows, to be held against labels."
    labels: Tensor | None = None


def _flat(value: Tensor) -> Tensor:
    return value.detach().reshape(-1, value.shape[-1]).to("cpu", torch.float64)


def temperature_of(argument: Tensor, logits: Tensor) -> float | None:
    """Return T if the argument of a softmax is the logits divided by T."""
    if argument.numel() != logits.numel() or argument.shape[-1] != logits.shape[-1]:
        return None
    x, z = _flat(argument), _flat(logits)
    for shift in (False, True):
        if shift:  # softmax does not see a constant by row: some subtract the largest
            x, z = x - x.mean(1, keepdim=True), z - z.mean(1, keepdim=True)
        product = float((x * z).sum())
        if product <= 0:
            continue
        t = float((z * z).sum()) / product
        tolerance = 1e-2 if argument.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if float((x * t - z).abs().max()) <= tolerance * float(z.abs().max()):
            return float(f"{t:.3g}") if abs(t - float(f"{t:.3g}")) < 2e-3 * t else t
    return None


def explain(raw: RawWindow, cast: Cast, taint: Taint) -> list[Explanation]:
    """Explain the gradient at each head of each student that is taught in this window."""
    if len(raw.roots) != 1 or raw.roots[0].numel() != 1 or not raw.roots[0].requires_grad:
        return []
    found = []
    for group in cast.students:
        answers = _teacher_answers(raw, cast, taint, group.mask)
        if not answers and not cast.self_taught:
            continue
        for z, value, labels in _heads(raw, cast, group.mask, taint, answers):
            explanation = _explain_head(raw, cast, taint, group.mask, z, value, labels, answers)
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


def _teacher_answers(raw: RawWindow, cast: Cast, taint: Taint, student: int) -> list[tuple[str, Tensor]]:
    """Return what could be the teacher's logits or probabilities, as they came out of the network or the store."""
    found: list[tuple[str, Tensor]] = []
    if cast.stored is not None:
        found.append(("logits", cast.stored))
    calls = [c for g in (*cast.teachers, *cast.idle) for c in g.calls]
    inner = [
        c
        for c in raw.calls
        if c.out.params & cast.teacher_mask and not c.out.params & student and raw.root.calls >> c.index & 1
    ]
    for call in [*calls, *reversed(inner)]:
        if call.value is not None and call.value.shape[-1] > 1 and all(call.value is not v for _, v in found):
            found.append(("logits", call.value))
    for f in raw.functions:
        if not raw.root.calls >> f.index & 1:
            continue
        if f.name in SOFTMAXES and f.operands:
            t, made, _ = f.operands[0]
            if t is not None and not made.params & student and (made.params or cast.cached):
                found.append(("argument", t.detach()))
        if f.name in ("kl_div", "mse_loss", "cross_entropy", "binary_cross_entropy_with_logits") and cast.cached:
            for t, made, shape in f.operands[:2]:
                if t is not None and not made.params & student and t.is_floating_point() and len(shape) >= 2:
                    rows = _flat(t)
                    if (
                        f.name != "mse_loss"
                        and bool((rows >= 0).all())
                        and bool(((rows.sum(1) - 1).abs() < 1e-3).all())
                    ):
                        found.append(("probabilities", t.detach()))
                    else:
                        found.append(("logits", t.detach()))
    return found


def _heads(
    raw: RawWindow, cast: Cast, student: int, taint: Taint, answers: list[tuple[str, Tensor]]
) -> list[tuple[Tensor, Tensor, list[Label]]]:
    """Return the student's logits: each tensor, its values, and the label losses computed from it."""
    shapes = {(v.numel(), v.shape[-1]) for _, v in answers}
    calls = [
        c
        for c in raw.calls
        if c.answer is not None
        and c.value is not None
        and c.out.params & student
        and c.answer.requires_grad
        and raw.root.calls >> c.index & 1
    ]
    calls.sort(key=lambda c: not c.has_children)  # outermost first
    labels = [label for label in cast.labels if label.made & student and label.logits is not None]
    heads: list[tuple[Tensor, Tensor, list[Label]]] = []
    placed: set[int] = set()
    for call in calls:
        assert call.answer is not None and call.value is not None
        mine = [
            label
            for label in labels
            if id(label) not in placed and _is_of(label, call.value) and _flows(label, call.answer)
        ]
        if mine:
            placed.update(id(label) for label in mine)
            heads.append((call.answer, call.value, mine))
    for call in calls:  # language models drop the last position for their labels
        assert call.answer is not None and call.value is not None
        if (call.value.numel(), call.value.shape[-1]) in shapes and call.value.ndim == 3:
            mine = [
                label
                for label in labels
                if id(label) not in placed and _is_cut_from(label, call.value) and _flows(label, call.answer)
            ]
            if mine:
                placed.update(id(label) for label in mine)
                heads.append((call.answer, call.value, mine))
    for label in labels:
        if (
            id(label) not in placed
            and label.logits is not None
            and label.logits.requires_grad
            and label.logits.ndim >= 2
        ):
            base = _common_source(raw, label, student)
            heads.append((base, base.detach(), [label]))
            placed.add(id(label))
    known = {id(z) for z, _, _ in heads}
    values = [v for _, v, _ in heads]
    widths = {v.shape[-1] for v in values}  # what is narrower or wider lies below a head: labels teach it too
    for call in calls:
        assert call.answer is not None and call.value is not None
        fits = not shapes or (call.value.numel(), call.value.shape[-1]) in shapes
        same = any(
            v.shape[-1] == call.value.shape[-1]
            and v.numel() == call.value.numel()
            and torch.equal(v.reshape(-1), call.value.reshape(-1).to(v.dtype))
            for v in values
        )
        if id(call.answer) not in known and fits and not same and (not widths or call.value.shape[-1] in widths):
            heads.append((call.answer, call.value, []))
            known.add(id(call.answer))
            values.append(call.value)
    return heads[:6]


def _common_source(raw: RawWindow, label: Label, student: int) -> Tensor:
    """Return the tensor that the label loss and the softmaxes start from where no module gave it."""
    assert label.logits is not None
    for f in raw.functions:
        if f.name in ("log_softmax", "softmax") and f.operands and f.out is label.logits:
            source = f.operands[0][0]
            if source is not None and source.requires_grad:
                return source
    return label.logits


def _flows(label: Label, z: Tensor) -> bool:
    """Say whether the label loss was computed from this very tensor, and not from one of the same values beside it."""
    out = label.call.out
    if not isinstance(out, Tensor) or not out.requires_grad or z._backward_hooks:
        return True
    seed = torch.ones_like(out)
    return torch.autograd.grad(out, z, seed, retain_graph=True, allow_unused=True)[0] is not None


def _is_of(label: Label, value: Tensor) -> bool:
    x = label.logits
    if x is None or x.numel() != value.numel() or x.ndim < 1:
        return False
    if x.shape[-1] != value.shape[-1]:
        # (B, C, L) for sequences
        if x.ndim == 3 and value.ndim == 3 and x.shape[1] == value.shape[-1]:
            x = x.transpose(1, 2)
        else:
            return False
    a, b = _flat(x), _flat(value)
    scale = float(b.abs().max()) + 1e-12
    loose = 2e-2 if torch.float16 in (x.dtype, value.dtype) or torch.bfloat16 in (x.dtype, value.dtype) else 1e-5
    if float((a - b).abs().max()) <= loose * scale:
        return True
    return float((a - b.log_softmax(1)).abs().max()) <= max(loose, 1e-4) * scale


def _is_cut_from(label: Label, value: Tensor) -> bool:
    """Say whether the label loss takes fewer rows than the logits (B, L, C) have."""
    x = label.logits
    return x is not None and x.ndim in (2, 3) and x.shape[-1] == value.shape[-1] and x.numel() < value.numel()


def _gradients(raw: RawWindow, z: Tensor, labels: list[Label]) -> tuple[Tensor, Tensor | None, float | None] | None:
    """Return the gradient at z, the label terms' part of it, and their weight; the part is None where unknown."""
    if z._backward_hooks:
        return None
    root = raw.roots[0]
    (g,) = torch.autograd.grad(root, z, retain_graph=True, allow_unused=True)
    if g is None:
        return None
    whole = _flat(g) / raw.root_scale
    part: Tensor | None = torch.zeros_like(whole)
    weight: float | None = 0.0
    for label in labels:
        out = label.call.out
        if (
            out is None
            or not isinstance(out, Tensor)
            or not out.requires_grad
            or label.call.name not in ("cross_entropy", "nll_loss")
        ):
            part, weight = None, None
            break
        (w,) = torch.autograd.grad(root, out, retain_graph=True, allow_unused=True)
        if w is None:
            continue
        (own,) = torch.autograd.grad(out, z, grad_outputs=w, retain_graph=True, allow_unused=True)
        if own is None or part is None:
            part, weight = None, None
            break
        part = part + _flat(own) / raw.root_scale
        if label.is_plain and weight is not None:
            weight += float(w) / raw.root_scale
        elif weight is not None:
            ce = _label_basis(z.detach(), label)
            weight = (
                weight + float((_flat(own) * ce).sum() / (ce * ce).sum()) / raw.root_scale if ce is not None else None
            )
    return whole, part, weight


def _label_basis(value: Tensor, label: Label) -> Tensor | None:
    """Return the gradient of the mean cross-entropy at logits of these values."""
    z = _flat(value)
    target = label.target
    if target is None:
        return None
    if target.is_floating_point() or (
        target.ndim > 1 and target.shape[-1] == z.shape[1] and target.numel() == z.numel()
    ):
        y = _flat(target.double())
        if y.shape != z.shape:
            return None
        return (z.softmax(1) - y) / len(z)
    flat = target.reshape(-1).cpu()
    if len(flat) != len(z):
        return None
    valid = (flat >= 0) & (flat < z.shape[1])
    y = torch.zeros_like(z)
    y[valid] = torch.nn.functional.one_hot(flat[valid], z.shape[1]).double()
    if label.smoothing:
        y[valid] = y[valid] * (1 - label.smoothing) + label.smoothing / z.shape[1]
    basis = (z.softmax(1) - y) / max(1, int(valid.sum()))
    basis[~valid] = 0
    return basis


def _forms(z: Tensor, t: Tensor, kind: str, ts: float, tt: float, n: int) -> list[tuple[str, Tensor]]:
    """Return the gradient at z of each form that a distillation term takes, in the scale of T^2 KL over n rows."""
    log_s = (z / ts).log_softmax(1)
    ps = log_s.exp()
    pt = t if kind == "probabilities" else (t / tt).softmax(1)
    log_t = pt.clamp_min(1e-38).log()
    name = "forward" if ts == tt or kind == "probabilities" else "one-sided"
    kl = (ps * (log_s - log_t)).sum(1, keepdim=True)
    forms = [
        (name, ts * (ps - pt) / n),
        ("reversed", ts * ps * (log_s - log_t - kl) / n),
        ("probabilities", -ts * ps * (pt - (ps * pt).sum(1, keepdim=True)) / n),
        ("log-target", -ts * (log_t - ps * log_t.sum(1, keepdim=True)) / n),
        ("mse-probabilities", 2 / ts * ps * ((ps - pt) - (ps * (ps - pt)).sum(1, keepdim=True)) / (n * z.shape[1])),
    ]
    if kind != "probabilities":
        forms.append(("logits-as-target", -ts * (t / tt - ps * (t / tt).sum(1, keepdim=True)) / n))
        hard = torch.zeros_like(pt).scatter_(1, t.argmax(1, keepdim=True), 1.0)
        forms.append(("hard-labels", (z.softmax(1) - hard) / n))
        forms.append(("mse-logits", 2 * (z - t) / (n * z.shape[1])))
        forms.append(("mse-logits", 2 * (z - t) / (n * z.shape[1] * ts * ts)))
    return forms


def _explain_head(
    raw: RawWindow,
    cast: Cast,
    taint: Taint,
    student: int,
    z: Tensor,
    value: Tensor,
    labels: list[Label],
    answers: list[tuple[str, Tensor]],
) -> Explanation | None:
    grads = _gradients(raw, z, labels)
    if grads is None:
        return None
    whole, part, label_weight = grads
    if not bool(whole.isfinite().all()):
        return None
    zv = _flat(value)
    n, classes = zv.shape
    batch = value.shape[0]
    tolerance = _TOLERANCE.get(z.dtype, 1e-4)
    columns: list[Tensor] = []
    if part is None:
        bases = [b for label in labels if (b := _label_basis(value, label)) is not None]
        if not bases:
            return None
        columns = [bases[0], (zv.softmax(1) - 1 / classes) / n]
        kd = whole
        alone = torch.stack([c.reshape(-1) for c in columns], 1)
        fit = alone @ torch.linalg.lstsq(alone, whole.reshape(-1, 1)).solution
        if float((whole.reshape(-1, 1) - fit).norm()) <= tolerance * float(whole.norm()):
            return Explanation("nothing", 0.0, 0.0, n, classes, batch, sequence=value.ndim == 3)
    else:
        kd = whole - part
    label_size = float((part if part is not None else columns[0]).norm())
    share = float(kd.norm()) / (label_size or 1.0)
    base = Explanation("nothing", 0.0, share, n, classes, batch, label_weight=label_weight)
    base.sequence = value.ndim == 3
    base.labels = next(
        (
            label.target
            for label in labels
            if label.target is not None and not label.target.is_floating_point() and label.target.numel() == n
        ),
        None,
    )
    noise = {torch.float16: 1e-2, torch.bfloat16: 4e-2}.get(z.dtype, 1e-5)
    if part is not None and share < max(_LEAST_SHARE, noise if label_size else 0):
        return base
    if part is not None:
        # The sum of both terms was rounded to the logits' precision, so a small term has the rounding of a large one.
        rounding = torch.finfo(z.dtype).eps / 2 * float(whole.norm()) / float(kd.norm())
        tolerance = min(_LOOSEST, max(tolerance, rounding))
    live = kd.abs().amax(1) > 1e-12 * float(kd.abs().max() or 1.0)
    partial = part is not None and int(live.sum()) < n and int(live.sum()) > 0
    rows = int(live.sum()) if partial else n
    # A last token that has no next one is neither labelled nor distilled: then the weights compare.
    together = partial and part is not None and torch.equal(live, part.abs().amax(1) > 0)
    seen_s, seen_t, candidates = _temperatures(raw, taint, student, zv, answers, cast)

    def fits(tries: list[tuple[str, Tensor, tuple[float, float]]]) -> Iterator[Explanation]:
        for kind, t, (ts, tt) in tries:
            if t.shape != zv.shape:
                continue
            for form, basis in _forms(zv, t, kind, ts, tt, rows):
                if partial:
                    basis = basis * live[:, None]
                size = float(basis.norm())
                if not size > 1e-12 or not bool(basis.isfinite().all()):
                    continue
                if part is None:
                    stack = torch.stack([*(c.reshape(-1) for c in columns), basis.reshape(-1)], 1)
                    scale = stack.norm(dim=0).clamp_min(1e-30)
                    solution = torch.linalg.lstsq(stack / scale, whole.reshape(-1, 1)).solution.squeeze(1) / scale
                    coefficient = float(solution[-1])
                    fit = (stack @ solution).reshape_as(whole)
                    rest = whole - (stack[:, :-1] @ solution[:-1]).reshape_as(whole)
                    residual = float((whole - fit).norm() / rest.norm().clamp_min(1e-30))
                    a = float(solution[0] + solution[1])
                    this_share = abs(coefficient) * size / (abs(a) * float(columns[0].norm()) + 1e-30)
                    if this_share < 1e-4:
                        continue
                else:
                    coefficient = float((kd * basis).sum()) / size**2
                    residual = float((kd - coefficient * basis).norm() / kd.norm())
                    a, this_share = label_weight, share  # type: ignore[assignment]
                wrong_sign = form in ("forward", "one-sided") and coefficient < 0
                candidate = Explanation(
                    form if not wrong_sign else "negative",
                    residual,
                    this_share,
                    rows,
                    classes,
                    batch,
                    (ts, tt),
                    coefficient,
                    a,
                    partial=partial and not together,
                    sequence=base.sequence,
                    teacher_logits=t if kind != "probabilities" else t.log(),
                    labels=base.labels,
                )
                yield candidate

    def better(best: Explanation | None, found: Iterable[Explanation]) -> Explanation | None:
        for e in found:
            if best is None or e.residual < best.residual * (0.5 if e.form != "forward" else 0.999):
                best = e
            if best.form == "forward" and best.residual <= 0.1 * tolerance:
                break
        return best

    best = better(None, fits([(kind, t, pair) for kind, t in candidates for pair in _pairs(seen_s, seen_t, kind)]))
    if part is not None and (best is None or best.residual > tolerance):
        # A softmax that is written out by hand shows no temperature.
        logits = [(kind, t) for kind, t in candidates if kind == "logits"]
        best = better(best, (e for e in fits([(*c, (g, g)) for c in logits for g in _GRID]) if e.form == "forward"))
    if best is None:
        base.form, base.residual = ("unknown", 1.0)
        return base
    best.factors = _factors(raw, cast, student, tuple(value.shape))
    best.factors_known = bool(cast.teacher_mask) or any(f.name == "kl_div" for f in cast.soft)
    if best.residual <= tolerance or (
        best.residual <= 3e-3 and best.form == "forward" and part is None and best.share > 0.01
    ):
        return best
    if part is not None and value.ndim == 3:
        for by in (-1, 1):
            moved = [
                (kind, t.reshape(value.shape).roll(by, 1).reshape(zv.shape), pair)
                for kind, t in candidates
                if t.shape == zv.shape
                for pair in _pairs(seen_s, seen_t, kind)
            ]
            shifted = better(None, (e for e in fits(moved) if e.form == "forward"))
            if shifted is not None and shifted.residual <= tolerance:
                shifted.form = "permuted"
                shifted.permutation = [i - by if taught else i for i, taught in enumerate(live.tolist())]
                return shifted
    permutation = _permutation(kd, zv, candidates, seen_s, seen_t) if part is not None else None
    if permutation is not None:
        best.form, best.permutation = "permuted", permutation
        return best
    best.form = "unknown"
    return best


def _temperatures(
    raw: RawWindow, taint: Taint, student: int, z: Tensor, answers: list[tuple[str, Tensor]], cast: Cast
) -> tuple[list[float], list[float], list[tuple[str, Tensor]]]:
    """Return the student's and the teacher's temperatures as seen, and the teacher's logits or probabilities."""
    seen_s: list[float] = []
    for f in raw.functions:
        if f.name not in ("softmax", "log_softmax") or not f.operands:
            continue
        t, made, _ = f.operands[0]
        if t is None or not made.params & student or not raw.root.calls >> f.index & 1:
            continue
        found = temperature_of(t, z)
        if found is not None and found not in seen_s:
            seen_s.append(found)
    raw_logits = [
        (k, _flat(v)) for k, v in answers if k == "logits" and v.numel() == z.numel() and v.shape[-1] == z.shape[-1]
    ]
    arguments = [
        _flat(v) for k, v in answers if k == "argument" and v.numel() == z.numel() and v.shape[-1] == z.shape[-1]
    ]
    probabilities = [
        (k, _flat(v))
        for k, v in answers
        if k == "probabilities" and v.numel() == z.numel() and v.shape[-1] == z.shape[-1]
    ]
    seen_t: list[float] = []
    matched: list[tuple[str, Tensor]] = []
    unmatched = []
    for x in arguments:
        hit = None
        for _, v in raw_logits:
            hit = temperature_of(x, v)
            if hit is not None:
                if hit not in seen_t:
                    seen_t.append(hit)
                if all(v is not m for _, m in matched):
                    matched.append(("logits", v))
                break
        if hit is None:
            unmatched.append(x)
    rest = [item for item in raw_logits if all(item[1] is not m for _, m in matched)]
    if not raw_logits:  # stored answers: divided by the student's temperature, most likely
        t = max(seen_s, default=1.0)
        matched += [("logits", x * t) for x in unmatched]
        if unmatched and t not in seen_t:
            seen_t.append(t)
    if len(raw_logits) > 1 and len(cast.teachers) > 1:
        rest.insert(0, ("logits", torch.stack([v for _, v in raw_logits]).mean(0)))
        for t in seen_t:  # the mean of their probabilities at a temperature is that of no logits at another
            mixed = torch.stack([(v / t).softmax(1) for _, v in raw_logits]).mean(0)
            rest.insert(0, ("logits", mixed.clamp_min(1e-38).log() * t))
    # Probabilities fit whatever made them, so they speak only where the logits behind them were not seen.
    return seen_s, seen_t, [*matched, *rest[:4]] or probabilities


def _pairs(seen_s: list[float], seen_t: list[float], kind: str) -> list[tuple[float, float]]:
    if kind == "probabilities":
        return [(t, t) for t in (seen_s or _GRID)]
    if seen_s and seen_t:
        same = [(t, t) for t in seen_s if t in seen_t]
        return same + [(s, t) for s in seen_s for t in seen_t if s != t]
    one = seen_s or seen_t
    if one:
        return [(t, t) for t in one] + [(t, 1.0) for t in one if t != 1.0] + [(1.0, t) for t in one if t != 1.0]
    return [(t, t) for t in _GRID] + [(t, 1.0) for t in _GRID if t != 1.0] + [(1.0, t) for t in _GRID if t != 1.0]


def _permutation(
    kd: Tensor, z: Tensor, candidates: list[tuple[str, Tensor]], seen_s: list[float], seen_t: list[float]
) -> list[int] | None:
    """Return which row of the teacher's each row is taught by, if it is a permutation and not the identity."""
    if len(kd) > 1024:
        return None
    size = kd.norm(dim=1, keepdim=True)
    if not bool((size > 0).all()):
        return None
    unit = kd / size
    for kind, t in candidates:
        if t.shape != z.shape:
            continue
        tries: list[tuple[Tensor, Tensor]] = [(z, t)] if kind != "probabilities" else []
        for ts, tt in _pairs(seen_s, seen_t, kind)[:6]:
            tries.append(((z / ts).softmax(1), t if kind == "probabilities" else (t / tt).softmax(1)))
        for a, b in tries:
            difference = a[:, None, :] - b[None, :, :] if len(z) <= 256 or z.shape[1] <= 32 else None
            if difference is None:
                continue
            cosine = (difference * unit[:, None, :]).sum(2) / difference.norm(dim=2).clamp_min(1e-30)
            top, which = cosine.max(1)
            if bool((top > 0.999).double().mean() > 0.9):
                if len(set(which.tolist())) < 0.9 * len(which):
                    continue  # many rows with one answer: nobody's order can be read off
                moved = which != torch.arange(len(which))
                better = top > cosine.diagonal() + 1e-3
                if bool((moved & better).double().mean() > 0.1):
                    return [int(i) for i in which]
    return None


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
