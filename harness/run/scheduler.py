"""Run the trials of a plan, teachers first; whatever happens to one of them is recorded."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from kdbench.harness.plan.plan import Arm, Plan
from kdbench.harness.records.lease import Lease, take
from kdbench.harness.records.record import (
    FINAL,
    OUT_OF_MEMORY,
    Folder,
    Result,
    StudyFolder,
    first_difference,
    same_machine,
)
from kdbench.harness.records.spec import Spec
from kdbench.harness.run.executors import Engine, LocalProcesses, Running
from kdbench.kd.teacher import file_sha256


def is_done(plan: Plan, study: StudyFolder, key: str) -> bool:
    """Say whether a trial's result is final, and a teacher's weights are there; a student's score outlives its own.

    Weights that are not those of the record are as good as none: the teacher is trained again, and nobody learns from
    what somebody put in its place.
    """
    folder = study.trial(key)
    result = folder.result()
    if result is None or result.status not in FINAL:
        return False
    if result.status == "diverged" or key not in plan.teachers.values():
        return True
    return folder.student.is_file() and not changed_weights(folder, result)


def changed_weights(folder: Folder, result: Result) -> bool:
    """Say whether a teacher's weights are not those that its record has the digest of."""
    noted = result.files.get(folder.student.name)
    if noted is None:
        return False  # of version 0.1
    stat = folder.student.stat()
    return _digest(folder.student, stat.st_mtime_ns, stat.st_size) != noted


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> str:
    """Return a file's SHA-256; worked out once for as long as its time and size stay."""
    return file_sha256(path)


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
    *,
    only: Collection[str] | None = None,
    retries: int = 0,
    engine: Engine | None = None,
    grace: float = 5.0,
) -> Outcome:
    """Run what has no final result yet, `workers` trials at a time, and return what became of all of them.

    `may_start` is asked before a trial starts; once it says no, none is started any more and the rest is left for
    another time. Of a plan that several coordinators share, `only` names the trials that are this one's; of what it
    needs, whoever comes first runs it, and the others wait. A process that dies, or finds no memory, is tried again
    after all others, `retries` times; then it is recorded as failed, and so is a student whose teacher failed. On
    KeyboardInterrupt the running trials are ended and the exception goes on; run again, and what was done is skipped.
    `engine` says where the trials run: in processes here unless given. `grace` is for how many seconds a trial that is
    asked to end may go on, to write its state after the epoch at hand.
    """
    outcome = Outcome()
    waiting: list[str] = []
    ours = set(plan.trials if only is None else only)
    ours |= {need for key in ours for need in plan.needs_all(key)}
    for key, spec in plan.trials.items():
        if is_done(plan, study, key):
            outcome.reused.extend([key] if key in ours else [])
            continue
        study.trial(key).write_spec(spec)  # the others' as well: whoever reads the study finds every trial
        if key in ours:
            waiting.append(key)
    teachers = set(plan.teachers.values())
    waiting.sort(key=lambda key: key not in teachers)  # stable: teachers first, the rest as planned
    engine = engine or LocalProcesses(workers, {plan.trials[key].threads for key in waiting})
    attempts: dict[str, list[str]] = {key: [] for key in waiting}
    work = _Work(plan, study, data_file, on_trial, may_start, retries, engine, outcome, waiting, attempts)
    try:
        while work.running or (waiting and not work.stopping):
            blocked = not work.start_what_can()
            if work.running or (waiting and blocked):  # if blocked, other coordinators are at what we wait for
                engine.wait([process for process, _ in work.running.values()], 0.5 if work.running else 2.0)
            work.look()
    except KeyboardInterrupt as error:
        error.add_note("the same command again keeps what is done")
        work.end_all(grace)
        raise
    finally:
        engine.close()
        for _, lease in work.running.values():
            lease.release()
    return outcome


