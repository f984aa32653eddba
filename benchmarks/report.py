"""Writes reports/benchmarks.md, its small JSON and its figure from what pytest-benchmark wrote.

python benchmarks/report.py RUN.json [--folder reports]

The small JSON has a part a device by its name; a run replaces its own part and leaves the others.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SCHEMA = "kdbench.benchmarks/1"
FOLDER = Path(__file__).resolve().parent.parent / "reports"

Part = dict[str, Any]
Row = dict[str, Any]

_ALSO = {
    "floor_seconds": "floor {:.3g} s a call",
    "gflop_per_second": "{:.0f} GFLOP/s",
    "trials_per_hour": "{} trials an hour",
    "workers": "{} workers",
    "trials": "{} trials",
    "comparisons": "{} comparisons",
    "seeds": "{} seeds an arm",
    "peak_mb": "peak {} MB",
    "textbook_peak_mb": "the textbook's {} MB",
    "unwatched_peak_mb": "unwatched {} MB",
    "peak_mb_of_twenty": "peak of twenty {} MB",
    "peak_mb_of_fifty": "peak of fifty {} MB",
    "microseconds_per_step": "{} microseconds a step",
}
_KEPT = ("what", "kind", "value", "range", "goal", "noisy", "a_over_a", "images_per_second", "roof_fraction", *_ALSO)

_INTRO = """\
    make bench                          # about an hour on two cores that do nothing else
    make bench BENCH="--device cuda"    # the same on a GPU

Only ratios within one run are claimed. Each is taken A B B A in turn and says how much longer the textbook takes than
ours (`benchmarks/textbook.py`: the same networks, losses, optimizer and clip, channels-first in fp32, `loss.item()` a
step); that both are the same training is checked by the loss of the first step. R34 -> R18 on images of noise, batch
128, base width 16 on a processor and 64 on a GPU. bf16 has the same fp32 textbook as its yardstick; on a GPU it takes
torch's defaults (TF32 in convolutions), and ours what a trial does. Each comparison has a process of its own, started
as a trial's is, since what a process did before decides how its allocator goes about memory: told to give none back
(`test_kept_memory`), the textbook loop is faster than it is as people run it. *A/A* is ours against itself: further
than 3% from 1, the machine was too restless, and after many more rounds nothing is claimed. *Of the roof* is the
fraction of the speed that `torch.mm` reaches in the same precision on the same threads, timed between the steps."""

_WATCH = """\
## Why a watch is measured twice

`test_watch` is a ratio of whole steps. A machine's pace wanders by some percent, more than a watch costs, so beside it
`test_time_inside_the_hooks` adds up the time that passes inside the watch's own hooks, over 50 steps of Feature-KD: in
the burn-in every step is seen, afterwards (*steady*) every 50th."""


def part_of(run: dict[str, Any]) -> Part:
    """Return what is kept of pytest-benchmark's JSON: what it was run on, and each benchmark's numbers by name."""
    machine, commit = run["machine_info"]["kdbench"], run.get("commit_info") or {}
    rows = {
        bench["name"]: {name: bench["extra_info"][name] for name in _KEPT if name in bench["extra_info"]}
        for bench in run["benchmarks"]
        if "kind" in bench["extra_info"]
    }
    when = {"date": str(run["datetime"])[:10], "commit": commit.get("id"), "dirty": commit.get("dirty")}
    return {**machine, **when, "rows": rows}


def read_run(path: Path) -> dict[str, Any]:
    """Read pytest-benchmark's JSON; one without numbers is refused, and a toy run's, whose numbers mean nothing."""
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        toy = run["machine_info"]["kdbench"]["toy"]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {path} is not the JSON of a run of the benchmarks ({type(error).__name__}: {error})")
    if toy:
        sys.exit(f"error: {path} is of a toy run, whose numbers mean nothing")
    if not part_of(run)["rows"]:
        sys.exit(f"error: {path} holds no measurement: everything was skipped")
    return run


def read_recorded(path: Path) -> dict[str, Part]:
    """Read the small JSON of earlier runs, by the device's name; empty where there is none."""
    if not path.is_file():
        return {}
    recorded = json.loads(path.read_text())
    if recorded.get("schema") != SCHEMA:
        sys.exit(f"error: {path} is not of schema {SCHEMA}; delete it to start anew")
    return recorded["parts"]


