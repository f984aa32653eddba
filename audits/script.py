"""Run a training script that knows nothing of audits, unmodified, under observation.

The hooks are in place before the script's first line, so whatever it imports, and however, it gets what they see. The
script's numbers are its own: no random number is drawn, and with or without observation it ends in the same weights.
"""

import ctypes
import io
import os
import runpy
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.audits.finding import Report
from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.players import STORED
from kdbench.audits.infer.roles import Declared
from kdbench.audits.observe import compiled, hooks
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.saves import Saves
from kdbench.audits.observe.scored import Scored
from kdbench.audits.observe.splits import Loaders
from kdbench.audits.observe.taint import Taint, tensors_in
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import KD, Clip, Declaration, Trace
from kdbench.audits.watch import Watch

_SWALLOWED = 3
"Times that a script may catch what ends it, before the process is ended."
_BURN_IN, _LATER = 20, 50
"Steps, and windows, of which every one is seen, and of how many later ones one is: what began right may be lost."
_WINDOWS = 24
"Windows of the distillation that are looked at: some loops alternate, and labels are counted in them."
_BEFORE, _SEARCHED = 60, 10
"Windows in each of which a distillation is looked for, and of how many later ones one is: a teacher may come first."
_AT_LAST = 1.5
"Times as long until a script that runs on is cut off wherever it is, and not where it asks a network."
_LONG_ENOUGH = 8
"Tokens that tell a row of text from another."


class Stop(BaseException):
    """Ends the script: no Exception, so that the script's own handlers let it through."""


@dataclass(frozen=True)
class Options:
    """What the user said of the script, and how long to look."""

    steps: int = 50
    "Optimizer steps to see, counted from the first distillation step; 0 for all."
    max_seconds: float = 600.0
    runs_on: float = 0.0
    "Seconds that the script may run on after those steps, so that it is seen what it saves and scores at its end."
    clip: Clip | None = None
    kd: KD = field(default_factory=KD)
    student: str | None = None
    teacher: str | None = None
    compiles: bool = True
    "Whether torch.compile compiles; else it leaves things as they are, so that they are seen."
    guard: str | None = None
    "warn or stop: the script is a real job, and runs on when it has been looked at."


@dataclass
class Observation:
    """What came of the run."""

    report: Report
    trace: Trace
    error: str | None = None
    "The script's own traceback, if it crashed."
    exit_code: int | None = None
    stopped: str = "the script ended"
    afterwards: str = ""
    "What became of a script that ran on when the steps asked for had been seen."
    steps: int = 0
    unobserved: list[str] = field(default_factory=list)
    cut: bool = False
    "Whether the script was ended, and did not end by itself."
    processes: int = 1
    "In how many the training ran, all of them observed."
    trouble: str | None = None
    "Why the processes together decided nothing, where that is no single one's finding."


