"""Who would notice? Every fault in programs whose training loop is somebody else's, and what kdbench says of each.

    python -m benchmarks.mutation [--output reports/mutate] [--workers 2] [--missed] [NAME ...]

The programs are the correct ones of tests/packages (thin scripts that drive a package's own training; `make
.venv-packages/.ready` installs what they need) and of tests/scripts (ours). A program's result is one file, and a
program that has one is not run again; with `--missed`, the faults alone that were not named first in it are. The page
is made from all files. The folder `first` beside them holds those of the first run, before anything was changed for it;
they stand in columns of their own.

A package is either one whose programs were looked at while mechanisms and audits were mended, or one that was kept for
the measure. The split was made before any program was run: packages in the order of the SHA-256 of their names, the
first six of twelve looked at.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

from scipy import stats

from kdbench.harness.records.environment import git_commit

ROOT = Path(__file__).resolve().parent.parent
PACKAGES, SCRIPTS = ROOT / "tests" / "packages", ROOT / "tests" / "scripts"
LOOKED_AT = ("lightning", "nvidia-modelopt", "trl", "timm", "KD_Lib", "peft")
KEPT = ("transformers", "textbrewer", "torchdistill", "sentence-transformers", "vit-pytorch", "lightly")
GROUPS = {
    "kept": "packages kept for the measure",
    "looked-at": "packages looked at while mending",
    "scripts": "our own scripts (tests/scripts), looked at as well",
}
_NAMED = ("first", "named")


@dataclass(frozen=True)
class Program:
    """A correct training, and how it is called."""

    name: str
    group: str
    folder: Path
    script: str
    options: tuple[str, ...] = ()
    slip: tuple[str, str] | None = None
    "A passage to be replaced, where the program is right only with another."


def programs() -> dict[str, Program]:
    """Return the programs by name: one of each correct script, and no script that distils nothing."""
    found = []
    for case in tomllib.loads((PACKAGES / "cases.toml").read_text(encoding="utf-8"))["case"]:
        if case["verdict"] == "clean":
            package = case["needs"][0]
            if package not in LOOKED_AT + KEPT:
                sys.exit(f"{package} stands in neither half of the split; add it to the kept ones or the others")
            name = f"packages/{case['script'].removesuffix('.py')}"
            slip = (case["old"], case["new"]) if "slip" in case else None
            group = "looked-at" if package in LOOKED_AT else "kept"
            options = tuple(case.get("options", ()))
            found.append(Program(name, group, PACKAGES, case["script"], options, slip))
    for path in sorted(SCRIPTS.iterdir()):
        if (path.suffix == ".py" and path.stem != "no_distillation") or (path / "train.py").exists():
            script = path.name if path.is_file() else f"{path.name}/train.py"
            found.append(Program(f"scripts/{path.stem}", "scripts", SCRIPTS, script))
    return {program.name: program for program in found}


def measure(program: Program, workers: int, faults: Sequence[str] = ()) -> dict[str, Any]:
    """Run `kdbench mutate` on a program in a copy of its folder, with these faults or all; return what it printed."""
    words = [sys.executable, "-m", "kdbench", "mutate", "-q", "--format", "json", "--workers", str(workers)]
    words += [word for fault in faults for word in ("--fault", fault)]
    quiet = {"COLUMNS": "140", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as desk:
        there = copytree(program.folder, Path(desk) / "work", ignore=ignore_patterns("__pycache__", "*.toml"))
        if program.slip is not None:
            text = (there / program.script).read_text(encoding="utf-8")
            assert text.count(program.slip[0]) == 1, f"{program.name}: the passage to replace is not there once"
            (there / program.script).write_text(text.replace(*program.slip), encoding="utf-8")
        done = subprocess.run(
            [*words, *program.options, program.script],
            capture_output=True,
            text=True,
            cwd=there,
            env={**os.environ, **quiet},
            check=False,
        )
    said = done.stderr.strip()[-1000:]
    found = json.loads(done.stdout) if done.stdout.startswith("{") else {"cannot_serve": said, "code": done.returncode}
    found["commit"] = git_commit()
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """Return the faults of a result that count and were not named first, or that brought no result."""
    return [
        r["name"] for r in found.get("faults", []) if (counts(r) and r["kdbench"] != "first") or r["status"] == "broken"
    ]


def put_together(before: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Return a result in which the rows of some faults are those of another run of the program."""
    rows = {row["name"]: row for row in again["faults"]}
    kept = [rows.get(row["name"], row) for row in before["faults"]]
    return {**before, "faults": kept, "again": {"faults": sorted(rows), "commit": again["commit"]}}


