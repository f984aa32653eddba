"""Tortures kdbench, and writes what it withstood into reports/trust.md: `make torture`.

    python tests/torture [--part kills|machine|fuzz|report] [--scale 1.0] [--state FILE] [--output FILE]

A small real study under 230 kills, the faults of a machine, and 2,000 damaged files a reader. What was done is kept in
the state file, row by row, and is not done again: so it may be run in pieces, and without the file it begins anew.
`--scale` changes how much is done of each row.
"""

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
PARTS = ("kills", "machine", "fuzz")


class State:
    """What was done so far: by part and kind, how many were tried, and what failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def note(self, part: str, kind: str, tried: int, failures: list[str], seconds: float, **more: Any) -> None:
        """Write down a kind, at once."""
        row = {"tried": tried, "failures": failures, "seconds": round(seconds), **more}
        self.parts.setdefault(part, {})[kind] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.parts, indent=1))
        print(f"{part}: {kind}: {tried} tried, {len(failures)} failed, {seconds:.0f} s", flush=True)
        for failure in failures[:5]:
            print(f"    {failure[:600]}", flush=True)

    def has(self, part: str, kind: str) -> bool:
        """Say whether a kind was done."""
        return kind in self.parts.get(part, {})


def kills(state: State, scale: float, only: str) -> None:
    """Kill coordinators, trials, commits, checkpoints, the mirror and fork servers."""
    import kills as of
    import lives

    chance = random.Random(20)
    lives.forked_at_once()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        place = Path(folder)
        (place / "runs").mkdir()
        reference, seconds = of.undisturbed(place)
        for at, (kind, (wanted, blows)) in enumerate(of.kinds(chance, seconds).items()):
            if only not in kind:
                continue
            wanted, begun, count = math.ceil(scale * wanted), time.monotonic(), _so_far(state, kind)
            empty = 0
            while count.tried < wanted and empty < 5:  # a step that a run does not take kills nothing
                before = count.tried
                name = f"v{at}-{count.studies}-{empty}"
                of.until_done(place, name, blows, min(10, wanted - before), count, reference)
                empty = 0 if count.tried > before else empty + 1
                begun = _note(state, kind, count, begun)
        for kind, wanted, strike in (("mirror", 20, of.mirror_kills), ("fork server", 10, of.server_kills)):
            if only not in kind:
                continue
            with tempfile.TemporaryDirectory(prefix="torture-") as own:
                (Path(own) / "runs").mkdir()
                more = reference if kind == "fork server" else of.undisturbed(Path(own))[0]
                begun, count = time.monotonic(), _so_far(state, kind)
                while count.tried < math.ceil(scale * wanted):
                    strike(Path(own), count, min(count.tried + 8, math.ceil(scale * wanted)), chance, more)
                    begun = _note(state, kind, count, begun)


def _so_far(state: State, kind: str) -> Any:
    """Return what an earlier call counted of a kind of kills."""
    import kills as of

    row = state.parts.get("kills", {}).get(kind, {"tried": 0, "studies": 0, "failures": []})
    return of.Count(row["tried"], row["studies"], list(row["failures"]))


def _note(state: State, kind: str, count: Any, begun: float) -> float:
    """Write down a kind of kills as far as it is; return the time."""
    now, before = time.monotonic(), state.parts.get("kills", {}).get(kind, {}).get("seconds", 0)
    state.note("kills", kind, count.tried, count.failures, before + now - begun, studies=count.studies)
    return now


def machine(state: State, scale: float, only: str) -> None:
    """Try the faults of a machine."""
    import kills as of
    import lives
    from machine import faults

    lives.forked_at_once()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        place = Path(folder)
        (place / "runs").mkdir()
        reference, seconds = of.undisturbed(place)
        rows: dict[str, list[list[str]]] = {}
        done = {*state.parts.get("machine", {})}
        for one in faults(place, reference, random.Random(21), seconds):
            if one.what in done or only not in one.what or len(rows.get(one.what, ())) >= math.ceil(scale * 3):
                continue
            begun = time.monotonic()
            rows.setdefault(one.what, []).append(one.attempt())
            failures = [said for some in rows[one.what] for said in some]
            held = sum(not some for some in rows[one.what])
            state.note("machine", one.what, len(rows[one.what]), failures, time.monotonic() - begun, held=held)


def fuzz(state: State, scale: float, only: str) -> None:
    """Give each reader damaged files."""
    import fuzz as of

    for name, reader in of.READERS.items():
        if state.has("fuzz", name) or only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            begun, place = time.monotonic(), Path(folder)
            of.setting(place)
            count = math.ceil(scale * 2000)
            tally = of.try_reader(reader, place, range(count))
            failures = [f"damage {number}: {told[-300:]}" for number, told in tally.unforeseen]
            state.note("fuzz", name, count, failures, time.monotonic() - begun, taken=dict(tally.taken))


def main() -> int:
    """Run what is asked for, write the report, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*PARTS, "report"), action="append")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="", metavar="TEXT", help="of a part, the rows whose name has this in it")
    parser.add_argument("--state", type=Path, default=ROOT / ".venv" / "torture.json")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "trust.md")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    state = State(asked.state)
    for part in asked.part or PARTS:
        if part in PARTS:
            globals()[part](state, asked.scale, asked.only)
    from page import page

    asked.output.write_text(page(state.parts, PARTS), encoding="utf-8")
    return int(any(row["failures"] for part in state.parts.values() for row in part.values()))


if __name__ == "__main__":
    sys.exit(main())
