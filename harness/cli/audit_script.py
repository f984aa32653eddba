"""The audit of a script of somebody's: what is meant is put together, the script is run, what was seen is judged."""

import contextlib
import difflib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import click
from click.core import ParameterSource

# Whatever is needed while the script runs is imported before: its own modules may be called as ours are.
from kdbench.audits import script as engine
from kdbench.audits.checks.all import CATALOGUE, run
from kdbench.audits.finding import Report
from kdbench.audits.infer.players import STORED
from kdbench.audits.observe.ranks import Ranks, place
from kdbench.audits.ranks import RankWatch
from kdbench.audits.report import inline
from kdbench.audits.report.policy import EXIT_CODES, Baseline, Policy
from kdbench.audits.report.render import Audited
from kdbench.audits.script import Observation
from kdbench.audits.trace import KD, Clip
from kdbench.harness.cli.audit_launch import launch_of, leave_code, run_launch
from kdbench.harness.cli.audit_output import detail, files_beside, renderer, stdout_apart
from kdbench.harness.cli.common import stderr, stdout
from kdbench.harness.contract import FILE, Contract, contract_text, read_contract
from kdbench.harness.declarations import spelled
from kdbench.harness.publish import audit_text
from kdbench.kd.errors import InputError

_NOBODY_ELSES = ("--format", "--waive", "--select", "--ignore", "--strict", "--baseline", "--contract", "--guard")
"Options of ours that a training script hardly has."
_VERDICT = 60.0
"Seconds for which the other processes wait for rank 0's verdict, where that may end the job."


@dataclass
class _Judge:
    """Makes a report of what was seen: the user's choices applied, baseline and contract written where asked for."""

    target: str
    policy: Policy
    contract: Contract
    baseline: Baseline
    baseline_file: Path | None
    "As it was named; absolute is what it was when the script began."
    update_baseline: bool
    contract_file: Path | None
    "To be written, as it was named."
    module: bool = False
    "Whether the target is a module's name."
    remarks: list[str] = field(default_factory=list)
    "What else is to be said, in sentences."

    def __post_init__(self) -> None:
        self._home = Path.cwd()
        self._baseline_path = self.baseline_file.absolute() if self.baseline_file is not None else None
        self._contract_path = self.contract_file.absolute() if self.contract_file is not None else None

    def __call__(self, seen: Observation) -> Audited:
        """Return the report."""
        roles = {role: ", ".join(seen.trace.roles.get(role, [])) or None for role in ("student", "teacher")}
        ran = seen.error is None and not seen.exit_code
        distilled = bool(seen.trace.losses.sights) and seen.trouble is None
        raw, in_source = self._waived_in_source(self.policy.apply(seen.report))
        report = self.baseline.apply(raw, self.target)
        verdict = self.policy.verdict(report, ran=ran, distilled=distilled)
        if self._baseline_path is not None:
            gone = self.baseline.gone(raw, self.target) if verdict in ("clean", "failed") else []
            self.remarks.extend(
                f"{name} stands in the baseline and is fixed; --update-baseline takes it out" for name in gone
            )
        if self.update_baseline and self._baseline_path is not None:
            if verdict in ("could-not-run", "undecided"):
                self.remarks.append(f"the baseline was not written: {verdict}")
            else:
                updated = self.baseline.updated(raw, self.target)
                updated.write(self._baseline_path)
                report = updated.apply(raw, self.target)
                verdict = self.policy.verdict(report, ran=ran, distilled=distilled)
                count = len(raw.failed("warn"))
                self.remarks.append(f"{count} failures of {self.target} were written to {self.baseline_file}")
        self.remarks.extend(f"the waiver of {id} is not needed: the audit passes" for id in self.policy.needless(raw))
        self.remarks.extend(_lost_names(self.contract, seen))
        if self._contract_path is not None:
            self._write_contract(self._contract_path, seen)
        return Audited(
            target=self.target,
            report=report,
            verdict=verdict,
            threshold=self.policy.threshold,
            steps=seen.steps,
            student=roles["student"],
            teacher=roles["teacher"],
            projectors=tuple(seen.trace.roles.get("projectors", [])),
            script_error=seen.error,
            script_exit=seen.exit_code,
            unobserved=tuple(seen.unobserved),
            processes=seen.processes,
            undecided_because=seen.trouble,
            waived_in_source=in_source,
        )

    def _waived_in_source(self, report: Report) -> tuple[Report, dict[str, str]]:
        """Apply the comments in the audited code; return the report, and the place of the comment by id."""
        files = _sources(self.target, self.module, self._home, report)
        ignores, told = inline.read(files, self._home)
        script = None if self.module else self.target
        applied, places, idle = inline.apply(report, ignores, script, self._home)
        self.remarks.extend([*told, *idle])
        return applied, places

    def _write_contract(self, path: Path, seen: Observation) -> None:
        if seen.trace.losses.sights:
            path.write_text(contract_text(seen.trace, self.target), encoding="utf-8")
            self.remarks.append(f"the contract was written to {self.contract_file}: correct it and commit it")
        else:
            self.remarks.append("no contract was written: no distillation was seen")


