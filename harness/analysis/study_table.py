"""A study's files: what study.json declares, the trials by arm, and the tables made of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdbench.harness.analysis.rows import GridRow
from kdbench.harness.plan.grid import Point, Tried, best
from kdbench.harness.plan.plan import Arm, Controls, Decision
from kdbench.harness.plan.variants import variant_of
from kdbench.harness.records.record import Folder, Result, StudyFolder, write_atomic
from kdbench.harness.records.spec import Spec
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS
from kdbench.kd.procedure import CANONICAL

BySeed = Mapping[int, tuple[Spec, Result | None]]
"An arm's trials."


@dataclass
class Trials:
    """A study's trials by arm and seed."""

    folder: StudyFolder
    decision: Decision
    arms: dict[Arm, dict[int, tuple[Spec, Result | None]]]
    controls: dict[Arm, dict[int, tuple[Spec, Result | None]]] = field(default_factory=dict)
    "The positive control and its corrected twin, where they were run; of no family and no table."
    again: tuple[Folder, Folder] | None = None
    "A trial and its repeat."
    grid: dict[Arm, list[Tried]] = field(default_factory=dict)
    "What was tried first, by the arm that chose its settings from it."


def write_study(
    folder: StudyFolder,
    decision: Decision,
    arms: dict[Arm, dict[int, str]],
    controls: Controls | None = None,
    command: str | None = None,
    grid: Mapping[Arm, Sequence[tuple[Point, Mapping[int, str]]]] | None = None,
) -> None:
    """Note in study.json how to decide, which trial belongs to which arm, and the command; beside what is noted."""
    known: dict[Arm, dict[int, str]] = {}
    noted, tried = None, []
    called = [command] if command is not None else []
    if (folder.path / "study.json").is_file():
        raw = _read_json(folder)
        noted, tried = raw.get("controls"), raw.get("grid", [])
        called = list(dict.fromkeys([*raw.get("commands", []), *called]))
        known = {_arm(entry): {int(s): key for s, key in entry["trials"].items()} for entry in raw["arms"]}
    for arm, by_seed in arms.items():
        known.setdefault(arm, {}).update(by_seed)
    entries = _entries(known)
    if controls is not None:
        watched: dict[Arm, dict[int, str]] = {}
        for entry in noted["arms"] if noted else []:
            watched[_arm(entry)] = {int(s): key for s, key in entry["trials"].items()}
        if controls.positive is not None:
            watched.setdefault(controls.positive, {}).update(controls.positive_trials)
            watched.setdefault(replace(controls.positive, fault=None), {}).update(controls.corrected_trials)
        noted = {"again": list(controls.again), "arms": _entries(watched)}
    # Unpaired for what changes the training, which diverges chaotically: a shared seed couples two arms little.
    declared = {
        **asdict(decision),
        "paired": "only for a fault after training",
        "family": "every bugged arm against its corrected one; every method against its baseline",
    }
    study: dict[str, Any] = {"schema": "kdbench.study/1", "decision": declared, "arms": entries, "controls": noted}
    study["commands"] = called
    grid = grid or {}
    study["grid"] = [entry for entry in tried if _arm(entry) not in grid] + [
        {**asdict(arm), "point": dict(point), "trials": {str(seed): key for seed, key in sorted(trials.items())}}
        for arm in sorted(grid, key=order)
        for point, trials in grid[arm]
    ]
    write_atomic(folder.path / "study.json", json.dumps(study, indent=2) + "\n")


def check_declared(folder: StudyFolder, decision: Decision) -> None:
    """Raise InputError where the study has results and declared before them to decide in another way."""
    if not (folder.path / "study.json").is_file():
        return
    declared = _decision(_read_json(folder))
    results = (trial.result() for trial in folder.trials())
    if declared == decision or not any(result is not None and result.metrics is not None for result in results):
        return
    now = asdict(decision)
    changes = [f"{name} {was}, not {now[name]}" for name, was in asdict(declared).items() if was != now[name]]
    raise InputError(
        f"{folder.path} has results, and declared before them: {'; '.join(changes)}. How to decide is not changed once "
        "results are there: put it back under [decision], or run a copy of the file under another name, as a study of "
        "its own"
    )


def _decision(raw: Mapping[str, Any]) -> Decision:
    """Return what study.json says was declared."""
    return Decision(**{name: raw["decision"][name] for name in ("metric", "margin_pp", "alpha")})


def _entries(arms: Mapping[Arm, Mapping[int, str]]) -> list[dict[str, Any]]:
    return [
        {**asdict(arm), "trials": {str(seed): arms[arm][seed] for seed in sorted(arms[arm])}}
        for arm in sorted(arms, key=order)
    ]


def _read_json(folder: StudyFolder) -> dict[str, Any]:
    path = folder.path / "study.json"
    if not path.is_file():
        raise InputError(f"{folder.path} is no study: it has no study.json; start one with kdbench run")
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        assert raw["schema"] == "kdbench.study/1" and isinstance(raw["arms"], list)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path} is not a study's file; delete it and run the study's command again") from error
    return raw


def commands(folder: StudyFolder) -> list[str]:
    """Return the commands that the study was run by, as they were typed."""
    return list(_read_json(folder).get("commands", []))


def _arm(entry: dict[str, Any]) -> Arm:
    return Arm(entry["fault"], entry["pair"], entry["method"])


