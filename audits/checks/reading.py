"""What several checks of the distillation term read off a trace."""

from kdbench.audits.checks.catalogue import Verdict, undecided
from kdbench.audits.infer.explain import Explanation
from kdbench.audits.trace import Sight, Trace, Where


def explained(trace: Trace) -> list[tuple[Sight, Explanation]]:
    """Return each reading of the gradient at the student's logits, with its window."""
    return [(s, e) for s in trace.losses.sights for e in s.explanations]


def term_place(trace: Trace, sight: Sight | None = None) -> Where | None:
    """Return the line of the distillation term, or else of the backward."""
    at = sight or trace.losses.sights[0]
    return next((t.where for t in at.terms if t.kind == "soft" and t.where is not None), at.where)


def declared_decoupled(trace: Trace) -> Verdict | None:
    """Decide nothing where the soft term is declared to be decoupled; None where it is not."""
    if trace.declared.kd.form != "decoupled":
        return None
    return undecided("out-of-scope", "the term is declared to be decoupled, and this reads that of T^2 KL alone")
