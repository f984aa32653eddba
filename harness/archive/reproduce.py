"""A packed study trained anew and held against its record, trial by trial.

ready = prepare(bundle, ...)        # everything checked, nothing written but the data cache
outcome = carry_out(ready, tell)    # kdbench.harness.study's: trials run, tables written
found = compared(bundle, ready, outcome)    # the kdbench.reproduce/1 object
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from kdbench.harness.analysis import compare
from kdbench.harness.analysis.arms import summary
from kdbench.harness.analysis.study_table import Trials, only, read_study
from kdbench.harness.archive.bundle import Bundle, counted, noted, plain
from kdbench.harness.plan.plan import Arm, Controls, Plan
from kdbench.harness.plan.preset import Preset
from kdbench.harness.records.environment import environment, installed, method_digest, usable_cores
from kdbench.harness.records.record import FINAL, WEIGHTS, Folder, Result, StudyFolder, repeat_of
from kdbench.harness.records.spec import Spec
from kdbench.harness.run.cost import estimate
from kdbench.harness.run.scheduler import Outcome, is_done
from kdbench.harness.study import Ready, share_cores
from kdbench.kd import NUMERICS
from kdbench.kd.data import cache_folder, load_file, size_in
from kdbench.kd.data import prepare as prepare_data
from kdbench.kd.errors import InputError, unknown

Verdict = Literal["identical", "same scores", "different", "no record", "could not run"]
"""Of a trial: the same weights in each epoch and the same record; other bits, and the same scores and verdicts of the
audits; other ones; packed without a final result; failed here.
"""

# What decides the bits on a CPU, beside the spec; what decides the findings as well.
_NUMBERS = ("torch", "device_name", "instructions", "code_digest", "method_digest")
_FINDINGS = ("audits_digest", "python")
_VERSIONS = ("platform", "torchvision", "numpy", "kdbench")


def prepare(
    bundle: Bundle,
    data_root: Path | None,
    runs: Path,
    workers: int | None,
    only: Sequence[str] = (),
    count: int | None = None,
) -> Ready:
    """Check that the study can be trained here, and lay it out, or a part of it with its teachers.

    `only` are beginnings of keys, `count` is a number of trials. Other images than the packed study's are an
    InputError, as is code whose numerics are of another version.
    """
    specs = counted(bundle.study)
    device, *others = sorted({spec.device for spec in specs.values()})
    if others:
        raise InputError(f"{bundle.name} has trials of {device} and of {others[0]}, which no study has")
    threads = max(spec.threads for spec in specs.values())
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{bundle.name} was trained on CUDA, and torch sees no CUDA device here")
    if odd := {spec.numerics for spec in specs.values()} - {NUMERICS}:
        raise InputError(
            f"{bundle.name} was trained by numerics {min(odd)}, and this kdbench trains by {NUMERICS}: every number "
            f"would differ. Use the code that it was trained with, commit {noted(bundle.environment, 'git_commit')}"
        )
    keys = _chosen(specs, only, count)
    plan = _plan(bundle, specs, keys)
    name, digest = bundle.data
    if name.startswith("folder-") and data_root is None:
        raise InputError(f"the images of {name} are not in the archive; say where they lie: --data DIR")
    kind = "folder" if name.startswith("folder-") else name
    data_file = prepare_data(kind, data_root, cache_folder(), size_in(name))
    data = load_file(data_file)
    if data.digest != digest:
        raise InputError(
            f"the images here are not those of {bundle.name}: their digest is {data.digest[:16]}, not {digest[:16]}; "
            f"nothing was trained. Use the same files of {name}"
            + (", decoded by the same Pillow" if name.startswith("folder-") else "")
        )
    workers = share_cores(workers, threads, usable_cores()) if device == "cpu" else workers or 1
    folder = StudyFolder(runs / plan.study)
    for key, spec in plan.trials.items():
        _forget_another(folder.trial(key), environment(torch.device(device), spec.method))
    todo = [key for key in plan.trials if not is_done(plan, folder, key)]
    cost = estimate(plan, todo, len(data.test_ids), workers, torch.device(device), data.size)
    brought = next(iter(sorted((bundle.study.folder.path / "weights").glob("*"))), None)
    weights = (brought, brought.stem) if brought is not None else None
    return Ready(plan, todo, cost, data, data_file, folder, device, workers, weights, retries=1)


def _chosen(specs: Mapping[str, Spec], only: Sequence[str], count: int | None) -> set[str]:
    """Return the keys that were asked for, and those of their teachers."""
    teachers = {spec.teacher.key for spec in specs.values() if spec.teacher is not None} & specs.keys()
    keys = set(specs)
    if only:
        keys = {key for key in specs for word in only if key.startswith(word)}
        if missing := [word for word in only if not any(key.startswith(word) for key in specs)]:
            raise unknown("trial", missing[0], specs)
    elif count is not None:  # keys are digests: their order is nobody's choice
        keys = set(sorted(key for key in specs if key not in teachers and specs[key].key == key)[:count])
    nearest = keys
    while nearest:  # an assistant has a teacher of its own
        nearest = {t.key for key in nearest if (t := specs[key].teacher) is not None and t.key in specs} - keys
        keys |= nearest
    return keys


def _plan(bundle: Bundle, specs: Mapping[str, Spec], keys: Collection[str]) -> Plan:
    """Return the packed study's plan, or the part of it with these keys; a part has no controls."""
    study = bundle.study

    def kept(trials: Mapping[int, tuple[Spec, Result | None]]) -> dict[int, str]:
        return {seed: spec.key for seed, (spec, _) in trials.items() if spec.key in keys}

    arms = {arm: by_seed for arm, trials in study.arms.items() if (by_seed := kept(trials))}
    some = next(specs[key] for key in sorted(keys))
    preset = Preset(
        f"{bundle.name}-reproduced",
        some.dataset,
        tuple(sorted({arm.pair for arm in arms})),
        tuple(sorted({arm.method for arm in arms})),
        tuple(sorted({seed for by_seed in arms.values() for seed in by_seed})),
        study.decision,
        some.recipe,
        {},
        {},
        {},
    )
    plan = Plan(preset.name, preset, {key: specs[key] for key in sorted(keys)}, arms)
    for arm, points in study.grid.items() if set(keys) == specs.keys() else ():
        plan.grid[arm] = [(tried.point, kept(tried.trials)) for tried in points]
    for key in sorted({spec.teacher.key for spec in plan.trials.values() if spec.teacher is not None} & set(keys)):
        plan.teachers[specs[key].network, specs[key].fault] = key
    if set(keys) == specs.keys() and study.again is not None:
        first, again = study.again[0].key, repeat_of(study.again[0].key)
        plan.trials[again] = specs[first]
        positive = next((arm for arm in study.controls if arm.fault is not None), None)
        of = {arm.fault: kept(trials) for arm, trials in study.controls.items()}
        bugged = of[positive.fault] if positive is not None else {}
        plan.controls = Controls((first, again), positive, bugged, of.get(None, {}))
    return plan


