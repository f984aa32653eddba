"""Run what is next of the GPU queue, for as long as one call may last, and pack what came of it.

    python -m benchmarks.gpu --images cifar10-jpeg.tar.xz --out OUT

Call it again until it says that nothing is left; README.md beside this file has the rest.
"""

import os
import sys
import time
from pathlib import Path

import click

from benchmarks.gpu.call import Call
from benchmarks.gpu.items import ITEMS
from kdbench.harness.cli import run_cli


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the archive of results.")
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="Archive of train/CLASS/*, test/CLASS/*.")
@click.option("--state", type=click.Path(path_type=Path), default=Path("runs/gpu"), show_default=True)
@click.option("--records", type=click.Path(path_type=Path, exists=True), help="results.tar.xz of an earlier machine.")
@click.option("--budget", type=click.IntRange(1), default=530, show_default=True, help="Seconds of this call.")
@click.option("--item", "only", type=click.Choice([item.name for item in ITEMS]), help="This item, not the next.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--toy", is_flag=True, help="Everything in its smallest size, to try the queue itself.")
def main(
    out: Path,
    images: Path | None,
    state: Path,
    records: Path | None,
    budget: int,
    only: str | None,
    device: str,
    toy: bool,
) -> None:
    """Run the items in order until the budget is spent."""
    began = time.monotonic()
    state, out = state.resolve(), out.resolve()
    os.environ["KDBENCH_CACHE"] = str(state / "cache")
    call = Call(state, began + budget, device, toy)
    if records is not None:
        call.unpack(records)
    call.take_images(images)
    call.note_machine()
    pending = [item for item in ITEMS if not call.is_done(item.name)]
    for item in [item for item in ITEMS if item.name == only] if only else pending:
        call.say(f"{item.name}: {item.title}")
        if item.run(call):
            call.mark_done(item.name)
        if call.left() < call.longest_start:
            break
    call.pack(out / "results.tar.xz")
    left = [item.name for item in ITEMS if not call.is_done(item.name)]
    call.say(f"left: {', '.join(left)}" if left else "nothing is left")


if __name__ == "__main__":
    sys.exit(run_cli(lambda: main.main(prog_name="python -m benchmarks.gpu", standalone_mode=False)))
