"""Why an arm, a teacher or a control of a study is not as declared: the audit, what it said, and how to fix it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kdbench.harness import faults
from kdbench.harness.analysis.expectation import Departure, Kind, trial_departures
from kdbench.harness.analysis.rows import ControlsRow
from kdbench.harness.analysis.study_table import BySeed, Trials, order
from kdbench.harness.records.record import FINAL, Folder, Result, StudyFolder
from kdbench.harness.records.spec import Spec
from kdbench.kd.methods import METHODS
from kdbench.kd.models import MODELS
from kdbench.kd.train import OWN_STEPS

Whose = Literal["teacher", "arm", "control"]


class Of(NamedTuple):
    """What is not as declared: a row of the study's tables."""

    whose: Whose
    pair: str
    "Of a teacher its network."
    method: str
    fault: str | None


@dataclass(frozen=True)
class Because:
    """One reason why a row of the study is not as declared, as an entry of `because` in kdbench.run/1."""

    whose: Whose
    pair: str
    method: str
    fault: str | None
    seeds: list[int]
    "Of the trials that it holds for."
    kind: Kind | Literal["stopped", "unfinished", "not-repeated"]
    audit: str | None
    "Id of the audit; None where no audit is at fault."
    what: str
    "Which audit, and what became of it."
    message: str
    "What the audit said in the first of those trials; empty where no audit spoke."
    explanation: str | None
    "What stands behind it, where the records tell."
    fix: str | None
    trial: str
    "Folder of the first of those trials."
    said: str = ""
    "All of it in one sentence; made of the rest."
    show: str = ""
    "The command that shows all that the audits said of the trial; made of the rest."

    @property
    def of(self) -> Of:
        """The row that it is about."""
        return Of(self.whose, self.pair, self.method, self.fault)

    @property
    def key(self) -> str:
        """The key of the first of its trials."""
        return Path(self.trial).name

    def __post_init__(self) -> None:
        object.__setattr__(self, "said", f"{self.what}: {self.message}" if self.message else self.what)
        object.__setattr__(self, "show", f"kdbench audits show {self.trial}")

    @property
    def weak_teacher(self) -> bool:
        """Whether the right teacher was loaded and knows too little: more training, not another program."""
        return self.audit == "KD303" and self.explanation is not None


def because(study: Trials, teachers: Iterable[Folder], controls: ControlsRow | None) -> list[Because]:
    """Return every reason why something of a study is not as declared: teachers, then arms, then controls."""
    found = []
    for folder in teachers:
        spec = folder.spec()
        trials = {spec.seed: (spec, folder.result())}
        found += _reasons(study.folder, Of("teacher", spec.arch, "teacher", spec.fault), trials)
    for arm in sorted(study.arms, key=order):
        found += _reasons(study.folder, Of("arm", *_named(arm)), study.arms[arm])
    for arm in sorted((arm for arm in study.controls if arm.fault), key=order) if controls is not None else ():
        found += _reasons(study.folder, Of("control", *_named(arm)), study.controls[arm])
    return found + _not_repeated(study, controls)


class Shared(NamedTuple):
    """One reason, and the rows that share it."""

    reason: Because
    rows: list[str]
    "In words, each with its seeds."


_GRAVEST = ("failed", "escaped", "undeclared", "not-a-root", "not-a-consequence", "unreached", "not-repeated", "broken")
"The kinds that are told first, in this order."


def shared(found: Iterable[Because]) -> list[Shared]:
    """Return each reason once, with the rows that it holds for; the gravest first."""
    by_what: dict[tuple[str, str, bool], Shared] = {}
    for one in found:
        entry = by_what.setdefault((one.kind, one.what, one.whose == "teacher"), Shared(one, []))
        entry.rows.append(f"{in_words(one.of)} ({'seed' if len(one.seeds) == 1 else 'seeds'} {_listed(one.seeds)})")
    return sorted(by_what.values(), key=lambda entry: _rank(entry.reason))


