"""Whether the audits of a training said exactly what was to be expected: the one meaning of "caught by exactly".

Studies, the matrix, the self-check, reports and the gallery all ask here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from kdbench.harness import faults
from kdbench.harness.faults import Fault, Together
from kdbench.harness.records.environment import audits_digest
from kdbench.harness.records.record import FINAL, Result
from kdbench.harness.records.spec import Spec
from kdbench.kd.methods import METHODS, Soft
from kdbench.kd.recipe import Recipe


@dataclass(frozen=True)
class Said:
    """What the audits said of one training: ids of audits by what became of them; failures of severity error only."""

    roots: frozenset[str]
    "Failed, and follow from no other failure."
    consequences: frozenset[str]
    "Failed, and marked as following from another failure."
    passed: frozenset[str]
    broken: frozenset[str]
    "Could not do their work."
    idle: frozenset[str] = frozenset()
    "Had nothing that could be wrong: the network answers alike in both modes."
    younger: frozenset[str] = frozenset()
    "Did not exist when the training was recorded, so nothing is expected of them."

    @classmethod
    def of(cls, findings: Iterable[Mapping[str, Any]], recorded_by: str | None = None) -> "Said":
        """Read findings as they stand in a record; `recorded_by` is the digest of the audits that made them.

        Without it they are those of the present audits, each of which must be among them.
        """
        found = list(findings)
        known = frozenset(faults.audit_ids().values())
        others = recorded_by is not None and recorded_by != audits_digest()
        errors = [f for f in found if f["status"] == "fail" and f["severity"] == "error"]
        return cls(
            frozenset(f["id"] for f in errors if f["consequence_of"] is None),
            frozenset(f["id"] for f in errors if f["consequence_of"] is not None),
            frozenset(f["id"] for f in found if f["status"] == "pass"),
            frozenset(f["id"] for f in found if f["status"] == "error"),
            frozenset(f["id"] for f in found if f.get("reason") == "mode-independent"),
            known - {f["id"] for f in found} if others else frozenset(),
        )


Kind = Literal["broken", "failed", "silent", "unreached", "escaped", "undeclared", "not-a-root", "not-a-consequence"]
"""How what was said departs from what is declared: an audit broke down; one failed without a fault, or did not say
`pass`; with a fault its seam was never asked, an audit of `caught_by` did not fail, one failed that is not declared, or
one failed as a consequence that should be a root cause, or the other way round."""

_SAID: dict[Kind, str] = {
    "broken": "could not do its work",
    "failed": "failed",
    "silent": "did not pass",
    "unreached": "was never asked for",
    "escaped": "did not fail",
    "undeclared": "failed and is not declared",
    "not-a-root": "failed as a consequence, not as a root cause",
    "not-a-consequence": "failed as a root cause, not as a consequence",
}


class Departure(NamedTuple):
    """One thing in which the audits of a training did not say what its arm declares."""

    kind: Kind
    subject: str
    "Id of the audit; of kind `unreached` the seam."

    def __str__(self) -> str:
        return f"{self.subject} {_SAID[self.kind]}"


def departures(fault: Fault | None, said: Said, *, reached: bool, method: str, recipe: Recipe) -> list[str]:
    """Return the sentences of :func:`found_departures`."""
    return [str(found) for found in found_departures(fault, said, reached=reached, method=method, recipe=recipe)]


def found_departures(fault: Fault | None, said: Said, *, reached: bool, method: str, recipe: Recipe) -> list[Departure]:
    """Return in what the audits of a training of ours did not say what its arm declares; nothing where all is as it is.

    With a fault: its seam was asked, each audit of `caught_by` failed as a root cause, each other failure is one of
    `follows` and marked as a consequence. In the training of a teacher that the fault spoils for its students, which
    has none itself, nothing is to be seen of it. Without one: nothing failed, and every audit that a fault of this
    method and recipe must trip said `pass`, since an audit that saw nothing proves nothing. Either way no audit broke
    down.
    """

    def each(kind: Kind, ids: Iterable[str]) -> list[Departure]:
        return [Departure(kind, id) for id in sorted(ids)]

    found = each("broken", said.broken)
    failed = said.roots | said.consequences
    if fault is None:
        silent = needed_passes(method, recipe) - said.passed - said.idle - failed - said.broken - said.younger
        return [*found, *each("failed", failed), *each("silent", silent)]
    parts = [part for part in (fault.parts if isinstance(fault, Together) else [fault]) if not part.why_not(method)]
    caught, follows = (
        frozenset(id for part in parts for id in part.ids(names(part)))
        for names in (lambda part: part.caught_by, lambda part: part.follows)
    )
    follows -= caught
    if not reached:
        found.append(Departure("unreached", fault.seam))
    found += each("escaped", caught - failed - said.younger)
    found += each("undeclared", failed - caught - follows)
    if not isinstance(fault, Together):  # of several faults, what one is caught by may follow from another's
        found += each("not-a-root", caught & said.consequences)
        found += each("not-a-consequence", follows & said.roots)
    return found


def needed_passes(method: str, recipe: Recipe) -> frozenset[str]:
    """Return the ids of the audits that must say `pass` of a corrected training before it is called clean.

    They are what the faults that could act in it are caught by; without the property check on augmentation where the
    recipe has none, which nothing can be said of, and without the teacher's accuracy, which the few labels of a short
    training may leave undecided though its weights are proven to be the trained ones; and without the order of rows
    where correlations are learned: older audits could not read it, and the records that they made stay proven.
    """
    return _needed_passes(method, recipe, tuple(faults.FAULTS.values()))


@lru_cache(maxsize=256)
def _needed_passes(method: str, recipe: Recipe, loaded: tuple[Fault, ...]) -> frozenset[str]:
    able = [f for f in loaded if not f.why_not(method) and f.recipe(recipe) == recipe]
    names = {name for fault in able for name in fault.caught_by}
    names -= {"teacher-above-chance"}
    if not (recipe.crop_padding or recipe.flip):
        names -= {"augmentation-active"}
    if METHODS[method].soft is Soft.CORRELATION:
        names -= {"alignment"}
    ids = faults.audit_ids()
    return frozenset(ids[name] for name in names)


def trial_departures(result: Result, spec: Spec) -> list[Departure]:
    """Return in what the audits of a finished or diverged trial did not say what its arm declares."""
    fault = faults.get(result.fault.name) if result.fault is not None else None
    reached = result.fault is None or result.fault.reached
    said = Said.of(result.findings, result.environment.get("audits_digest"))
    return found_departures(fault, said, reached=reached, method=spec.method, recipe=spec.recipe)


def trial_as_declared(result: Result, spec: Spec) -> bool:
    """Say whether the audits of a recorded trial said exactly what its arm declares; never of one without a result."""
    return result.status in FINAL and not trial_departures(result, spec)
