"""kdbench audit: hold a training script that knows nothing of kdbench, or our own training, to every audit."""

from pathlib import Path
from typing import Any

import rich_click as click
from click.core import ParameterSource

from kdbench.harness.cli.audit_config import ConfiguredCommand
from kdbench.harness.cli.audit_output import detail, policy_errors, read_policy
from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION
from kdbench.harness.cli.completion import complete_fault, complete_method, one_of
from kdbench.harness.cli.help import OUTPUT, explained
from kdbench.harness.cli.meant_options import meant_options
from kdbench.kd.errors import InputError

SCRIPT = "How the script is run"
FINDINGS, OURS, SHORT = "Which findings count", "Without SCRIPT: our own training", "Short for kdbench audits"
"Groups of options."

_POLICY = {"waive", "select", "ignore", "strict", "format", "quiet", "verbose"}
_FILES = {"fault_files", "method_files", "model_files"}
_OURS = _POLICY | _FILES | {"variant", "fault", "method", "pair", "seed"}
_MATRIX = _FILES | {"fault", "method", "seeds", "zoo_seeds", "output", "format", "workers", "quiet", "verbose"}
_MODES = {"--list": _FILES, "--explain": _FILES, "--run": _POLICY | _FILES, "--matrix": _MATRIX}
"Options that go with what is not the audit of a script."
_OF_MATRIX = ("seeds", "zoo_seeds", "workers", "output", "format_", "quiet", "verbose")


