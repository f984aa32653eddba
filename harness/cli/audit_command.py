"""kdbench audit: hold a training script that knows nothing of kdbench, or our own training, to every audit."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kdbench.harness.cli.audit_config import ConfiguredCommand
from kdbench.harness.cli.audit_output import policy_errors, read_policy
from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION, finite
from kdbench.kd.errors import InputError

_POLICY = {"waive", "select", "ignore", "strict", "format"}
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
@click.option("-m", "--module", is_flag=True, help="SCRIPT is the name of a module, as in python -m.")
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="Optimizer steps to see, counted from the first distillation step; 0: to the end.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    help="End a script in which that step never comes.",
)
@click.option("--max-norm", type=float, callback=finite, help="Gradients are meant to be clipped to this norm.")
@click.option(
    "--clip-scope",
    metavar="global|per_group",
    help="Over all parameters at once (the default), or group by group; with --max-norm.",
)
@click.option(
    "--temperature", type=float, callback=finite, help="The soft targets are meant to be of this temperature."
)
@click.option(
    "--alpha", type=float, callback=finite, help="Meant weight of the distillation term where the labels' is 1 - alpha."
)
@click.option("--kd-weight", type=float, callback=finite, help="Meant weight of the distillation term by itself.")
@click.option(
    "--form",
    metavar="own|decoupled",
    help="The distillation term is meant to have another form than T^2 KL: one of its own, which no audit knows.",
)
@click.option("--student", metavar="NAME", help="Variable or class of the network that is trained.")
@click.option("--teacher", metavar="NAME", help="Variable or class of the network that teaches.")
@click.option("--waive", multiple=True, metavar="ID=REASON", help="Accept a failure, and say why.")
@click.option("--select", multiple=True, metavar="ID,...", help="Report these audits only, by id or name.")
@click.option("--ignore", multiple=True, metavar="ID,...", help="Leave these audits out.")
@click.option("--strict", is_flag=True, help="Warnings count as failures.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "junit", "sarif", "github", "html"]),
    default="text",
    show_default=True,
    help="Of the report. All but text: alone on stdout, the script's own output goes to stderr. html: of --matrix.",
)
@click.option("--baseline", type=click.Path(path_type=Path), help="Accept the failures that stand in this file.")
@click.option("--update-baseline", is_flag=True, help="Write this script's failures into the baseline.")
@click.option(
    "--write-contract",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what was inferred, to be corrected and committed (kdbench.lock).",
)
@click.option(
    "--contract",
    type=click.Path(path_type=Path),
    help="Hold the script to a contract  [default: kdbench.lock beside the script, if it is there]",
)
@click.option(
    "--guard",
    type=click.Choice(["warn", "stop"]),
    help="The script is a real job: report to stderr after --steps and let it run on, or stop it if an audit failed.",
)
@click.option("--list", "list_", is_flag=True, help="As kdbench audits list.")
@click.option("--explain", metavar="ID|NAME", help="As kdbench audits explain.")
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="As kdbench audits show.",
)
@click.option(
    "--variant",
    default="corrected",
    metavar="corrected|bugged",
    help="Without SCRIPT: our own training, right or with each bug of the study.",
)
@click.option(
    "--fault",
    multiple=True,
    metavar="NAME",
    help="Without SCRIPT: our own training with this fault (kdbench faults list).",
)
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
@click.option("--method", multiple=True, metavar="NAME", help="Without SCRIPT: these methods only.")
@click.option("--pair", metavar="TEACHER-STUDENT", help="Without SCRIPT: these networks  [default: the demo's]")
@click.option("--seed", type=int, default=0, help="Without SCRIPT: of our own training.")
@click.option("--matrix", is_flag=True, help="As kdbench audits matrix.")
@click.option("--seeds", metavar="RANGE", default="0-2", show_default=True, help="Of --matrix, as in 0-9.")
@click.option("--zoo-seeds", metavar="RANGE", help="Of --matrix: of the clean zoo  [default: the first three seeds]")
@click.option("--workers", type=click.IntRange(1), help="Of --matrix: processes at a time  [default: usable cores]")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of --matrix: matrix.json, .html and .png go there.",
)
@click.pass_context
def command(
    ctx: click.Context, script: str | None, args: tuple[str, ...], list_: bool, matrix: bool, **options: Any
) -> int:
    """Audit a distillation script as it is, nothing declared: options stand before SCRIPT, its own arguments after it.

    Without SCRIPT our own training is audited, each method for a few steps. Choices for a project stand in
    [tool.kdbench] of its pyproject.toml, by the same names with underscores.

    Exit 0 clean, 1 an audit failed, 2 bad input, 3 could not run, 4 nothing was decided.
    """
    modes = {"--list": list_, "--explain": options["explain"], "--run": options["run_folder"], "--matrix": matrix}
    asked = [mode for mode, value in modes.items() if value]
    if len(asked) > 1 or (asked and script):
        raise InputError(f"{' and '.join([*asked, *([script] if script else [])])} do not go together; ask for one")
    _refuse_others(ctx, asked[0] if asked else None, script)
    if list_ or options["explain"]:
        from kdbench.harness.cli import audit_catalogue

        return audit_catalogue.list_audits() if list_ else audit_catalogue.explain(options["explain"])
    if matrix:
        from kdbench.harness.cli.audit_matrix import run_matrix

        of_matrix = {name: options[name] for name in ("seeds", "zoo_seeds", "workers", "output", "format_")}
        return run_matrix(faults=options["fault"], methods=options["method"], **of_matrix)
    if options["format_"] == "html":
        raise InputError("--format html is of --matrix; an audit is reported as text, json, junit, sarif or github")
    with policy_errors():
        policy = read_policy(options)
        if options["run_folder"]:
            from kdbench.harness.cli.audit_recorded import show_recorded

            return show_recorded(options["run_folder"], policy, options["format_"])
        if script is None:
            from kdbench.harness.cli.audit_ourselves import audit_ourselves

            own = {"variant": options["variant"], "faults": options["fault"], "methods": options["method"]}
            return audit_ourselves(policy, options["format_"], **own, seed=options["seed"], pair=options["pair"])
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
