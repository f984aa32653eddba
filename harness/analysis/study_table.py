"""A study's files: what study.json declares, the trials by arm, and the tables made of them."""

import csv
import gc
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdbench.harness.analysis.rows import GridRow
from kdbench.harness.plan.grid import Point, Tried, best
from kdbench.harness.plan.plan import Arm, Controls
from kdbench.harness.plan.preset import Decision
from kdbench.harness.plan.variants import variant_of
from kdbench.harness.records import study_file
from kdbench.harness.records.record import Folder, Result, StudyFolder, write_atomic
from kdbench.harness.records.spec import Spec
from kdbench.harness.records.study_file import Declared, Entry, GridEntry, StudyFile, Watched
from kdbench.kd.errors import InputError, unknown
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
    before = study_file.read(folder.path) if study_file.exists(folder.path) else None
    known = {_arm(entry): dict(entry.trials) for entry in before.arms} if before else {}
    for arm, by_seed in arms.items():
        known.setdefault(arm, {}).update(by_seed)
    noted = before.controls if before else None
    if controls is not None:
        watched = {_arm(entry): dict(entry.trials) for entry in noted.arms} if noted else {}
        if controls.positive is not None:
            watched.setdefault(controls.positive, {}).update(controls.positive_trials)
            watched.setdefault(replace(controls.positive, fault=None), {}).update(controls.corrected_trials)
        noted = Watched(list(controls.again), _entries(watched))
    grid = grid or {}
    called = [*(before.commands if before else []), *([command] if command is not None else [])]
    study = StudyFile(
        schema="kdbench.study/1",
        # Unpaired for what changes the training, which diverges chaotically: a shared seed couples two arms little.
        decision=Declared(
            **asdict(decision),
            paired="only for a fault after training",
            family="every bugged arm against its corrected one; every method against its baseline",
        ),
        arms=_entries(known),
        controls=noted,
        commands=list(dict.fromkeys(called)),
        grid=[entry for entry in (before.grid if before else []) if _arm(entry) not in grid]
        + [
            GridEntry(arm.fault, arm.pair, arm.method, dict(sorted(trials.items())), dict(point))
            for arm in sorted(grid, key=order)
            for point, trials in grid[arm]
        ],
    )
    study_file.write(folder.path, study)


def check_declared(folder: StudyFolder, decision: Decision) -> None:
    """Raise InputError where the study has results and declared before them to decide in another way."""
    if not study_file.exists(folder.path):
        return
    declared = _decision(study_file.read(folder.path))
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


def _decision(study: StudyFile) -> Decision:
    """Return what study.json says was declared."""
    return Decision(study.decision.metric, study.decision.margin_pp, study.decision.alpha)


def _entries(arms: Mapping[Arm, Mapping[int, str]]) -> list[Entry]:
    return [Entry(arm.fault, arm.pair, arm.method, dict(sorted(arms[arm].items()))) for arm in sorted(arms, key=order)]


def commands(folder: StudyFolder) -> list[str]:
    """Return the commands that the study was run by, as they were typed."""
    return study_file.read(folder.path).commands


def _arm(entry: Entry) -> Arm:
    if entry.method not in METHODS:
        raise unknown("method", entry.method, METHODS, "study.json")
    return Arm(entry.fault, entry.pair, entry.method)


def order(arm: Arm) -> tuple[Any, ...]:
    """Order arms as they are read: pair, method, then corrected before bugged."""
    return (arm.pair, METHODS.rank(arm.method), arm.fault is not None, arm.fault or "")