def bounds(k: int, n: int) -> str:
    """Return a share with its 95% Clopper-Pearson interval."""
    if not n:
        return "-"
    low, high = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    return f"{k}/{n} ({k / n:.2f}; {low:.2f} to {high:.2f})"


def counts(row: dict[str, Any]) -> bool:
    """Say whether a fault acted, changed the weights, and left something to be seen."""
    return row["status"] == "injected" and row["kdbench"] is not None


@dataclass(frozen=True)
class Share:
    """How many of some runs have their cause named first, named, and by how many programs."""

    first: int
    named: int
    runs: int
    whole: int
    "Programs in which the cause of every fault was named first."
    programs: int

    @classmethod
    def of(cls, results: Iterable[dict[str, Any]]) -> "Share":
        """Count over the results of programs."""
        each = [[row["kdbench"] for row in found["faults"] if counts(row)] for found in results]
        flat = [word for words in each for word in words]
        whole = sum(all(word == "first" for word in words) for words in each if words)
        return cls(flat.count("first"), sum(word in _NAMED for word in flat), len(flat), whole, sum(map(bool, each)))

    def __str__(self) -> str:
        return f"{self.first}/{self.runs} ({self.first / self.runs:.2f})" if self.runs else "-"


Results = dict[str, dict[str, Any]]


def page(last: Results, first: Results, known: dict[str, Program]) -> str:
    """Return the page in Markdown: recall by group, by program and by fault, and what was missed."""
    return "\n".join(
        [
            "# Known bugs in programs of others",
            "",
            "    python -m benchmarks.mutation",
            "",
            *_intro(last, first),
            *_by_group(last, first, known),
            *_by_program(last, first, known),
            *_by_fault(last),
            *_unfit(last),
            *_not_run(last, known),
            "",
        ]
    )


def _intro(last: Results, first: Results) -> Iterator[str]:
    then = ", ".join(sorted({_commit(found) for found in first.values()})) or "-"
    yield from (
        "`kdbench mutate` puts each fault that has a place in a program into it, in a run of its own. A run counts if",
        "the fault acted, changed the weights, and did not end the program before anything could be seen. Intervals",
        "(Clopper-Pearson, 95%) are by program: the runs of one program are not independent. Which packages were",
        "looked at while mending, and which were kept for the measure, a rule decided before the first run",
        "(`benchmarks/mutation.py`). Nothing was declared to any program but that a teacher's answers are stored.",
        f"First run: commit {then}, before anything was mended for the program. The last column names the commit of",
        "the last run; where it is the first run's, the program was not run again, and `n again at` means that the n",
        "faults alone which had not been named first were (`--missed`). Where the last run counts fewer, a fault no",
        "longer claims a place in which it makes no sense; the reason stands in the program's file.",
        "",
    )


def _by_group(last: Results, first: Results, known: dict[str, Program]) -> Iterator[str]:
    head = ("programs", "of them serve", "runs that count", "cause named first", "named")
    yield from _head(*head, "programs with every cause first", "cause first, first run")
    for group, words in GROUPS.items():
        names = [name for name in last if known[name].group == group]
        parts = {words: names}
        unread = [name for name in names if last[name].get("unmutated") == "undecided"]
        if unread:
            parts["of these: the audits read the term as it is"] = [n for n in names if n not in unread]
        for title, some in parts.items():
            now = Share.of(last[n] for n in some if "faults" in last[n])
            then = Share.of(first[n] for n in some if "faults" in first.get(n, {}))
            served = f"{sum('faults' in last[n] for n in some)} of {len(some)}"
            yield _row(title, served, now.runs, now, now.named, bounds(now.whole, now.programs), then)
    yield ""


