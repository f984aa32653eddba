"""Write what the queue packed as a page: machine, tests, throughput, and the studies with their gradient norms.

python -m benchmarks.gpu.page results.tar.xz --output reports/gpu
"""

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.call import opened
from benchmarks.gpu.items import EPOCHS, ITEMS, TEACHER_EPOCHS
from kdbench.harness.cli import run_cli
from kdbench.kd.errors import InputError

GROUPS = ("student", "projectors", "all")


def read(archive: Path) -> dict[str, str]:
    """Return the texts in the archive by name."""
    with opened(archive) as packed:
        files = [member for member in packed.getmembers() if member.isfile()]
        texts = {m.name: io.TextIOWrapper(packed.extractfile(m), "utf-8").read() for m in files}  # type: ignore[arg-type]
    if "results/machine/calls.json" not in texts:
        raise InputError(f"{archive} holds no results of the GPU queue")
    return texts


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def machines(texts: dict[str, str]) -> list[str]:
    """Return a line for each machine and version that a call ran on."""
    calls = json.loads(texts["results/machine/calls.json"])
    seen = {}
    for c in calls:
        memory = f", {c['memory_gib']} GiB" if "memory_gib" in c else ""
        cuda = f", CUDA {c['cuda']}" if c["cuda"] else ""
        changed = " (changed since)" if c["git_dirty"] else ""
        toy = ", TOY SIZE: no figure here means anything" if c["toy"] else ""
        line = f"{c['device_name']} ({c['device']}{memory}), torch {c['torch']}{cuda}, Python {c['python']}, "
        seen[f"{line}commit {(c['git_commit'] or 'unknown')[:7]}{changed}{toy}"] = None
    return [*(f"- {line}" for line in seen), ""]


def commands(texts: dict[str, str], item: str) -> list[tuple[str, dict[str, Any], str]]:
    """Return name, record and last line of each command of an item."""
    found = []
    for name, text in texts.items():
        place = Path(name)
        if place.parts[:2] == ("results", item) and place.suffix == ".json" and "exit" in (record := json.loads(text)):
            said = texts.get(f"results/{item}/{place.stem}.txt", "").strip().splitlines()
            found.append((place.stem, record, said[-1] if said else ""))
    return found


def tests(texts: dict[str, str], item: str) -> list[str]:
    """Return how each test run of an item ended."""
    rows = [(n, r["exit"], f"{r['seconds']:.0f} s", said.strip("= ")) for n, r, said in commands(texts, item)]
    if not rows:
        return ["Not run yet.", ""]
    return _table(("tests", "exit", "took", "last line"), rows)


def throughput(texts: dict[str, str]) -> list[str]:
    """Return the stacks' speed and their share of the roof."""
    rows: list[Sequence[Any]] = []
    other: list[str] = []
    together: list[str] = []
    what: list[str] = []
    for name, record, said in commands(texts, "throughput"):
        try:
            found = json.loads(said)
        except json.JSONDecodeError:
            other.append(f"- {name}: exit {record['exit']} after {record['seconds']:.0f} s: {said}")
            continue
        if "stack" not in found:
            speeds = [(way, f"{speed:.0f}") for way, speed in found["images_per_second"].items() if speed]
            together = _table(("R34 -> R18 by Logit-KD, width 64, batch 128", "images/s, all trials together"), speeds)
            continue
        low, high = found["range"]
        pair = found["pair"].upper().replace("-", " -> ")
        what = [f"{pair}, width {found['width']}, batch {found['batch_size']}, one trial at a time:", ""]
        rows.append(
            (
                found["method"],
                found["stack"],
                f"{found['images_per_second']:.0f} ({low:.0f} to {high:.0f})",
                f"{found['tflops']:.1f}",
                f"{found['fraction_of_roof']:.0%} of {found['roof_tflops']:.0f}",
                found["peak_memory_mb"] or "",
                f"{found['warm_up_seconds']} s",
            )
        )
    head = ("method", "stack", "images/s", "TFLOP/s", "of the matmul roof", "peak MB", "warm-up")
    return [*what, *_table(head, sorted(rows)), *together, *other, *([""] if other else [])]