@dataclass
class _Work:
    """The trials of one call that wait, and those that run."""

    plan: Plan
    study: StudyFolder
    data_file: Path
    on_trial: OnTrial
    may_start: Callable[[str], bool]
    retries: int
    engine: Engine
    outcome: Outcome
    waiting: list[str]
    attempts: dict[str, list[str]]
    "Why earlier attempts at a trial ended."
    running: dict[str, tuple[Running, Lease]] = field(default_factory=dict)
    stopping: bool = False
    "Whether no trial may start any more."

    def start_what_can(self) -> bool:
        """Start what waits and has room, teachers before their students; say whether anything runs, or ran, of it."""
        moved = bool(self.running)
        if any(self.needs_memory(key) for key in self.running):
            return moved
        for key in list(self.waiting) if not self.stopping else ():
            if self.needs_memory(key) and self.running:
                continue
            need = self.plan.needs(key)
            if need in self.outcome.failed or (
                need is not None and _has_no_weights(self.study.trial(need), self.outcome)
            ):
                self.waiting.remove(key)
                self.done(key, _record(self.study.trial(key), f"its teacher, trial {need}, could not be trained"))
            elif self.engine.has_room(len(self.running)) and need not in self.waiting and need not in self.running:
                if not self.may_start(key):
                    self.stopping = True
                    break
                moved = self.start(key) or moved
            if not self.engine.has_room(len(self.running)):
                break
        return moved

    def needs_memory(self, key: str) -> bool:
        """Say whether a trial ran out of memory before: it is then tried again alone."""
        return bool(self.attempts[key]) and self.attempts[key][-1].startswith(OUT_OF_MEMORY)

    def start(self, key: str) -> bool:
        """Start a trial, unless another coordinator is at it or has done it."""
        folder = self.study.trial(key)
        lease = take(folder)
        if lease is None:
            return False
        self.waiting.remove(key)
        if is_done(self.plan, self.study, key):
            lease.release()
            self.outcome.reused.append(key)
            self.on_trial(key, folder.result(), 0)
            return True
        for stale in _OF_AN_ATTEMPT:
            (folder.path / stale).unlink(missing_ok=True)
        try:
            self.running[key] = self.engine.start(folder, self.data_file, lease), lease
        except BaseException:  # else nobody could run it before the lease is stale
            lease.release()
            raise
        return True

    def look(self) -> None:
        """Look at each trial that runs: how far it is, whether it is over, and whether it is still ours."""
        for key, (process, lease) in list(self.running.items()):
            if not lease.beat():  # this coordinator slept for long, and another one runs the trial now
                process.end(hard=True)
                del self.running[key]
                self.waiting.append(key)
            elif not process.is_over():
                self.on_trial(key, None, self.study.trial(key).epochs())
            else:
                del self.running[key]
                self.ended(key, process, lease)

    def ended(self, key: str, process: Running, lease: Lease) -> None:
        """Have a trial that is over tried again, or its result noted."""
        folder, attempts = self.study.trial(key), self.attempts[key]
        result = folder.result() or Result(key, "failed", process.death())
        again = result.status == "failed" and (not result.times or str(result.reason).startswith(OUT_OF_MEMORY))
        if again and len(attempts) < self.retries:
            attempts.append(str(result.reason))
            self.waiting.append(key)
        else:
            if attempts or not result.times:
                result = replace(result, attempts=attempts)
                folder.write_result(result)
            self.done(key, result)
        lease.release()

    def done(self, key: str, result: Result) -> None:
        """Note a trial that is over."""
        (self.outcome.trained if result.status in FINAL else self.outcome.failed).append(key)
        self.on_trial(key, result, 0)

    def end_all(self, grace: float) -> None:
        """End what runs: asked first, and after so many seconds by force."""
        processes = [process for process, _ in self.running.values()]
        for process in processes:
            process.end()
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and not all(process.is_over() for process in processes):
            time.sleep(0.05)
        for process in processes:
            process.end(hard=True)


_OF_AN_ATTEMPT = (*("result.json", "norms.csv", "student.safetensors", "method.safetensors"),)


def _has_no_weights(teacher: Folder, outcome: Outcome) -> bool:
    """Say whether a teacher's trial is over and left nothing to learn from (it diverged)."""
    return teacher.key in (*outcome.trained, *outcome.reused) and not teacher.student.is_file()


def _record(folder: Folder, reason: str) -> Result:
    result = Result(folder.key, "failed", reason)
    folder.write_result(result)
    return result


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
            mine, theirs = study.trial(spec.key).digests(), study.trial(twin.key).digests()
            if spec.device != "cpu" or not same_machine(result, twin):
                story = replace(result.fault, diverged_at="undecidable", dormant=None)
            elif mine and theirs:
                first = first_difference(mine, theirs)
                # A choice among the same weights may differ, and with it the scores.
                untouched = first is None and result.metrics == twin.metrics
                story = replace(result.fault, diverged_at=first, dormant=untouched)
            else:
                continue
            if story != result.fault and (whole := study.trial(spec.key).result()) is not None:
                study.trial(spec.key).write_result(replace(whole, fault=story))
