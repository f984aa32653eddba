"""The typed record of a trial on disk, from which every table, report and mirror can be made again.

spec.json            what decides the numbers
curve.jsonl          one line an epoch
norms.csv            gradient norms before clipping, a step a line, of the first 200 steps
test_curve.jsonl     test accuracy by epoch, only where a rule that selects by it is tried
result.json          written last and atomically: a folder without it is an unfinished trial
student.safetensors  weights of the selected epoch
method.safetensors   its projectors, where the method has any
log.txt              what the process printed
checkpoint/          where a long training was a minute ago, to go on from; gone once it is finished

All of it lies in STUDY/trials/KEY; in STUDY/again/KEY a trial that was run a second time, as a control.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdbench.audits.finding import Finding, finite
from kdbench.harness.records import seal
from kdbench.harness.records.reading import SAID, Count, Number, Percent, Share, content, parse_json, plain_json
from kdbench.harness.records.spec import Spec
from kdbench.harness.records.temporaries import temporary
from kdbench.kd.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Status = Literal["finished", "failed", "diverged", "interrupted"]
FINAL: tuple[Status, ...] = ("finished", "diverged")
"What is not tried again: a failure may have been the machine's, a divergence is a result."
OUT_OF_MEMORY = "out of memory"
"How the reason begins of a trial that failed for want of memory: alone it may find enough."
_MEND_SPEC = "the study's command, run again, writes it anew"
_MEND = "delete it, and the study's command makes it anew"


@dataclass(frozen=True)
class Metrics:
    """The selected epoch's scores; accuracies in percent."""

    test_accuracy: Percent
    val_accuracy: Percent
    per_class: list[Percent | None]
    "Test accuracy by class."
    agreement: Percent | None = None
    "Share of test images on which student and teacher name the same class."
    kl_t1: float | None = None
    "Mean KL(teacher || student) on test at temperature 1, in nats."
    kl_t4: float | None = None


@dataclass(frozen=True)
class FaultStory:
    """How far a fault got."""

    name: str
    seam: str
    calls: Count
    "How often its seam was asked."
    reached: bool
    revealed: list[str]
    "Ids of the audits that failed."
    diverged_at: int | str | None = None
    "First epoch whose weights differ from the corrected twin's; `undecidable` on a device without determinism."
    dormant: bool | None = None
    "Whether neither weights nor scores ever differed; null while no corrected twin is there to compare with."


@dataclass(frozen=True)
class TeacherRecord:
    """Where the teacher came from, and what it is worth on the validation split."""

    arch: str
    file: str | None
    sha256: str | None
    loaded_fraction: Share
    val_accuracy: Percent
    floor: float
    "Accuracy that a trained teacher exceeds: the commonest label's share, and a margin."
    above_floor: bool


@dataclass(frozen=True)
class Result:
    """What came of a trial."""

    key: str
    status: Status
    reason: str | None = None
    "Why it did not finish."
    selected_epoch: Number | None = None
    metrics: Metrics | None = None
    findings: list[dict[str, Any]] = field(default_factory=list)
    fault: FaultStory | None = None
    teacher: TeacherRecord | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float | str] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    attempts: list[str] = field(default_factory=list)
    "Why earlier attempts at the trial ended, of those that were made anew at once."
    files: dict[str, str] = field(default_factory=dict)
    "SHA-256 of what else the trial wrote, by name; empty in records of version 0.1."
    seal: dict[str, str] = field(default_factory=dict, compare=False)
    "Digests of the fields above (:mod:`harness.records.seal`); empty in records of version 0.1."
    schema: Literal["kdbench.trial/1"] = "kdbench.trial/1"

    @property
    def roots(self) -> list[str]:
        """Ids of the failed audits of severity error that follow from no other."""
        return sorted(f["id"] for f in self._failed() if f["consequence_of"] is None)

    @property
    def consequences(self) -> list[str]:
        """Ids of the failed audits of severity error that follow from another's failure."""
        return sorted(f["id"] for f in self._failed() if f["consequence_of"] is not None)

    @property
    def broken(self) -> list[str]:
        """Ids of the audits that could not do their work."""
        return sorted(f["id"] for f in self.findings if f["status"] == "error")

    def _failed(self) -> list[dict[str, Any]]:
        return [f for f in self.findings if f["status"] == "fail" and f["severity"] == "error"]


