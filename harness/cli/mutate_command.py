"""kdbench mutate: put known bugs into a script, one a run, and show who would have noticed."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource
from rich.markup import escape

from kdbench.harness.cli.audit_config import ConfiguredCommand
from kdbench.harness.cli.audit_output import policy_errors
from kdbench.harness.cli.common import FAULTS_OPTION, print_json, progress_console, stderr, stdout
from kdbench.harness.cli.completion import complete_fault
from kdbench.harness.cli.help import OUTPUT, explained
from kdbench.harness.cli.meant_options import NAMES, meant_options
from kdbench.harness.cli.own_files import files_of, load_own_files
from kdbench.kd.errors import InputError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.harness.mutation.runs import Measured, Row, Setting

SCRIPT = "How the script is run"


class MutateCommand(ConfiguredCommand):
    """A command whose declarations are the project's; its steps and formats are its own."""

    takes = (*NAMES, "waive")


@explained(
    "mutate",
    cls=MutateCommand,
    loads_late=True,
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
    examples=[
        ("who would notice a bug in this script?", "kdbench mutate train.py --epochs 1"),
        ("which faults would be put where? Nothing is trained with them", "kdbench mutate --list train.py"),
        ("one fault only", "kdbench mutate --fault projector-unclipped train.py"),
        ("would my tests notice?", "kdbench mutate --tests tests/"),
        ("a page to show to others", "kdbench mutate --format html train.py > mutate.html"),
    ],
)
@click.argument("script", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "--module", is_flag=True, panel=SCRIPT, help="SCRIPT is the name of a module, as in python -m.")
@click.option(
    "--tests",
    type=click.Path(path_type=Path),
    metavar="PATH",
    panel=SCRIPT,
    help="Put the faults into the trainings of these pytest tests, in place of a script, and show which tests notice.",
)
@click.option(
    "--fault",
    "chosen",
    multiple=True,
    metavar="NAME",
    panel=SCRIPT,
    shell_complete=complete_fault,
    help="Put in this fault only (kdbench faults list); may be repeated.",
)
@click.option(
    "--list", "list_", is_flag=True, panel=SCRIPT, help="Run the script as it is, and list what could be put in."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    metavar="N",
    panel=SCRIPT,
    help="Run N optimizer steps, counted from the first distillation step.",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", panel=SCRIPT, help="Runs at a time; by default a core each."
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=300,
    show_default=True,
    metavar="N",
    panel=SCRIPT,
    help="End a run after N seconds.",
)
@click.option(
    "--share-folder",
    is_flag=True,
    panel=SCRIPT,
    help="Run in this folder; by default each run gets a copy of it, in which large files are links.",
)
@click.option(
    "--waive",
    multiple=True,
    metavar="ID=REASON",
    panel=SCRIPT,
    help="Accept what this audit says of the script as it is, with a reason.",
)
@meant_options
@FAULTS_OPTION
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "markdown", "html"]),
    default="text",
    show_default=True,
    metavar="FORMAT",
    panel=OUTPUT,
    help="Print text, json, markdown or html.",
)
@click.option("-q", "--quiet", is_flag=True, panel=OUTPUT, help="Print the result only, and no progress.")
@click.pass_context
def command(
    ctx: click.Context,
    script: str | None,
    args: tuple[str, ...],
    tests: Path | None,
    chosen: tuple[str, ...],
    list_: bool,
    format_: str,
    quiet: bool,
    **options: Any,
) -> int:
    """Put known bugs into a script, one a run, and show who would have noticed: the script, your tests, kdbench.

    The script is run as it is first: it has to be clean, and to repeat. Then each fault that has a place in it gets a
    run of its own, under the audits. A fault counts if it acted and changed what is trained. Options stand before
    SCRIPT, and the script's own arguments after it.

    Exit codes: 0 if kdbench named every fault that counts; 1 if not; 2 for bad input; 3 if the script cannot serve,
    or if no fault that was asked for has a place in it.
    """
    if tests is not None and script is not None and script.startswith("-"):
        args, script = (script, *args), None  # behind --, pytest's own
    if (script is None) == (tests is None):
        raise InputError(
            "name the script that the faults are put into, or --tests PATH"
            if script is None
            else "a script and --tests do not go together; give one of them. What is meant for pytest stands behind "
            "--, as in --tests tests/ -- -k NAME"
        )
    notes = progress_console(quiet, False)
    notes.print("loading PyTorch", style="dim")
    load_own_files(ctx)
    from kdbench.harness.mutation.runs import CannotServeError

    names = _chosen(chosen)
    try:
        if tests is not None:
            found = _in_tests(ctx, tests, args, names, list_, options, notes)
        else:
            assert script is not None
            _remark_on_arguments(ctx, args, notes)
            setting = _setting(ctx, script, args, options)
            found = _in_script(setting, names, list_, notes)
    except CannotServeError as error:
        stderr().print(str(error), markup=False, soft_wrap=True)
        return 3
    _print(found, format_, list_)
    from kdbench.harness.mutation.pages import counted, is_caught

    if chosen and all(row.status == "not-applicable" for row in found.rows):
        stderr().print("nothing was tested: no fault that was asked for has a place there", soft_wrap=True)
        return 3
    return 0 if list_ or all(is_caught(row) for row in counted(found.rows)) else 1


