"""kdbench audit: hold a training script that knows nothing of kdbench, or our own training, to every audit."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kdbench.harness.cli.audit_config import ConfiguredCommand
from kdbench.harness.cli.audit_output import detail, policy_errors, read_policy
from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION, finite
from kdbench.kd.errors import InputError

_POLICY = {"waive", "select", "ignore", "strict", "format", "quiet", "verbose"}
_FILES = {"fault_files", "method_files", "model_files"}
_OURS = _POLICY | _FILES | {"variant", "fault", "method", "pair", "seed"}
_MATRIX = _FILES | {"fault", "method", "seeds", "zoo_seeds", "output", "format", "workers"}
_MODES = {"--list": _FILES, "--explain": _FILES, "--run": _POLICY | _FILES, "--matrix": _MATRIX}
"Options that go with what is not the audit of a script."


@click.command(
    "audit",
    cls=ConfiguredCommand,
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@click.argument("script", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "--module", is_flag=True, help="Take SCRIPT as the name of a module, as in python -m.")
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="Number of optimizer steps to watch, counted from the first distillation step; 0 watches to the end.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    help="Stop the script after so many seconds.",
)
@click.option("--max-norm", type=float, callback=finite, help="The norm to which gradients are meant to be clipped.")
@click.option(
    "--clip-scope",
    metavar="global|per_group",
    help="With --max-norm: whether the norm is that of all parameters together (the default) or of each group.",
)
@click.option(
    "--temperature", type=float, callback=finite, help="The temperature that the soft targets are meant to have."
)
@click.option(
    "--alpha",
    type=float,
    callback=finite,
    help="The weight that the distillation term is meant to have, if the labels have 1 - alpha.",
)
@click.option(
    "--kd-weight",
    type=float,
    callback=finite,
    help="The weight that the distillation term is meant to have, whatever the labels have.",
)
@click.option("--student", metavar="NAME", help="Variable or class of the network that learns.")
@click.option("--teacher", metavar="NAME", help="Variable or class of the network that teaches.")
@click.option(
    "--waive",
    multiple=True,
    metavar="ID=REASON",
    help="Accept a failure and give the reason; in the script: # kdbench: ignore[ID] REASON.",
)
@click.option(
    "--select",
    multiple=True,
    metavar="ID,...",
    help="Report only these audits: ids, names, or the beginning of ids (KD3).",
)
@click.option(
    "--ignore", multiple=True, metavar="ID,...", help="Leave these audits out; ids, names, or the beginning of ids."
)
@click.option("--strict", is_flag=True, help="Count warnings as failures.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures and the verdict only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every audit: also those that passed or are undecided.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "junit", "sarif", "github", "html"]),
    default="text",
    show_default=True,
    help="Format of the report. Other than as text, it is alone on stdout, and the script's output goes to stderr. "
    "html works with --matrix only.",
)
@click.option("--baseline", type=click.Path(path_type=Path), help="Accept the failures that this file lists.")
@click.option("--update-baseline", is_flag=True, help="Write the failures of this script into the baseline file.")
@click.option(
    "--write-contract",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what was inferred to FILE (kdbench.lock), for you to correct and commit.",
)
@click.option(
    "--contract",
    type=click.Path(path_type=Path),
    help="Hold the script to this contract  [default: kdbench.lock beside the script, if it exists]",
)
@click.option(
    "--guard",
    type=click.Choice(["warn", "stop"]),
    help="For a real job: report to stderr after --steps, then let the job run on, or stop it if an audit failed.",
)
@click.option("--list", "list_", is_flag=True, help="Do what kdbench audits list does.")
@click.option("--explain", metavar="ID|NAME", help="Do what kdbench audits explain does.")
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Do what kdbench audits show does.",
)
@click.option(
    "--variant",
    default="corrected",
    metavar="corrected|bugged",
    help="Without SCRIPT: audit our own training as it is, or with each bug of the study.",
)
@click.option(
    "--fault",
    multiple=True,
    metavar="NAME",
    help="Without SCRIPT: audit our own training with this fault (kdbench faults list).",
)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
@click.option("--method", multiple=True, metavar="NAME", help="Without SCRIPT: train these methods only.")
@click.option(
    "--pair", metavar="TEACHER-STUDENT", help="Without SCRIPT: train these networks  [default: those of the demo]"
)
@click.option("--seed", type=int, default=0, help="Without SCRIPT: seed of our own training.")
@click.option("--matrix", is_flag=True, help="Do what kdbench audits matrix does.")
@click.option("--seeds", metavar="RANGE", default="0-2", show_default=True, help="With --matrix: seeds, as in 0-9.")
@click.option(
    "--zoo-seeds", metavar="RANGE", help="With --matrix: seeds of the correct trainings  [default: the first three]"
)
@click.option("--workers", type=click.IntRange(1), help="With --matrix: number of processes  [default: usable cores]")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --matrix: folder for matrix.json, .html and .png.",
)
@click.pass_context
def command(
    ctx: click.Context, script: str | None, args: tuple[str, ...], list_: bool, matrix: bool, **options: Any
) -> int:
    """Run a distillation script and audit it. The script needs no change, and nothing has to be declared.

    Options of kdbench stand before SCRIPT, the script's own arguments after it. Without SCRIPT, kdbench audits its own
    training: each method, for a few steps. A project can set options in [tool.kdbench] of its pyproject.toml, under the
    same names with underscores.

    Exit codes: 0 clean, 1 an audit failed, 2 wrong input, 3 could not run, 4 undecided.
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

        of_matrix = {name: options[name] for name in ("seeds", "zoo_seeds", "workers", "output", "format_")}
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
