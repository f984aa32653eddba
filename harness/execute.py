"""Run the trials of a plan in local processes, teachers first; whatever happens to one of them is recorded."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness import faults
from harness.plan import Arm, Plan
from harness.record import FINAL, Folder, Result, StudyFolder
from harness.spec import Spec
from harness.trial import run_in_child


def is_done(plan: Plan, study: StudyFolder, key: str) -> bool:
    """Say whether a trial's result is final, and a teacher's weights are there; a student's score outlives its own."""
    result = study.trial(key).result()
    if result is None or result.status not in FINAL:
        return False
    return result.status == "diverged" or key not in plan.teachers.values() or study.trial(key).student.is_file()


@dataclass
class Outcome:
    """What became of a plan's trials, by key."""

    trained: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


OnTrial = Callable[[str, Result | None, int], None]
"""Told of a trial's key with its result when it is done, or with None and the number of its epochs while it runs."""


def execute(
    plan: Plan,
    study: StudyFolder,
    data_file: Path,
    workers: int,
    on_trial: OnTrial,
    may_start: Callable[[str], bool] = lambda key: True,
) -> Outcome:
    """Run what has no final result yet, `workers` trials at a time, and return what became of all of them.

    `may_start` is asked before a trial starts; once it says no, none is started any more and the rest is left for
    another time. A process that dies is recorded as failed, and so is a student whose teacher failed. On
    KeyboardInterrupt the running trials are ended and the exception goes on; run again, and what was done is skipped.
    """
    outcome = Outcome()
    waiting: list[str] = []
    for key, spec in plan.trials.items():
        folder = study.trial(key)
        if is_done(plan, study, key):
            outcome.reused.append(key)
            continue
        folder.write_spec(spec)
        (folder.path / "result.json").unlink(missing_ok=True)
        waiting.append(key)
    teachers = set(plan.teachers.values())
    waiting.sort(key=lambda key: key not in teachers)  # stable: teachers first, the rest as planned

    running: dict[str, BaseProcess] = {}
    context = fresh_processes({plan.trials[key].threads for key in waiting})

    def done(key: str, result: Result) -> None:
        (outcome.trained if result.status in FINAL else outcome.failed).append(key)
        on_trial(key, result, 0)

    try:
        stopping = False
        while running or (waiting and not stopping):
            for key in list(waiting) if not stopping else ():
                need = plan.needs(key)
                if need in outcome.failed or (need is not None and _has_no_weights(study.trial(need), outcome)):
                    waiting.remove(key)
                    done(key, _record(study.trial(key), f"its teacher, trial {need}, could not be trained"))
                elif len(running) < workers and need not in waiting and need not in running:
                    stopping = not may_start(key)
                    if stopping:
                        break
                    waiting.remove(key)
                    running[key] = _start(context, study.trial(key), data_file)
            if running:
                wait([process.sentinel for process in running.values()], timeout=0.5)
            for key, process in list(running.items()):
                if process.is_alive():
                    on_trial(key, None, study.trial(key).epochs())
                    continue
                process.join()
                del running[key]
                done(key, study.trial(key).result() or _record(study.trial(key), _death(process.exitcode)))
    except KeyboardInterrupt:
        for process in running.values():
            process.terminate()
        deadline = time.monotonic() + 5
        for process in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
        raise
    return outcome


def fresh_processes(threads: set[int]) -> multiprocessing.context.BaseContext:
    """Return how processes for trials are started: on Linux forked from a server in which only imports have run.

    The server inherits its environment now, so the size of its OpenMP pools is set before it starts.
    """
    if len(threads) == 1:
        count = str(next(iter(threads)))
        os.environ.update(OMP_NUM_THREADS=count, MKL_NUM_THREADS=count)
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.trial"])
    return context


def _start(context: multiprocessing.context.BaseContext, folder: Folder, data_file: Path) -> BaseProcess:
    for stale in ("curve.jsonl", "norms.csv", "test_curve.jsonl", "student.safetensors", "method.safetensors"):
        (folder.path / stale).unlink(missing_ok=True)
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
        target=run_in_child, args=(str(folder.path), str(data_file), faults.LOADED), daemon=True
    )
    process.start()
    return process


def _has_no_weights(teacher: Folder, outcome: Outcome) -> bool:
    """Say whether a teacher's trial is over and left nothing to learn from (it diverged)."""
    return teacher.key in (*outcome.trained, *outcome.reused) and not teacher.student.is_file()


def _record(folder: Folder, reason: str) -> Result:
    result = Result(folder.key, "failed", reason)
    folder.write_result(result)
    return result


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code} and left no result (log.txt may say why)"


def complete_stories(arms: Mapping[Arm, Mapping[int, tuple[Spec, Result | None]]], study: StudyFolder) -> None:
    """Enter into each bugged trial's record where its weights first differed from its corrected twin's.

    The twin is the trial of the same pair, method and seed without the fault; where it is not there, nothing is said.
    On a device, or between two machines or versions of torch, where equal seeds need not give equal weights, a
    difference proves nothing: undecidable.
    """
    for arm, trials in arms.items():
        twins = arms.get(replace(arm, fault=None), {})
        for seed, (spec, result) in trials.items():
            twin = twins[seed][1] if seed in twins else None
            if arm.fault is None or result is None or result.fault is None or twin is None or twin.status not in FINAL:
                continue
            same = all(result.environment.get(name) == twin.environment.get(name) for name in ("torch", "device_name"))
            mine, theirs = study.trial(spec.key).curve(), study.trial(twin.key).curve()
            if spec.device != "cpu" or not same:
                story = replace(result.fault, diverged_at="undecidable", dormant=None)
            elif mine and theirs:
                pairs = zip(mine, theirs, strict=False)
                first = next((a["epoch"] for a, b in pairs if a["digest"] != b["digest"]), None)
                # A choice among the same weights may differ, and with it the scores.
                untouched = first is None and result.metrics == twin.metrics
                story = replace(result.fault, diverged_at=first, dormant=untouched)
            else:
                continue
            if story != result.fault:
                study.trial(spec.key).write_result(replace(result, fault=story))
