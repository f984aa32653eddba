"""Are a study's files what kdbench wrote? Each against its digest, and each against the others."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from kdbench.harness.analysis.study_table import Trials, read_study, table_differences
from kdbench.harness.plan.plan import Arm
from kdbench.harness.records.reading import content
from kdbench.harness.records.record import WEIGHTS, Folder, Result, StudyFolder, repeat_of
from kdbench.harness.records.seal import ChangedError
from kdbench.harness.records.spec import Spec
from kdbench.kd.errors import InputError
from kdbench.kd.teacher import file_sha256


@dataclass(frozen=True)
class Problem:
    """A file of a study that is not as kdbench wrote it, or that contradicts another."""

    file: str
    "Below the study's folder."
    fields: tuple[str, ...]
    "What in it; empty where it is the whole file."
    said: str


@dataclass
class Verified:
    """What was looked at, and what is wrong."""

    study: str
    problems: list[Problem] = field(default_factory=list)
    records: int = 0
    sealed: int = 0
    "Records that carry digests; those of version 0.1 have none."
    files: int = 0
    "Files beside the records whose bytes were compared with a digest."


@dataclass(frozen=True)
class VerifyObject:
    """What was verified: the kdbench.verify/1 object."""

    schema: Literal["kdbench.verify/1"]
    whole: bool
    "Whether everything is as it was written."
    studies: list[Verified]
    signed_by: str | None = None
    "Who signed the archive; null of studies in a folder, and where nobody was asked for."


def verify(study: StudyFolder) -> Verified:
    """Read all files of a study, its weights too, and return what is wrong; nothing is written.

    A method of the user's whose file was not loaded is an InputError.
    """
    found = Verified(study.path.name)
    results = {}
    for folder in _folders(study):
        result = _check_trial(study, folder, found)
        if result is not None and folder.path.parent.name == "trials":
            results[folder.key] = result
    found.problems += _check_teachers(study, results)
    try:
        trials = read_study(study)
    except InputError as error:
        if not any(problem.said in str(error) for problem in found.problems):
            found.problems.append(_problem(study, "study.json", error))
        return found
    found.problems += _check_arms(trials)
    found.problems += _check_table(trials)
    return found


def _folders(study: StudyFolder) -> Iterator[Folder]:
    yield from study.trials()
    for path in sorted((study.path / "again").glob("*/spec.json")):
        yield study.trial(repeat_of(path.parent.name))


def _problem(study: StudyFolder, file: str, error: InputError) -> Problem:
    said = str(error).replace(f"{study.path}/", "")
    return Problem(file, error.fields if isinstance(error, ChangedError) else (), said)


def _is_of_a_file(folder: Folder) -> bool:
    """Say whether a trial's method stood in a file of the user's, which has to be loaded before the trial is read."""
    try:
        return json.loads(content(folder.path / "spec.json")).get("method_digest") is not None
    except (ValueError, AttributeError):
        return False


def _check_trial(study: StudyFolder, folder: Folder, found: Verified) -> Result | None:
    """Check a trial's files; return its result where it can be read."""
    place = folder.path.relative_to(study.path).as_posix()
    result, curve = None, None
    for name in ("spec.json", "result.json", "curve.jsonl"):
        try:
            if name == "spec.json":
                folder.spec()
            elif name == "result.json":
                result = folder.result()
            else:
                curve = folder.curve()
        except InputError as error:
            if error.about == "unknown method" and _is_of_a_file(folder):
                raise
            found.problems.append(_problem(study, f"{place}/{name}", error))
    if result is None:
        return None
    found.records += 1
    found.sealed += bool(result.seal)
    found.files += len(result.files)
    for name in folder.changed_files(result):
        said = f"{place}/{name} is not the file that the trial wrote: its SHA-256 is another"
        found.problems.append(Problem(f"{place}/{name}", (), said))
    for name in result.files:
        if name not in WEIGHTS and not (folder.path / name).exists():  # a bundle may leave weights out
            found.problems.append(Problem(f"{place}/{name}", (), f"{place}/{name} is missing; the trial wrote one"))
    if curve is not None:
        found.problems += _check_selected(place, curve, result)
    return result


def _check_selected(place: str, curve: list[dict[str, Any]], result: Result) -> Iterator[Problem]:
    """Compare the score that the result reports with the curve's, at the epoch that was selected."""
    if result.metrics is None or result.selected_epoch is None:
        return
    scores = [epoch["val_accuracy"] for epoch in curve]
    at = result.selected_epoch
    file = f"{place}/result.json"
    if at > len(scores):
        yield Problem(
            file, ("selected_epoch",), f"{file}, selected_epoch is {at}; curve.jsonl has {len(scores)} epochs"
        )
    elif scores[at - 1] != result.metrics.val_accuracy:
        said = f"{file}, metrics.val_accuracy is {result.metrics.val_accuracy}; curve.jsonl says {scores[at - 1]}"
        yield Problem(file, ("metrics.val_accuracy",), said)


def _check_teachers(study: StudyFolder, results: dict[str, Result]) -> Iterator[Problem]:
    """Compare the teacher that each student learned from with the teacher's weights as they lie here."""
    digests: dict[str, str] = {}
    for key, result in results.items():
        try:
            teacher = study.trial(key).spec().teacher
        except InputError:
            continue  # said already
        if teacher is None or result.teacher is None or teacher.key.startswith("sha256:"):
            continue
        weights = study.trial(teacher.key).student
        if not weights.is_file():
            continue  # a bundle may leave them out
        if teacher.key not in digests:
            digests[teacher.key] = file_sha256(weights)
        if result.teacher.sha256 not in (None, digests[teacher.key]):
            file = f"trials/{key}/result.json"
            said = f"{file}, teacher.sha256: the student learned from other weights than trials/{teacher.key} holds"
            yield Problem(file, ("teacher.sha256",), said)


def _check_arms(trials: Trials) -> Iterator[Problem]:
    """Compare what study.json says of each trial with the trial's own spec."""
    for arm, by_seed in (*trials.arms.items(), *trials.controls.items()):
        for seed, (spec, _) in by_seed.items():
            if not _belongs(arm, seed, spec):
                said = (
                    f"study.json, arms: trial {spec.key} stands under {arm.pair}, {arm.method}, {arm.label}, seed "
                    f"{seed}; its spec says {spec.method}, {spec.fault or 'corrected'}, seed {spec.seed}"
                )
                yield Problem("study.json", ("arms",), said)


def _belongs(arm: Arm, seed: int, spec: Spec) -> bool:
    return (spec.seed, spec.method, spec.fault, spec.arch) == (seed, arm.method, arm.fault, arm.pair.split("-")[1])


def _check_table(trials: Trials) -> Iterator[Problem]:
    path = trials.folder.path / "results.csv"
    if not path.exists():
        every = [result for by_seed in trials.arms.values() for _, result in by_seed.values()]
        if every and None not in every:  # it is written when the last of them is done
            yield Problem("results.csv", (), "results.csv is missing; the study's command writes it anew")
        return
    try:
        text = content(path).decode("utf-8", errors="replace")
    except InputError as error:
        yield _problem(trials.folder, "results.csv", error)
        return
    for column, said in table_differences(text, trials):
        yield Problem("results.csv", (column,) if column else (), f"results.csv{said}")
