"""kdbench status: how far the studies in a runs folder are, read from disk while they run elsewhere."""

from pathlib import Path

from rich.markup import escape

from kdbench.harness.cli.common import (
    JSON_OPTION,
    METHOD_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    print_json,
    stdout,
    studies,
)
from kdbench.harness.cli.help import explained


@explained(
    "status",
    examples=[
        ("show the studies in the folder runs", "kdbench status"),
        ("show one study of another folder, as JSON", "kdbench status --runs results --study quick-digits --json"),
    ],
)
@RUNS_OPTION
@STUDY_OPTION
@METHOD_OPTION
@JSON_OPTION
def command(runs: Path, study: str | None, as_json: bool) -> None:
    """Show how many trials of each arm are finished, running, waiting or failed, and why they failed.

    The studies may be running elsewhere meanwhile: this command only reads their folders.
    """
    from kdbench.harness.analysis.status import progress

    found = [progress(find_study(runs, name)) for name in ([study] if study is not None else studies(runs))]
    if as_json:
        print_json({"schema": "kdbench.status/1", "studies": found})
        return
    from rich.table import Table

    console = stdout()
    for one in found:
        counts = ", ".join(f"{number} {state}" for state, number in one["counts"].items() if number)
        console.print(f"[bold]{escape(one['study'])}[/]: {counts}")
        table = Table("pair", "method", "arm", "finished", "running", "waiting", "failed", box=None, pad_edge=False)
        for arm in one["arms"]:
            running = ", ".join(f"seed {t['seed']}: {t['epochs']} of {t['of']}" for t in arm["running"])
            table.add_row(
                arm["pair"], arm["method"], arm["arm"], f"{arm['finished']} of {arm['trials']}", running,
                str(arm["waiting"] or ""), str(arm["failed"] or ""),
            )  # fmt: skip
        console.print(table)
        if one["counts"].get("superseded"):
            console.print(
                "  superseded: of an earlier version of a method, network or fault; no arm uses them any more",
                style="dim",
                soft_wrap=True,
            )
        for trial in one["failures"]:
            console.print(f"  {trial['status']} {trial['key']}: {escape(str(trial['reason']))}", soft_wrap=True)
