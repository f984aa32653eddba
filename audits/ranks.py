"""The audit of a training of several processes, as torchrun and accelerate start them.

- Each rank is observed by itself, by the hooks of a script of one process. The store at which the ranks of the training
  meet anyhow carries what is needed besides (observe/ranks.py); no collective is added.
- Optimizer steps are the common clock. The rank that has seen enough proposes a step a little ahead, beyond the next
  backward, which no rank leaves before the proposal is known: all conclude after that step, and end after another one.
- Where no step comes (an evaluation, a crash, a death), all are ended where they are. A rank that is stuck in a
  collective reports from a thread and ends its process, so each wait has a bound.
- Ranks hand their findings, and digests of what they hold and are shown (infer/ranks.py), to rank 0. It compares them
  by audits of their own (checks/ranks.py), merges the findings (report/merge.py), and reports.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from kdbench.audits.checks.among_ranks import PREFIX
from kdbench.audits.finding import Finding, Report
from kdbench.audits.infer.ranks import RankEvidence, RankSeen
from kdbench.audits.observe.ranks import Ranks
from kdbench.audits.report.merge import merged, ranks_in_words
from kdbench.audits.script import Observation, Options, ScriptWatch, Stop
from kdbench.audits.trace import Trace

_STUCK = 3.0
"Seconds in which a process that is told to stop comes out of what it is in, or is taken to be stuck there."
_SPARE = 30.0
"Seconds beyond its own bound that a rank is given to report."


class RankWatch(ScriptWatch):
    """A watch of one process among several."""

    def __init__(self, ranks: Ranks, options: Options, finish: Callable[[ScriptWatch], None]) -> None:
        super().__init__(options, finish)
        self.ranks = ranks
        self._trace.world = ranks.world
        self._total = 0
        "Steps of all optimizers; the same on all ranks between two backwards, but for those of the step at hand."
        self._asked = False
        self._claim = threading.Lock()
        "Held by the thread that reports."
        self._main = threading.get_ident()
        self._out = threading.Event()
        "Whether the script is over."
        self._pipe = os.pipe()
        self._evidence = RankEvidence(
            ranks.rank, self._trace, self._windows.taint, self._inference.known, lambda: self._total
        )
        self.observe(self._evidence)
        self.timers.append(self)  # type: ignore[arg-type]  # it is told by cancel() that the script is over

    def cancel(self) -> None:
        """Take in that the script is over."""
        self._out.set()

    def __enter__(self) -> "RankWatch":
        super().__enter__()
        self._evidence.open(self._stack, self._lasting)
        self._stack.callback(register_optimizer_step_post_hook(self._lasting(self._stepped)).remove)
        for end in self._pipe:
            os.set_blocking(end, False)
        if self._options.guard is None:
            self._heed_the_launcher()
        self.ranks.live(self._halt, self._woken)
        return self

    # -- the end, together

    @property
    def _margin(self) -> int:
        """Steps ahead that lie beyond the next backward, whichever rank asks."""
        return len(self._steps.stepping) + 1

    def _is_enough(self, settled: bool) -> bool:
        if not self.ranks.connect():
            return super()._is_enough(settled)
        left = self._options.steps - self.seen
        if settled and left <= self._margin:
            self.ranks.propose("enough", self._total + max(left, self._margin))
        enough = self.ranks.agreed("enough")
        return enough is not None and self._total >= enough[0]

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._total += 1
        stop = self.ranks.agreed("stop") if self.done is None and self.enough is not None else None
        if stop is not None and self._total >= stop[0]:
            self.done = stop[1]
            self.stop()

    def _again_in_module(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or os.getpid() != self._home or not self.ranks.connect():
            super()._again_in_module(module, args)
            return
        if self.done is None and not self._asked and time.monotonic() > self._until:
            self._asked = True
            self.ranks.propose("stop", self._total + self._margin, self._cut_off)
        if self.done is not None:
            self.again()

    def start_timer(self, seconds: float, why: str) -> None:
        """End all ranks wherever they are when these seconds are over."""
        if self.ranks.connect():
            self.timers.append(_Deadline(seconds, lambda: self.ranks.propose("halt", 0, why)))  # type: ignore[arg-type]
            self.timers[-1].start()
        else:
            super().start_timer(seconds, why)

    def _halt(self, why: str) -> None:
        """Stop the script where it is; where it does not come out, report for it and end the process."""
        if self._out.is_set() or self._options.guard is not None or os.getpid() != self._home:
            return
        self.done = self.done or why
        until = time.monotonic() + _STUCK
        while time.monotonic() < until:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._main), ctypes.py_object(Stop))
            if self._out.wait(0.5):
                return
        self._finish(self)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _heed_the_launcher(self) -> None:
        """Take SIGTERM, by which a launcher ends the others when one process died, for a word to report at once."""
        if threading.current_thread() is not threading.main_thread():
            return

        def ended(number: int, frame: Any) -> None:
            self.ranks.ended_by_launcher = True
            if not self._out.is_set() and self.done is None:
                self.done = "the launcher ended the processes"
                raise Stop

        signal.signal(signal.SIGTERM, ended)  # to the end of the process: the report is still to be made
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False))

    def _woken(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._pipe[0]], [], [], seconds)
        said = b""
        with suppress(OSError):
            said = os.read(self._pipe[0], 64) if ready else b""
        return signal.SIGTERM in said

    # -- one report

    def together(self, seen: Observation, make_report: Callable[[Trace], Report]) -> Observation:
        """Hand what was seen to rank 0; there, return what all ranks saw."""
        if not self._claim.acquire(blocking=False):
            threading.Event().wait()  # another thread reports, and ends the process
        try:
            return self._of_all(seen, make_report)
        finally:
            self.ranks.close(lambda: os.write(self._pipe[1], b"\0"))

    def _of_all(self, seen: Observation, make_report: Callable[[Trace], Report]) -> Observation:
        seen.processes = self.ranks.world
        crashed = seen.error is not None
        if crashed:
            self.ranks.propose("halt", 0, f"rank {self.ranks.rank} crashed")
        mine = _told(seen, self._evidence.seen)
        if self.ranks.rank:
            self.ranks.report(mine)
            return seen
        if not self.ranks.connect():
            seen.trouble = (
                f"RANK and WORLD_SIZE say that this is one of {self.ranks.world} processes, and the script made no "
                "process group over which the others could be heard; unset both if each trains for itself"
            )
            return seen
        others = self.ranks.gather(self._patience, crashed)
        told = {0: mine, **{rank: one for rank, one in others.items() if one is not None}}
        if len(told) == self.ranks.world:
            seen.trace.ranks = [RankSeen.read(told[rank]["evidence"]) for rank in sorted(told)]
            told[0]["findings"] = make_report(seen.trace).to_dicts()
        findings = {rank: [Finding(**f) for f in one["findings"]] for rank, one in told.items()}
        seen.report = merged(findings, self.ranks.world)
        blamed(seen, told, [rank for rank, one in others.items() if one is None])
        return seen

    @property
    def _patience(self) -> float:
        """Seconds after which every other rank has come to its own bound."""
        if self._options.guard is not None:
            return _SPARE
        return (2 * self._options.runs_on if self.enough is not None else self._options.max_seconds) + _SPARE


class _Deadline(threading.Thread):
    """Calls something when so many seconds are over, unless it is called off."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._seconds, self._then, self._over, self._home = seconds, then, threading.Event(), os.getpid()

    def run(self) -> None:
        """Wait, and call it."""
        if not self._over.wait(self._seconds) and os.getpid() == self._home:
            self._then()

    def cancel(self) -> None:
        """Call it off."""
        self._over.set()


