"""kdbench doctor: what is installed, and does it work."""

from pathlib import Path

import rich_click as click

from kdbench.harness.cli.common import JSON_OPTION, RUNS_OPTION, print_json, stdout
from kdbench.harness.cli.help import explained


@explained(
    "doctor",
    examples=[
        ("check everything", "kdbench doctor"),
        ("leave out the timing", "kdbench doctor --no-timing"),
    ],
)
@RUNS_OPTION
@click.option("--no-timing", is_flag=True, help="Do not time training steps, which takes some seconds on each device.")
@JSON_OPTION
def command(runs: Path, no_timing: bool, as_json: bool) -> int:
    """Check that the installation works, and show versions, devices, cores, folders and the speed of a training step.

    Exit codes: 0 if everything works, 3 if not.
    """
    from kdbench.harness.doctor import examine

    found = examine(runs, timing=not no_timing)
    if as_json:
        print_json({"schema": "kdbench.doctor/1", **found})
    else:
        console = stdout()
        for name, version in found["packages"].items():
            console.print(f"{name:<14} {version or '[bold red]missing[/]'}")
        console.print(f"{'python':<14} {found['python']}")
        console.print(f"{'cores':<14} {found['cores']} usable")
        for device in found["devices"]:
            state = "a convolution runs" if device["works"] else f"[bold red]does not work[/]: {device['error']}"
            console.print(f"{device['kind']:<14} {device['name']}: {state}")
        for name, place in found["folders"].items():
            state = "writable" if place["writable"] else "[bold red]not writable[/]"
            console.print(f"{name:<14} {place['path']} ({state})", soft_wrap=True)
        for timed in found["timing"]:
            console.print(f"\nOne step each way on {timed['device']} (R34 -> R18, Logit-KD, random pixels):")
            for way in timed["ways"]:
                share = f"{way['workers']} at a time, {way['threads']} thread{'s' * (way['threads'] > 1)} each"
                speed = f"{way['images_per_second']:.0f} images/s" if way["images_per_second"] else "did not run"
                console.print(f"  {way['precision']}, {share:<34} {speed}")
            console.print(timed["advice"])
    return 0 if found["healthy"] else 3