def _forget_another(folder: Folder, here: Mapping[str, Any]) -> None:
    """Have a trial run again that an earlier call trained with other code or elsewhere."""
    result = folder.result()
    if result is not None and any(result.environment.get(name) != here[name] for name in (*_NUMBERS, *_FINDINGS)):
        (folder.path / "result.json").unlink()


# -- held against the record


def compared(bundle: Bundle, ready: Ready, outcome: Outcome) -> dict[str, Any]:
    """Return the kdbench.reproduce/1 object."""
    plan = ready.plan
    teachers = set(plan.teachers.values())
    rows = [
        {
            "key": key,
            "arch": spec.arch,
            "method": "teacher" if key in teachers else spec.method,
            "fault": spec.fault,
            "seed": spec.seed,
            **_held(bundle.study.folder.trial(key), ready.folder.trial(key), spec),
        }
        for key, spec in sorted(plan.trials.items())
    ]
    whole = plan.trials.keys() >= counted(bundle.study).keys()
    verdicts = _verdicts(bundle.study, only(read_study(ready.folder), plan.arms)) if whole else []
    return {
        "schema": "kdbench.reproduce/1",
        "study": bundle.name,
        "runs": str(ready.folder.path),
        "data": {"name": bundle.data[0], "digest": bundle.data[1]},
        "environment": environment_differences(bundle, ready.device),
        "whole": whole,
        "trained": len(outcome.trained),
        "reused": len(outcome.reused),
        "failed": len(outcome.failed),
        "trials": rows,
        "verdicts": verdicts,
        "identical": {row["verdict"] for row in rows} - {"no record"} == {"identical"},
        "as_promised": not any(row["broken"] for row in rows),
    }


