"""A study in one archive: packed without this machine's places, unpacked only if it is whole and harmless.

STUDY/REPRODUCE.md       what this is, and the command
STUDY/MANIFEST.json      SHA-256 of every other file; data, faults
STUDY/environment.json   the lock: exact versions here, and what the trials ran on
STUDY/requirements.txt   the same versions, for pip
STUDY/bom.json           the same as a software bill of materials, with licences (CycloneDX)
STUDY/study.json, study.toml, results.csv, trials/, again/, weights/   as in a study's folder (harness.records.record)
STUDY/faults/, methods/, models/   files of the user's, as they are

Equal studies give equal bytes: members are sorted and bear no time, owner or file mode.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import IO, Any

import torch

from kdbench.harness import faults, loading
from kdbench.harness.analysis.study_table import Trials, commands, read_study, table
from kdbench.harness.archive.bom import bill_of_materials
from kdbench.harness.loading import KINDS, Loaded, files_of, meaning_of
from kdbench.harness.records import study_file, temporaries
from kdbench.harness.records.environment import ROOT, environment, installed
from kdbench.harness.records.record import FINAL, WEIGHTS, StudyFolder, repeat_of, sealed_text
from kdbench.harness.records.spec import Spec
from kdbench.kd.data import cache_folder
from kdbench.kd.errors import InputError
from kdbench.kd.teacher import file_sha256

SUFFIXES = (".zip", ".tar.gz")
RECORDS = ("spec.json", "result.json", "curve.jsonl", "norms.csv", "test_curve.jsonl", "log.txt")
Member = bytes | Path
"Content, or a large file that is read when it is written."


@dataclass(frozen=True)
class Written:
    """What was packed."""

    path: Path
    sha256: str
    files: int
    trials: int
    remarks: list[str]
    "What a reader of the archive should know, a sentence each."


@dataclass(frozen=True)
class Bundle:
    """An archive that was unpacked and found whole."""

    study: Trials
    environment: dict[str, Any]
    "The lock: `here` is the machine that packed, `trials` what the trials ran on."
    files: list[Loaded]
    "Of the author's: code that is run only where somebody trusts it."
    data: tuple[str, str]
    "Name of the data set, and its digest."

    @property
    def name(self) -> str:
        """The study's."""
        return self.study.folder.path.name


def counted(study: Trials) -> dict[str, Spec]:
    """Return the trials that the study's tables and controls stand on, by the key that names their folder."""
    found: dict[str, Spec] = {}
    tried = [one.trials for points in study.grid.values() for one in points]
    for by_seed in (*study.arms.values(), *study.controls.values(), *tried):
        for spec, _ in by_seed.values():
            found[spec.key] = spec
            while spec.teacher is not None and not spec.teacher.key.startswith("sha256:"):  # an assistant has its own
                key = spec.teacher.key
                spec = found[key] = study.folder.trial(key).spec()
    if study.again is not None:
        found[study.again[0].key] = study.again[0].spec()
        if (study.again[1].path / "spec.json").is_file():
            found[repeat_of(study.again[1].key)] = study.again[1].spec()
    return found


def noted(lock: Mapping[str, Any], name: str) -> str:
    """Return what the trials ran on, of one name of :func:`harness.records.environment.environment`, in words."""
    return ", ".join(str(value) for value in lock["trials"].get(name, ()) if value is not None) or "not known"


# -- packing