def sealed_text(raw: dict[str, Any]) -> str:
    """Return the text of a result.json, with the digests of its fields."""
    return seal.sealed_text(finite(raw), str(raw["key"]), sort_keys=True)


def sync(path: Path) -> None:
    """Have a file's content on the disk before anything that says it is there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new, never a part."""
    unfinished = temporary(path)
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:  # no room: what there is of it takes some
        unfinished.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class _Findings:
    """What a result's findings are held against: the record keeps them as plain values."""

    findings: list[Finding]


@dataclass(frozen=True)
class EpochLine:
    """A line of a curve: :class:`kd.train.Epoch`, with null for what is no number."""

    epoch: Number
    digest: str
    lr: float | None
    loss: dict[str, float | None]
    train_accuracy: Percent
    val_accuracy: Percent
    grad_norms: dict[str, dict[str, float | None]]
    clipped_share: Share
    overflowed_steps: Count


def _at_once(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """Parse the lines of a curve as one list, which is much faster; None where a line is no epoch, for another to say.

    A line is an object by itself: what two lines make up together is none.
    """
    text, none = b"[" + b",".join(lines) + b"]", ("", "", "")
    try:
        parse_json(list[EpochLine], text, *none, unknown="ignore")
        found: list[dict[str, Any]] = plain_json(text, *none)
    except InputError:
        return None
    alone = all(line.startswith(b"{") and line.endswith(b"}\n") for line in lines)
    return found if alone and len(found) == len(lines) else None


WEIGHTS = ("student.safetensors", "method.safetensors")
FILES = ("spec.json", "curve.jsonl", "norms.csv", "test_curve.jsonl", *WEIGHTS)
"What a result has a digest of. The log goes on after the result."
_MEND_CURVE = "delete the trial's result.json, and the study's command trains it anew"


@dataclass(frozen=True)
class Folder:
    """A trial's folder."""

    path: Path

    @property
    def key(self) -> str:
        """The trial's name."""
        return self.path.name

    @property
    def student(self) -> Path:
        """The selected weights."""
        return self.path / "student.safetensors"

    def write_spec(self, spec: Spec) -> None:
        """Make the folder and put the spec in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / "spec.json", spec.to_json())

    def spec(self) -> Spec:
        """Read the spec; InputError if it is not one, or not this folder's."""
        try:
            spec = Spec.from_json(content(self.path / "spec.json").decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: spec.json is no text ({error}); {_MEND_SPEC}") from error
        except InputError as error:
            mend = "" if error.about == "unknown method" else f"; {_MEND_SPEC}"
            raise InputError(f"{self.path}: no spec.json can be read ({error}){mend}", error.about) from error
        if spec.key != self.key:
            raise InputError(f"{self.path}: spec.json belongs to trial {spec.key}; it was edited or moved")
        return spec

    def result(self) -> Result | None:
        """Read the result; None for an unfinished trial. What is no result, or is not as it was written, is refused."""
        path = self.path / "result.json"
        if not path.exists():
            return None
        text, what = content(path), "a trial's result"
        result = parse_json(Result, text, str(path), what, _MEND)
        parse_json(_Findings, text, str(path), what, _MEND, unknown="ignore")
        if result.key != self.key:
            raise seal.ChangedError(f"{path}, key: it is the result of trial {result.key}; {_MEND}", ["key"])
        if not result.seal or seal.is_whole(text, self.key, result.seal):
            return result
        changed = seal.broken(plain_json(text, str(path), what, _MEND), self.key, result.seal)
        if changed:
            said = f"{', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}"
            raise seal.ChangedError(f"{path}, {said}: changed since the trial wrote it; {_MEND}", changed)
        return result

    def write_result(self, result: Result) -> None:
        """Commit the result."""
        write_atomic(self.path / "result.json", sealed_text(asdict(result)))

    def seal_files(self, result: Result) -> Result:
        """Return the result with the digests of the files beside it; for the one who wrote them, and once."""
        return replace(result, files=seal.of_files(self.path, FILES))

    def changed_files(self, result: Result, names: Sequence[str] | None = None) -> list[str]:
        """Return which of the trial's files (of these names) are not what its result says; a missing one is let be."""
        noted = {name: digest for name, digest in result.files.items() if names is None or name in names}
        found = seal.of_files(self.path, noted)
        return sorted(name for name in found if found[name] != noted[name])

    def refuse_changed(self, result: Result, names: Sequence[str]) -> None:
        """Raise ChangedError where one of these files is there and is not what the result says."""
        if changed := self.changed_files(result, names):
            path = self.path / changed[0]
            raise seal.ChangedError(
                f"{path} is not the file that the trial wrote: its SHA-256 is another; {_MEND_CURVE}"
            )

    def epochs(self) -> int:
        """Return the number of epochs written so far."""
        path = self.path / "curve.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def norms(self) -> dict[str, np.ndarray]:
        """Return the gradient norms before clipping, by group, and the steps; nothing where none were recorded."""
        path = self.path / "norms.csv"
        if not path.is_file():
            return {}
        names, _, rows = content(path).decode("utf-8", errors="replace").partition("\n")
        columns = next(csv.reader([names]), [])
        try:
            table = np.loadtxt(rows.splitlines(), delimiter=",", ndmin=2) if rows.strip() else np.empty((0, 0))
        except ValueError as error:
            raise InputError(f"{path} is no table of numbers ({str(error)[:SAID]}); {_MEND_CURVE}") from error
        if rows.strip() and table.shape[1] != len(columns):
            raise InputError(f"{path} has {table.shape[1]} columns under {len(columns)} names; {_MEND_CURVE}")
        return dict(zip(columns, table.T, strict=False)) if len(table) else {}

    def digests(self) -> list[str]:
        """Return the digests of the weights, by epoch."""
        return [epoch["digest"] for epoch in self.curve()]

    def curve(self) -> list[dict[str, Any]]:
        """Read the epochs so far; a line that is being written is left out, and one that is no epoch is refused."""
        path = self.path / "curve.jsonl"
        if not path.exists():
            return []
        lines = content(path).splitlines(keepends=True)
        where = [(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.endswith(b"\n")]
        if (whole := _at_once([line for _, line in where])) is not None:
            return whole
        for at, line in where:
            parse_json(EpochLine, line, at, "an epoch", _MEND_CURVE, unknown="ignore")
        return [plain_json(line, at, "an epoch", _MEND_CURVE) for at, line in where]


def same_machine(a: Result, b: Result) -> bool:
    """Say whether two trials ran with the same torch on the same kind of device, so that equal seeds are equal bits."""
    return all(a.environment.get(name) == b.environment.get(name) for name in ("torch", "device_name"))


def first_difference(a: Sequence[str], b: Sequence[str]) -> int | None:
    """Return the first epoch, counted from 1, whose digests of the weights differ; None where none of both does."""
    return next((epoch for epoch, (x, y) in enumerate(zip(a, b, strict=False), 1) if x != y), None)


_REPEAT = "again-"


def repeat_of(key: str) -> str:
    """Return the name under which a trial is run a second time, as a control."""
    return _REPEAT + key


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder under the runs folder."""

    path: Path

    def weights(self, digest: str, suffix: str) -> Path:
        """Return where a teacher's file that was brought along lies."""
        return self.path / "weights" / f"{digest}{suffix}"

    @property
    def answers(self) -> Path:
        """The teachers' answers that trials leave for each other (:mod:`kd.answers`); gone once the study is done."""
        return self.path / "answers"

    @contextmanager
    def lock(self, shared: bool = False) -> Iterator[None]:
        """Keep a second coordinator out of the study, or raise InputError if there is one already.

        Those that run a shard each (`shared`) keep out only the one that would run the whole.
        """
        with (self.path / ".lock").open("a") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                except OSError as error:
                    raise InputError(
                        f"{self.path} is being run by another kdbench; wait for it, or end it"
                        " (several may run a study together, each with a --shard)"
                    ) from error
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Have the study's own files, those that belong to no trial, for oneself; waits for the others."""
        with _alone(self.path / ".writing"):
            yield

    @contextmanager
    def mirroring(self) -> Iterator[None]:
        """Be the only one who mirrors, or wait: a run that another is writing would be taken for one cut off."""
        with _alone(self.path / ".mirroring"):
            yield

    def trial(self, key: str) -> Folder:
        """Return a trial's folder; that of a repeat (:func:`repeat_of`) lies apart, so that no table counts it."""
        if key.startswith(_REPEAT):
            return Folder(self.path / "again" / key.removeprefix(_REPEAT))
        return Folder(self.path / "trials" / key)

    def trials(self) -> Iterator[Folder]:
        """Return the trials' folders, by key."""
        for path in sorted((self.path / "trials").glob("*/spec.json")):
            yield Folder(path.parent)