def _rank(reason: Because) -> int:
    later = ("silent", "stopped", "unfinished")
    if reason.weak_teacher or reason.kind in later:
        return len(_GRAVEST) + (0 if reason.weak_teacher else 1 + later.index(reason.kind))
    return _GRAVEST.index(reason.kind)


def in_words(of: Of) -> str:
    """Return a row of the study in words."""
    title = "the teacher" if of.method == "teacher" else METHODS[of.method].title
    return f"{title} {of.pair}, {of.fault or 'corrected'}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _named(arm: Any) -> tuple[str, str, str | None]:
    return arm.pair, arm.method, arm.fault


def _not_repeated(study: Trials, controls: ControlsRow | None) -> list[Because]:
    """Return the reason for a trial that gave other bits when it was run again; nothing if it gave the same."""
    again = controls.again if controls is not None else None
    if again is None or again.verdict != "differs" or study.again is None:
        return []
    spec = study.again[0].spec()
    what = "the same trial, run twice on one machine, gave other weights"
    return [
        Because(
            "control", spec.arch, again.method, again.fault, [again.seed], "not-repeated", None, what, "",
            "something in it is not deterministic, so no difference between two trainings means anything",
            "a method or network of your own must draw its random numbers from torch's global generator; otherwise "
            "report it as an error of kdbench",
            str(study.again[0].path),
        )
    ]  # fmt: skip


def _reasons(study: StudyFolder, of: Of, trials: BySeed) -> list[Because]:
    """Return the reasons of one row, each once for all the seeds that it holds for."""
    grouped: dict[tuple[str, str], list[tuple[Spec, Result | None]]] = {}
    known: dict[tuple[str, str], Departure] = {}
    for _, (spec, result) in sorted(trials.items()):
        if result is None or result.status not in FINAL:
            grouped.setdefault(("unfinished" if result is None else "stopped", ""), []).append((spec, result))
            continue
        departures = trial_departures(result, spec)
        if result.status == "diverged" and departures and all(d.kind == "silent" for d in departures):
            grouped.setdefault(("stopped", ""), []).append((spec, result))  # of no number nothing can be said
            continue
        for departure in departures:
            grouped.setdefault(departure, []).append((spec, result))
            known[departure] = departure
    return [_reason(study, of, known.get(key), held) for key, held in grouped.items()]


def _reason(
    study: StudyFolder, of: Of, departure: Departure | None, held: Sequence[tuple[Spec, Result | None]]
) -> Because:
    spec, result = held[0]
    seeds, place = [s.seed for s, _ in held], str(study.trial(spec.key).path)
    if departure is None or result is None:
        again = "the study's command, run again, trains what is missing"
        if result is None:
            return Because(*of, seeds, "unfinished", None, "it has no result yet", "", None, again, place)
        status, why = f"the trial {'was ' * (result.status == 'interrupted')}{result.status}", result.reason or ""
        return Because(*of, seeds, "stopped", None, status, why, None, again, place)
    finding = next((f for f in result.findings if f["id"] == departure.subject), None)
    if finding is not None and "message" not in finding:  # a pass, of which a study that was read keeps no more
        whole = study.trial(spec.key).result()
        finding = next((f for f in (whole or result).findings if f["id"] == departure.subject), finding)
    audit = None if departure.kind == "unreached" else departure.subject
    what, message = _told(departure, finding)
    if of.whose == "teacher":  # in its own training it is the one that learns
        message = message.replace("the student", "the network")
    explanation, fix = _explained(study, departure, finding, spec, result)
    return Because(*of, seeds, departure.kind, audit, what, message, explanation, fix, place)


_BECAME: dict[Kind, str] = {
    "failed": "failed",
    "silent": "is undecided, and a corrected arm needs its pass",
    "escaped": "did not fail, and this fault must make it fail",
    "undeclared": "failed, which is not among what this fault causes",
    "not-a-root": "failed only as a consequence of another audit, and this fault must make it fail by itself",
    "not-a-consequence": "failed by itself, and with this fault it may only follow from another audit",
}