class _Reporter:
    """Prints a report, once; what goes wrong in that is ours, and no reason to stop the user's job."""

    def __init__(
        self, judge: _Judge, format_: str, guard: bool, detail: audit_text.Detail, also: Mapping[Path, str]
    ) -> None:
        self.judge, self.format, self.detail = judge, format_, detail
        self.files = {path.absolute(): renderer(name) for path, name in also.items()}  # a script may change the folder
        self.rendered = renderer(format_)
        self.console, self.notes = stderr() if guard else stdout(), stderr()
        for console in (self.console, self.notes):
            console.file = console.file  # as it is now: a script may put another in its place
        self.write: Callable[[str], None] = lambda text: click.echo(text, err=True)
        self.is_silent = False
        "Whether another process of the training reports."
        self.code: int | None = None
        "Of what was reported; None as long as nothing was."

    def finish(self, seen: Observation) -> int:
        """Report, and return the exit code of it; of several processes, rank 0 does."""
        if self.is_silent:
            self.code = 0
            return 0
        try:
            return self._tell(seen)
        except InputError as error:
            self.notes.print(f"error: {error}", markup=False, soft_wrap=True)
            self.code = 2
            return self.code
        except Exception as error:
            self.notes.print(f"the audit could not be reported: {type(error).__name__}: {error}", markup=False)
            return EXIT_CODES["could-not-run"]

    def _tell(self, seen: Observation) -> int:
        _refuse_unknown_names(seen)
        audited = self.judge(seen)
        self.code = EXIT_CODES[audited.verdict]
        if seen.error:
            self.notes.print(seen.error, markup=False, soft_wrap=True)
            if hint := _hint(seen.error):
                self.notes.print(hint, markup=False, soft_wrap=True)
        for path, rendered in self.files.items():
            path.write_text(rendered(audited) + "\n", encoding="utf-8")
        if self.format == "text":
            audit_text.show_script(self.console, audited, seen, self.judge.remarks, self.detail)
        else:
            self.write(self.rendered(audited))
            for remark in self.judge.remarks:
                self.notes.print(remark, markup=False, soft_wrap=True)
        return self.code


