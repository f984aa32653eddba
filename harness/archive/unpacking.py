"""A bundle read: its names and sizes are looked at before a byte is written, and its records before anything runs."""

import contextlib
import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdbench.harness.analysis.study_table import read_study, table_differences
from kdbench.harness.archive.bundle import Bundle, counted, data_of, noted
from kdbench.harness.loading import KINDS, Loaded
from kdbench.harness.records.reading import content, plain_json, read_json
from kdbench.harness.records.record import StudyFolder
from kdbench.harness.records.seal import ChangedError
from kdbench.kd.errors import InputError
from kdbench.kd.teacher import file_sha256

MOST_BYTES = 16 * 2**30
"Of an archive's files together, unless somebody says more: a study with the weights of 300 ResNet-50 fits."
_MANIFEST = "MANIFEST.json"
_FETCH = "fetch it again"


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive, as its header says."""

    name: str
    size: int
    is_plain: bool
    "Whether it is a file or a folder, and no link or device."


@dataclass(frozen=True)
class Source:
    """The data set that a study stands on."""

    name: str
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What MANIFEST.json says of an archive."""

    schema: str
    study: str
    data: Source
    files: dict[str, str]
    "SHA-256 of every other file."
    faults: list[str]
    methods: list[str] | None = None
    models: list[str] | None = None
    sizes: dict[str, int] | None = None
    "Bytes of every other file; bundles of version 0.1 have none."


