"""kdbench audit: hold a training script that knows nothing of kdbench, or our own training, to every audit."""

import atexit
import contextlib
import difflib
import importlib.machinery
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION, finite, print_json, stderr, stdout
from kd.errors import InputError, unknown

if TYPE_CHECKING:
    from audits.report.policy import Baseline, Policy
    from audits.report.render import Audited
    from audits.script import Observation
    from harness.contract import Contract

_LISTS = ("select", "ignore", "waive")
_CONFIG: dict[str, tuple[type, ...]] = {
    "select": (list,),
    "ignore": (list,),
    "waive": (list, dict),
    "strict": (bool,),
    "steps": (int,),
    "max_seconds": (int, float),
    "max_norm": (int, float),
    "clip_scope": (str,),
    "temperature": (int, float),
    "alpha": (int, float),
    "kd_weight": (int, float),
    "student": (str,),
    "teacher": (str,),
    "baseline": (str,),
    "contract": (str,),
    "format": (str,),
}
"Keys of [tool.kdbench], and what may stand there."

_POLICY = {"waive", "select", "ignore", "strict", "format"}
_FILES = {"fault_files", "method_files", "model_files"}
_OURS = _POLICY | _FILES | {"variant", "fault", "method", "pair", "seed"}
_MATRIX = _FILES | {"fault", "method", "seeds", "zoo_seeds", "output", "format", "workers"}
_MODES = {"--list": _FILES, "--explain": _FILES, "--run": _POLICY | _FILES, "--matrix": _MATRIX}
"Options that go with what is not the audit of a script."


def read_config(start: Path) -> dict[str, Any]:
    """Return [tool.kdbench] of the first pyproject.toml from a folder upwards that has one; {} if none has.

    An unknown key or a value of another type is an InputError that names file and key.
    """
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("kdbench")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if table is None:
            continue
        where = f"{path}, [tool.kdbench]"
        for key, value in table.items():
            if key not in _CONFIG:
                raise unknown("key", key, _CONFIG, where)
            kinds = _CONFIG[key]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise InputError(f"{where}: {key} is {value!r}; it must be {' or '.join(_WORDS[k] for k in kinds)}")
        if isinstance(table.get("waive"), dict):
            table["waive"] = [f"{audit}={reason}" for audit, reason in table["waive"].items()]
        for key in _LISTS:
            if not all(isinstance(item, str) for item in table.get(key, [])):
                raise InputError(f"{where}: {key} is {table[key]!r}; it must be a list of texts")
        for key in ("baseline", "contract"):  # a path in a file means beside the file
            if key in table:
                table[key] = str(folder / table[key])
        return dict(table)
    return {}


