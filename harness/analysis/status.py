"""How far a study is, from its records alone."""

from collections import Counter
from typing import Any

from kdbench.harness.analysis.study_table import order, read_study
from kdbench.harness.records.lease import is_held
from kdbench.harness.records.record import FINAL, Folder, Result, StudyFolder
from kdbench.harness.records.spec import Spec


def state_of(folder: Folder, result: Result | None) -> str:
    """Return finished, diverged, failed, interrupted, running or waiting."""
    if result is not None:
        return result.status
    return "running" if is_held(folder) else "waiting"


def progress(study: StudyFolder) -> dict[str, Any]:
    """Return the states of a study's trials, by arm and in all; teachers and controls are arms of their own.

    A trial that no arm, teacher or control asks for any more is superseded: its method, network or fault has changed.
    """
    trials = read_study(study)
    groups: dict[tuple[str, str, str], dict[str, tuple[Spec, Result | None]]] = {}
    specs: dict[str, Spec] = {}
    for arm in sorted(trials.arms, key=order):
        by_seed = trials.arms[arm]
        groups[arm.pair, arm.method, arm.label] = {spec.key: (spec, result) for spec, result in by_seed.values()}
        specs |= {spec.key: spec for spec, _ in by_seed.values()}
    for arm, points in trials.grid.items():
        tried = {spec.key: (spec, result) for one in points for spec, result in one.trials.values()}
        groups[arm.pair, f"{arm.method} (grid)", arm.label] = tried
        specs |= {key: spec for key, (spec, _) in tried.items()}
    ours = {*specs}
    controls = {spec.key for by_seed in trials.controls.values() for spec, _ in by_seed.values()}
    controls |= {folder.key for folder in trials.again or ()}
    specs |= {folder.key: folder.spec() for folder in study.trials() if folder.key not in specs}
    teachers = {t.key for key in (ours | controls) & specs.keys() if (t := specs[key].teacher) is not None}
    for folder in study.trials():  # what belongs to no arm
        if folder.key not in ours:
            spec = specs[folder.key]
            kind = "control" if folder.key in controls else "teacher" if folder.key in teachers else "superseded"
            groups.setdefault((spec.arch, kind, spec.fault or "corrected"), {})[spec.key] = (spec, folder.result())
    counts: Counter[str] = Counter()
    arms, failures, counted = [], [], set()
    for (pair, method, label), members in groups.items():
        states: Counter[str] = Counter()
        running = []
        for key, (spec, result) in members.items():
            folder = study.trial(key)
            state = state_of(folder, result)
            states[state] += 1
            if state == "running":
                running.append({"seed": spec.seed, "epochs": folder.epochs(), "of": spec.recipe.epochs})
            if key in counted:  # a training that several arms share
                continue
            counted.add(key)
            counts["superseded" if method == "superseded" else state] += 1
            if method != "superseded" and result is not None and result.status != "finished":
                failures.append({"key": key, "status": result.status, "reason": result.reason})
        arms.append(
            {
                "pair": pair,
                "method": method,
                "arm": label,
                "trials": len(members),
                "finished": sum(states[state] for state in FINAL),
                "running": running,
                "waiting": states["waiting"],
                "failed": states["failed"] + states["interrupted"],
            }
        )
    return {"study": study.path.name, "counts": dict(counts), "arms": arms, "failures": failures}