class ScriptWatch(Watch):
    """A watch to which nothing was declared: every optimizer is seen, and the roles are read off the windows."""

    def __init__(self, options: Options, finish: Callable[["ScriptWatch"], None]) -> None:
        trace = Trace(Declaration(clip=options.clip, kd=options.kd), script=True)
        super().__init__(trace, None, _BURN_IN, _LATER, "record", Declared(), windows=_WINDOWS)
        self._options, self._finish = options, finish
        self._inference.players.optimizers = lambda: self._steps.stepping
        self._counted: int | None = None
        self.done: str | None = None
        self._raised = 0
        named = {"student": options.student, "teacher": options.teacher}
        trace.not_found = {role: name for role, name in named.items() if name not in (None, STORED)}
        self.loaders = Loaders()
        self._inference.stored.source = lambda: self.loaders.latest
        self._inference.stored.handed_out = self.loaders.handed_out
        self._saves = Saves(self._networks)
        self._scored = Scored(self._networks, self._saves.kept, self.loaders.taught_another)
        trace.data.kept = self._saves.kept
        self._windows.heeds_answers = True
        self.enough: str | None = None
        "Why the script only runs on for what it saves and scores; None as long as its steps are looked at."
        self._until = float("inf")
        self.timers: list[_Timer] = []

    @property
    def seen(self) -> int:
        """Steps since the first distillation step."""
        return sum(self._steps.counts.values()) - (self._counted or 0) if self._counted is not None else 0

    def _wants_window(self) -> bool:
        if self._trace.broken is not None or self.done is not None or self.let_go:
            return False
        seen, kd = self._trace.losses.windows_seen, len(self._trace.losses.sights)
        if kd and (self._inference.known.settled or kd < self._inference.windows):
            early = kd < self._inference.windows or self.seen < _LATER  # a later phase may lose the term
            return early or self._windows.taint.window % _LATER == 0
        return seen < _BEFORE or self._windows.taint.window % _SEARCHED == 0

    def _on_window(self, raw: RawWindow) -> None:
        if self._options.student or self._options.teacher:
            self._inference.players.declare(self._options.student, self._options.teacher)
        known = self._inference.known
        before, restarts = len(self._trace.losses.sights), known.restarts
        super()._on_window(raw)
        if len(self._trace.losses.sights) > before or known.restarts > restarts:
            sight = self._trace.losses.sights[-1]
            self.loaders.trained_on(sight.student)
            self.loaders.asks_itself |= sight.asked_twice or any(g.is_base for g in known.teachers)
            self._windows.students |= {id(g.module) for g in known.students if g.module is not None}
        if known.settled:
            self._windows.heeds_answers = False
        if known.started and (self._counted is None or known.restarts > restarts):
            self._counted = sum(self._steps.counts.values())
            self._saves.begin()
            self._trace.data.kept = self._saves.kept
            self._scored.begin()

    def _on_shown(self, module: nn.Module, args: Any) -> None:
        first = next(iter(tensors_in(args, 2)), None)
        long_enough = first is not None and (first.is_floating_point() or first[:1].numel() >= _LONG_ENOUGH)
        if first is not None and first.ndim >= 2 and long_enough and is_readable(first):
            words = not first.is_floating_point()
            self.loaders.shown(id(module), row_keys(first), torch.is_grad_enabled(), words)

    def _after_step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        self._windows.stepped()
        self._windows.keep_up()
        self._inference.step(optimizer, params)
        settled = self._inference.known.settled
        if not self._windows.armed and not settled and self._steps.counts[id(optimizer)] == 1:
            self._windows.look()  # a new optimizer: perhaps a new phase
        if self._options.steps and self._is_enough(settled):
            self._run_on(f"{self._options.steps} steps of distillation were seen")

    def _is_enough(self, settled: bool) -> bool:
        """Say whether the steps asked for were seen."""
        return self.seen >= self._options.steps and settled

    def together(self, seen: Observation, make_report: Callable[[Trace], Report]) -> Observation:
        """Return what was seen of the whole training; here this process is all there is of it."""
        return seen

    def observe(self, observer: Observer) -> Taint:
        """Tell an observer of each window of the distillation; return the table of what tensors are made of."""
        self._inference.add(observer)
        return self._windows.taint

    def end(self, why: str) -> None:
        """End the script here: it was seen for long enough."""
        self._end(why)

    def _run_on(self, why: str) -> None:
        """Draw the conclusions of the steps, and leave the script to itself for a while, but for what it keeps."""
        if self._options.guard or not self._options.runs_on:
            self._end(why)
            return
        self._conclude()
        self.enough, self.let_go = why, True
        self._windows.disarm()
        seconds = self._options.runs_on
        self._until = time.monotonic() + seconds
        self.start_timer(_AT_LAST * seconds, self._cut_off)

    @property
    def _cut_off(self) -> str:
        return f"it was cut off {self._options.runs_on:g} seconds later"

    def start_timer(self, seconds: float, why: str) -> None:
        """End the script wherever it is when these seconds are over."""
        self.timers.append(_Timer(seconds, why, self))
        self.timers[-1].start()

    def _end(self, why: str) -> None:
        if self.done is None:
            self.done = why
            if self._options.guard:
                self._let_go()
                return
        if not self._options.guard:
            self.stop()

    def _let_go(self) -> None:
        """Report, and leave the job to itself; or end it, if that was asked for and an audit failed.

        The hooks themselves go at the next backward: torch is going through a table of them just now.
        """
        self._finish(self)
        self.let_go = True
        self._windows.disarm()

    def _wrap_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            if self.let_go and self._options.guard:
                self.close()
            return original(*args, **kwargs)

        return backward

    def stop(self) -> None:
        """End the script, again if it caught the exception and went on; at last, the process."""
        self._raised += 1
        if self._raised > _SWALLOWED:
            sys.stdout.flush()
            sys.stderr.flush()
            self._finish(self)
            os._exit(0)  # not reached where `finish` ends the process with a code of its own
        raise Stop

    def again(self) -> None:
        """Raise again where the script swallowed the first one."""
        if self.done is not None and not self._options.guard:
            self.stop()

    def __enter__(self) -> "ScriptWatch":
        super().__enter__()
        self._stack.enter_context(hooks.patched(torch.autograd, "backward", self._wrap_backward))
        self._forward_hook.remove()
        self._loads.open()
        self._stack.callback(self._loads.close)
        self._stack.enter_context(self.loaders.watching())
        self._saves.open(self._stack, self._lasting)
        self._scored.open(self._stack, self._lasting)
        self._inference.features.hookups.open(self._stack)
        self._stack.enter_context(compiled.watching(self._note_compiled, self._options.compiles))
        adopt = self._guarded(lambda optimizer, *args, **kwargs: self._steps.adopt(optimizer))
        self._stack.enter_context(hooks.around(torch.optim.Optimizer, "__init__", adopt))
        self._stack.callback(nn.modules.module.register_module_forward_pre_hook(self._again_in_module).remove)
        return self

    def _lasting(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Guard a hook that is heard as well while the script runs on."""
        return self._guarded(hook, lasting=True)

    def _note_compiled(self) -> None:
        self._trace.compiled = True

    def _again_in_module(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or os.getpid() != self._home:
            return
        if self.done is None and time.monotonic() > self._until:
            self.done = self._cut_off
        if self.done is not None:
            self.again()

    def _networks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Return the students and the teachers of the distillation, as far as they are modules."""
        known = self._inference.known
        students, teachers = (
            [g.module for g in groups if g.module is not None] for groups in (known.students, known.teachers)
        )
        return students, teachers

    def conclude(self, whole: bool) -> None:
        """Draw the conclusions of what was seen; `whole` says that the script ran to its own end."""
        self._saves.kept.whole = whole
        if self.enough is None:
            self._conclude()
        data = self._trace.data
        found = self._lasting(self.loaders.overlap)(whole) or (
            self._lasting(self.loaders.overlap_of_rows)() if whole else None
        )
        data.split_overlap, data.split_where = (found[:4], found.where) if found is not None else (None, None)


def run(
    target: str,
    args: Sequence[str] = (),
    *,
    module: bool = False,
    options: Options | None = None,
    make_report: Callable[[Trace], Report],
    finish: Callable[[Observation], int] | None = None,
    within: Callable[[ScriptWatch], AbstractContextManager[Any]] | None = None,
    make_watch: Callable[[Options, Callable[[ScriptWatch], None]], ScriptWatch] = ScriptWatch,
) -> Observation:
    """Run a script (or, with `module`, a module) as ``__main__`` under observation, and say what was seen.

    `finish` is called with the observation where the script could not be ended politely, or, on guard, while it still
    runs: it reports, and returns the exit code. `within` returns a context that the script runs in: it is entered when
    the hooks are in place. `make_watch` makes another watch than that of one process. A script that is not there is the
    caller's to refuse.
    """
    options = options or Options()
    unobserved: list[str] = []
    state: dict[str, Any] = {}

    def observe(watch: ScriptWatch) -> Observation:
        watch.conclude(watch.done is None and "error" not in state)
        trace, ended = watch.trace, watch.done or "the script ended"
        seen = Observation(
            make_report(trace),
            trace,
            # What goes wrong when the steps have been seen is the script's own affair, and no reason to leave them
            # unjudged.
            state.get("error") if not watch.enough else None,
            state.get("exit") if not watch.enough else None,
            watch.enough or ended,
            _afterwards(watch.done, state.get("error")) if watch.enough else "",
            watch.seen,
            unobserved,
            watch.done is not None and "error" not in state,
        )
        return watch.together(seen, make_report)

    def finish_early(watch: ScriptWatch) -> None:
        result = observe(watch)
        state["reported"] = result
        if finish is not None:
            code = finish(result)
            if options.guard is None or (options.guard == "stop" and code == 1):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    watch = make_watch(options, finish_early)
    with _as_main(target, args, module), _noting_children(unobserved), watch:
        if not options.guard:
            watch.start_timer(options.max_seconds, f"{options.max_seconds:g} seconds were over")
        try:
            with within(watch) if within is not None else nullcontext():
                _run_as_main(target, module, watch, state)
        except Stop:  # it came late, when the script had ended
            pass
        finally:
            for timer in watch.timers:
                timer.cancel()
            watch.done = watch.done or ("the script crashed" if "error" in state else None)
            # From here on the script's own exit handlers may run modules: they are let run.
            done, watch.done = watch.done, None
    watch.done = done
    seen: Observation | None = state.get("reported")
    if seen is None:
        return observe(watch)
    seen.error, seen.exit_code = state.get("error"), state.get("exit")
    return seen


def _afterwards(done: str | None, error: str | None) -> str:
    """Return what became of a script that ran on when its steps had been seen."""
    if error is not None:
        return f"afterwards it crashed: {error.splitlines()[-1]}"
    return done or "it ran on to its end"


def _run_as_main(target: str, module: bool, watch: ScriptWatch, state: dict[str, Any]) -> None:
    """Run the script to its end, and note in `state` with what exit code or error of its own it ended."""
    try:
        if module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except Stop:
        pass
    except SystemExit as error:
        state["exit"] = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if not isinstance(error.code, int | None):
            state["error"] = str(error.code)
    except KeyboardInterrupt:
        if watch.done is None:
            raise
    except BaseException as error:
        for timer in watch.timers:
            timer.cancel()
        state["error"] = _own_traceback(error)


class _Timer(threading.Thread):
    """Ends a script in which the distillation never comes, or that runs on for too long after it."""

    def __init__(self, seconds: float, why: str, watch: ScriptWatch) -> None:
        super().__init__(daemon=True)
        self._seconds, self._why, self._watch = seconds, why, watch
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._home = os.getpid()

    def run(self) -> None:
        """Wait, and raise in the main thread."""
        if self._over.wait(self._seconds) or os.getpid() != self._home:
            return
        self._watch.done = self._why
        for _ in range(5):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._main), ctypes.py_object(Stop))
            if self._over.wait(5):
                return

    def cancel(self) -> None:
        """Call it off."""
        self._over.set()