def order(arm: Arm) -> tuple[Any, ...]:
    """Order arms as they are read: pair, method, then corrected before bugged."""
    return (arm.pair, METHODS.rank(arm.method), arm.fault is not None, arm.fault or "")


def read_study(folder: StudyFolder) -> Trials:
    """Read a study from disk."""
    raw = _read_json(folder)

    def read(entries: list[dict[str, Any]]) -> dict[Arm, dict[int, tuple[Spec, Result | None]]]:
        arms = {}
        for entry in entries:
            trials = {int(seed): folder.trial(key) for seed, key in entry["trials"].items()}
            arms[_arm(entry)] = {seed: (trial.spec(), trial.result()) for seed, trial in trials.items()}
        return arms

    grid: dict[Arm, list[Tried]] = {}
    for entry in raw.get("grid", []):
        tried = {int(seed): folder.trial(key) for seed, key in entry["trials"].items()}
        trials = {seed: (trial.spec(), trial.result()) for seed, trial in tried.items()}
        grid.setdefault(_arm(entry), []).append(Tried(entry["point"], trials))
    controls = raw.get("controls") or {"again": None, "arms": []}
    again = (folder.trial(controls["again"][0]), folder.trial(controls["again"][1])) if controls["again"] else None
    return Trials(folder, _decision(raw), read(raw["arms"]), read(controls["arms"]), again, grid)


def write_table(study: Trials) -> None:
    """Write results.csv: a row a trial, for whatever reads tables; while only settings are tried there is none."""
    if study.arms:
        write_atomic(study.folder.path / "results.csv", table(study))


def table(study: Trials) -> str:
    """Return results.csv as text."""
    import pandas as pd

    rows = [
        {
            "pair": arm.pair,
            "method": arm.method,
            "variant": variant_of(arm.fault),
            "fault": arm.fault or "",
            "seed": seed,
            "status": result.status if result else "unfinished",
            "selected_epoch": result.selected_epoch if result else None,
            **{
                name: getattr(result.metrics, name) if result and result.metrics else None
                for name in ("test_accuracy", "val_accuracy", "agreement", "kl_t1", "kl_t4")
            },
            **{
                name: getattr(result.fault, name) if result and result.fault else None
                for name in ("reached", "diverged_at", "dormant")
            },
            "failed_audits": " ".join([*result.roots, *result.consequences]) if result else "",
            "trial": spec.key,
        }
        for arm in sorted(study.arms, key=order)
        for seed, (spec, result) in sorted(study.arms[arm].items())
    ]
    frame = pd.DataFrame(rows)
    return str((frame.astype({"selected_epoch": "Int64"}) if rows else frame).to_csv(index=False))


def grid_rows(study: Trials) -> list[GridRow]:
    """Return each point of the grid with its accuracies on validation, and whether its arm chose it."""
    rows = []
    for arm in sorted(study.grid, key=order):
        winner = best(study.grid[arm]) if all(tried.is_decided for tried in study.grid[arm]) else None
        for tried in study.grid[arm]:
            values = [value for value in tried.val_accuracy if value is not None]
            rows.append(
                GridRow(
                    fault=arm.fault,
                    pair=arm.pair,
                    method=arm.method,
                    point=dict(tried.point),
                    seeds=sorted(tried.trials),
                    val_accuracy=tried.val_accuracy,
                    mean=tried.mean,
                    std=CANONICAL.aggregate(values)[1] if tried.mean is not None else None,
                    chosen=tried is winner,
                )
            )
    return rows


def write_grid(study: Trials) -> None:
    """Write grid.csv: a row a trial of the grid, with what it was chosen by; nothing of the test set is in it."""
    import pandas as pd

    rows = [
        {
            "pair": row.pair,
            "method": row.method,
            "fault": row.fault or "",
            **row.point,
            "seed": seed,
            "val_accuracy": value,
            "chosen": row.chosen,
        }
        for row in grid_rows(study)
        for seed, value in zip(row.seeds, row.val_accuracy, strict=True)
    ]
    if rows:
        write_atomic(study.folder.path / "grid.csv", pd.DataFrame(rows).to_csv(index=False))


def teacher_folders(study: Trials) -> list[tuple[str, Folder]]:
    """Return the study's own teachers, by architecture; one that was brought along as a file has no folder."""
    keys = {
        (spec.teacher.arch, spec.teacher.key)
        for trials in study.arms.values()
        for spec, _ in trials.values()
        if spec.teacher is not None and not spec.teacher.key.startswith("sha256:")
    }
    folders = [(arch, study.folder.trial(key)) for arch, key in sorted(keys)]
    return [(arch, folder) for arch, folder in folders if (folder.path / "spec.json").is_file()]


def scores(trials: BySeed) -> list[float]:
    """Return the accuracies of the finished trials, in the order of their seeds."""
    results = [trials[seed][1] for seed in sorted(trials)]
    return [result.metrics.test_accuracy for result in results if result is not None and result.metrics is not None]


def only(study: Trials, arms: Mapping[Arm, Mapping[int, str]]) -> Trials:
    """Return the study with no more than these arms and seeds."""
    kept = {arm: {seed: study.arms[arm][seed] for seed in seeds} for arm, seeds in arms.items()}
    return replace(study, arms=kept)