_WORDS = {
    list: "a list",
    dict: "a table of reasons by id",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


_NOBODY_ELSES = ("--format", "--waive", "--select", "--ignore", "--strict", "--baseline", "--contract", "--guard")
"Options of ours that a training script hardly has."


class ConfiguredCommand(click.Command):
    """A command whose defaults are the project's [tool.kdbench]."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the project's choices before the command line, which wins."""
        ctx.default_map = read_config(Path.cwd())
        return super().parse_args(ctx, args)


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
@click.option("--list", "list_", is_flag=True, help="List the audits.")
@click.option("--explain", metavar="ID|NAME", help="Tell an audit's story, where its fault was seen, and the mend.")
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Show the findings of a recorded trial (runs/STUDY/trials/KEY).",
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
@click.option("--matrix", is_flag=True, help="Every fault against every audit, and correct trainings: minutes.")
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
    if list_:
        return _list()
    if options["explain"]:
        return _explain(options["explain"])
    if matrix:
        return _matrix(options)
    if options["format_"] == "html":
        raise InputError("--format html is of --matrix; an audit is reported as text, json, junit, sarif or github")
    from audits.report.policy import Policy, PolicyError
    from harness.declarations import REMEDIES

    try:
        policy = Policy.parse(options["waive"], options["select"], options["ignore"], options["strict"])
        if options["run_folder"]:
            return _recorded(options["run_folder"], policy, options["format_"])
        if script is None:
            return _ourselves(options, policy)
        return _script(ctx, script, args, policy, options)
    except PolicyError as error:
        raise InputError(f"{error}{REMEDIES[error.remedy] if error.remedy else ''}") from error


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


# -- a script of somebody's


def _script(ctx: click.Context, script: str, args: Sequence[str], policy: "Policy", options: dict[str, Any]) -> int:
    # Whatever is needed while the script runs is imported before: its own modules may be called as ours are.
    from audits import script as engine
    from audits.checks.all import run
    from audits.report.policy import EXIT_CODES
    from audits.report.render import Audited
    from audits.trace import KD, Clip
    from harness.cli import audit_text
    from harness.contract import contract_text
    from harness.declarations import spelled

    module, guard, format_ = options["module"], options["guard"], options["format_"]
    rendered = _renderer(format_)
    _check_target(script, module)
    baseline_path, target = options["baseline"], script if module else Path(script).as_posix()
    baseline = _read_baseline(baseline_path, options["update_baseline"])
    baseline_path = baseline_path.absolute() if baseline_path else None
    written: Path | None = options["write_contract"]
    if written is not None and written.exists():
        raise InputError(
            f"{written} exists; --write-contract overwrites no corrections: delete it, or name another file"
        )
    contract_file = written.absolute() if written is not None else None
    contract, remarks = _intent(ctx, script, module, written is None, options)
    for given in dict.fromkeys(arg.partition("=")[0] for arg in args):
        if given in _NOBODY_ELSES:
            remarks.append(f"{given} behind {script} was handed to it; an option of kdbench's own stands before it")
    scope: Any = contract.clip_scope or "global"
    intent = engine.Options(
        steps=options["steps"],
        max_seconds=options["max_seconds"],
        clip=Clip(contract.max_norm, scope) if contract.max_norm is not None else None,
        kd=KD(temperature=contract.temperature, alpha=contract.alpha, kd_weight=contract.kd_weight),
        student=contract.student,
        teacher=contract.teacher,
        guard=guard,
    )
    console = stderr() if guard else stdout()
    console.file = console.file  # as it is now: a script may put another in its place
    notes = stderr()
    notes.file = notes.file
    reported: list[Audited] = []

    def judge(seen: "Observation") -> Audited:
        roles = {role: ", ".join(seen.trace.roles.get(role, [])) or None for role in ("student", "teacher")}
        raw = policy.apply(seen.report)
        report = baseline.apply(raw, target)
        ran = seen.error is None and not seen.exit_code
        verdict = policy.verdict(report, ran=ran, distilled=bool(seen.trace.losses.sights))
        if baseline_path is not None:
            gone = baseline.gone(raw, target) if verdict in ("clean", "failed") else []
            remarks.extend(f"no longer there: {name} of the baseline; --update-baseline takes it out" for name in gone)
        if options["update_baseline"] and baseline_path is not None:
            if verdict in ("could-not-run", "undecided"):
                remarks.append(f"baseline not written: {verdict}")
            else:
                updated = baseline.updated(raw, target)
                updated.write(baseline_path)
                report = updated.apply(raw, target)
                verdict = policy.verdict(report, ran=ran, distilled=bool(seen.trace.losses.sights))
                remarks.append(f"{len(raw.failed('warn'))} failures of {target} written to {options['baseline']}")
        remarks.extend(f"waiver of {id} is not needed: it passes" for id in policy.needless(raw))
        remarks.extend(_lost_names(contract, seen))
        if contract_file is not None:
            if seen.trace.losses.sights:
                contract_file.write_text(contract_text(seen.trace, target), encoding="utf-8")
                remarks.append(f"contract written to {written}: correct it and commit it")
            else:
                remarks.append("no contract was written: no distillation was seen")
        return Audited(
            target=target,
            report=report,
            verdict=verdict,
            threshold=policy.threshold,
            steps=seen.steps,
            student=roles["student"],
            teacher=roles["teacher"],
            projectors=tuple(seen.trace.roles.get("projectors", [])),
            script_error=seen.error,
            script_exit=seen.exit_code,
            unobserved=tuple(seen.unobserved),
        )

    def tell(seen: "Observation") -> int:
        audited = judge(seen)
        reported.append(audited)
        if seen.error:
            notes.print(seen.error, markup=False, soft_wrap=True)
            if hint := _hint(seen.error):
                notes.print(hint, markup=False, soft_wrap=True)
        if format_ == "text":
            audit_text.show_script(console, audited, seen, remarks)
        else:
            write(rendered(audited))
            for remark in remarks:
                notes.print(remark, markup=False, soft_wrap=True)
        return EXIT_CODES[audited.verdict]

    def finish(seen: "Observation") -> int:
        try:
            return tell(seen)
        except Exception as error:  # ours, and no reason to stop the user's job
            notes.print(f"the audit could not be reported: {type(error).__name__}: {error}", markup=False)
            return EXIT_CODES["could-not-run"]

    write: Callable[[str], None] = lambda text: click.echo(text, err=True)  # noqa: E731
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stdout))  # puts back what the script may replace
        stack.enter_context(contextlib.redirect_stderr(sys.stderr))
        if format_ != "text" and not guard:
            write = stack.enter_context(stdout_apart())
        try:
            seen = engine.run(
                script,
                args,
                module=module,
                options=intent,
                make_report=lambda trace: spelled(run(trace)),
                finish=finish,
            )
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            return 130
        early = bool(reported)
        code = EXIT_CODES[reported[0].verdict] if early else finish(seen)
        if early and seen.error:  # the job crashed after it had been looked at
            notes.print(seen.error, markup=False, soft_wrap=True)
    if guard is None or (guard == "stop" and code == 1):
        return code
    return seen.exit_code if seen.exit_code is not None else int(seen.error is not None)


