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
    stderr,
    stdout,
    studies,
)
from kdbench.harness.cli.help import explained
from kdbench.harness.options import one_line, told
from kdbench.kd.errors import InputError


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
def command(runs: Path, study: str | None, as_json: bool) -> int:
    """Show how many trials of each arm are finished, running, waiting or failed, and why they failed.

    The studies may be running elsewhere meanwhile: this command only reads their folders.
    """
    from kdbench.harness.analysis.status import progress

    found, unread = [], []
    for name in [study] if study is not None else studies(runs):
        try:
            found.append(progress(find_study(runs, name)))
        except InputError as error:
            if study is not None or as_json:
                raise InputError(f"{runs / name}: {error}", error.about) from error
            unread.append(f"error: {name} cannot be read: {told(error)}")
    if as_json:
        print_json({"schema": "kdbench.status/1", "studies": found})
        return 0
    from kdbench.harness.cli.tables import Column, note, show_table

    console = stdout()
    columns = [
        Column("pair", names=True, common=True),
        Column("method", names=True),
        Column("arm", names=True),
        Column("finished"),
        Column("running (epochs)", wraps=True),
        Column("waiting"),
        Column("failed"),
    ]
    for one in found:
        counts = ", ".join(f"{number} {state}" for state, number in one["counts"].items() if number)
        console.print(f"[bold]{escape(one['study'])}[/]: {counts}")
        rows = []
        for arm in one["arms"]:
            running = ", ".join(f"seed {t['seed']}: {t['epochs']} of {t['of']}" for t in arm["running"])
            rows.append(
                (
                    *(escape(one_line(arm[name])) for name in ("pair", "method", "arm")),
                    f"{arm['finished']} of {arm['trials']}", running,
                    str(arm["waiting"] or ""), str(arm["failed"] or ""),
                )
            )  # fmt: skip
        used = [i for i, column in enumerate(columns) if column.names or i == 3 or any(row[i] for row in rows)]
        show_table(console, [columns[i] for i in used], [[row[i] for i in used] for row in rows])
        if one["counts"].get("superseded"):
            note(console, "superseded: trials of an earlier version of a method, network or fault; no arm uses them")
        for trial in one["failures"]:
            note(console, f"{trial['status']} {trial['key']}: {escape(one_line(str(trial['reason'])))}", style="")
    for said in unread:
        stderr().print(escape(said), soft_wrap=True)
    return 2 if unread else 0
