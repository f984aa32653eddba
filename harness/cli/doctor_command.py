"""kdbench doctor: what is installed, and does it work."""

from pathlib import Path

import click

from harness.cli.common import JSON_OPTION, RUNS_OPTION, print_json, stdout


@click.command("doctor")
@RUNS_OPTION
@JSON_OPTION
def command(runs: Path, as_json: bool) -> int:
    """Show versions, devices (and whether a convolution runs there), cores, and where data and records lie."""
    from harness.doctor import examine

    found = examine(runs)
    if as_json:
        print_json({"schema": "kdbench.doctor/1", **found})
    else:
        console = stdout()
        for name, version in found["packages"].items():
            console.print(f"{name:<14} {version or '[bold red]missing[/]'}")
        console.print(f"{'python':<14} {found['python']}")
        console.print(
            f"{'cores':<14} {found['cores']} usable; kdbench run takes {found['workers']} workers of one thread"
        )
        for device in found["devices"]:
            state = "a convolution runs" if device["works"] else f"[bold red]does not work[/]: {device['error']}"
            console.print(f"{device['kind']:<14} {device['name']}: {state}")
        for name, place in found["folders"].items():
            state = "writable" if place["writable"] else "[bold red]not writable[/]"
            console.print(f"{name:<14} {place['path']} ({state})", soft_wrap=True)
    return 0 if found["healthy"] else 3
