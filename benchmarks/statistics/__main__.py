"""Whether the statistics keep what they promise: size, coverage and power of the functions that decide, simulated.

python -m benchmarks.statistics --output reports/statistics [--repetitions N] [--seed 0]
"""

# A folder without __init__.py on purpose: with benchmarks/ itself on sys.path (`pytest benchmarks`), a module of this
# name would stand in for the standard library's `statistics`; a namespace yields to it.

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks.statistics.page import SECTIONS, draw, page, reading
from benchmarks.statistics.simulation import ALPHA, CONFIDENCE, Row, Setup, simulate
from kdbench.harness.cli import run_cli
from kdbench.harness.cli.common import stderr
from kdbench.harness.records.record import write_atomic


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="FOLDER")
@click.option("--repetitions", type=click.IntRange(10), default=20_000, show_default=True, help="Experiments a rate.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(output: Path, repetitions: int, seed: int) -> None:
    """Simulate, and write a page, its numbers and a figure."""
    rows: list[Row] = []
    for row in simulate(Setup(repetitions, seed)):
        if not rows or row.table != rows[-1].table:
            stderr().print(f"simulating: {SECTIONS[row.table][0]}")
        rows.append(row)
    versions = {"Python": platform.python_version(), **{name: version(name) for name in ("kdbench", "numpy", "scipy")}}
    command = "python -m benchmarks.statistics --output reports/statistics"
    record = {
        "schema": "kdbench.statistics/1",
        "command": f"{command} --repetitions {repetitions} --seed {seed}",
        "repetitions": repetitions,
        "seed": seed,
        "alpha": ALPHA,
        "bounds_confidence": CONFIDENCE,
        "versions": versions,
        "rows": [row.record() for row in rows],
    }
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "statistics.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    draw(rows, output / "statistics.png")
    write_atomic(output / "README.md", page(rows, record))
    for table, (title, _) in SECTIONS.items():
        click.echo(f"{title}\n  {reading([row for row in rows if row.table == table])}")
    click.echo(f"page: {output / 'README.md'}")


if __name__ == "__main__":
    sys.exit(run_cli(lambda: main.main(prog_name="python -m benchmarks.statistics", standalone_mode=False)))