def exit_code(found: Mapping[str, Any]) -> int:
    """Return 3 if a trial could not run, 1 if something differs that was promised to be the same, else 0."""
    if found["failed"]:
        return 3
    return 0 if found["as_promised"] else 1


def environment_differences(bundle: Bundle, device: str) -> list[dict[str, Any]]:
    """Return what the trials ran on, and the lock's versions, where they are others here; sorted by name."""
    here, ran = environment(torch.device(device)), bundle.environment["trials"]
    names = [name for name in here if name in (*_VERSIONS, *_NUMBERS, *_FINDINGS)]
    now: dict[str, Any] = {**installed(), **{name: here[name] for name in names}}
    then = {
        **{name: [version] for name, version in bundle.environment["here"]["packages"].items()},
        **{name: ran.get(name, []) for name in names},
    }
    found = [
        {"name": name, "packed": ", ".join(map(str, then.get(name, ()))) or None, "here": now.get(name)}
        for name in sorted(now.keys() | then.keys())
        if then.get(name, []) != [now.get(name)]
    ]
    methods = {spec.method for spec in counted(bundle.study).values()}
    packed, ours = {*ran.get("method_digest", ())}, {method_digest(method) for method in methods}
    if packed and packed != ours:  # an earlier version's code_digest is of the methods too
        words = [", ".join(sorted(map(str, some))) or None for some in (packed - ours, ours - packed)]
        found.append({"name": "method_digest", "packed": words[0], "here": words[1]})
    return sorted(found, key=lambda row: str(row["name"]))


def _held(packed: Folder, here: Folder, spec: Spec) -> dict[str, Any]:
    """Hold a trial against its packed record."""
    then, now = (packed.result() if (packed.path / "spec.json").is_file() else None), here.result()
    accuracies = [r.metrics.test_accuracy if r is not None and r.metrics else None for r in (then, now)]
    row: dict[str, Any] = {
        "verdict": "identical",
        "test_accuracy": accuracies,
        "difference_pp": None if None in accuracies else accuracies[1] - accuracies[0],  # type: ignore[operator]
        "weights_differ_from": None,
        "differs": [],
        "promised": False,
        "broken": False,
    }
    if now is None or now.status not in FINAL:
        return {**row, "verdict": "could not run", "differs": [now.reason or now.status] if now is not None else []}
    if then is None or then.status not in FINAL:
        return {**row, "verdict": "no record"}
    epoch, course = _course(packed, here)
    scores = [name for name, a, b in _pairs(_scores(then), _scores(now)) if a != b]
    stories = [r.fault.diverged_at if r.fault is not None else None for r in (then, now)]
    if None not in stories and stories[0] != stories[1]:  # unknown where the corrected twin was not trained as well
        scores.append("diverged_at")
    verdicts, details = _findings(then, now)
    if scores or verdicts:
        row["verdict"] = "different"
    elif course or details:
        row["verdict"] = "same scores"
    same = spec.device == "cpu" and all(_same(then, now, name) for name in _NUMBERS)
    said = same and all(then.environment.get(name) == now.environment.get(name) for name in _FINDINGS)
    return {
        **row,
        "weights_differ_from": epoch,
        "differs": [*scores, *verdicts, *course, *details],
        "promised": same,
        "broken": bool((same and (course or scores)) or (said and (verdicts or details))),
    }