def read_study(folder: StudyFolder) -> Trials:
    """Read a study from disk; of an audit that passed, only that it did: thousands of trials fit into memory."""
    noted = study_file.read(folder.path)
    passed: dict[tuple[Any, ...], dict[str, Any]] = {}

    def trials_of(entry: Entry) -> dict[int, tuple[Spec, Result | None]]:
        trials = {seed: folder.trial(key) for seed, key in entry.trials.items()}
        return {seed: (trial.spec(), _brief(trial.result(), passed)) for seed, trial in trials.items()}

    grid: dict[Arm, list[Tried]] = {}
    with _uncollected():
        arms = {_arm(entry): trials_of(entry) for entry in noted.arms}
        for entry in noted.grid:
            grid.setdefault(_arm(entry), []).append(Tried(entry.point, trials_of(entry)))
        controls = {_arm(entry): trials_of(entry) for entry in noted.controls.arms} if noted.controls else {}
    first, second = (noted.controls.again if noted.controls else None) or (None, None)
    again = (folder.trial(first), folder.trial(second)) if first is not None and second is not None else None
    return Trials(folder, _decision(noted), arms, controls, again, grid)


_OF_A_PASS = ("id", "name", "severity", "status", "consequence_of")


def _brief(result: Result | None, passed: dict[tuple[Any, ...], dict[str, Any]]) -> Result | None:
    """Return a result whose passed audits, which nearly all are, share one short entry among all trials."""
    if result is None:
        return None
    for i, finding in enumerate(result.findings):
        if finding["status"] == "pass":
            said = tuple(finding.get(name) for name in _OF_A_PASS)
            result.findings[i] = passed.setdefault(said, dict(zip(_OF_A_PASS, said, strict=True)))
    return result


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile: thousands of records are made, and each look would be at all of them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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


def table_differences(text: str, study: Trials) -> list[tuple[str, str]]:
    """Return where a results.csv is not what the records say: the column, and a sentence that goes on from its name.

    Columns of another version are let be.
    """
    theirs, ours = (list(csv.DictReader(io.StringIO(one))) for one in (text, table(study)))
    if ours and any("trial" not in row for row in theirs):
        return [("trial", " has no column trial, by which its rows are told apart")]
    # An arm's training may be another arm's too, so a trial may stand in several rows.
    mine, told = _by_trial(ours), _by_trial(theirs)
    found = [
        (str(name), f" says {name} {a[name]} of trial {key[0]}, its record {b[name]}")
        for key, b in mine.items()
        if (a := told.get(key)) is not None
        for name in [n for n in b if n in a]
        if a[name] != b[name]
    ]
    found += [("", f" has no row of trial {key[0]} ({_row(b)})") for key, b in mine.items() if key not in told]
    return found + [
        ("", f" has a row of trial {key[0]} ({_row(a)}), which is none of its records")
        for key, a in told.items()
        if key not in mine
    ]


def _by_trial(rows: list[dict[str, str]]) -> dict[tuple[str, int], dict[str, str]]:
    """Return rows by their trial, and by how many of its rows stand before."""
    seen: Counter[str] = Counter()
    found = {}
    for row in rows:
        found[row["trial"], seen[row["trial"]]] = row
        seen[row["trial"]] += 1
    return found


def _row(row: dict[str, str]) -> str:
    return ", ".join(row[name] for name in ("pair", "method", "variant", "seed") if name in row)


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
    found: dict[str, tuple[str, Folder]] = {}
    for spec in [spec for trials in study.arms.values() for spec, _ in trials.values()]:
        while spec.teacher is not None and spec.teacher.key not in found:  # an assistant has a teacher of its own
            folder = study.folder.trial(spec.teacher.key)
            if not (folder.path / "spec.json").is_file():  # brought along, or lost
                break
            spec = folder.spec()
            found[folder.key] = spec.network, folder
    return sorted(found.values(), key=lambda item: (item[0], item[1].key))


def scores(trials: BySeed) -> list[float]:
    """Return the accuracies of the finished trials, in the order of their seeds."""
    results = [trials[seed][1] for seed in sorted(trials)]
    return [result.metrics.test_accuracy for result in results if result is not None and result.metrics is not None]


def only(study: Trials, arms: Mapping[Arm, Mapping[int, str]]) -> Trials:
    """Return the study with no more than these arms and seeds."""
    kept = {arm: {seed: study.arms[arm][seed] for seed in seeds} for arm, seeds in arms.items()}
    return replace(study, arms=kept)