def _check_target(script: str, module: bool) -> None:
    if module:
        top = script.partition(".")[0]
        if importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *sys.path]) is None:
            raise InputError(
                f"module {top!r} is not found from {Path.cwd()}; go to the folder that holds it, or install it"
            )
        return
    path = Path(script)
    if path.is_dir():
        raise InputError(f"{script} is a folder; name the script in it, or a package with -m")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "name a script, or a module with -m"
        raise InputError(f"{script} does not exist; {hint}")


def _intent(
    ctx: click.Context, script: str, module: bool, look: bool, options: dict[str, Any]
) -> "tuple[Contract, list[str]]":
    """Return what is declared, and a remark where a contract is held to: command line, contract, project's table."""
    from harness.contract import FILE, Contract, read_contract

    names = [f.name for f in fields(Contract)]
    typed = {n: options[n] for n in names if ctx.get_parameter_source(n) == ParameterSource.COMMANDLINE}
    table = {n: options[n] for n in names if options[n] is not None and n not in typed}
    path, remarks = options["contract"], []
    beside = (Path.cwd() if module else Path(script).parent) / FILE
    if path is None and look and beside.is_file():
        path = beside
    found = read_contract(path) if path is not None else Contract()
    if path is not None:
        remarks.append(f"held to the contract {path}")
    merged: dict[str, Any] = {}
    for layer in (table, {n: getattr(found, n) for n in names if getattr(found, n) is not None}, typed):
        for one, other in (("alpha", "kd_weight"), ("kd_weight", "alpha")):
            if one in layer:
                merged.pop(other, None)
        merged.update(layer)
    contract = Contract(**merged)
    if contract.clip_scope is not None and contract.max_norm is None:
        raise InputError("--clip-scope says of what --max-norm is the bound; give --max-norm too")
    return contract, remarks


def _lost_names(contract: "Contract", seen: "Observation") -> list[str]:
    """Return a remark for each declared name under which no network was found: its role was inferred after all."""
    remarks = []
    for role, name in (("student", contract.student), ("teacher", contract.teacher)):
        found = seen.trace.roles.get(role, [])
        words = {w for f in found for w in f.replace("(", " ").replace(")", " ").split()}
        if name is not None and not {name, f"self.{name.removeprefix('self.')}"} & words:
            remarks.append(f"no network called {name!r} was seen as {role}: {', '.join(found) or 'none'} was taken")
    return remarks


def _hint(error: str) -> str | None:
    last = error.splitlines()[-1]
    if last.startswith("ModuleNotFoundError: No module named "):
        package = last.rpartition("No module named ")[2].strip("'\"").partition(".")[0]
        return (
            f"install it where kdbench runs: {sys.executable} -m pip install {package} (or whichever package brings it)"
        )
    if last.startswith(("SyntaxError", "IndentationError", "TabError", "UnicodeDecodeError")):
        return f"this is not valid Python {sys.version_info.major}.{sys.version_info.minor}, in which kdbench runs it"
    return None