def verdict(row: Row) -> str:
    """Say whether the goal was met; a restless machine says neither."""
    goal = row.get("goal")
    if goal is None:
        return "too noisy to claim" if row.get("noisy") else ""
    if row["kind"] == "ratio":
        return "too noisy to claim" if row["noisy"] else "met" if row["value"] >= goal else "not met"
    if row["value"] <= goal:
        return "met"
    return "too noisy to claim" if row["range"][0] <= goal else "not met"


def _number(row: Row, value: float) -> str:
    if row["kind"] == "share":
        return f"{value:.2%}"
    if row["kind"] == "ratio":
        return f"{value:.2f}"
    return f"{value:.3g} s"


def _cells(name: str, row: Row) -> dict[str, str]:
    """Return a row of a table; a noisy ratio shows its range and no value."""
    test, _, setting = name.removesuffix("]").partition("[")
    ratio, (low, high) = row["kind"] == "ratio", row["range"]
    goal = row.get("goal")
    return {
        "benchmark": f"`{test}`",
        "setting": setting,
        "ratio" if ratio else "measured": "—" if row.get("noisy") else _number(row, row["value"]),
        "range": f"{_number(row, low)} to {_number(row, high)}" if low != high else "",
        **({"A/A": f"{row['a_over_a']:.3f}"} if ratio else {}),
        **({"images/s": f"{row['images_per_second']:,.0f}" if "images_per_second" in row else ""} if ratio else {}),
        **({"of the roof": f"{row['roof_fraction']:.0%}" if "roof_fraction" in row else ""} if ratio else {}),
        "goal": "" if goal is None else f"{'>=' if ratio else '<='} {_number(row, goal)}",
        "verdict": verdict(row),
        "also": ", ".join(text.format(row[key]) for key, text in _ALSO.items() if key in row),
    }


def _table(rows: dict[str, Row]) -> list[str]:
    cells = [_cells(name, row) for name, row in rows.items()]
    if not cells:
        return ["Nothing was measured."]
    lines = ["| " + " | ".join(cells[0]) + " |", "|---" * len(cells[0]) + "|"]
    return [*lines, *("| " + " | ".join(row.values()) + " |" for row in cells)]


def _bounds(rows: dict[str, Row]) -> list[str]:
    """Say what bounds a step on this device, where the machine was quiet enough to tell."""
    quiet = {name.removeprefix("test_"): row["value"] for name, row in rows.items() if row.get("noisy") is False}
    said = []
    for name, bound in quiet.items():
        test, _, setting = name.partition("[")
        step = quiet.get(f"roof[{setting}")
        if test == "convolutions" and step is not None:
            said.append(
                f"{setting.removesuffix(']')}: a step's convolutions alone reach {bound:.0%} of the roof, the whole "
                f"step {step:.0%}, which is {step / bound:.0%} of what they leave."
            )
        elif test == "bf16_roof":
            said.append(f"{setting.removesuffix(']')}: `torch.mm` is {bound:.2f} times as fast in bf16 as in fp32.")
    return ["", "What bounds a step here:", "", *(f"- {line}" for line in said)] if said else []