def _same(then: Result, now: Result, name: str) -> bool:
    """Say whether two trials ran on the same of something; a record from before it was noted is believed."""
    return name not in then.environment or then.environment[name] == now.environment.get(name)


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, a.get(name), b.get(name)) for name in {**a, **b}]


def _scores(result: Result) -> dict[str, Any]:
    """Return what was measured; not the hash of the teacher's file, whose bytes are a version of safetensors'."""
    teacher = {} if result.teacher is None else asdict(result.teacher)
    kept = ("arch", "loaded_fraction", "val_accuracy", "floor", "above_floor")
    return {
        "status": result.status,
        "selected_epoch": result.selected_epoch,
        **({} if result.metrics is None else asdict(result.metrics)),
        **{f"teacher's {name}": teacher[name] for name in kept if name in teacher},
        **({} if result.fault is None else {"seam's calls": result.fault.calls}),
    }


def _findings(then: Result, now: Result) -> tuple[list[str], list[str]]:
    """Return which audits say otherwise than then, and which say the same of other numbers or places."""
    verdicts, details = [], []
    by_id = [{f["id"]: plain(f) for f in result.findings} for result in (then, now)]
    for name, a, b in _pairs(*by_id):
        said = [f["status"] if f is not None else "nothing" for f in (a, b)]
        if said[0] != said[1]:
            verdicts.append(f"{name} {said[0]} -> {said[1]}")
        elif a != b:
            details.append(f"what {name} saw")
    return verdicts, details


def _course(packed: Folder, here: Folder) -> tuple[int | None, list[str]]:
    """Return the first epoch whose weights differ, and what else differs in how the training went."""
    then, now = packed.curve(), here.curve()
    found: dict[str, int] = {}
    for epoch, (a, b) in enumerate(zip(then, now, strict=False), 1):
        for name, x, y in _pairs(a, b):
            if x != y:
                found.setdefault(name, epoch)
    if len(then) != len(now):
        found.setdefault("digest", min(len(then), len(now)) + 1)
    first = found.pop("digest", None)
    differs = [] if first is None else [f"weights from epoch {first}"]
    differs += [f"{name} from epoch {epoch}" for name, epoch in found.items()]
    for name in ("norms.csv", "test_curve.jsonl"):
        texts = [path.read_bytes() if (path := folder.path / name).is_file() else None for folder in (packed, here)]
        differs += [name] if texts[0] != texts[1] else []
    for name in WEIGHTS:
        if (packed.path / name).is_file() and not _same_tensors(packed.path / name, here.path / name):
            differs.append(name)
    return first, differs


def _same_tensors(a: Path, b: Path) -> bool:
    if not b.is_file():
        return False
    try:
        then, now = safetensors.torch.load_file(a), safetensors.torch.load_file(b)
    except safetensors.SafetensorError:
        return False
    return then.keys() == now.keys() and all(torch.equal(then[name], now[name]) for name in then)


def _verdicts(packed: Trials, here: Trials) -> list[dict[str, Any]]:
    """Return each declared comparison with its verdict then and now, and each arm that is no longer as declared."""
    rows = []
    for kind, family in (("gain", compare.gain_pairs), ("bug", compare.bug_pairs)):
        wanted: list[tuple[Arm, Arm]] = family(packed.arms)
        then, now = (compare.compare_arms(study, wanted, refuse=False) for study in (packed, here))
        for a, b in zip(then, now, strict=True):
            rows.append(
                {
                    "kind": kind,
                    **{name: getattr(a, name) for name in ("pair", "method", "a", "b")},
                    "verdict": [a.verdict, b.verdict],
                    "difference_pp": [a.difference_pp, b.difference_pp],
                    "changed": a.verdict != b.verdict,
                }
            )
    for arm, again in zip(summary(packed), summary(here), strict=True):
        declared = ["as declared" if row.as_expected else "not as declared" for row in (arm, again)]
        rows.append(
            {
                "kind": "audits",
                "pair": arm.pair,
                "method": arm.method,
                "a": None,
                "b": arm.fault or "corrected",
                "verdict": declared,
                "difference_pp": [None, None],
                "changed": declared[0] != declared[1],
            }
        )
    return rows