def audit_script(ctx: click.Context, script: str, args: Sequence[str], policy: Policy, options: dict[str, Any]) -> int:
    """Run a script under observation and report; return the exit code, which is the script's own under a guard."""
    launch = launch_of(script, args, options["module"], options["launch"])
    if launch is not None:
        script, args, options = launch.script, launch.args, {**options, "module": launch.module}
    module, guard, format_ = options["module"], options["guard"], options["format_"]
    check_target(script, module)
    _check_selection(policy)
    baseline = _read_baseline(options["baseline"], options["update_baseline"])
    written: Path | None = options["write_contract"]
    if written is not None and written.exists():
        raise InputError(
            f"{written} exists; --write-contract overwrites no corrections: delete it, or name another file"
        )
    contract, remarks = _intent(ctx, script, module, written is None, options)
    for given in dict.fromkeys(arg.partition("=")[0] for arg in args):
        if given in _NOBODY_ELSES:
            remarks.append(f"{given} stands behind {script} and was handed to it; options of kdbench stand before it")
    target = script if module else Path(script).as_posix()
    judge = _Judge(
        target, policy, contract, baseline, options["baseline"], options["update_baseline"], written, module, remarks
    )
    reporter = _Reporter(judge, format_, bool(guard), detail(options), files_beside(options["also"]))
    if launch is not None:
        return run_launch(ctx, launch)
    here = place()
    ranks = Ranks(*here) if here is not None else None
    reporter.is_silent = ranks is not None and ranks.rank > 0
    intent = _options(contract, options)

    def finish(seen: Observation) -> int:
        code = reporter.finish(seen)
        if ranks is not None and guard == "stop":
            if not reporter.is_silent:
                ranks.tell_verdict(code)
            return code if not reporter.is_silent else ranks.verdict(_VERDICT) or 0
        left = code if reporter.is_silent else leave_code(code)
        return code if guard else left

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stdout))  # puts back what the script may replace
        stack.enter_context(contextlib.redirect_stderr(sys.stderr))
        if format_ != "text" and not guard:
            reporter.write = stack.enter_context(stdout_apart())
        try:
            seen = engine.run(
                script,
                args,
                module=module,
                options=intent,
                make_report=lambda trace: spelled(run(trace)),
                finish=finish,
                make_watch=engine.ScriptWatch if ranks is None else partial(RankWatch, ranks),
            )
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            return 130
        early = reporter.code is not None
        code = reporter.code if reporter.code is not None else reporter.finish(seen)
        if ranks is not None and seen.cut and guard is None:
            # A process group that was cut off within a step may wait for ever at its end.
            _leave(code if reporter.is_silent else leave_code(code))
        if early and seen.error:  # the job crashed after it had been looked at
            reporter.notes.print(seen.error, markup=False, soft_wrap=True)
    if guard is not None and not (guard == "stop" and code == 1):
        code = seen.exit_code if seen.exit_code is not None else int(seen.error is not None)
    return code if reporter.is_silent else leave_code(code)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _options(contract: Contract, options: dict[str, Any]) -> engine.Options:
    """Return what the engine is told of how far to look, and of what is meant."""
    scope: Any = contract.clip_scope or "global"
    return engine.Options(
        steps=options["steps"],
        max_seconds=options["max_seconds"],
        runs_on=options["run_on"],
        clip=Clip(contract.max_norm, scope) if contract.max_norm is not None else None,
        kd=KD(
            temperature=contract.temperature,
            alpha=contract.alpha,
            kd_weight=contract.kd_weight,
            form=cast(Any, contract.form),
        ),
        student=contract.student,
        teacher=contract.teacher,
        guard=options["guard"],
        compiles=not options["no_compile"],
    )


def check_target(script: str, module: bool) -> None:
    """Raise InputError where there is no such script or module, with the nearest there is."""
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
) -> tuple[Contract, list[str]]:
    """Return what is declared, and a remark where a contract is held to: command line, contract, project's table."""
    names = [f.name for f in fields(Contract)]
    typed = {n: options[n] for n in names if ctx.get_parameter_source(n) == ParameterSource.COMMANDLINE}
    table = {n: options[n] for n in names if options[n] is not None and n not in typed}
    path, remarks = options["contract"], []
    beside = (Path.cwd() if module else Path(script).parent) / FILE
    if path is None and look and beside.is_file():
        path = beside
    found = read_contract(path) if path is not None else Contract()
    if path is not None:
        remarks.append(f"the script was held to the contract {path}")
    merged: dict[str, Any] = {}
    for layer in (table, {n: getattr(found, n) for n in names if getattr(found, n) is not None}, typed):
        for one, other in (("alpha", "kd_weight"), ("kd_weight", "alpha")):
            if one in layer:
                merged.pop(other, None)
        merged.update(layer)
    contract = Contract(**merged)
    if contract.clip_scope is not None and contract.max_norm is None:
        raise InputError("--clip-scope says what --max-norm applies to; give --max-norm too")
    return contract, remarks


