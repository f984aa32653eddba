"""Fails when a change has halved a ratio: a run of the benchmarks against the one recorded in reports/benchmarks.json.

python benchmarks/guard.py RUN.json [--recorded reports/benchmarks.json]

Ratios only, never times, and of the same device: another one, or the same one busy, is no reason to fail.
"""

import argparse
import sys
from pathlib import Path

from report import FOLDER, Part, part_of, read_recorded, read_run


def judge(new: Part, recorded: Part | None) -> tuple[list[str], list[str]]:
    """Return the ratios that are less than half of the recorded ones, and remarks on what was not compared."""
    if recorded is None:
        return [], [f"no run on {new['device_name']} is recorded: nothing to compare with"]
    halved: list[str] = []
    remarks: list[str] = []
    for name, before in recorded["rows"].items():
        if before["kind"] != "ratio":
            continue
        now = new["rows"].get(name)
        if now is None:
            remarks.append(f"{name}: not measured this time")
        elif before["noisy"] or now["noisy"]:
            which = "recorded" if before["noisy"] else "new"
            remarks.append(f"{name}: the {which} ratio is too noisy to claim, not compared")
        elif now["value"] < before["value"] / 2:
            halved.append(f"{name}: {now['value']:.2f}, was {before['value']:.2f}")
    return halved, remarks


def main() -> int:
    parser = argparse.ArgumentParser(description="fail when a ratio has halved since the recorded run")
    parser.add_argument("run", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--recorded", type=Path, default=FOLDER / "benchmarks.json", help="the recorded run")
    args = parser.parse_args()
    new = part_of(read_run(args.run))
    halved, remarks = judge(new, read_recorded(args.recorded).get(new["device_name"]))
    for line in remarks:
        print(f"guard: {line}")
    for line in halved:
        print(f"guard: less than half of the recorded ratio: {line}")
    if halved:
        print(f"guard: the record stays as it is; if this is meant, delete {args.recorded} and run again")
    return 1 if halved else 0


if __name__ == "__main__":
    sys.exit(main())
