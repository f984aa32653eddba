"""Run the trials of a plan, teachers first; whatever happens to one of them is recorded."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.engines import Engine, LocalProcesses, Running
from harness.lease import Lease, take
from harness.plan import Arm, Plan
from harness.record import FINAL, OUT_OF_MEMORY, Folder, Result, StudyFolder
from harness.spec import Spec


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
    *,
    only: Collection[str] | None = None,
    retries: int = 0,
    engine: Engine | None = None,
) -> Outcome:
    """Run what has no final result yet, `workers` trials at a time, and return what became of all of them.

    `may_start` is asked before a trial starts; once it says no, none is started any more and the rest is left for
    another time. Of a plan that several coordinators share, `only` names the trials that are this one's; of what it
    needs, whoever comes first runs it, and the others wait. A process that dies, or finds no memory, is tried again
    after all others, `retries` times; then it is recorded as failed, and so is a student whose teacher failed. On
    KeyboardInterrupt the running trials are ended and the exception goes on; run again, and what was done is skipped.
    `engine` says where the trials run: in processes here unless given.
    """
    outcome = Outcome()
    waiting: list[str] = []
    ours = set(plan.trials if only is None else only)
    ours |= {need for key in ours if (need := plan.needs(key)) is not None}
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
    running: dict[str, tuple[Running, Lease]] = {}
    attempts: dict[str, list[str]] = {key: [] for key in waiting}

    def done(key: str, result: Result) -> None:
        (outcome.trained if result.status in FINAL else outcome.failed).append(key)
        on_trial(key, result, 0)

    def start(key: str) -> bool:
        """Start a trial, unless another coordinator is at it or has done it."""
        folder = study.trial(key)
        lease = take(folder)
        if lease is None:
            return False
        waiting.remove(key)
        if is_done(plan, study, key):
            lease.release()
            outcome.reused.append(key)
            on_trial(key, folder.result(), 0)
            return True
        for stale in _OF_AN_ATTEMPT:
            (folder.path / stale).unlink(missing_ok=True)
        try:
            running[key] = engine.start(folder, data_file, lease), lease
        except BaseException:  # else nobody could run it before the lease is stale
            lease.release()
            raise
        return True

    def ended(key: str, process: Running, lease: Lease) -> None:
        folder = study.trial(key)
        result = folder.result() or Result(key, "failed", process.death())
        again = result.status == "failed" and (not result.times or str(result.reason).startswith(OUT_OF_MEMORY))
        if again and len(attempts[key]) < retries:
            attempts[key].append(str(result.reason))
            waiting.append(key)
        else:
            if attempts[key] or not result.times:
                result = replace(result, attempts=attempts[key])
                folder.write_result(result)
            done(key, result)
        lease.release()

    try:
        stopping = False
        while running or (waiting and not stopping):
            blocked = not running
            for key in list(waiting) if not stopping else ():
                need = plan.needs(key)
                if need in outcome.failed or (need is not None and _has_no_weights(study.trial(need), outcome)):
                    waiting.remove(key)
                    done(key, _record(study.trial(key), f"its teacher, trial {need}, could not be trained"))
                elif engine.has_room(len(running)) and need not in waiting and need not in running:
                    if not may_start(key):
                        stopping = True
                        break
                    blocked = not start(key) and blocked
                if not engine.has_room(len(running)):
                    break
            if running or (waiting and blocked):  # if blocked, other coordinators are at what we wait for
                engine.wait([process for process, _ in running.values()], 0.5 if running else 2.0)
            for key, (process, lease) in list(running.items()):
                if not lease.beat():  # this coordinator slept for long, and another one runs the trial now
                    process.end(hard=True)
                    del running[key]
                    waiting.append(key)
                elif not process.is_over():
                    on_trial(key, None, study.trial(key).epochs())
                else:
                    del running[key]
                    ended(key, process, lease)
    except KeyboardInterrupt:
        for process, _ in running.values():
            process.end()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not all(process.is_over() for process, _ in running.values()):
            time.sleep(0.05)
        for process, _ in running.values():
            process.end(hard=True)
        raise
    finally:
        engine.close()
        for _, lease in running.values():
            lease.release()
    return outcome


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