def _read_baseline(path: Path | None, update: bool) -> "Baseline":
    from audits.report.policy import Baseline

    if path is None:
        if update:
            raise InputError("--update-baseline writes a file; name it with --baseline FILE")
        return Baseline()
    return Baseline() if update and not path.exists() else Baseline.read(path)


@contextlib.contextmanager
def stdout_apart() -> Iterator[Callable[[str], None]]:
    """Send what is written to stdout, also by child processes, to stderr; yield what writes to the real one."""
    real = sys.stdout
    real.flush()
    kept = os.dup(1)
    os.dup2(2, 1)

    def write(text: str) -> None:
        real.flush()
        os.dup2(kept, 1)
        try:
            real.write(text + "\n")
            real.flush()
        finally:
            os.dup2(2, 1)

    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield write
    finally:
        real.flush()
        os.dup2(kept, 1)
        os.close(kept)
        atexit.register(os.dup2, 2, 1)  # before the exit handlers of the script, which may print too


def _renderer(format_: str) -> "Callable[[Audited], str]":
    from audits.report import render

    forms = {"json": render.to_json, "junit": render.to_junit, "sarif": render.to_sarif, "github": render.to_github}
    return forms.get(format_, render.to_json)


# -- our own


def _ourselves(options: dict[str, Any], policy: "Policy") -> int:
    from audits.finding import sorted_report
    from audits.report.policy import EXIT_CODES
    from audits.report.render import Audited
    from harness import faults
    from harness.canonical import audit_ourselves
    from harness.cli.audit_text import show_ourselves
    from harness.plan import check_method, load_preset, split_pair
    from harness.variants import VARIANTS
    from kd.methods import METHODS

    variant, format_ = options["variant"], options["format_"]
    if variant not in ("corrected", "bugged"):
        raise unknown("variant", variant, ["corrected", "bugged"])
    names = [faults.get(name).name for name in dict.fromkeys(options["fault"])] or VARIANTS[variant]
    methods = list(dict.fromkeys(options["method"])) or list(METHODS)
    for method in methods:
        check_method(method)
    pair = options["pair"] or load_preset("quick").pairs[0]
    teacher, student = split_pair(pair)
    notes = stderr()
    runs = audit_ourselves(methods, names, options["seed"], lambda text: notes.print(text, style="dim"), pair)
    if not runs:
        why = "; ".join(f"{m}: {faults.get(n).why_not(m)}" for n in names if n for m in methods)
        raise InputError(f"the fault named applies to none of the methods asked for ({why})")
    findings = [
        replace(f, observed={"method": run.method, "fault": run.fault.name if run.fault else None, **f.observed})
        for run in runs
        for f in policy.apply(run.report).findings
    ]
    report = sorted_report(findings)
    distilled = any(METHODS[run.method].needs_teacher for run in runs) or not any(
        METHODS[method].needs_teacher for method in methods
    )
    audited = Audited(
        target=_target(names),
        report=report,
        verdict=policy.verdict(report, ran=True, distilled=distilled),
        threshold=policy.threshold,
        steps=max(run.steps for run in runs),
        student=student,
        teacher=teacher if any(METHODS[run.method].needs_teacher for run in runs) else None,
    )
    if format_ == "text":
        show_ourselves(stdout(), runs, audited)
    else:
        click.echo(_renderer(format_)(audited))
    return EXIT_CODES[audited.verdict]


def _target(names: Sequence[str | None]) -> str:
    return ", ".join(name or "canonical" for name in names)


def _recorded(path: Path, policy: "Policy", format_: str) -> int:
    """Show the findings of a recorded trial."""
    from audits.finding import Finding, sorted_report
    from audits.report.policy import EXIT_CODES
    from audits.report.render import Audited
    from harness.cli.audit_text import coverage, show_findings
    from harness.record import Folder

    folder = Folder(path.resolve())
    spec, result = folder.spec(), folder.result()
    if result is None:
        raise InputError(f"{path} is an unfinished trial: it has no result.json yet; the same kdbench run finishes it")
    report = policy.apply(sorted_report([Finding(**f) for f in result.findings]))
    ran = result.status in ("finished", "diverged")
    audited = Audited(
        target=str(path),
        report=report,
        verdict=policy.verdict(report, ran=ran, distilled=True),
        threshold=policy.threshold,
        student=spec.arch,
        teacher=spec.teacher.arch if spec.teacher else None,
        script_error=None if ran else result.reason,
    )
    if format_ == "text":
        console = stdout()
        console.print(coverage(report), soft_wrap=True)
        told = f"{spec.method}, {spec.fault or 'corrected'}, {spec.arch}, seed {spec.seed}: {result.status}"
        console.print(told + (f" ({result.reason})" if result.reason else ""), markup=False, soft_wrap=True)
        show_findings(console, report)
    else:
        click.echo(_renderer(format_)(audited))
    return EXIT_CODES[audited.verdict]