def _section(part: Part) -> list[str]:
    rows: dict[str, Row] = part["rows"]
    commit = f"{(part['commit'] or 'unknown')[:10]}{', changed since' if part['dirty'] else ''}"
    lines = [
        f"{part['device_name']}, {part['cores']} cores, load average {part['load_average_before']} before the run; "
        f"torch {part['torch']}; {part['date']}, commit {commit}."
    ]
    in_formats = [name for name in rows if "fp32" in name]
    if in_formats and not any("bf16" in name for name in rows):
        lines.append("bf16 was not measured: this device does not multiply bf16 numbers as such.")
    with_goal = [verdict(row) for row in rows.values() if row.get("goal") is not None]
    if with_goal:
        counted = ", ".join(f"{with_goal.count(v)} {v}" for v in ("met", "not met", "too noisy to claim"))
        lines.append(f"Of {len(with_goal)} goals: {counted}.")
    lines += _bounds(rows)
    ratios = {name: row for name, row in rows.items() if row["kind"] == "ratio"}
    others = {name: row for name, row in rows.items() if row["kind"] != "ratio"}
    return [*lines, "", *_table(ratios), *(["", *_table(others)] if others else [])]


def markdown(parts: dict[str, Part]) -> str:
    """Return the report: ratios first, then times; the processor, then the GPU."""
    what = {name.partition("[")[0]: row["what"] for part in parts.values() for name, row in part["rows"].items()}
    lines = ["# Benchmarks", "", _INTRO, "", "![ratios with their ranges and goals](benchmarks.png)", ""]
    for title, kind, nothing in (
        ("On a processor", "cpu", "Not measured yet."),
        ("On a GPU", "cuda", "No GPU was at hand: nothing has been measured on one."),
    ):
        mine = [part for part in parts.values() if part["device"] == kind]
        lines += [f"## {title}", ""]
        for part in mine:
            lines += [f"### {part['device_name']}", "", *_section(part), ""]
        lines += [] if mine else [nothing, ""]
    lines += ["## What each measures", "", *(f"- `{name}`: {text}" for name, text in what.items())]
    return "\n".join([*lines, "", *([_WATCH, ""] if "test_watch" in what else [])])


def draw(parts: dict[str, Part], path: Path) -> None:
    """Draw every ratio as a dot with its range, hollow where it is too noisy to claim, and its goal as a bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    drawn = {}
    for part in parts.values():
        ratios = [(name.removeprefix("test_"), row) for name, row in part["rows"].items() if row["kind"] == "ratio"]
        if ratios:
            drawn[part["device_name"]] = ratios
    heights = [1 + len(rows) for rows in drawn.values()]
    size = (9, 1.4 + 0.4 * len(heights) + 0.24 * sum(heights))
    figure, panels = plt.subplots(len(drawn), figsize=size, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (device, rows) in zip(panels[:, 0], drawn.items(), strict=True):
        for y, (_, row) in enumerate(rows):
            inside = "white" if row["noisy"] else "#14532d"
            axes.plot(row["range"], [y, y], color="#9aa3ad", linewidth=2, zorder=1)
            axes.scatter(row["value"], y, s=32, zorder=2, edgecolors="#14532d", facecolors=inside)
            if row.get("goal") is not None:
                axes.scatter(row["goal"], y, marker="|", s=90, color="#b42318", zorder=3)
        axes.axvline(1, color="#1b1f24", linewidth=0.8)
        axes.set_title(device, loc="left", fontsize=9)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(axis="x", color="#e6e8eb")
    said = "ratio, the higher the better (hollow: too noisy to claim; red: goal; line: range over the rounds)"
    figure.supxlabel(said, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def write(run: dict[str, Any], folder: Path) -> None:
    """Bring the three files in the folder up to date with a run."""
    part = part_of(run)
    parts = {**read_recorded(folder / "benchmarks.json"), part["device_name"]: part}
    parts = {device: parts[device] for device in sorted(parts)}
    (folder / "benchmarks.json").write_text(json.dumps({"schema": SCHEMA, "parts": parts}, indent=1) + "\n")
    (folder / "benchmarks.md").write_text(markdown(parts))
    draw(parts, folder / "benchmarks.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="write the report of a run of the benchmarks")
    parser.add_argument("run", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the report goes")
    args = parser.parse_args()
    write(read_run(args.run), args.folder)
    print(f"wrote {args.folder}/benchmarks.md, .json and .png")


if __name__ == "__main__":
    main()
