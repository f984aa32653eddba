"""Why an arm is not as declared: the audit that failed, did not decide or broke, with its message and its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from kdbench.harness.analysis.expectation import trial_departures
from kdbench.harness.analysis.study_table import BySeed, Trials, order
from kdbench.harness.faults import audit_ids
from kdbench.harness.records.record import FINAL, Result
from kdbench.harness.records.spec import Spec
from kdbench.kd.methods import METHODS

Kind = Literal["failed", "weak", "broken", "undecided", "missed", "other", "stopped", "unfinished"]

GRAVEST: tuple[Kind, ...] = ("failed", "missed", "other", "broken", "weak", "undecided", "stopped", "unfinished")
"In which order they are told."


@dataclass(frozen=True)
class Reason:
    """One way in which trials of an arm are not as declared."""

    kind: Kind
    text: str
    "What is not as declared: KD201 clip-coverage failed."
    detail: str
    "The audit's own message, in the first of the seeds; empty where no audit spoke."
    seeds: tuple[int, ...]
    trial: str
    "Key of the first of these trials, for `kdbench audits show`."


@dataclass(frozen=True)
class Because:
    """An arm, or a teacher, that is not as declared, and why."""

    pair: str
    "Of a teacher its network."
    method: str
    "`teacher` for a teacher."
    fault: str | None
    reasons: tuple[Reason, ...]


def because(study: Trials) -> list[Because]:
    """Return why each arm and teacher of a study is not as declared, teachers first; one that is has no entry."""
    found = [
        Because(spec.arch, "teacher", spec.fault, reasons({spec.seed: (spec, result)}))
        for spec, result in _teachers(study)
    ]
    for arm in sorted(study.arms, key=order):
        found.append(Because(arm.pair, arm.method, arm.fault, reasons(study.arms[arm])))
    return [one for one in found if one.reasons]


class Shared(NamedTuple):
    """One reason, and the arms that share it."""

    reason: Reason
    arms: list[str]


def shared(found: Sequence[Because]) -> list[Shared]:
    """Return each reason once, with the arms that it holds of and their seeds in words; the gravest first."""
    by_text: dict[tuple[Kind, str], Shared] = {}
    for one in found:
        for reason in one.reasons:
            entry = by_text.setdefault((reason.kind, reason.text), Shared(reason, []))
            entry.arms.append(f"{named(one)} ({'seed' if len(reason.seeds) == 1 else 'seeds'} {_listed(reason.seeds)})")
    return sorted(by_text.values(), key=lambda entry: GRAVEST.index(entry.reason.kind))


def named(one: Because) -> str:
    """Return an arm or teacher in words."""
    title = "the teacher" if one.method == "teacher" else METHODS[one.method].title
    return f"{title} {one.pair}, {one.fault or 'corrected'}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def reasons(trials: BySeed) -> tuple[Reason, ...]:
    """Return why an arm's trials are not as declared, what several seeds share once."""
    seeds: dict[tuple[Kind, str], list[int]] = {}
    first: dict[tuple[Kind, str], tuple[str, str]] = {}
    for seed, (spec, result) in sorted(trials.items()):
        for kind, text, detail in _of_trial(spec, result):
            seeds.setdefault((kind, text), []).append(seed)
            first.setdefault((kind, text), (detail, spec.key))
    return tuple(Reason(*key, first[key][0], tuple(of), first[key][1]) for key, of in seeds.items())


def _of_trial(spec: Spec, result: Result | None) -> list[tuple[Kind, str, str]]:
    if result is None:
        return [("unfinished", "the trial has not finished yet", "")]
    if result.status not in FINAL:
        return [("stopped", text, "") for text in trial_departures(result, spec)]
    by_id = {str(finding["id"]): finding for finding in result.findings}
    names = {id: name for name, id in audit_ids().items()}
    said = []
    for text in trial_departures(result, spec):
        audit = text.partition(" ")[0]
        finding, name = by_id.get(audit), names.get(audit, "")
        if name and name not in text:
            text = text.replace(audit, f"{audit} {name}", 1)
        said.append((_kind(result, text, finding), text, str(finding["message"]) if finding is not None else ""))
    return said


def _kind(result: Result, text: str, finding: Mapping[str, Any] | None) -> Kind:
    """Say what a departure is, of the finding that it names: the same status means another thing in a bugged arm."""
    if not text.startswith("KD"):
        return "other"
    status, name = (finding["status"], finding["name"]) if finding is not None else (None, None)
    if status == "error":
        return "broken"
    passed = {f["name"] for f in result.findings if f["status"] == "pass"}
    if status == "fail" and name == "teacher-above-chance" and "teacher-provenance" in passed:
        return "weak"  # the right weights were loaded, and they know little: more training, not another program
    if result.fault is not None:
        return "other" if status == "fail" else "missed"
    return "failed" if status == "fail" else "undecided"


def _teachers(study: Trials) -> list[tuple[Spec, Result | None]]:
    """Return the trials of the study's own teachers; one that was brought along as a file has none."""
    found: dict[str, tuple[Spec, Result | None]] = {}
    for arm in sorted(study.arms, key=order):
        for spec, _ in study.arms[arm].values():
            key = spec.teacher.key if spec.teacher is not None else ""
            folder = study.folder.trial(key)
            if key and key not in found and (folder.path / "spec.json").is_file():
                found[key] = (folder.spec(), folder.result())
    return sorted(found.values(), key=lambda one: (one[0].arch, one[0].fault or ""))