def pack(study: StudyFolder, output: Path, weights: bool = False) -> Written:
    """Write a study as one archive, .zip or .tar.gz; with `weights`, those of every trial go with it.

    A study that is being run, or whose faults, data or teacher could not be found again, is an InputError.
    """
    if not output.name.endswith(SUFFIXES):
        raise InputError(f"--output {output}: an archive ends in {' or '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    with study.lock() if os.access(study.path, os.W_OK) else contextlib.nullcontext():
        trials = read_study(study)
        specs = counted(trials)
        final = {key for key in specs if _final(study, key)}
        if not final:
            raise InputError(f"{study.path.name} has no finished trial yet; kdbench status shows how far it is")
        name, digest = data_of(specs.values())
        remarks = [f"{len(specs) - len(final)} trials have no final result"] if len(final) < len(specs) else []
        files = [*_fault_files(specs.values(), remarks), *_method_files(specs.values()), *_model_files(specs.values())]
        brought = _places(files)
        lock = _lock(study, specs)
        if any(lock["trials"].get("git_dirty", ())):
            remarks.append("trials ran on code that no commit holds; its digest tells whether other code is the same")
        members: dict[str, Member] = dict(_records(study, specs, weights))
        members["study.json"] = _study_json(study)
        members["results.csv"] = table(trials).encode()
        members.update({place: loaded.path for place, loaded in brought.items()})
        members["environment.json"] = _json(lock)
        members["bom.json"] = _json(bill_of_materials(lock["here"]["packages"], study.path.name))
        members["requirements.txt"] = _requirements(lock["here"]["packages"]).encode()
        page = _page(study, specs, lock, data=name, files=[*brought], weights=weights, remarks=remarks)
        members["REPRODUCE.md"] = page.encode()
        manifest = {
            "schema": "kdbench.bundle/1",
            "study": study.path.name,
            "data": {"name": name, "digest": digest},
            "faults": [],
            **{kind: [place for place in brought if brought[place].kind == kind] for kind, _ in brought.values()},
            "files": {place: _sha256(member) for place, member in sorted(members.items())},
            "sizes": {place: _size(member) for place, member in sorted(members.items())},
        }
        members["MANIFEST.json"] = _json(manifest)
        _write(output, study.path.name, members)
    return Written(output, file_sha256(output), len(members), len(specs), remarks)


def _final(study: StudyFolder, key: str) -> bool:
    result = study.trial(key).result()
    return result is not None and result.status in FINAL


def data_of(specs: Iterable[Spec]) -> tuple[str, str]:
    found = sorted({(spec.dataset, spec.data_digest) for spec in specs})
    if len(found) > 1:
        listed = ", ".join(f"{name} {digest[:16]}" for name, digest in found)
        raise InputError(f"the study's trials stand on several data sets ({listed}); run it again on one of them")
    return found[0]


def _fault_files(specs: Iterable[Spec], remarks: list[str]) -> list[Loaded]:
    """Return the user's files if a trial needs one of them; a fault that is not there, or not as it was, is refused."""
    needed = {str(spec.fault): spec.fault_digest for spec in specs if spec.fault}
    own = False
    for name, digest in sorted(needed.items()):
        parts = name.split("+")
        if not all(part in faults.FAULTS for part in parts):
            raise InputError(f"the study has the fault {name}, of a file of yours; name that file: --faults FILE")
        theirs = {Path(faults.FAULTS[part].function.__code__.co_filename).resolve() for part in parts}
        mine = theirs & set(files_of("faults"))
        own |= bool(mine)
        if faults.get(name).digest != digest:
            if mine:
                raise InputError(f"the fault {name} has changed since the study was run; name the file as it was then")
            remarks.append(f"the fault {name} has changed since the study was run: only the code of then reproduces it")
    return [loaded for loaded in loading.LOADED if loaded.kind == "faults"] if own else []


def _method_files(specs: Iterable[Spec]) -> list[Loaded]:
    return _own("methods", "method", {spec.method: spec.method_digest for spec in specs})


def _model_files(specs: Iterable[Spec]) -> list[Loaded]:
    needed: dict[str, str | None] = {}
    for spec in specs:
        needed[spec.arch] = spec.arch_digest
        if spec.teacher is not None:
            needed[spec.teacher.arch] = spec.teacher_digest
    return _own("models", "network", needed)


def _own(kind: str, word: str, needed: Mapping[str, str | None]) -> list[Loaded]:
    """Return the user's files that these names need by digest; one that is not loaded, or changed, is refused."""
    here = {meaning_of(loaded.path): loaded for loaded in loading.LOADED if loaded.kind == kind}
    parts = {name: (digest or "").split("+") for name, digest in sorted(needed.items())}
    for name, digests in parts.items():
        if any(digest and digest not in here for digest in digests):
            option = KINDS[kind].option
            raise InputError(f"the study has the {word} {name}, of a file of yours; name it as it was: {option} FILE")
    return [here[digest] for digest in sorted({digest for some in parts.values() for digest in some if digest})]


def _places(files: Sequence[Loaded]) -> dict[str, Loaded]:
    """Return the user's files by their place in the archive."""
    found = {f"{loaded.kind}/{loaded.path.name}": loaded for loaded in files}
    if len(found) < len(files):
        raise InputError("two files of yours have one name; rename one of them")
    return found


def _records(study: StudyFolder, specs: Mapping[str, Spec], weights: bool) -> Iterator[tuple[str, Member]]:
    for key, spec in specs.items():
        folder = study.trial(key)
        for name in RECORDS + (WEIGHTS if weights else ()):
            path = folder.path / name
            if path.is_file():
                yield path.relative_to(study.path).as_posix(), path if name in WEIGHTS else _without_places(path)
        if spec.teacher is not None and spec.teacher.key.startswith("sha256:"):
            digest = spec.teacher.key.partition(":")[2]
            paths = [study.weights(digest, suffix) for suffix in (".safetensors", ".pt")]
            place = next((path for path in paths if path.is_file()), None)
            if place is None:
                raise InputError(f"{paths[0]} is missing: the teacher that was brought along; run the study again")
            yield place.relative_to(study.path).as_posix(), place
    if (study.path / "study.toml").is_file():
        yield "study.toml", _without_places(study.path / "study.toml")


def _study_json(study: StudyFolder) -> bytes:
    found = study_file.read(study.path)
    cut = replace(found, commands=[_command(text) for text in found.commands])
    return study_file.text(asdict(cut)).encode()


def _lock(study: StudyFolder, specs: Iterable[str]) -> dict[str, Any]:
    """Return the exact versions here, and each thing that the trials' records say they ran on."""
    here = {name: value for name, value in environment(torch.device("cpu")).items() if name != "threads"}
    ran: dict[str, set[Any]] = {}
    for key in specs:
        result = study.trial(key).result()
        for name, value in result.environment.items() if result is not None else ():
            ran.setdefault(name, set()).add(value)
    trials = {name: sorted(values, key=str) for name, values in sorted(ran.items())}
    return {"here": {**here, "packages": installed()}, "trials": trials}


def _requirements(packages: Mapping[str, str]) -> str:
    """Return a file for pip; kdbench itself is in no index, and torch's own builds are in an index of theirs."""
    local = packages.get("torch", "").partition("+")[2]
    index = [f"--extra-index-url https://download.pytorch.org/whl/{local}"] if local else []
    return (
        "\n".join([*index, *(f"{name}=={version}" for name, version in packages.items() if name != "kdbench")]) + "\n"
    )


def _page(study: StudyFolder, specs: Mapping[str, Spec], lock: Mapping[str, Any], **known: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    pages = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    pages.filters["noted"] = noted
    results = [study.trial(key).result() for key in specs]
    seconds = sum(float(result.times.get("seconds", 0)) for result in results if result is not None)
    options = (" --data DIR" if known["data"].startswith("folder-") else "") + (
        " --trust-faults" if known["files"] else ""
    )
    text = (resources.files("kdbench.harness.publish.pages") / "reproduce.md.j2").read_text(encoding="utf-8")
    return pages.from_string(text).render(
        study=study.path.name,
        trials=len(specs),
        minutes=max(1, round(seconds / 60)),
        options=options,
        here=lock["here"],
        lock=lock,
        commands=[_command(command) for command in commands(study)],
        **known,
    )


# -- what a machine calls its places


def _without_places(path: Path) -> bytes:
    """Return a record's content without absolute paths."""
    if path.name == "result.json":
        return sealed_text(plain(json.loads(path.read_text()))).encode()
    if path.name in ("log.txt", "study.toml"):
        return _cut(path.read_text(encoding="utf-8", errors="replace")).encode()
    return path.read_bytes()  # numbers, and names of kdbench's


def plain(value: Any, name: str | None = None) -> Any:
    """Return a JSON value with every absolute path in it, and every `file`, at any depth, cut to its last name."""
    if isinstance(value, dict):
        return {key: plain(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        whole = name == "file" and Path(value).name != value  # may hold blanks, or start where a command was typed
        return f".../{Path(value).name}" if whole else _cut(value)
    return value


def _command(text: str) -> str:
    """Return a command with absolute paths cut, each of its words by itself, since a path may hold blanks."""
    words = []
    for word in shlex.split(text):
        option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        path = Path(value)
        words.append(
            option + sign + (f".../{path.name}" if path.is_absolute() and len(path.parts) > 2 else _cut(value))
        )
    return shlex.join(words)


def _cut(text: str) -> str:
    if "/" not in text and "\\" not in text:
        return text
    segment = r"""[\\/]+[^\s\\/:;,"'`()<>\[\]{}|*?]+"""
    home = Path.home()
    places = {home, Path.cwd(), ROOT, cache_folder().resolve(), Path(sys.prefix), Path(tempfile.gettempdir())}
    known = sorted((re.escape(str(place)) for place in places if len(place.parts) > 1), key=len, reverse=True)
    # A place that is known may hold blanks, and stand directly behind a letter, as in -I/home/me/include.
    pattern = (
        rf"(https?://\S*)|(?:(?:{'|'.join(known)})(?:{segment})*|(?<![\w.])(?:[A-Za-z]:)?(?:{segment}){{2,}})[\\/]?"
    )

    def shorter(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        found = match[0].rstrip("\\/")
        return "..." if found == str(home) else ".../" + re.split(r"[\\/]", found)[-1]

    return re.sub(pattern, shorter, text)


# -- archives


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _sha256(member: Member) -> str:
    return file_sha256(member) if isinstance(member, Path) else hashlib.sha256(member).hexdigest()


def _write(output: Path, name: str, members: Mapping[str, Member]) -> None:
    temporaries.sweep(output.parent)
    temporary = temporaries.temporary(output)
    write = _write_zip if output.suffix == ".zip" else _write_tar
    packed = {f"{name}/{place}": member for place, member in sorted(members.items())}
    try:
        with temporary.open("wb") as file:
            write(file, packed)
        temporary.replace(output)
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror}); name another file") from error
    finally:
        temporary.unlink(missing_ok=True)


def _open(member: Member) -> IO[bytes]:
    return member.open("rb") if isinstance(member, Path) else io.BytesIO(member)


def _size(member: Member) -> int:
    return member.stat().st_size if isinstance(member, Path) else len(member)


def _write_zip(file: IO[bytes], members: Mapping[str, Member]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for place, member in members.items():
            info = zipfile.ZipInfo(place, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr, info.file_size = 3, 0o644 << 16, _size(member)
            info.compress_type = zipfile.ZIP_STORED if isinstance(member, Path) else zipfile.ZIP_DEFLATED
            with _open(member) as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target)


def _write_tar(file: IO[bytes], members: Mapping[str, Member]) -> None:
    with (
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for place, member in members.items():
            info = tarfile.TarInfo(place)
            info.size, info.mode = _size(member), 0o644
            with _open(member) as source:
                archive.addfile(info, source)