def _told(seen: Observation, evidence: RankSeen) -> dict[str, Any]:
    """Return what rank 0 is told of one rank."""
    judged_here = [f for f in seen.report.to_dicts() if not (evidence.rank and f["name"].startswith(PREFIX))]
    return {
        "findings": judged_here,
        "error": seen.error,
        "exit_code": seen.exit_code,
        "at": time.time(),
        "stopped": seen.stopped,
        "afterwards": seen.afterwards,
        "steps": seen.steps,
        "distilled": bool(seen.trace.losses.sights),
        "cut": seen.cut,
        "unobserved": seen.unobserved,
        "evidence": evidence.plain(),
    }


def blamed(seen: Observation, told: Mapping[int, dict[str, Any]], gone: list[int]) -> None:
    """Fill in how the training ended: which rank died or crashed first, which one saw no distillation.

    Where one rank crashes, those that wait for it crash as well; the first one is the cause.
    """
    crashed = [rank for _, rank in sorted((one["at"], rank) for rank, one in told.items() if one["error"] is not None)]
    texts = {rank: str(told[rank]["error"]) for rank in crashed}
    ends = {text.splitlines()[-1] for text in texts.values()}
    seen.error = None
    if gone:
        who = f"rank {gone[0]}" if len(gone) == 1 else f"ranks {', '.join(map(str, gone))}"
        then = f"rank {crashed[0]} then ended with {texts[crashed[0]].splitlines()[-1]}\n" if crashed else ""
        seen.error = f"{then}{who} of {seen.processes} ended without a report: the process died, or was killed"
    elif len(texts) == seen.processes and len(ends) == 1:
        seen.error = texts[crashed[0]]
    elif crashed:
        seen.error = f"rank {crashed[0]} of {seen.processes} crashed first:\n{texts[crashed[0]]}"
    if seen.error is not None and told[0]["stopped"] == "the script crashed":
        seen.stopped = "the script crashed" if len(ends) == 1 and not gone else "another process ended"
    seen.exit_code = next((one["exit_code"] for _, one in sorted(told.items()) if one["exit_code"]), None)
    seen.unobserved = list(dict.fromkeys(child for one in told.values() for child in one["unobserved"]))
    seen.cut = any(one["cut"] for one in told.values())
    without = [rank for rank, one in sorted(told.items()) if not one["distilled"]]
    if without and len(without) < len(told):
        seen.trouble = f"no distillation was seen on {ranks_in_words(without, seen.processes)}"