@explained(
    "audit",
    cls=ConfiguredCommand,
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
    examples=[
        ("audit a script as it is, with its own arguments behind it", "kdbench audit train.py --epochs 1"),
        (
            "say what the training means, so that more audits can decide",
            "kdbench audit --temperature 4 --alpha 0.7 --max-norm 1 train.py",
        ),
        ("audit a module, and accept one failure with a reason", "kdbench audit --waive KD205=meant -m mine.train"),
        ("annotate a pull request, and keep a file", "kdbench audit --format github --also sarif=kd.sarif train.py"),
    ],
)
@click.argument("script", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "--module", is_flag=True, panel=SCRIPT, help="SCRIPT is the name of a module, as in python -m.")
@click.option(
    "--launch",
    type=click.IntRange(2),
    metavar="N",
    panel=SCRIPT,
    help="Run SCRIPT in N processes, as torchrun --nproc-per-node N does, and observe them all. SCRIPT may also be a "
    "launcher with its own options: torchrun ... train.py, or accelerate launch ... train.py.",
)
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    metavar="N",
    panel=SCRIPT,
    help="Observe N optimizer steps, counted from the first distillation step; 0 observes all.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    metavar="N",
    panel=SCRIPT,
    help="End a script in which no distillation step comes within N seconds.",
)
@click.option(
    "--run-on",
    type=click.FloatRange(0),
    default=10,
    show_default=True,
    metavar="N",
    panel=SCRIPT,
    help="Then let the script run on for at most N seconds, to see what it saves and scores; 0 ends it at once.",
)
@click.option(
    "--guard",
    type=click.Choice(["warn", "stop"]),
    panel=SCRIPT,
    help="Audit a real job: report to stderr after --steps and let it run on (warn), or stop it if an audit failed "
    "(stop).",
)
@click.option(
    "--no-compile",
    is_flag=True,
    panel=SCRIPT,
    help="Run the script without torch.compile, so that what is compiled is seen too; its last bits may differ.",
)
@meant_options
@click.option(
    "--waive",
    multiple=True,
    metavar="ID=REASON",
    panel=FINDINGS,
    help="Accept a failure of this audit, with a reason; in the script: # kdbench: ignore[ID] REASON.",
)
@click.option(
    "--select",
    multiple=True,
    metavar="ID,...",
    panel=FINDINGS,
    help="Report these audits only: ids, names, or the beginning of ids (KD3).",
)
@click.option("--ignore", multiple=True, metavar="ID,...", panel=FINDINGS, help="Leave out these audits.")
@click.option("--strict", is_flag=True, panel=FINDINGS, help="Count warnings as failures.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    panel=FINDINGS,
    help="Accept the failures that this file lists.",
)
@click.option(
    "--update-baseline", is_flag=True, panel=FINDINGS, help="Write this script's failures into the file of --baseline."
)
@click.option(
    "--contract",
    type=click.Path(path_type=Path),
    metavar="FILE",
    panel=FINDINGS,
    help="Check the script against a contract; by default kdbench.lock beside the script, if it exists.",
)
@click.option(
    "--write-contract",
    type=click.Path(path_type=Path),
    metavar="FILE",
    panel=FINDINGS,
    help="Write what was inferred to a file (kdbench.lock), to correct and commit.",
)
@click.option("-q", "--quiet", is_flag=True, panel=OUTPUT, help="Print failures and the verdict only.")
@click.option(
    "-v", "--verbose", is_flag=True, panel=OUTPUT, help="Print every audit: also those that passed or are undecided."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "junit", "sarif", "github", "html"]),
    default="text",
    show_default=True,
    metavar="FORMAT",
    panel=OUTPUT,
    help="Report as text, json, junit, sarif or github (--matrix also as html). All but text have stdout to "
    "themselves, and the script's own output goes to stderr.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="FORMAT=FILE",
    panel=OUTPUT,
    help="Write the report to a file as well, as sarif=kd.sarif (or json, junit, github); may be repeated.",
)
@click.option(
    "--variant",
    default="corrected",
    metavar="NAME",
    panel=OURS,
    shell_complete=one_of("corrected", "bugged"),
    help="Audit our own training as it is corrected, or with each bug of the study (bugged).",
)
@click.option(
    "--fault",
    multiple=True,
    metavar="NAME",
    panel=OURS,
    shell_complete=complete_fault,
    help="Audit our own training with this fault (kdbench faults list); may be repeated.",
)
@click.option(
    "--method",
    multiple=True,
    metavar="NAME",
    panel=OURS,
    shell_complete=complete_method,
    help="Audit this method only (kdbench methods lists them); may be repeated.",
)
@click.option(
    "--pair", metavar="TEACHER-STUDENT", panel=OURS, help="Train these networks; by default those of the preset quick."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", panel=OURS, help="Train with this seed.")
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
@click.option("--list", "list_", is_flag=True, panel=SHORT, help="The same as kdbench audits list.")
@click.option("--explain", metavar="ID|NAME", panel=SHORT, help="The same as kdbench audits explain.")
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    panel=SHORT,
    help="The same as kdbench audits show.",
)
@click.option(
    "--matrix",
    is_flag=True,
    panel=SHORT,
    help="The same as kdbench audits matrix, whose help explains the options below.",
)
@click.option(
    "--seeds", metavar="RANGE", default="0-2", show_default=True, panel=SHORT, help="Seeds of --matrix, such as 0-9."
)
@click.option("--zoo-seeds", metavar="RANGE", panel=SHORT, help="Seeds of the clean zoo of --matrix.")
@click.option("--workers", type=click.IntRange(1), metavar="N", panel=SHORT, help="Processes of --matrix at a time.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    panel=SHORT,
    help="Folder for the files of --matrix.",
)
@click.pass_context
def command(
    ctx: click.Context, script: str | None, args: tuple[str, ...], list_: bool, matrix: bool, **options: Any
) -> int:
    """Audit a distillation script as it is. Options stand before SCRIPT, and the script's own arguments after it.

    Without SCRIPT, kdbench audits its own training, each method for a few steps. A project keeps its choices in
    [tool.kdbench] of its pyproject.toml, under the names of the options with underscores.

    Exit codes: 0 if the script is clean; 1 if an audit failed; 2 for bad input; 3 if the script could not run; 4 if
    nothing was decided.
    """
    modes = {"--list": list_, "--explain": options["explain"], "--run": options["run_folder"], "--matrix": matrix}
    asked = [mode for mode, value in modes.items() if value]
    if len(asked) > 1 or (asked and script):
        raise InputError(
            f"{' and '.join([*asked, *([script] if script else [])])} do not go together; give one of them"
        )
    _refuse_others(ctx, asked[0] if asked else None, script)
    if list_ or options["explain"]:
        from kdbench.harness.cli import audit_catalogue

        return audit_catalogue.list_audits() if list_ else audit_catalogue.explain(options["explain"])
    if matrix:
        from kdbench.harness.cli.audit_matrix import run_matrix

        of_matrix = {name: options[name] for name in _OF_MATRIX}
        return run_matrix(faults=options["fault"], methods=options["method"], **of_matrix)
    if options["format_"] == "html":
        raise InputError(
            "--format html works with --matrix only; an audit is written as text, json, junit, sarif or github"
        )
    with policy_errors():
        policy = read_policy(options)
        if options["run_folder"]:
            from kdbench.harness.cli.audit_recorded import show_recorded

            return show_recorded(options["run_folder"], policy, options["format_"], detail(options))
        if script is None:
            from kdbench.harness.cli.audit_ourselves import audit_ourselves

            own = {"variant": options["variant"], "faults": options["fault"], "methods": options["method"]}
            more = {"seed": options["seed"], "pair": options["pair"], "detail": detail(options)}
            return audit_ourselves(policy, options["format_"], **own, **more)
        from kdbench.harness.cli.audit_script import audit_script

        return audit_script(ctx, script, args, policy, options)


def _refuse_others(ctx: click.Context, mode: str | None, script: str | None) -> None:
    """Raise InputError for an option on the command line that would do nothing."""
    for param in ctx.command.params:
        name = str(param.name).strip("_")
        given = param.name is not None and ctx.get_parameter_source(param.name) == ParameterSource.COMMANDLINE
        if not given or name in ("script", "args", "list", "explain", "run_folder", "matrix"):
            continue
        if mode is not None:
            if name not in _MODES[mode]:
                raise InputError(f"{param.opts[-1]} does nothing with {mode}; leave it out")
        elif name in _MATRIX - _OURS:
            raise InputError(f"{param.opts[-1]} does nothing without --matrix; leave it out")
        elif script is None and name not in _OURS:
            raise InputError(f"{param.opts[-1]} is for a script, and none was named; write it after the options")
        elif script is not None and name in _OURS - _POLICY:
            raise InputError(f"{param.opts[-1]} is for our own training, without a script; leave it or {script} out")