def _told(departure: Departure, finding: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return which audit and what became of it, and what it said."""
    if departure.kind == "unreached":
        return f"the decision that the fault replaces ({departure.subject}) was never asked for", ""
    names = {id: name for name, id in faults.audit_ids().items()}
    name = finding["name"] if finding is not None else names.get(departure.subject, "")
    audit = f"{departure.subject} {name}".strip()
    if finding is None:  # it is of a kind whose second half says what it is needed for
        return f"{audit} did not run, and {_BECAME[departure.kind].partition(', and ')[2]}", ""
    message = str(finding.get("message") or "")
    if departure.kind == "broken":
        return f"{audit} broke down, which is an error of kdbench and not of your study", message
    return f"{audit} {_BECAME[departure.kind]}", message


def _explained(
    study: StudyFolder, departure: Departure, finding: Mapping[str, Any] | None, spec: Spec, result: Result
) -> tuple[str | None, str | None]:
    """Return what stands behind a departure and how to fix it, where the records tell."""
    if departure.kind == "broken":
        return None, "report it with the folder of the trial; its other audits are not affected"
    if departure.kind == "unreached":
        return None, "choose a method, recipe or data set in which this decision is taken"
    if departure.subject == "KD303" and departure.kind in ("failed", "undeclared", "not-a-consequence"):
        weak = _weak_teacher(study, spec, result)
        if weak is not None:
            return weak
    finding = finding or {}
    steps = spec.recipe.epochs * (spec.recipe.train_size // spec.recipe.batch_size)
    if departure.kind == "silent" and steps < OWN_STEPS:
        told = f"this training has {steps} step{'s' * (steps != 1)} in all, and the audits need up to {OWN_STEPS}"
        return told, "train for more epochs, on more images, or in smaller batches"
    if departure.kind not in ("failed", "undeclared", "not-a-consequence"):
        return None, None
    other = _other_network(finding, spec) if departure.subject == "KD105" else None
    return None, other or finding.get("mend") or None


def _other_network(finding: Mapping[str, Any], spec: Spec) -> str | None:
    """Say what helps where the stem that failed is another library's, and so cannot be changed in a study."""
    of_role = {"student": spec.arch, "teacher": spec.teacher.arch if spec.teacher is not None else spec.arch}
    slips = [arch for role, arch in of_role.items() if role in (finding.get("observed") or {})]
    foreign = next((arch for arch in slips if MODELS[arch].foreign), None)
    if foreign is None:
        return None
    return f"{foreign} is made for larger images; take a network of kdbench's, as r18, or larger images"


def _weak_teacher(study: StudyFolder, spec: Spec, result: Result) -> tuple[str, str] | None:
    """Say that a teacher was loaded as it is, and is itself near chance; None where that is not what the record says.

    KD104 tells a teacher that was not loaded. One that is accurate on validation images, and is not in the training,
    is fed something else there: neither is explained here.
    """
    teacher, status = result.teacher, {f["id"]: f["status"] for f in result.findings}
    if teacher is None or spec.teacher is None or teacher.above_floor or status.get("KD104") != "pass":
        return None
    near = (
        f"the teacher {teacher.arch} was loaded whole (KD104 passed), and its own accuracy is near chance: "
        f"{teacher.val_accuracy:.1f}% on validation images, where a trained network exceeds {teacher.floor:.1f}%"
    )
    kind, colon, _ = spec.teacher.key.partition(":")
    if colon and kind == "sha256":
        return (
            f"{near}; it is the file that you brought ({teacher.file})",
            "check that the file was trained on these classes, in this order, and on images prepared alike",
        )
    trained = study.trial(spec.teacher.key)
    if not (trained.path / "spec.json").is_file():
        return near, "train the teacher longer"
    recipe = trained.spec().recipe
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
    return (
        f"{near}; it was trained for {epochs} only, on {recipe.train_size} images",
        f"train the teacher longer: `epochs` under [teacher] in the study file, or --teacher-epochs "
        f"(now {recipe.epochs})",
    )