def unpack(
    archive: Path, place: Path, load: Callable[[Sequence[Loaded]], None], most_bytes: int = MOST_BYTES
) -> Bundle:
    """Unpack an archive of :func:`harness.archive.bundle.pack` into an empty folder, and read it.

    `load` is handed the methods that the archive brings before a spec is read, which needs them; it runs them or
    raises InputError.

    InputError for one that cannot be read, would need more than `most_bytes`, has a member that would land elsewhere,
    is no plain file or is not in its manifest, whose files are not those of the manifest, or whose table is not that
    of its records. Names and sizes are looked at before anything is written.
    """
    if not archive.is_file():
        raise InputError(f"{archive} does not exist; name an archive that kdbench bundle wrote")
    try:
        _extract_any(archive, place, most_bytes)
    except InputError:
        raise
    except (*_DAMAGE, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{archive} cannot be unpacked ({said or type(error).__name__}); {_FETCH}") from error
    roots = list(place.iterdir())
    if len(roots) != 1 or not (roots[0] / _MANIFEST).is_file():
        raise InputError(f"{archive} is no archive of kdbench bundle: it has no {_MANIFEST} in its one folder")
    with _forged(archive, place):
        return _read(roots[0], load)


_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
"What the two kinds of archives raise where one is cut off or damaged."


def _extract_any(archive: Path, place: Path, most_bytes: int) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            infos = packed.infolist()
            members = [Member(info.filename, info.file_size, True) for info in infos]
            _check_members(members, archive, most_bytes)
            manifest = [info for info in infos if info.filename.count("/") == 1 and info.filename.endswith(_MANIFEST)]
            if manifest:
                _check_manifest(packed.read(manifest[0]), members, archive)
            packed.extractall(place)
    else:
        with tarfile.open(archive) as tar:
            extract(tar, archive, place, most_bytes)


def extract(tar: tarfile.TarFile, archive: Path, place: Path, most_bytes: int = MOST_BYTES) -> None:
    """Extract plain files and folders, as on any Python of ours: before 3.11.4 tarfile has no filters (PEP 706)."""
    members, infos, total = [], [], 0
    for info in tar:  # a header at a time: what it says is refused before what follows it is unpacked
        members.append(Member(info.name, info.size, info.isreg() or info.isdir()))
        infos.append(info)
        total += info.size
        _check_members(members[-1:], archive, most_bytes, total)
    manifest = next((i for i in infos if i.name.count("/") == 1 and i.name.endswith(_MANIFEST)), None)
    stream = tar.extractfile(manifest) if manifest is not None else None
    if stream is not None:
        _check_manifest(stream.read(), members, archive)
    tar.extraction_filter = getattr(tarfile, "data_filter", None)  # which an older one does not look at
    tar.extractall(place)


def _check_members(members: Sequence[Member], archive: Path, most_bytes: int, total: int | None = None) -> None:
    """Refuse members that would land elsewhere, are no plain files, or need more room than was granted."""
    for member in members:
        path = PurePosixPath(member.name)
        if not path.parts or path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", member.name):
            raise InputError(
                f"{archive} holds {member.name!r}, which would land outside of its folder; nothing was unpacked"
            )
        if not member.is_plain:
            raise InputError(f"{archive} holds {member.name!r}, which is no plain file; nothing was unpacked")
    total = sum(member.size for member in members) if total is None else total
    if total > most_bytes:
        raise InputError(
            f"{archive} holds {total:,} bytes and more, and {most_bytes:,} are allowed; nothing was unpacked. If you "
            "trust its author, allow more",
            "archive size",
        )


def _check_manifest(text: bytes, members: Sequence[Member], archive: Path) -> None:
    """Refuse members that the manifest does not name, or not with this size; one of version 0.1 names no sizes."""
    raw = plain_json(text, f"{archive}, {_MANIFEST}", "a manifest", _FETCH)
    sizes = raw.get("sizes") if isinstance(raw, dict) else None
    if not isinstance(sizes, dict):
        return
    for member in members:
        name = member.name.partition("/")[2]
        if name and name != _MANIFEST and not member.name.endswith("/") and sizes.get(name) != member.size:
            what = "is not in the manifest" if name not in sizes else f"has {member.size:,} bytes, not {sizes[name]}"
            raise InputError(f"{archive} is not as it was packed: {name} {what}; nothing was unpacked; {_FETCH}")


@contextlib.contextmanager
def _forged(archive: Path, place: Path) -> Iterator[None]:
    """Turn what a file of an unexpected form raises into one sentence, without the place where it was unpacked."""
    try:
        yield
    except InputError as error:
        said = str(error).replace(f"{place}{os.sep}", "")
        # It names the archive already where it came from a part that knows of it.
        raise InputError(said if said.startswith(str(archive)) else f"{archive}: {said}", error.about) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = str(error)[:200]
        raise InputError(f"{archive} holds a file of another form ({type(error).__name__}: {said})") from error


def _read(root: Path, load: Callable[[Sequence[Loaded]], None]) -> Bundle:
    manifest = read_json(Manifest, root / _MANIFEST, "a manifest", _FETCH)
    if manifest.schema != "kdbench.bundle/1" or manifest.study != root.name:
        raise InputError("its manifest is of another study, or of another kind")
    _check_files(root, manifest.files)
    by_kind = {"faults": manifest.faults, "methods": manifest.methods, "models": manifest.models}
    brought = [
        Loaded(kind, root / name) for kind in KINDS for name in by_kind.get(kind) or () if name in manifest.files
    ]
    load([loaded for loaded in brought if loaded.kind == "methods"])
    lock = json.loads(content(root / "environment.json"))
    try:
        study = read_study(StudyFolder(root))
        tried = [one.trials for points in study.grid.values() for one in points]
        arms = (*study.arms.values(), *study.controls.values(), *tried)
        _check_keys(spec.teacher.key for by_seed in arms for spec, _ in by_seed.values() if spec.teacher)
        specs = counted(study)
    except ChangedError:
        raise
    except InputError as error:
        then = noted(lock, "git_commit")
        raise InputError(f"{error}. Was it run by another kdbench than this one? Its commit: {then}") from error
    data = data_of(specs.values())
    if data != (manifest.data.name, manifest.data.digest):
        raise InputError("its manifest names other data than its trials' specs")
    for _, said in table_differences(content(root / "results.csv").decode(), study):
        raise InputError(f"results.csv{said}")
    for key in specs:
        trial = study.folder.trial(key)
        trial.curve()  # an epoch that is no JSON is said before anything is trained
        result = trial.result()
        for name in trial.changed_files(result) if result is not None else ():
            raise ChangedError(f"{trial.path / name}: changed since the trial wrote it; fetch the archive again")
    return Bundle(study, lock, brought, data)


def _check_files(root: Path, files: dict[str, str]) -> None:
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    found.pop(_MANIFEST)
    wrong = {f"{name} is missing" for name in files.keys() - found.keys()}
    wrong |= {f"{name} is not in the manifest" for name in found.keys() - files.keys()}
    wrong |= {f"{name} was changed" for name in files.keys() & found.keys() if file_sha256(found[name]) != files[name]}
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"not as it was packed: {', '.join(sorted(wrong)[:3])}{more}; {_FETCH}")


def _check_keys(keys: Iterable[str]) -> None:
    """Refuse names of teachers that could be paths: they become folders and files here."""
    for key in keys:
        if not re.fullmatch("[0-9a-f]{16}|sha256:[0-9a-f]{64}", key):
            raise InputError(f"{key!r} is no trial's name")