def _by_program(last: Results, first: Results, known: dict[str, Program]) -> Iterator[str]:
    said = ("first", "named", "other alarm", "undecided", "silent")
    yield from _head("program", "group", "unmutated", "runs that count", *said, "dormant", "first, first run", "commit")
    for name, found in sorted(last.items(), key=lambda item: (list(GROUPS).index(known[item[0]].group), item[0])):
        if "faults" in found:
            rows = [row["kdbench"] for row in found["faults"] if counts(row)]
            cells = [rows.count(word) for word in (*_NAMED, "other", "undecided", "silent")]
            cells.append(sum(row["status"] == "dormant" for row in found["faults"]))
            then = Share.of([first[name]]) if "faults" in first.get(name, {}) else "-"
            yield _row(name, known[name].group, found.get("unmutated"), len(rows), *cells, then, _commits(found))
    yield ""


def _commit(found: dict[str, Any]) -> str:
    return found["commit"][0][:7] if found.get("commit") else "-"


def _commits(found: dict[str, Any]) -> str:
    """Name the commit of a result, and that of the faults which were run again since."""
    again = found.get("again")
    return f"{_commit(found)}; {len(again['faults'])} again at {_commit(again)}" if again else _commit(found)


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _head(*cells: str) -> tuple[str, str]:
    return _row(*cells), "|---" * len(cells) + "|"


def _by_fault(last: Results) -> Iterator[str]:
    yield from _head("fault", "programs", "cause named first", "not named in")
    by_fault: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for name, found in sorted(last.items()):
        for row in found.get("faults", []):
            if counts(row):
                by_fault[row["name"]].append((name, row))
    for fault, pairs in sorted(by_fault.items()):
        first = sum(row["kdbench"] == "first" for _, row in pairs)
        missed = [_missed(name, row) for name, row in pairs if row["kdbench"] not in _NAMED]
        yield _row(fault, len(pairs), bounds(first, len(pairs)), ", ".join(missed))
    broken = [
        f"- {name}: {row['name']}: {(row['why'] or '').splitlines()[-1][:150]}"
        for name, found in sorted(last.items())
        for row in found.get("faults", [])
        if row["status"] == "broken"
    ]
    if broken:
        yield from ("", "Runs that brought no result:", "", *broken)


def _missed(name: str, row: dict[str, Any]) -> str:
    said = f": {' '.join(row['failed'])}" if row["failed"] else ""
    return f"{name.removeprefix('packages/')} ({row['kdbench']}{said})"


def _unfit(last: Results) -> Iterator[str]:
    unfit = {name: found for name, found in last.items() if "faults" not in found}
    if unfit:
        yield from ("", "Programs that cannot serve as they are:", "")
    for name, found in sorted(unfit.items()):
        said = " ".join(found["cannot_serve"].split())
        yield f"- {name}: {said[:300] or found['code']}"


def _not_run(last: Results, known: dict[str, Program]) -> Iterator[str]:
    missing = [name for name in known if name not in last]
    if missing:
        yield from ("", f"Not run yet: {', '.join(missing)}.")


def read(folder: Path, known: Iterable[str]) -> Results:
    """Return the results that a folder holds, by program."""
    paths = {name: folder / f"{name.replace('/', '-')}.json" for name in known}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def write(folder: Path, name: str, found: dict[str, Any]) -> None:
    """Write the result of a program."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name.replace('/', '-')}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what has no result yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="programs, as group/script without .py; all by default")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "mutate")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--missed", action="store_true", help="run the faults again that a program's result does not name first"
    )
    parser.add_argument("--list", action="store_true", help="name the programs and their groups, and run nothing")
    asked = parser.parse_args()
    known = programs()
    if asked.list:
        print("\n".join(f"{program.group:10s}{name}" for name, program in known.items()))
        return
    for name in asked.names or known:
        if name not in known:
            sys.exit(f"no program {name}; there are: {', '.join(known)}")
        before = read(asked.output, [name]).get(name)
        left = missed(before) if before is not None and asked.missed else []
        if before is None or left:
            found = measure(known[name], asked.workers, left)
            print(f"{name}: {found.get('summary') or found['cannot_serve'].splitlines()[:1]}", flush=True)
            if before is not None and "faults" in found:
                found = put_together(before, found)
            write(asked.output, name, found)
    results = read(asked.output, known)
    if results:
        first = read(asked.output / "first", known)
        (asked.output / "README.md").write_text(page(results, first, known), encoding="utf-8")


if __name__ == "__main__":
    main()
