"""kdbench signature: does a bug show in accuracy? Decided over as few seeds as it takes."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import (
    JSON_OPTION,
    finite,
    loudness_options,
    mirror_or_remark,
    named_options,
    print_json,
    progress_console,
    stderr,
    stdout,
)
from kdbench.harness.cli.completion import complete_fault
from kdbench.harness.cli.help import DECISION, explained
from kdbench.harness.cli.own_files import load_own_files
from kdbench.harness.cli.study_options import STUDY, requested, study_options
from kdbench.harness.plan.outline import outline
from kdbench.harness.run.processes import start_server
from kdbench.kd.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.harness.analysis.rows import Again
    from kdbench.harness.analysis.study_table import Trials
    from kdbench.harness.records.record import Result
    from kdbench.harness.signature import Design, Outcome
    from kdbench.harness.study import Request


@explained(
    "signature",
    loads_late=True,
    examples=[
        (
            "does a random teacher lower the accuracy of Logit-KD?",
            "kdbench signature --fault random-teacher --method logit",
        ),
        ("how often is the test right if the spread over seeds is 0.4?", "kdbench signature --simulate 0.4"),
    ],
)
@click.option(
    "--fault",
    "fault_names",
    multiple=True,
    metavar="NAME",
    panel=STUDY,
    shell_complete=complete_fault,
    help="Test this fault (kdbench faults list); may be repeated; a+b is both at once.",
)
@study_options
@click.option(
    "--margin",
    type=float,
    callback=finite,
    default=0.5,
    show_default=True,
    metavar="POINTS",
    panel=DECISION,
    help="Ignore drops up to this, in percentage points.",
)
@click.option(
    "--simulate",
    type=float,
    callback=finite,
    metavar="SD",
    panel=DECISION,
    help="Train nothing; simulate the test for scores with this spread over seeds, in percentage points.",
)
@JSON_OPTION
@loudness_options
@click.pass_context
def command(
    ctx: click.Context,
    fault_names: tuple[str, ...],
    margin: float,
    simulate: float | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **asked: Any,
) -> int:
    """Decide for each fault whether it lowers the accuracy by more than the margin.

    It trains 3 seeds an arm and adds more (5, 8 or 12) only where these do not decide. A fault is killed (the drop is
    shown), survived (such a drop is excluded), latent (excluded, and an audit reveals the fault), invalid (the fault
    was never reached) or without a verdict. A severe bug is run as a control: if that one is not killed, the command
    says nothing of the others.

    Exit codes: 0 if the controls are as they must be; 1 if not; 2 for bad input; 3 if a trial could not run.
    """
    notes = progress_console(quiet, verbose)
    if simulate is not None:
        _refuse_beside_simulate(named_options(ctx))
    elif not fault_names:
        raise InputError("name at least one fault: --fault NAME (kdbench faults list)")
    elif asked["seeds"] is not None:
        raise InputError("--seeds does nothing here: the seeds are 0 to 2, 4, 7 or 11, as many as it takes")
    else:
        _say_outline(fault_names, asked, notes)
        load_own_files(ctx)
        start_server({asked["threads"]})
    from kdbench.harness import faults
    from kdbench.harness.plan.plan import POSITIVE_CONTROL
    from kdbench.harness.signature import Design
    from kdbench.harness.signature import simulate as simulated

    design = Design(margin_pp=margin)
    if simulate is not None:
        if not simulate > 0:
            raise InputError(f"--simulate {simulate}: the spread must be positive, in percentage points")
        rows = simulated(design, [-margin / simulate, 0, 1, 2, 3, 6], simulate)
        _show_simulation(design, simulate, rows, as_json)
        return 0
    names = [faults.get(name).name for name in fault_names]
    control = faults.get(POSITIVE_CONTROL)
    request = requested(asked, [*dict.fromkeys([*names, POSITIVE_CONTROL])], named_fault=True)
    if request.preset.grid is not None:
        raise InputError("signature runs no grid; put the settings that it chose into the file, and leave [grid] out")
    if all(control.why_not(method) for method in request.preset.methods):
        raise InputError(f"the positive control needs a method with a teacher: {control.why_not('baseline')}")
    return _run(request, design, as_json, notes, verbose)


for _param in command.params:  # asked for, it is refused with the reason
    if isinstance(_param, click.Option) and _param.name == "seeds":
        _param.hidden = True


def _say_outline(fault_names: tuple[str, ...], asked: dict[str, Any], notes: "Console") -> None:
    """Say what the first look will train before PyTorch is imported, which takes seconds."""
    names = ("dataset", "pairs", "methods")
    said = outline(
        asked["preset_name"], **{name: asked[name] for name in names}, seeds="0-2", arms=1 + len({*fault_names})
    )
    first = f"first look: {said}; " if said is not None else ""
    notes.print(escape(f"signature of {', '.join(fault_names)}, {first}loading PyTorch"), style="dim", soft_wrap=True)


def _refuse_beside_simulate(given: dict[str, str]) -> None:
    """Raise InputError for an option of a training, where none is trained."""
    for name, option in given.items():
        if name not in ("simulate", "margin", "as_json", "quiet", "verbose"):
            raise InputError(f"{option} does nothing with --simulate, which trains nothing; leave it out")


def _run(request: "Request", design: "Design", as_json: bool, notes: "Console", verbose: bool) -> int:
    from kdbench.harness.analysis.controls import controls
    from kdbench.harness.analysis.study_table import read_study
    from kdbench.harness.cli.progress import Progress
    from kdbench.harness.signature import run
    from kdbench.harness.study import carry_out, prepare

    failed: list[str] = []

    def train(part: "Request") -> "Trials":
        ready = prepare(part)
        notes.print(f"{len(part.preset.seeds)} seeds an arm: {len(ready.todo)} trials to run, {ready.cost}")
        with Progress(ready, notes, verbose) as progress:

            def tell(key: str, result: "Result | None", epochs: int) -> None:
                progress.on_trial(key, result, epochs)

            failed.extend(carry_out(ready, tell).failed)
        return read_study(ready.folder)

    def told(outcome: "Outcome") -> None:
        notes.print(f"{outcome.arm.fault}, {outcome.arm.method}: {outcome.state}")

    outcomes, study = run(request, design, train, told)
    seen = controls(study)
    again = seen.again if seen is not None else None
    entries = [outcome.as_object() for outcome in outcomes]
    killed = [entry["state"] == "killed" for entry in entries if entry["control"]]
    sound = bool(killed) and all(killed) and again is not None and again.verdict in ("identical", "undecidable")
    if as_json:
        print_json(
            {
                "schema": "kdbench.signature/1",
                "runs": str(study.folder.path),
                "design": {
                    "margin_pp": design.margin_pp,
                    "looks": list(design.looks),
                    "alphas": list(design.alphas),
                    "futility_sd": design.futility_sd,
                },
                "again": asdict(again) if again is not None else None,
                "sound": sound,
                "faults": entries,
            }
        )
    else:
        _show(design, entries, again, sound)
    mirror_or_remark(request.runs, study.folder, stderr())
    if failed:
        return 3
    return 0 if sound else 1


_MEANING = {
    "killed": "its accuracy is lower by more than the margin",
    "latent": "an audit reveals it, and its accuracy is equivalent at the margin",
    "survived": "the accuracy is equivalent, or a drop of the margin and {futility:g} sd is excluded",
    "invalid": "the decision that it replaces was never asked for",
    "no verdict": "nothing was decided with the last number of seeds, or a score is missing",
}


def _show(design: "Design", entries: list[dict[str, Any]], again: "Again | None", sound: bool) -> None:
    from kdbench.harness.cli.tables import Column, note, show_table
    from kdbench.kd.methods import METHODS

    columns = [
        Column("pair", names=True, common=True),
        Column("method", names=True, common=True),
        Column("fault", names=True),
        Column("state"),
        Column("seeds"),
        Column("drop, pp"),
        Column("at most"),
        Column("p by look", drop=1),
        Column("revealed by", wraps=True, drop=2),
    ]
    rows = []
    for e in sorted(entries, key=lambda e: e["control"]):
        last = e["looks"][-1] if e["looks"] else None
        ps = [look["p_exceeds"] for look in e["looks"]]
        rows.append(
            (
                e["pair"],
                METHODS[e["method"]].title,
                e["fault"] + (" (control)" if e["control"] else ""),
                e["state"],
                str(e["seeds"]),
                f"{last['drop_pp']:+.2f}" if last else "",
                f"{last['upper_pp']:+.2f}" if last and last["upper_pp"] is not None else "",
                "  ".join(f"{p:.2g}" if p is not None else "-" for p in ps),
                ", ".join(e["revealed_by"]) or "nothing",
            )
        )
    console = stdout()
    show_table(console, columns, rows)
    for state in dict.fromkeys(e["state"] for e in entries):
        note(console, f"{state}: {_MEANING[state].format(futility=design.futility_sd)}")
    looks = ", ".join(f"{n} at {a:g}" for n, a in zip(design.looks, design.alphas, strict=True))
    note(
        console,
        f"p is one-sided, for a drop above {design.margin_pp:g} pp; looks (seeds) and alphas: {looks}; `at most` is an "
        "upper 95% bound of the drop",
    )
    if again is not None:
        note(console, f"the same seed twice: {escape(again.verdict)}")
    if not sound:
        note(
            console,
            "[bold red]The controls are not as they must be, so this says nothing about the other faults.[/]",
            style="",
            indent=0,
        )


def _show_simulation(design: "Design", sd: float, rows: list[dict[str, Any]], as_json: bool) -> None:
    from kdbench.harness.cli.tables import Column, note, show_table

    if as_json:
        print_json({"schema": "kdbench.signature-simulation/1", "design": asdict(design), "sd_pp": sd, "rows": rows})
        return
    titles = ("drop, pp", "beyond the margin, sd", "killed", "equivalent", "futile", "no verdict", "mean seeds")
    table = []
    for row in rows:
        shares = [f"{row[name]:.1%}" for name in ("killed", "equivalent", "futile", "no verdict")]
        table.append((f"{row['drop_pp']:.2f}", f"{row['beyond_margin_sd']:+.2f}", *shares, f"{row['mean_seeds']:.1f}"))
    console = stdout()
    show_table(console, [Column(title) for title in titles], table)
    note(
        console,
        f"normal scores of sd {sd:g} pp in both arms, margin {design.margin_pp:g} pp, 20,000 experiments a row; the "
        "row at the margin shows the test's size, which is at most the sum of the alphas",
    )
