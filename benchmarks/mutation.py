"""Who would notice? Every fault in programs whose training loop is somebody else's, and what kdbench says of each.

    python -m benchmarks.mutation [--output reports/mutate] [--workers 2] [NAME ...]

The programs stand in tests/packages (thin scripts that drive a package's own training; `make test-packages` installs
what they need) and in tests/scripts (ours). A program's result is one file, and a program that has one is not run
again. The page is made from all files.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"packages": ROOT / "tests" / "packages", "scripts": ROOT / "tests" / "scripts"}
_NAMED = ("first", "named")


def programs() -> dict[str, tuple[str, Path]]:
    """Return by name the group and the script of each program."""
    found = {}
    for group, folder in FOLDERS.items():
        for path in sorted(folder.glob("*.py")):
            found[f"{group}/{path.stem}"] = (group, path)
    return found


def measure(name: str, path: Path, output: Path, workers: int) -> dict[str, Any]:
    """Run `kdbench mutate` on a program, and write and return what it printed."""
    words = [sys.executable, "-m", "kdbench", "mutate", "-q", "--format", "json", "--workers", str(workers)]
    done = subprocess.run(
        [*words, path.name],
        capture_output=True,
        text=True,
        cwd=path.parent,
        env={**os.environ, "COLUMNS": "140"},
        check=False,
    )
    said = done.stderr.strip()[-400:]
    found = json.loads(done.stdout) if done.stdout.startswith("{") else {"cannot_serve": said, "code": done.returncode}
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name.replace('/', '-')}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def bounds(k: int, n: int) -> str:
    """Return a share with its 95% Clopper-Pearson interval."""
    if not n:
        return "-"
    low, high = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    return f"{k}/{n} ({k / n:.2f}; {low:.2f} to {high:.2f})"


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the page in Markdown: recall by group, by program and by fault, and what was missed."""
    lines = ["# Known bugs in programs of others", "", "    python -m benchmarks.mutation", ""]
    served = {name: found for name, found in results.items() if "faults" in found}
    for group in FOLDERS:
        mine = {name: found for name, found in served.items() if name.startswith(group)}
        rows = [row for found in mine.values() for row in found["faults"] if counts(row)]
        first = sum(row["kdbench"] == "first" for row in rows)
        named = sum(row["kdbench"] in _NAMED for row in rows)
        whole = sum(all(row["kdbench"] in _NAMED for row in found["faults"] if counts(row)) for found in mine.values())
        lines += [
            f"**{group}**: {len(mine)} programs, {len(rows)} runs in which a fault acted and changed the weights. "
            f"Cause named first: {bounds(first, len(rows))}; named at all: {bounds(named, len(rows))}. "
            f"Programs in which every fault was named: {bounds(whole, len(mine))}.",
            "",
        ]
    lines += [
        "| program | faults that count | named first | named | other alarm | undecided | silent |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in sorted(served.items()):
        rows = [row for row in found["faults"] if counts(row)]
        said = [sum(row["kdbench"] == word for row in rows) for word in (*_NAMED, "other", "undecided", "silent")]
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(map(str, said)) + " |")
    lines += ["", "| fault | programs | named first | missed in |", "|---|---|---|---|"]
    by_fault: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for name, found in sorted(served.items()):
        for row in found["faults"]:
            if counts(row):
                by_fault[row["name"]].append((name, row))
    for fault, pairs in sorted(by_fault.items()):
        first = sum(row["kdbench"] == "first" for _, row in pairs)
        missed = [f"{name} ({row['kdbench']})" for name, row in pairs if row["kdbench"] not in _NAMED]
        lines.append(f"| {fault} | {len(pairs)} | {bounds(first, len(pairs))} | {', '.join(missed)} |")
    unfit = {name: found for name, found in results.items() if "faults" not in found}
    if unfit:
        lines += ["", "Programs that cannot serve as they are:", ""]
        lines += [
            f"- {name}: {found['cannot_serve'].splitlines()[0] if found['cannot_serve'] else found['code']}"
            for name, found in sorted(unfit.items())
        ]
    return "\n".join(lines) + "\n"


def counts(row: dict[str, Any]) -> bool:
    """Say whether a fault acted, changed the weights, and left something to be seen."""
    return row["status"] == "injected" and row["kdbench"] is not None


def main() -> None:
    """Run what has no result yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="programs, as group/script without .py; all by default")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "mutate")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    known = programs()
    for name in asked.names or known:
        if name not in known:
            sys.exit(f"no program {name}; there are: {', '.join(known)}")
        if not (asked.output / f"{name.replace('/', '-')}.json").exists():
            found = measure(name, known[name][1], asked.output, asked.workers)
            print(f"{name}: {found.get('summary') or found['cannot_serve'].splitlines()[:1]}", flush=True)
    results = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in known
        if (path := asked.output / f"{name.replace('/', '-')}.json").exists()
    }
    (asked.output / "README.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
