"""Audits the pairs of tests/reported, each script in a process of its own, and says whose cause is named first.

python tests/reported.py [--set sixth] [--json FILE] [NUMBER ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from kdbench.harness.mutation.naming import answer

FOLDER = Path(__file__).with_name("reported")
SECONDS = 200


@dataclass(frozen=True)
class Told:
    """What an audit says of one script."""

    code: int
    failed: tuple[str, ...]
    "Ids, the causes first."
    errors: tuple[str, ...]
    "Those of severity error."


def audit(path: Path) -> Told:
    """Audit one script."""
    words = [sys.executable, "-m", "kdbench", "audit", "--format", "json", "--max-seconds", str(SECONDS), path.name]
    done = subprocess.run(
        words, cwd=path.parent, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    try:
        findings = json.loads(done.stdout)["findings"]
    except (ValueError, KeyError):
        return Told(done.returncode, (), ())
    failed = [f for f in findings if f["status"] == "fail" and f["severity"] != "info"]
    return Told(
        done.returncode, tuple(f["id"] for f in failed), tuple(f["id"] for f in failed if f["severity"] == "error")
    )


def main() -> int:
    """Audit, print a line a pair and the sums; return 1 if a correct script is accused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*")
    parser.add_argument(
        "--set",
        choices=("sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
        default="",
        help="a later set, in tests/reported/SET",
    )
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    folder = FOLDER / asked.set
    expected = tomllib.loads((folder / "expected.toml").read_text(encoding="utf-8"))
    names = [name for name in expected if not asked.numbers or name[:2] in asked.numbers]
    alone = [p for p in sorted(folder.glob("c[0-9][0-9]_*.py")) if not asked.numbers or p.name[:3] in asked.numbers]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        both = {name: [pool.submit(audit, folder / f"{name}_{kind}.py") for kind in ("bug", "clean")] for name in names}
        correct = {path.stem: pool.submit(audit, path) for path in alone}
        results = {}
        for name, (one, other) in both.items():
            bug, clean = one.result(), other.result()
            how = answer(expected[name]["audits"], bug.failed, bug.code == 4)
            results[name] = {"how": how, "bug": asdict(bug), "clean": asdict(clean), "shown": expected[name]["shown"]}
            print(f"{name:28s} {expected[name]['shown']:7s} {how:9s} {' '.join(bug.failed):28s} clean: "
                  f"{clean.code} {' '.join(clean.failed)}", flush=True)  # fmt: skip
        right = {name: r["clean"] for name, r in results.items()}
        for name, one in correct.items():
            told = right[name] = asdict(one.result())
            print(f"{name:46s} clean: {told['code']} {' '.join(told['failed'])}", flush=True)
    for shown in ("yes", "partly", "no"):
        of_kind = [r["how"] for r in results.values() if r["shown"] == shown]
        print(f"shown by one run: {shown}: {len(of_kind)} pairs, {dict(Counter(of_kind))}")
    accused = {name: told["errors"] for name, told in right.items() if told["errors"]}
    undecided = sum(told["code"] == 4 for told in right.values())
    print(f"correct scripts: {len(right)}, accused by an error: {accused or 'none'}, undecided: {undecided}")
    if asked.json:
        results |= {name: {"clean": right[name]} for name in correct}
        asked.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if accused else 0


if __name__ == "__main__":
    sys.exit(main())