def study(texts: dict[str, str], item: str) -> list[str]:
    """Return a study's arms and comparisons."""
    found = json.loads(texts[f"results/{item}/study.json"])
    arms = [
        (
            arm["pair"],
            arm["method"],
            arm["fault"] or "corrected",
            " ".join("none" if v is None else f"{v:.2f}" for v in arm["test_accuracy"]),
            "" if arm["mean"] is None else f"{arm['mean']:.2f}" + (f" ± {arm['std']:.2f}" if arm["std"] else ""),
            " ".join(arm["failed_findings"]) or "none",
            "yes" if arm["as_expected"] else "NO",
        )
        for arm in found["arms"]
    ]
    pairs = [
        (
            c["pair"],
            c["method"],
            f"{c['b']} against {c['a']}",
            "" if c["difference_pp"] is None else f"{c['difference_pp']:+.2f}",
            "" if c["ci95_pp"] is None else "{:+.2f} to {:+.2f}".format(*c["ci95_pp"]),
            c["verdict"],
        )
        for c in [*found["gains"], *found["comparisons"]]
    ]
    head = ("pair", "method", "arm", "test accuracy by seed, %", "mean ± sd", "audits that fired", "as declared")
    return [
        *_table(head, arms),
        *_table(("pair", "method", "comparison", "difference, pp", "95%", "verdict"), pairs),
    ]


def norms(texts: dict[str, str]) -> list[str]:
    """Return the gradient norms of Feature-KD's first steps, of all its trials of an arm together."""
    by_arm: dict[tuple[str, str], list[list[dict[str, str]]]] = {}
    for name, text in texts.items():
        if not name.endswith("/norms.csv"):
            continue
        spec = json.loads(texts[name.replace("norms.csv", "spec.json")])
        if spec["method"] == "feature":
            pair = f"{spec['teacher']['arch']}-{spec['arch']}"
            rows = list(csv.DictReader(io.StringIO(text)))
            by_arm.setdefault((pair, spec["fault"] or "corrected"), []).append(rows)
    lines = []
    for (pair, arm), trials in sorted(by_arm.items()):
        cells = []
        for group in GROUPS:
            first = [float(rows[0][group]) for rows in trials]
            top = max(float(row[group]) for rows in trials for row in rows)
            cells.append(f"{min(first):.2f} to {max(first):.2f} / {top:.2f}")
        lines.append((pair, arm, len(trials), *cells))
    head = ("pair", "arm", "seeds", *(f"{group}: step 1 / largest of the first 200" for group in GROUPS))
    return _table(head, lines)


def page(texts: dict[str, str]) -> str:
    """Return the whole page."""
    schedule = (
        f"students {EPOCHS} epochs, teachers {TEACHER_EPOCHS} (the paper: 100 and 200), bf16, width 64, batch 128"
    )
    made = "Made by `python -m benchmarks.gpu.page results.tar.xz`. The paper's GPU is an A100; figures here are of:"
    lines = ["# The GPU queue", "", made, "", *machines(texts)]
    for item in ITEMS:
        state = "" if f"results/{item.name}/done" in texts else " (unfinished)"
        lines += [f"## {item.name}{state}", "", f"{item.title[:1].upper()}{item.title[1:]}.", ""]
        if item.name in ("correctness", "suite"):
            lines += tests(texts, item.name)
        elif item.name == "throughput":
            lines += throughput(texts)
        elif f"results/{item.name}/study.json" in texts:
            lines += [f"Shortened schedule: {schedule}.", "", *study(texts, item.name)]
        else:
            trained = item.name == "teachers" and any(name.startswith("studies/") for name in texts)
            lines += [] if trained else ["Not run yet.", ""]
    if any(name.endswith("/norms.csv") for name in texts):
        lines += ["## Gradient norms of Feature-KD before clipping", "", *norms(texts)]
    return "\n".join(lines).rstrip() + "\n"


@click.command(help=__doc__)
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER")
def main(archive: Path, output: Path) -> None:
    """Write README.md and keep the archive beside it."""
    texts = read(archive)
    output.mkdir(parents=True, exist_ok=True)
    (output / "README.md").write_text(page(texts), encoding="utf-8")
    if archive.resolve() != (output / archive.name).resolve():
        shutil.copyfile(archive, output / archive.name)
    click.echo(f"page: {output / 'README.md'}")


if __name__ == "__main__":
    sys.exit(run_cli(lambda: main.main(prog_name="python -m benchmarks.gpu.page", standalone_mode=False)))
