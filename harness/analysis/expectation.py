"""Whether the audits of a training said exactly what was to be expected: the one meaning of "caught by exactly".

Studies, the matrix, the self-check, reports and the gallery all ask here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.harness import faults
from kdbench.harness.faults import Fault, Together
from kdbench.harness.records.record import FINAL, Result
from kdbench.harness.records.spec import Spec
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

    @classmethod
    def of(cls, findings: Iterable[Mapping[str, Any]]) -> "Said":
        """Read findings as they stand in a record."""
        found = list(findings)
        errors = [f for f in found if f["status"] == "fail" and f["severity"] == "error"]
        return cls(
            frozenset(f["id"] for f in errors if f["consequence_of"] is None),
            frozenset(f["id"] for f in errors if f["consequence_of"] is not None),
            frozenset(f["id"] for f in found if f["status"] == "pass"),
            frozenset(f["id"] for f in found if f["status"] == "error"),
            frozenset(f["id"] for f in found if f.get("reason") == "mode-independent"),
        )


def departures(fault: Fault | None, said: Said, *, reached: bool, method: str, recipe: Recipe) -> list[str]:
    """Return in what the audits of a training of ours did not say what its arm declares; nothing where all is as it is.

    With a fault: its seam was asked, each audit of `caught_by` failed as a root cause, each other failure is one of
    `follows` and marked as a consequence. Without one: nothing failed, and every audit that a fault of this method and
    recipe must trip said `pass`, since an audit that saw nothing proves nothing. Either way no audit broke down.
    """
    found = [f"{id} could not do its work" for id in sorted(said.broken)]
    if fault is None:
        found += [f"{id} failed" for id in sorted(said.roots | said.consequences)]
        silent = needed_passes(method, recipe) - said.passed - said.idle - said.roots - said.consequences - said.broken
        return found + [f"{id} did not say that it passed" for id in sorted(silent)]
    caught, follows = frozenset(fault.ids(fault.caught_by)), frozenset(fault.ids(fault.follows))
    failed = said.roots | said.consequences
    if not reached:
        found.append(f"{fault.seam} was never asked")
    found += [f"{id} did not fail" for id in sorted(caught - failed)]
    found += [f"{id} failed and is not declared" for id in sorted(failed - caught - follows)]
    if not isinstance(fault, Together):  # of several faults, what one is caught by may follow from another's
        found += [f"{id} failed as a consequence, not as a root cause" for id in sorted(caught & said.consequences)]
        found += [f"{id} failed as a root cause, not as a consequence" for id in sorted(follows & said.roots)]
    return found


def needed_passes(method: str, recipe: Recipe) -> frozenset[str]:
    """Return the ids of the audits that must say `pass` of a corrected training before it is called clean.

    They are what the faults that could act in it are caught by; without the property check on augmentation where the
    recipe has none, which nothing can be said of.
    """
    able = [f for f in faults.FAULTS.values() if not f.why_not(method) and f.recipe(recipe) == recipe]
    names = {name for fault in able for name in fault.caught_by}
    if not (recipe.crop_padding or recipe.flip):
        names -= {"augmentation-active"}
    ids = faults.audit_ids()
    return frozenset(ids[name] for name in names)


def trial_departures(result: Result, spec: Spec) -> list[str]:
    """Return why a recorded trial is not as its arm declares, or that it did not end; nothing if it is."""
    if result.status not in FINAL:
        return [f"the trial {result.status}" + (f": {result.reason}" if result.reason else "")]
    fault = faults.get(result.fault.name) if result.fault is not None else None
    reached = result.fault is None or result.fault.reached
    said = Said.of(result.findings)
    return departures(fault, said, reached=reached, method=spec.method, recipe=spec.recipe)


def trial_as_declared(result: Result, spec: Spec) -> bool:
    """Say whether the audits of a recorded trial said exactly what its arm declares; never of one that did not end."""
    return not trial_departures(result, spec)
