"""The audit of a training of several processes: the launcher is started with the audit inside.

`kdbench audit --launch 2 train.py` and `kdbench audit torchrun --nproc-per-node 2 train.py` both become
`torchrun ... -m kdbench audit train.py`, which is also what to write where a job's script calls the launcher. Each rank
then runs the script under observation, and rank 0 reports for all. A launcher gives no exit code of its ranks but 0 and
1, so rank 0 leaves its code in a file whose name it finds in the environment.
"""

import contextlib
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from kdbench.audits.observe.ranks import place
from kdbench.kd.errors import InputError

_CODE = "KDBENCH_EXIT_CODE"
"Names the file for rank 0's exit code."
_TORCHRUN, _ACCELERATE = "torch.distributed.run", "accelerate.commands.launch"
_LAUNCHERS = {
    "torchrun": _TORCHRUN,
    "torch.distributed.run": _TORCHRUN,
    "torch.distributed.launch": _TORCHRUN,
    "accelerate": _ACCELERATE,
    "accelerate.commands.launch": _ACCELERATE,
}
"Modules of launchers, by what they are called by."
_OWN = ("launch", "module")
"Options that are not handed on as they are."
_PATIENCE = 10.0
"Seconds that a launcher which was interrupted is given to end its ranks."


class Launch(NamedTuple):
    """A launcher with its options, and the script that it is to start."""

    words: list[str]
    script: str
    args: list[str]
    module: bool


def launch_of(script: str, args: Sequence[str], module: bool, processes: int | None) -> Launch | None:
    """Return what is to be launched; None where the script is to run in this process."""
    launcher = _LAUNCHERS.get(script if module else Path(script).name)
    if place() is not None:
        if launcher is not None or (processes is not None and _CODE not in os.environ):
            raise InputError(
                "this is one process of a launcher already (RANK and WORLD_SIZE are set); name the script, without "
                "--launch"
            )
        return None
    if launcher is None:
        if processes is None:
            return None
        words = ["-m", _TORCHRUN, "--standalone", "--nproc-per-node", str(processes)]
        return Launch(words, script, list(args), module)
    if processes is not None:
        raise InputError(f"--launch and {Path(script).name} do not go together; give one of them")
    return _behind(launcher, script, list(args))


def _behind(launcher: str, name: str, args: list[str]) -> Launch:
    """Return the launch that a launcher's own command line describes."""
    if launcher == _ACCELERATE:
        if importlib.util.find_spec("accelerate") is None:
            raise InputError(
                f"accelerate is not installed where kdbench runs: {sys.executable} -m pip install accelerate"
            )
        if Path(name).name == "accelerate":
            if args[:1] != ["launch"]:
                raise InputError("of accelerate's commands, kdbench audit stands in front of `accelerate launch` only")
            args = args[1:]
        parser_of = importlib.import_module(_ACCELERATE).launch_command_parser
    else:
        parser_of = importlib.import_module(_TORCHRUN).get_args_parser
    said = parser_of().parse_args(args)
    if getattr(said, "no_python", False):
        raise InputError("--no-python starts a program of its own, which is not observed; name a Python script")
    rest = [said.training_script, *said.training_script_args]
    return Launch(["-m", launcher, *args[: len(args) - len(rest)]], rest[0], rest[1:], bool(said.module))


def run_launch(ctx: click.Context, launch: Launch) -> int:
    """Start the launcher with the audit inside, wait for it, and return rank 0's exit code."""
    own = [] if any(word in ("-m", "--module") for word in launch.words[2:]) else ["-m"]
    options = [*_options_given(ctx), *(["-m"] if launch.module else [])]
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        code = Path(folder) / "code"
        words = [sys.executable, *launch.words, *own, "kdbench", "audit", *options, launch.script, *launch.args]
        sys.stdout.flush()
        running = subprocess.Popen(words, env={**os.environ, _CODE: str(code)})
        try:
            ended = running.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(_PATIENCE)
            running.kill()
            click.echo("interrupted", err=True)
            return 130
        if code.is_file():
            return int(code.read_text(encoding="utf-8"))
    click.echo(
        f"Could not run: the launcher ended with exit code {ended}, and rank 0 gave no report; what it printed stands "
        "above",
        err=True,
    )
    return 2 if ended == 2 else 3


def leave_code(code: int) -> int:
    """Leave an exit code for the process that started the launcher; return what this one is to end with."""
    path = os.environ.get(_CODE)
    if path is None:
        return code
    Path(path).write_text(str(code), encoding="utf-8")
    return 0


def _options_given(ctx: click.Context) -> list[str]:
    """Return the options of the command line as words again."""
    words: list[str] = []
    for param in ctx.command.params:
        name = str(param.name)
        given = ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if not given or not isinstance(param, click.Option) or name in _OWN:
            continue
        value: Any = ctx.params[name]
        opt = max(param.opts, key=len)
        if param.is_flag:
            words.append(opt)
        else:
            words += [word for one in (value if param.multiple else [value]) for word in (opt, str(one))]
    return words
