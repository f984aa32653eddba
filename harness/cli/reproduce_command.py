"""kdbench reproduce: a packed study trained anew, and held against its record."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import (
    FAULTS_OPTION,
    JSON_OPTION,
    METHOD_OPTION,
    MODEL_OPTION,
    RUNS_OPTION,
    finite,
    loudness_options,
    print_json,
    progress_console,
    stdout,
)
from kdbench.harness.cli.help import YOUR_CODE, explained
from kdbench.harness.cli.own_files import load_own_files
from kdbench.harness.cli.study_options import typed
from kdbench.kd.errors import InputError

WHAT = "What is trained again"
"Group of options."

if TYPE_CHECKING:
    from kdbench.harness.loading import Loaded


@explained(
    "reproduce",
    loads_late=True,
    examples=[
        ("train a packed study again and compare", "kdbench reproduce quick-digits.zip"),
        ("try two of its trials first", "kdbench reproduce quick-digits.zip --trials 2"),
        ("run the code that its author packed, after reading it", "kdbench reproduce theirs.zip --trust-faults"),
    ],
)
@click.argument("archive", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--only",
    multiple=True,
    metavar="KEY",
    panel=WHAT,
    help="Train this trial and its teacher only; the beginning of a key is enough. May be repeated.",
)
@click.option(
    "--trials", "count", type=click.IntRange(1), metavar="N", panel=WHAT, help="Train N trials and their teachers only."
)
@click.option(
    "--data",
    "data_root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    panel=WHAT,
    help="Read the images from this folder.",
)
@click.option(
    "--max-size",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    default=16,
    show_default=True,
    metavar="GB",
    panel=WHAT,
    help="Refuse an archive that holds more than this, before anything is unpacked.",
)
@click.option(
    "--signed-by",
    type=click.Path(path_type=Path),
    metavar="KEYS",
    panel=WHAT,
    help="Refuse an archive that none of these public keys of OpenSSH signed, before anything is unpacked.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    panel=WHAT,
    help="Trials at a time; by default one a core, or one on a GPU.",
)
@click.option(
    "--trust-faults",
    is_flag=True,
    panel=YOUR_CODE,
    help="Run the faults, methods and networks in the archive, which are its author's code.",
)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
@RUNS_OPTION
@JSON_OPTION
@loudness_options
@click.pass_context
def command(
    ctx: click.Context,
    archive: Path,
    data_root: Path | None,
    runs: Path,
    max_size: float,
    signed_by: Path | None,
    workers: int | None,
    only: tuple[str, ...],
    count: int | None,
    trust_faults: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Train a packed study again, in a study of its own, and compare each trial with the packed record.

    On a CPU with the same PyTorch, processor and code the results have the same bits; elsewhere the command says what
    changed. Run the same command again to continue: finished trials are kept.

    Exit codes: 0 if everything is the same that should be; 1 if not; 2 for bad input, such as an archive that was
    changed, or other images; 3 if a trial could not run.
    """
    notes = progress_console(quiet, verbose)
    if only and count is not None:
        raise InputError("--only names trials and --trials counts them; say one of the two")
    if not archive.exists():
        raise InputError(f"{archive} does not exist; name an archive that kdbench bundle wrote")
    notes.print(escape(f"{archive}: loading PyTorch and checking the archive"), style="dim", soft_wrap=True)
    _say_signer(archive, signed_by, notes)
    load_own_files(ctx)
    from kdbench.harness.archive.reproduce import compared, exit_code, prepare
    from kdbench.harness.archive.unpacking import unpack
    from kdbench.harness.cli.progress import Progress
    from kdbench.harness.study import carry_out, writable

    if not writable(runs):
        raise InputError(f"--runs {runs}: cannot be written to; name another folder")
    with tempfile.TemporaryDirectory(prefix="kdbench-") as place:
        load = partial(_load, archive, trust_faults)
        bundle = unpack(archive, Path(place), load, int(max_size * 2**30))
        load(bundle.files)
        ready = replace(prepare(bundle, data_root, runs, workers, only, count), command=typed())
        todo = len(ready.todo)
        work = f"{todo} to run, {ready.workers} at a time on {ready.device}: {ready.cost}" if todo else "nothing to run"
        notes.print(f"[bold]{escape(bundle.name)}[/]: the archive is whole, the images are the same; {work}")
        with Progress(ready, notes, verbose) as progress:
            outcome = carry_out(ready, progress.on_trial)
        found = compared(bundle, ready, outcome)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return exit_code(found)