@contextmanager
def _as_main(target: str, args: Sequence[str], module: bool) -> Iterator[None]:
    """Make the process look as Python makes it for a script: arguments and path."""
    argv, path = sys.argv[:], sys.path[:]
    sys.argv = [target, *args]
    own_folder = str(Path(argv[0]).resolve().parent) if argv and argv[0] else None
    sys.path[:] = [p for p in path if p != own_folder]
    sys.path.insert(0, str(Path.cwd()) if module else str(Path(target).resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


@contextmanager
def _noting_children(found: list[str]) -> Iterator[None]:
    """Note the processes that the script starts, but for the workers of loaders: what they train is not seen."""
    home = os.getpid()

    def wrap_start(original: Any) -> Any:
        def start(process: Any, *args: Any, **kwargs: Any) -> Any:
            target = getattr(process, "_target", None)
            name = getattr(target, "__qualname__", type(process).__name__)
            if os.getpid() == home and not getattr(target, "__module__", "").startswith("torch.utils.data"):
                found.append(f"process of {name}")
            return original(process, *args, **kwargs)

        return start

    def wrap_popen(original: Any) -> Any:
        def init(self: Any, args: Any, *rest: Any, **kwargs: Any) -> Any:
            words = args.split() if isinstance(args, str) else [str(a) for a in args]
            if os.getpid() == home and any("python" in w or w.endswith(".py") or "torchrun" in w for w in words[:3]):
                found.append(" ".join(Path(w).name if i == 0 else w for i, w in enumerate(words[:4])))
            return original(self, args, *rest, **kwargs)

        return init

    with hooks.patched(BaseProcess, "start", wrap_start), hooks.patched(subprocess.Popen, "__init__", wrap_popen):
        yield


def _own_traceback(error: BaseException) -> str:
    """Return the traceback from the script's first frame on."""
    here = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    kept = [f for f in frames if not f.filename.startswith(here) and not f.filename.startswith("<frozen runpy")]
    text = io.StringIO()
    if kept:
        text.write("Traceback (most recent call last):\n")
        text.writelines(traceback.format_list(kept))
    text.writelines(traceback.format_exception_only(error))
    return text.getvalue().rstrip()
