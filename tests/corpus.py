"""Runs the scripts of tests/scripts, and their broken twins, under observation, each in a process of its own."""

import json
import os
import shutil
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "scripts"
LEFT_ALONE = {"twins.toml", "__pycache__"}


@dataclass(frozen=True)
class Twin:
    """A script with one or two lines replaced; `expect` are the audits that should name it, the first of them first."""

    script: str
    fault: str
    expect: tuple[str, ...]
    old: str
    new: str
    file: str | None = None

    @property
    def name(self) -> str:
        return f"{self.script.removesuffix('.py').removesuffix('/train')}:{self.fault}"

    def write(self, folder: Path) -> Path:
        """Write the twin to a folder, and return the path of its script."""
        source = SCRIPTS / self.script
        if source.parent != SCRIPTS:
            shutil.copytree(source.parent, folder, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder)
        changed = folder / (self.file or source.name)
        text = changed.read_text()
        assert text.count(self.old) == 1, f"{self.name}: the text to replace stands {text.count(self.old)} times"
        changed.write_text(text.replace(self.old, self.new))
        return folder / source.name


def correct() -> list[Path]:
    """Return the correct scripts."""
    found = [p / "train.py" if p.is_dir() else p for p in sorted(SCRIPTS.iterdir()) if p.name not in LEFT_ALONE]
    return [p for p in found if p.suffix == ".py"]


def twins() -> list[Twin]:
    """Return the broken twins."""
    entries = tomllib.loads((SCRIPTS / "twins.toml").read_text())["twin"]
    return [Twin(**{**e, "expect": tuple(e["expect"])}) for e in entries]


def observe(path: str, options: dict[str, Any], arguments: list[str] | None = None) -> dict[str, Any]:
    """Run a script under observation in this process, its output thrown away, and return what was seen."""
    import torch

    from kdbench.audits import script
    from kdbench.audits.checks.all import run

    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os.chdir(Path(path).parent)
    seen = script.run(path, arguments or [], options=script.Options(**options), make_report=run)
    explained = [e for s in seen.trace.losses.sights for e in s.explanations]
    return {
        "failed": [(f.id, f.severity, f.consequence_of, f.message, f.where) for f in seen.report.failed("info")],
        "status": {f.id: f.status for f in seen.report.findings},
        "reason": {f.id: f.reason for f in seen.report.findings},
        "message": {f.id: f.message for f in seen.report.findings},
        "counts": seen.report.counts(),
        "roles": seen.trace.roles,
        "temperature": next((e.temperature for e in explained if e.temperature and e.form != "unknown"), None),
        "error": seen.error,
        "exit": seen.exit_code,
        "stopped": seen.stopped,
        "afterwards": seen.afterwards,
        "steps": seen.steps,
        "unobserved": seen.unobserved,
        "broken": seen.trace.broken,
        "sights": len(seen.trace.losses.sights),
    }


def _observe_to(out: str, *args: Any) -> None:
    Path(out).write_text(json.dumps(observe(*args)))


def observe_all(paths: list[Path], **options: Any) -> list[dict[str, Any]]:
    """Observe scripts two at a time, each in a fresh process that has torch imported already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "kdbench.audits.script", "kdbench.audits.checks.all"])
    options = {"steps": 50, "max_seconds": 120, **options}

    def one(path: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "seen.json"
            process = context.Process(target=_observe_to, args=(str(out), str(path), options))
            process.start()
            process.join(300)
            assert out.exists(), f"{path.name}: the process ended with code {process.exitcode} and no result"
            return json.loads(out.read_text())

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, paths))


def _table() -> None:
    """Observe every script and every twin, and print what was named, by audit and by fault."""
    import sys

    originals, broken = correct(), twins()
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for number, twin in enumerate(broken):
            place = Path(folder) / str(number)
            place.mkdir()
            copies.append(twin.write(place))
        print(f"{len(originals) + len(broken)} runs, two at a time", file=sys.stderr)
        seen = observe_all([*originals, *copies])
    clean, caught = seen[: len(originals)], seen[len(originals) :]
    first = [bool(s["failed"]) and s["failed"][0][0] in t.expect for t, s in zip(broken, caught, strict=True)]
    alarms = [(p.stem, f) for p, s in zip(originals, clean, strict=True) for f in s["failed"] if f[1] != "info"]
    print(f"correct scripts: {len(originals)}; alarms of severity error or warn: {len(alarms)}")
    print(f"broken twins: {len(broken)}; cause named first: {sum(first)}\n")
    print("| audit | twins whose cause it is | named first | decides on correct scripts (pass) |")
    print("|---|---|---|---|")
    for audit in sorted({t.expect[0] for t in broken}):
        mine = [ok for t, ok in zip(broken, first, strict=True) if t.expect[0] == audit]
        passes = sum(s["status"].get(audit) == "pass" for s in clean)
        print(f"| {audit} | {len(mine)} | {sum(mine)} | {passes} of {len(originals)} |")
    print("\nnot named first:")
    for twin, ok, s in zip(broken, first, caught, strict=True):
        if not ok:
            said = s["failed"][0][0] if s["failed"] else "nothing failed"
            why = "; ".join(f"{i}: {s['message'][i]}" for i in twin.expect)
            print(f"- `{twin.name}` (wanted {', '.join(twin.expect)}): {said}. {why}")


if __name__ == "__main__":
    _table()