def _say_signer(archive: Path, signed_by: Path | None, notes: Any) -> None:
    """Check an archive's signature, where somebody named the keys to check it with; say that there is one elsewhere."""
    from kdbench.harness.archive.signing import check, signature_of

    if signed_by is not None:
        notes.print(escape(f"{archive}: signed by {check(archive, signed_by)}"), soft_wrap=True)
    elif signature_of(archive).is_file():
        notes.print(escape(f"{archive} is signed; --signed-by KEYS checks by whom"), style="dim", soft_wrap=True)


def _load(archive: Path, trusted: bool, files: "Sequence[Loaded]") -> None:
    """Run the archive's code if it is trusted; a file that was named here, and is the same, needs no trust."""
    from kdbench.harness.loading import is_loaded, load_all

    new = [loaded for loaded in files if not is_loaded(*loaded)]
    if new and not trusted:
        names = ", ".join(f"{kind}/{path.name}" for kind, path in new)
        raise InputError(f"{archive} brings code of its author's ({names}); read it, then run it with --trust-faults")
    load_all(new)


def _show(found: dict[str, Any]) -> None:
    from kdbench.harness.cli.tables import Column, show_table

    console = stdout()
    differing = found["environment"]
    if differing:
        columns = [
            Column("other here", names=True),
            Column("packed", wraps=True),
            Column("here", wraps=True),
        ]
        rows = [tuple(escape(str(row[name] or "none")) for name in ("name", "packed", "here")) for row in differing]
        show_table(console, columns, rows)
    else:
        console.print("Versions, processor and code: all as packed.")
    console.print()
    columns = [
        Column("trial", names=True, drop=2),
        Column("network", drop=1),
        Column("method", names=True),
        Column("arm", names=True),
        Column("seed", names=True),
        Column("packed, %", drop=4),
        Column("here, %", drop=3),
        Column("reproduced"),
        Column("what differs", wraps=True),
    ]
    trials = sorted(found["trials"], key=lambda r: (r["method"] != "teacher", r["method"], r["fault"] or "", r["seed"]))
    show_table(console, columns, [_trial(row) for row in trials])
    console.print()
    _conclude(console, found)


def _trial(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one trial."""
    verdict = f"[bold red]{row['verdict']}[/]" if row["broken"] else row["verdict"]
    more = f" and {len(row['differs']) - 2} more" if len(row["differs"]) > 2 else ""
    scores = ("" if value is None else f"{value:.2f}" for value in row["test_accuracy"])
    what = escape(", ".join(row["differs"][:2]) + more)
    arm = row["fault"] or "corrected"
    return (row["key"], row["arch"], row["method"], arm, str(row["seed"]), *scores, verdict, what)


def _conclude(console: Any, found: dict[str, Any]) -> None:
    from kdbench.harness.cli.tables import note

    rows = found["trials"]
    counts = Counter(row["verdict"] for row in rows)
    kept = f"; {found['reused']} of them were trained by an earlier call" if found["reused"] else ""
    console.print(f"{len(rows)} trials: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}{kept}.")
    changed = [row for row in found["verdicts"] if row["changed"]]
    for row in changed:
        what = f"{row['b']} against {row['a']}" if row["a"] else row["b"]
        told = f"changed: {row['pair']} {row['method']}, {escape(what)}: {' -> '.join(row['verdict'])}"
        note(console, told, style="")
    if found["verdicts"]:
        told = f"{len(changed)} of {len(found['verdicts'])} verdicts (of comparisons and audits) changed."
        note(console, told, style="", indent=0)
    gaps = [abs(row["difference_pp"]) for row in rows if row["difference_pp"] is not None]
    if found["failed"]:
        said = "[bold red]Not reproduced:[/] a trial could not run here; its log.txt may say more."
    elif not found["as_promised"]:
        said = (
            "[bold red]Not reproduced:[/] torch, processor and code are the same, and the record is another. Either it "
            "was edited, or something is not deterministic that should be."
        )
    elif found["identical"]:
        said = "[bold green]Reproduced:[/] the same weights in every epoch, the same scores, the same findings."
    else:
        said = (
            "Not the same bits. They are promised only on a CPU with the same torch, processor and code. The largest "
            f"difference of a test accuracy is {max(gaps, default=0):.2f} pp."
        )
    note(console, said, style="", indent=0)
    console.print(f"records: {escape(found['runs'])}", soft_wrap=True)