def _check_selection(policy: Policy) -> None:
    """Raise InputError where only property checks are selected: no script gives a finding of theirs."""
    if policy.select and not policy.select & {audit.id for audit in CATALOGUE.values()}:
        raise InputError(
            f"--select {','.join(sorted(policy.select))}: a property check judges a function that you hand to it "
            "(kdbench audits explain ID), and the audit of a script has none; select an audit of kind trace "
            "(kdbench audits list)"
        )


def _sources(target: str, module: bool, folder: Path, report: Report) -> list[str]:
    """Return the files whose comments count: the script, what it imported from its own folders, and what is accused."""
    files = [str(f.where["file"]) for f in report.findings if f.where]
    if module:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(target)
            files += [spec.origin] if spec is not None and spec.origin else []
        homes = [folder]
    else:
        files.insert(0, target)
        homes = [folder, (folder / target).parent.resolve()]
    libraries = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")} | {sys.prefix})
    for loaded in list(sys.modules.values()):
        file = getattr(loaded, "__file__", None)
        if isinstance(file, str) and not file.startswith(libraries):
            files += [file] if any(Path(file).is_relative_to(home) for home in homes) else []
    names: dict[Path, str] = {}
    for file in files:
        path = (folder / file).resolve()
        names.setdefault(path, str(path.relative_to(folder)) if path.is_relative_to(folder) else file)
    if not module:
        names[(folder / target).resolve()] = target
    return list(names.values())


def _refuse_unknown_names(seen: Observation) -> None:
    """Raise InputError for a declared network that the script never had; what crashed may not have come to it."""
    there = seen.trace.names_there
    if seen.error is not None or not there:
        return
    for role, name in seen.trace.not_found.items():
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        others = ", ".join([*near, *(n for n in there if n not in near)])
        raise InputError(
            f"--{role} {name}: no variable or class of this name holds a network in the script; "
            f"{hint}There are: {others}"
        )


def _lost_names(contract: Contract, seen: Observation) -> list[str]:
    """Return a remark for each declared name under which no network was found: its role was inferred after all."""
    remarks = []
    for role, name in (("student", contract.student), ("teacher", contract.teacher)):
        found = seen.trace.roles.get(role, [])
        words = {w for f in found for w in f.replace("(", " ").replace(")", " ").split()}
        if name is not None and name != STORED and not {name, f"self.{name.removeprefix('self.')}"} & words:
            remarks.append(f"no network called {name!r} was seen as {role}: {', '.join(found) or 'none'} was taken")
    return remarks


def _hint(error: str) -> str | None:
    last = error.splitlines()[-1]
    if last.startswith("ModuleNotFoundError: No module named "):
        package = last.rpartition("No module named ")[2].strip("'\"").partition(".")[0]
        return (
            f"install it where kdbench runs: {sys.executable} -m pip install {package} (or whichever package brings it)"
        )
    if last.startswith(("ValueError", "KeyError")) and any(name in last for name in ("RANK", "WORLD_SIZE")):
        return "a launcher tells such a script its place among the processes; have one do so: --launch 2"
    if last.startswith(("SyntaxError", "IndentationError", "TabError", "UnicodeDecodeError")):
        return f"this is not valid Python {sys.version_info.major}.{sys.version_info.minor}, in which kdbench runs it"
    return None


def _read_baseline(path: Path | None, update: bool) -> Baseline:
    if path is None:
        if update:
            raise InputError("--update-baseline writes a file; name it with --baseline FILE")
        return Baseline()
    return Baseline() if update and not path.exists() else Baseline.read(path)
