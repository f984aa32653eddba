"""What several checks of the distillation term read off a trace."""

from kdbench.audits.checks.catalogue import Verdict, undecided
from kdbench.audits.infer.explain import Explanation
from kdbench.audits.observe.custom import CHECKPOINT
from kdbench.audits.places import shown
from kdbench.audits.trace import Sight, Term, Trace
from kdbench.audits.updates import Where

DIRECT = (
    "kl_div",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "cosine_similarity",
    "cosine_embedding_loss",
)
"Torch's own functions that hold one answer against another."
OF_SCORES = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
"Those whose targets are scores from 0 to 1."
NOT_UNDERSTOOD = "the distillation term was not understood"
_DIFFERENCES = ("sub", "__sub__", "rsub")
_SUM = 2e-2
"Distance from one up to which a row of probabilities sums to one: half precision over a thousand classes."


def explained(trace: Trace) -> list[tuple[Sight, Explanation]]:
    """Return each reading of the gradient at the student's logits, with its window."""
    return [(s, e) for s in trace.losses.sights for e in s.explanations]


def term_place(trace: Trace, sight: Sight | None = None) -> Where | None:
    """Return the line of the distillation term, or else of the backward."""
    at = sight or trace.losses.sights[0]
    return next((t.where for t in at.terms if t.kind == "soft" and t.where is not None), at.where)


def declared_form(trace: Trace) -> Verdict | None:
    """Decide nothing where the soft term is declared to have another form; None where it is not."""
    form = trace.declared.kd.form
    if form is None:
        return None
    said = "decoupled" if form == "decoupled" else "of a form of its own"
    return undecided("out-of-scope", f"the term is declared to be {said}, and this reads that of T^2 KL alone")


def checked_by_properties(trace: Trace) -> str | None:
    """Return the name of the function that the term is written in, if ``kdbench.check_soft_loss`` found it right."""
    places = [t.where for s in trace.losses.sights for t in s.terms if t.where is not None]
    for name, file, (first, last) in trace.losses.checked:
        here = shown(file)
        if any(p["file"] == here and first <= p["line"] <= last for p in places):
            return name
    return None


def known_distances(trace: Trace) -> list[str]:
    """Return the names of torch's own distances that hold the student against something: what they do is known.

    None where a soft term is beside them whose form is left to be read.
    """
    found: list[str] = []
    for sight in trace.losses.sights:
        mine = [t for t in sight.terms if t.reaches_student and not t.against_itself]
        widths = {e.classes for e in sight.explanations}
        plain = [t for t in mine if t.name in DIRECT and (t.name != "kl_div" or _is_of_positions(t, widths))]
        read = all(e.form != "unknown" for e in sight.explanations)
        plain += [t for t in mine if t.contrast is not None or t.entropy or (t.name in OF_SCORES and read)]
        differences = [t for t in mine if t.kind == "feature" and t.name in _DIFFERENCES and _of_one_shape(t)]
        soft = [t for t in mine if t.kind == "soft" and all(t is not p for p in plain)]
        if not soft:
            found += [t.name for t in (*plain, *differences)]
    return list(dict.fromkeys(found))


_PADDED = 1.1
"How much wider than the classes a divergence may be and be one over them: vocabularies are padded to round numbers."


def _is_of_positions(t: Term, classes: set[int]) -> bool:
    """Say whether a divergence is one between distributions over something else than the classes, as positions."""
    sums = (t.target_sum, t.input_sum)
    is_right = all(s is not None and abs(s - 1) <= _SUM for s in sums) and t.across is None
    width = t.shapes[0][-1] if t.shapes and t.shapes[0] else 0
    return is_right and bool(width) and not any(c <= width <= _PADDED * c for c in classes)


def _of_one_shape(t: Term) -> bool:
    return len(t.shapes) == 2 and t.shapes[0] == t.shapes[1]


def what_was_seen(trace: Trace) -> str:
    """Return, of a term that was not understood, where student and teacher met and how far the best form was off."""
    met: list[str] = []
    for t in (t for s in trace.losses.sights for t in s.terms):
        place = f" at {t.where['file']}:{t.where['line']}" if t.where else ""
        said = f"{t.name}{place} of shapes {' and '.join(map(str, t.shapes))}"
        if said not in met:
            met.append(said)
    read = [e.residual for _, e in explained(trace) if e.form == "unknown"]
    cut = [e for _, e in explained(trace) if e.form == "unknown" and 0 < e.looked_at < e.rows]
    of_rows = f", on {cut[0].looked_at} of its {cut[0].rows} rows" if cut else ""
    parts = [f"student and teacher meet in {'; '.join(met[:2])}"] if met else ["no loss in which the two meet was seen"]
    parts += [
        f"its gradient is that of temperature {e.temperature[0]:g} for the student and {e.temperature[1]:g} for the "
        "teacher"
        for _, e in explained(trace)[:1]
        if e.form == "one-sided" and e.temperature is not None
    ]
    if any(t.name == CHECKPOINT for s in trace.losses.sights for t in s.terms):
        parts.append("within a checkpoint that hides its gradient; use_reentrant=False shows it")
    return ", ".join(
        [*parts, *([f"no known form fits its gradient (residual {min(read):.2g}{of_rows})"] if read else [])]
    )