# -- the zoo


def _matrix(options: dict[str, Any]) -> int:
    """Run the matrix; exit 1 if anything in it is not as declared."""
    import json

    from rich.progress import Progress

    from harness import matrix, matrix_page
    from harness.environment import usable_cores
    from harness.faults import FAULTS, get
    from harness.plan import check_method, parse_seeds
    from kd.methods import METHODS

    if options["format_"] in ("junit", "sarif", "github"):
        raise InputError(f"--matrix is printed as text, json or html, not as {options['format_']}")
    chosen = [get(name).name for name in options["fault"]] or list(FAULTS)
    methods = list(options["method"]) or list(METHODS)
    for method in methods:
        check_method(method)
    seeds = parse_seeds(options["seeds"])
    zoo_seeds = parse_seeds(options["zoo_seeds"]) if options["zoo_seeds"] else seeds[:3]
    tasks = matrix.tasks_for(chosen, methods, seeds, zoo_seeds)
    notes = stderr()
    cells = []
    with Progress(console=notes, transient=True) as progress:
        bar = progress.add_task(f"{len(tasks)} trainings", total=len(tasks))
        for cell in matrix.run(tasks, options["workers"] or usable_cores(), lambda word: notes.print(word)):
            cells.append(cell)
            progress.advance(bar)
    found = matrix.summary(cells, methods, seeds)
    if options["output"] is not None:
        folder: Path = options["output"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "matrix.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "matrix.html").write_text(matrix_page.page(found), encoding="utf-8")
        matrix_page.draw(found, folder / "matrix.png")
    if options["format_"] == "json":
        print_json(found)
    elif options["format_"] == "html":
        click.echo(matrix_page.page(found), nl=False)
    else:
        matrix_page.show(stdout(), found)
    return 0 if found["exact"] else 1


# -- the catalogue


def _entries() -> list[tuple[str, str, str, str, str, str]]:
    """Return id, name, severity, kind, story and mend of every audit and law, by id."""
    from audits.checks.all import CATALOGUE
    from audits.laws import LAWS
    from harness.declarations import spelled_mend

    entries = [(a.id, a.name, a.severity, "trace", a.story, spelled_mend(a.id, a.mend)) for a in CATALOGUE.values()]
    entries += [(w.id, w.name, w.severity, "property", w.story, w.mend) for w in LAWS.values()]
    return sorted(entries)


def _list() -> int:
    from rich.table import Table

    table = Table("id", "name", "severity", "kind", "holds that", box=None, pad_edge=False, header_style="bold")
    for id, name, severity, kind, story, _ in _entries():
        table.add_row(id, name, severity, kind, story.splitlines()[0])
    console = stdout()
    console.print(table)
    console.print(
        "\ntrace: read off a training, also a script's. property: a function of yours held to a law (audits.laws)"
    )
    return 0


def _flowing(docstring: str) -> str:
    """Return a docstring with each paragraph in one line, for a console of any width."""
    return "\n\n".join(" ".join(part.split()) for part in docstring.split("\n\n"))


def _explain(word: str) -> int:
    from harness.faults import FAULTS

    entries = _entries()
    found = [entry for entry in entries if word.lower() in (entry[0].lower(), entry[1])]
    if not found:
        raise unknown("audit", word, {part for entry in entries for part in entry[:2]})
    console = stdout()
    for id, name, severity, kind, story, mend in found:
        console.print(f"[bold]{id} {name}[/] ({severity}, {kind})\n")
        console.print(_flowing(story), markup=False)
        console.print(f"\nmend: {mend}", markup=False)
        seen = [fault for _, fault in sorted(FAULTS.items()) if name in fault.caught_by]
        for fault in seen if kind == "trace" else []:
            console.print(f"\nseen as the fault {fault.name}: {_flowing(fault.story)}", markup=False)
        console.print()
    return 0