def _remark_on_arguments(ctx: click.Context, args: Sequence[str], notes: "Console") -> None:
    """Say which of the script's arguments are called as options of this command."""
    own = {name for param in ctx.command.params for name in param.opts if name.startswith("--")}
    if meant := [word for word in args if word.partition("=")[0] in own]:
        notes.print(
            f"{', '.join(meant)}: handed to the script, behind which it stands; kdbench's own options stand before it",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _chosen(names: Sequence[str]) -> list[str]:
    """Return the faults to be tried; InputError for a name that is none, or that has no way into a script."""
    from kdbench.harness.faults import FAULTS
    from kdbench.harness.injection.mechanism import MECHANISMS

    for name in names:
        if name not in FAULTS:
            raise unknown("fault", name, MECHANISMS)
        if name not in MECHANISMS:
            raise InputError(f"{name} is a fault of a study, and cannot be put into a script; {len(MECHANISMS)} can")
    return list(dict.fromkeys(names)) or sorted(MECHANISMS)


def _setting(ctx: click.Context, script: str, args: Sequence[str], options: dict[str, Any]) -> "Setting":
    """Return how the runs are made."""
    from kdbench.audits.report.policy import Policy
    from kdbench.harness.cli.audit_script import check_target
    from kdbench.harness.mutation.child import Order
    from kdbench.harness.mutation.runs import Setting
    from kdbench.harness.records.environment import usable_cores

    check_target(script, options["module"])
    if not options["module"]:
        script = _from_here(script)
    with policy_errors():
        waived = dict(Policy.parse(options["waive"]).waive)
    order = Order(
        "survey",
        script,
        list(args),
        options["module"],
        options["steps"],
        options["max_seconds"],
        {name: options[name] for name in NAMES},
        waived,
        fault_files=[str(Path(path).absolute()) for path in files_of(ctx, "faults")],
    )
    return Setting(order, options["workers"] or usable_cores(), options["share_folder"])


def _from_here(script: str) -> str:
    """Return a script's path below this folder, of which each run has a copy; of one elsewhere, the whole path."""
    whole, here = Path(script).resolve(), Path.cwd().resolve()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def _in_script(setting: "Setting", names: Sequence[str], list_: bool, notes: "Console") -> "Measured":
    """Run the script as it is and with each fault."""
    from kdbench.harness.mutation import runs, writes

    start = time.monotonic()
    base, scene = runs.survey(setting, lambda word: notes.print(word, markup=False, soft_wrap=True))
    fit, rows = runs.plan(scene, names)
    found = runs.Measured(setting.base.target, scene, rows, setting.base.steps, verdict=base.verdict)
    if base.verdict == "undecided":
        found.remarks.append(
            "The audits do not understand the distillation term of the script as it is, and cannot tell faults in it"
        )
    if list_:
        found.rows += [runs.planned(fault, scene) for fault in fit]
        return found
    notes.print(f"faults that have a place in it: {len(fit)}, {setting.workers} at a time", soft_wrap=True)
    with writes.put_back(base.writes) as kept:
        if base.writes:
            found.remarks.append(_remark_on(base.writes, kept, setting.workers))
            notes.print(found.remarks[-1], style="yellow", markup=False, soft_wrap=True)
        _collect(found, runs.inject(setting, base, fit), len(fit), notes)
    found.seconds, found.cpu = time.monotonic() - start, base.cpu + sum(row.cpu for row in found.rows)
    return found


def _remark_on(paths: Sequence[str], kept: bool, workers: int) -> str:
    """Say that every run writes the same files."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    said = f"Every run writes {', '.join(paths[:3])}{more}, outside the script's folder, of which each run has a copy"
    said += "; at the end kdbench puts back what the script as it is left there" if kept else ""
    return said + (": runs side by side may read each other's; --workers 1 helps" if workers > 1 else "")


def _collect(found: "Measured", rows: "Iterator[Row]", count: int, notes: "Console") -> None:
    """Take in the rows as they come, with their progress."""
    from kdbench.harness.cli.progress import Meter

    with Meter(notes, count, "faults", count) as meter:
        for done, row in enumerate(rows, 1):
            found.rows.append(row)
            meter.update(done, done)


def _in_tests(
    ctx: click.Context,
    tests: Path,
    args: Sequence[str],
    names: Sequence[str],
    list_: bool,
    options: dict[str, Any],
    notes: "Console",
) -> "Measured":
    """Run the tests as they are and with each fault."""
    from kdbench.harness.injection.scene import Scene
    from kdbench.harness.mutation import runs, sessions
    from kdbench.harness.records.environment import usable_cores

    if not Path(str(tests).partition("::")[0]).exists():
        raise InputError(f"--tests {tests}: there is no such file or folder")
    for name in (*NAMES, "module", "waive"):
        if options[name] and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT_MAP:
            raise InputError(f"--{name.replace('_', '-')} is for a script, and does nothing with --tests")
    start = time.monotonic()
    workers = options["workers"] or usable_cores()
    files = tuple(str(Path(path).absolute()) for path in files_of(ctx, "faults"))
    session = sessions.Session(str(tests), tuple(args), workers, options["max_seconds"], options["share_folder"], files)
    base, remarks = sessions.survey(session, lambda word: notes.print(word, markup=False, soft_wrap=True))
    why = {fault: sessions.place_in(base, fault) for fault in names}
    fit = [fault for fault in names if why[fault] is None]
    rows = [
        runs.Row(f, "not-applicable", reason, runs.expected_of(f)) for f, reason in why.items() if reason is not None
    ]
    found = runs.Measured(str(tests), Scene(), rows, remarks=remarks, tests=len(base.outcomes))
    if list_:
        found.rows += [runs.Row(fault, "injected", expected=runs.expected_of(fault)) for fault in fit]
        return found
    notes.print(
        f"tests that distil: {len(base.outcomes)}; faults that have a place in them: {len(fit)}", soft_wrap=True
    )
    _collect(found, sessions.inject(session, base, fit), len(fit), notes)
    found.seconds = time.monotonic() - start
    return found


def _print(found: "Measured", format_: str, list_: bool) -> None:
    """Print what was found in the format asked for."""
    from kdbench.harness.mutation import pages

    if format_ == "json":
        print_json(pages.to_json(found))
    elif format_ == "markdown":
        click.echo(pages.to_markdown(found), nl=False)
    elif format_ == "html":
        click.echo(pages.to_html(found), nl=False)
    elif list_:
        _show_list(found)
    else:
        _show(found)


def _show(found: "Measured") -> None:
    """Print the result for people: the whole in a sentence, the table, what has no place."""
    from kdbench.harness.cli.tables import Column, show_table
    from kdbench.harness.mutation.pages import first_line, noticed, ordered, told

    console = stdout()
    console.print(first_line(found), markup=False, soft_wrap=True)
    rows = [row for row in ordered(found.rows) if row.status in ("injected", "dormant", "broken")]
    columns = [
        Column("fault", names=True),
        Column("where", drop=1),
        Column("your script" if found.tests is None else "your tests", wraps=True),
        Column("kdbench", wraps=True),
    ]
    cells = [[row.fault, escape(_places(row.where)), escape(noticed(row)), escape(told(row))] for row in rows]
    if cells:
        show_table(console, columns, cells, elsewhere="--format json")
    _closing(found)


def _places(where: Sequence[str]) -> str:
    """Return places in short: the file's name without its folders, and how many more there are."""
    first = where[0].rpartition("/")[2] if where else ""
    return f"{first} +{len(where) - 1}" if len(where) > 1 else first


def _closing(found: "Measured") -> None:
    """Print what is to be remarked, and why the other faults have no place in the script, by reason."""
    from kdbench.harness.cli.tables import note
    from kdbench.harness.mutation.pages import reasons

    for remark in found.remarks:
        note(stdout(), escape(f"{remark}."))
    absent = reasons(found.rows)
    if absent:
        stdout().print("not applicable:")
    for why, faults in absent.items():
        note(stdout(), escape(f"{', '.join(faults)}: {why}"))


def _show_list(found: "Measured") -> None:
    """Print which faults have a place in the script, and what should tell of each."""
    from kdbench.harness.cli.tables import Column, show_table

    fit = [row for row in found.rows if row.status == "injected"]
    stdout().print(f"{len(fit)} faults have a place in {found.target}", markup=False, soft_wrap=True)
    columns = [Column("fault", names=True), Column("where"), Column("should be named by")]
    cells = [[row.fault, escape(_places(row.where)), ", ".join(row.expected)] for row in fit]
    if fit:
        show_table(stdout(), columns, cells, elsewhere="--format json")
    _closing(found)
