"""Compare the arms of a study: refuse what cannot be compared, decide what can."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from harness import faults, stats
from harness.expectation import trial_as_declared
from harness.grid import Point, Tried, best
from harness.plan import Arm, Controls, Decision
from harness.record import FINAL, Folder, Result, StudyFolder, write_atomic
from harness.spec import Spec
from harness.variants import VARIANTS, variant_of
from kd.errors import InputError, unknown
from kd.methods import METHODS
from kd.procedure import CANONICAL

# What two arms may differ in beside the seed, by what is compared: the fault, and with it the teacher where the fault
# is in the teacher's training too; or the method, and with it its settings and whether there is a teacher.
_FACTOR = {
    "fault": ("fault", "fault_digest", "teacher.key"),
    "method": ("method", "settings", "teacher"),
}
# What must not differ though it is no part of a trial's spec.
_ENVIRONMENT = ("torch", "device_name", "code_digest")


Effect = Literal["invalid", "dormant", "latent", "visible", "undecided"]


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
    known = {}
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
    return (arm.pair, list(METHODS).index(arm.method), arm.fault is not None, arm.fault or "")


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


def grid_rows(study: Trials) -> list[dict[str, Any]]:
    """Return each point of the grid with its accuracies on validation, and whether its arm chose it."""
    rows = []
    for arm in sorted(study.grid, key=order):
        winner = best(study.grid[arm]) if all(tried.is_decided for tried in study.grid[arm]) else None
        for tried in study.grid[arm]:
            values = [value for value in tried.val_accuracy if value is not None]
            rows.append(
                {
                    **asdict(arm),
                    "point": dict(tried.point),
                    "seeds": sorted(tried.trials),
                    "val_accuracy": tried.val_accuracy,
                    "mean": tried.mean,
                    "std": CANONICAL.aggregate(values)[1] if tried.mean is not None else None,
                    "chosen": tried is winner,
                }
            )
    return rows


def write_grid(study: Trials) -> None:
    """Write grid.csv: a row a trial of the grid, with what it was chosen by; nothing of the test set is in it."""
    import pandas as pd

    rows = [
        {
            **{name: row[name] or "" for name in ("pair", "method", "fault")},
            **row["point"],
            "seed": seed,
            "val_accuracy": value,
            "chosen": row["chosen"],
        }
        for row in grid_rows(study)
        for seed, value in zip(row["seeds"], row["val_accuracy"], strict=True)
    ]
    if rows:
        write_atomic(study.folder.path / "grid.csv", pd.DataFrame(rows).to_csv(index=False))


def scores(trials: dict[int, tuple[Spec, Result | None]]) -> tuple[list[float], list[dict[str, Any]]]:
    """Return the accuracies of the finished trials by seed, and what became of the others."""
    values, missing = [], []
    for seed, (_, result) in sorted(trials.items()):
        if result is not None and result.metrics is not None:
            values.append(result.metrics.test_accuracy)
        else:
            missing.append({"seed": seed, "status": result.status if result else "unfinished"})
    return values, missing


def _select(word: str) -> tuple[str, list[str | None]]:
    """Return what a word on the command line names: faults (of a variant, or one), or a method."""
    if word in VARIANTS and word != "both":
        return "fault", list(VARIANTS[word])
    if word in METHODS:
        return "method", [word]
    if _is_loaded(word):
        return "fault", [faults.get(word).name]
    raise unknown("arm", word, ["corrected", "bugged", *faults.FAULTS, *METHODS])


def pairs_of_arms(study: Trials, a: str, b: str) -> list[tuple[Arm, Arm]]:
    """Return the pairs of arms that two words on the command line name."""
    kind_a, names_a = _select(a)
    kind_b, names_b = _select(b)
    if kind_a != kind_b:
        raise InputError(f"{a} is a {kind_a} and {b} a {kind_b}: two arms differ in one of them, not in both")
    if a == b:
        raise InputError(f"an arm is not compared with itself ({a})")
    found = []
    for arm in sorted(study.arms, key=order):
        for name_a, name_b in itertools.product(names_a, names_b):
            if name_a != name_b:
                if kind_a == "fault":
                    pair = (arm, Arm(name_b, arm.pair, arm.method)) if arm.fault == name_a else None
                else:
                    is_a = arm.method == name_a and arm.fault is None
                    pair = (arm, Arm(None, arm.pair, str(name_b))) if is_a else None
                if pair is not None and pair[1] in study.arms:
                    found.append(pair)
    if not found:
        have = sorted({arm.label for arm in study.arms} | {arm.method for arm in study.arms})
        raise InputError(f"{study.folder.path.name} holds no arms to compare as {a} and {b}; it has {', '.join(have)}")
    return sorted(found, key=lambda pair: (order(pair[1]), order(pair[0])))


def bug_pairs(arms: Iterable[Arm]) -> list[tuple[Arm, Arm]]:
    """Return the declared family of "does the bug matter": each bugged arm against its corrected one."""
    known = sorted(arms, key=order)
    return [
        (a, b) for b in known for a in known if b.fault and not a.fault and (a.pair, a.method) == (b.pair, b.method)
    ]


def gain_pairs(arms: Iterable[Arm]) -> list[tuple[Arm, Arm]]:
    """Return the declared family of "does distillation gain": each corrected method against its baseline."""
    known = [arm for arm in sorted(arms, key=order) if not arm.fault]
    return [(a, b) for b in known for a in known if a.pair == b.pair and a.method == "baseline" != b.method]


def compare_within_family(
    study: Trials, wanted: list[tuple[Arm, Arm]], allowed: Sequence[str] = (), refuse: bool = True
) -> tuple[list[dict[str, Any]], int]:
    """Compare the wanted pairs, adjusted for the whole declared family that they belong to; return its size as well.

    To ask for one comparison alone must not make it look surer: the family was declared before the run. What is wanted
    and not declared is counted on top. `refuse` is as in :func:`compare_arms`.
    """
    if not wanted:
        return [], 0
    by_method = wanted[0][0].method != wanted[0][1].method
    declared = gain_pairs(study.arms) if by_method else bug_pairs(study.arms)
    others = [(a, b) for a, b in declared if (a, b) not in wanted and (b, a) not in wanted]
    for pair in wanted if refuse else ():  # what was asked for is refused where it must be; the others only count
        compare_arms(study, [pair], allowed)
    entries = compare_arms(study, [*wanted, *others], allowed, refuse=False)
    return entries[: len(wanted)], len(entries)


def _other_differences(a: Arm, b: Arm, study: Trials) -> dict[str, set[str]]:
    """Return what differs beside the seed within an arm, and beside the arm and the seed between the two."""
    factor: tuple[str, ...] = _FACTOR["fault" if a.method == b.method else "method"]
    if a in study.grid and b in study.grid:  # to choose by another rule is what the fault is
        factor = (*factor, "settings")
    found: dict[str, set[str]] = {}
    methods: dict[str, set[str]] = {}

    def note(reference: Spec, spec: Spec, may: tuple[str, ...]) -> None:
        for name, values in reference.differences(spec).items():
            if not any(name == f or name.startswith(f"{f}.") for f in may):
                found.setdefault(name, set()).update(map(str, values))

    first_a, first_b = (next(iter(study.arms[arm].values()))[0] for arm in (a, b))
    note(first_a, first_b, ("seed", *factor))
    for arm, first in ((a, first_a), (b, first_b)):
        for spec, result in study.arms[arm].values():
            note(first, spec, ("seed",))
            environment = result.environment if result is not None else {}
            for name in _ENVIRONMENT if environment else ():
                found.setdefault(name, set()).add(str(environment.get(name)))
            if "method_digest" in environment:  # in an earlier record the code's digest is of the methods too
                methods.setdefault(arm.method, set()).add(str(environment["method_digest"]))
    found["method_digest"] = {value for values in methods.values() if len(values) > 1 for value in values}
    return {name: values for name, values in sorted(found.items()) if len(values) > 1}


def _listed(found: Mapping[str, set[str]]) -> str:
    return "; ".join(f"{name}: {' against '.join(sorted(values))}" for name, values in found.items())


def compare_arms(
    study: Trials, pairs: Iterable[tuple[Arm, Arm]], allowed: Sequence[str] = (), refuse: bool = True
) -> list[dict[str, Any]]:
    """Compare pairs of arms as one family; return the entries of kdbench.compare/1.

    Arms that differ in anything but what is compared, and the names in `allowed`, are an InputError, and so are those
    of a fault that is not loaded; without `refuse` their entry is undefined and says why.
    """
    alpha, margin = study.decision.alpha, study.decision.margin_pp
    rows: list[tuple[Arm, Arm, list[list[float]], list[dict[str, Any]], stats.Comparison]] = []
    for a, b in pairs:
        differing = _other_differences(a, b, study)
        refused = {name: values for name, values in differing.items() if name not in allowed}
        (values_a, missing_a), (values_b, missing_b) = scores(study.arms[a]), scores(study.arms[b])
        missing = [{"arm": "a", **m} for m in missing_a] + [{"arm": "b", **m} for m in missing_b]
        why = None
        if not (_is_loaded(a.fault) and _is_loaded(b.fault)):  # whether it acts after training is not known
            why = f"{a.label} and {b.label}: one is no fault that is loaded; name its file: --faults FILE"
        elif refused:
            why = (
                f"{a.label} {a.method} and {b.label} {b.method} differ in more than the arm: {_listed(refused)}. "
                f"Run both alike, or say --allow-difference {min(refused)}"
            )
        if why is not None:
            if refuse:
                raise InputError(why)
            comparison = stats.undefined(values_a, values_b, why)
        else:
            comparison = _compared(study.arms[a], study.arms[b], margin, alpha, _after_training(a, b))
            comparison.warnings.extend(f"allowed to differ: {_listed({n: v})}" for n, v in differing.items())
        if missing:
            comparison.warnings.append(f"{len(missing)} trials have no score and are missing from n")
        rows.append((a, b, [values_a, values_b], missing, comparison))
    ps = {i: row[4].welch_p for i, row in enumerate(rows) if row[4].welch_p is not None}
    adjusted = dict(zip(ps, stats.holm([p for p in ps.values() if p is not None], len(rows)), strict=True))
    return [_entry(*row, adjusted.get(i), len(rows), alpha) for i, row in enumerate(rows)]


_AFTER = ("select", "aggregate")
"Seams of what happens after training: both arms have the same weights up to then, so a seed couples them."


def _is_loaded(fault: str | None) -> bool:
    return fault is None or all(part in faults.FAULTS for part in fault.split("+"))


def _after_training(a: Arm, b: Arm) -> bool:
    seams = [faults.get(arm.fault).seam for arm in (a, b) if arm.fault is not None]
    return bool(seams) and all(seam in _AFTER for seam in seams)


def _compared(
    a: Mapping[int, tuple[Spec, Result | None]],
    b: Mapping[int, tuple[Spec, Result | None]],
    margin: float,
    alpha: float,
    paired: bool,
) -> stats.Comparison:
    """Compare two arms' trials; by pairs of seeds, which both arms have scores of, for a fault after training."""
    both = [seed for seed in sorted(a.keys() & b.keys()) if all(scores({seed: arm[seed]})[0] for arm in (a, b))]
    first, second = (scores({seed: arm[seed] for seed in both})[0] for arm in (a, b))
    if not paired:
        found = stats.compare(scores(dict(a))[0], scores(dict(b))[0], margin, alpha)
        return replace(found, correlation=stats.correlation(np.asarray(first), np.asarray(second)))
    found = stats.compare_paired(first, second, margin, alpha)
    lost = sorted({*a, *b} - set(both))
    if lost:
        found.warnings.append(f"compared by seeds; without a partner and left out: {', '.join(map(str, lost))}")
    return found


def _entry(
    a: Arm,
    b: Arm,
    values: list[list[float]],
    missing: list[dict[str, Any]],
    c: stats.Comparison,
    holm_p: float | None,
    family: int,
    alpha: float,
) -> dict[str, Any]:
    names = (a.method, b.method) if a.method != b.method else (a.label, b.label)
    if c.constant is not None:
        arm = a if c.constant == "a" else b
        c.warnings.append(f"{arm.label} with {arm.method} does not vary over its seeds")
    return entry(*names, a.pair, b.method, values, missing, c, holm_p, family, alpha)


def entry(
    a: str,
    b: str,
    pair: str,
    method: str,
    values: list[list[float]],
    missing: list[dict[str, Any]],
    c: stats.Comparison,
    holm_p: float | None,
    family: int,
    alpha: float,
) -> dict[str, Any]:
    """Return one comparison as an entry of kdbench.compare/1."""
    warnings = list(c.warnings)
    if c.least_permutation_p is not None and c.least_permutation_p < alpha <= c.least_permutation_p * family:
        warnings.append(f"in a family of {family} no exact test of this design could pass Holm's correction")
    return {
        "a": a,
        "b": b,
        "pair": pair,
        "method": method,
        "n": [len(v) for v in values],
        "values": values,
        "missing": missing,
        "mean": list(c.mean),
        "std": list(c.std),
        "difference_pp": c.difference,
        "ci95_pp": list(c.ci95) if c.ci95 else None,
        "welch_p": c.welch_p,
        "permutation_p": c.permutation_p,
        "least_permutation_p": c.least_permutation_p,
        "holm_p": holm_p,
        "hedges_g": c.hedges_g,
        "hedges_g_ci95": list(c.hedges_g_ci95) if c.hedges_g_ci95 else None,
        "p_b_greater": c.p_b_greater,
        "tost_p": c.tost_p,
        "mde_pp": c.mde,
        "seeds_for_power_80": c.seeds_for_power,
        "verdict": stats.verdict(c, holm_p, alpha),
        "paired": c.paired,
        "seed_correlation": c.correlation,
        "warnings": warnings,
    }


def summary(study: Trials) -> list[dict[str, Any]]:
    """Return the arms of a study as the entries of kdbench.run/1."""
    rows = []
    for arm in sorted(study.arms, key=order):
        trials = study.arms[arm]
        results = [result for _, (_, result) in sorted(trials.items()) if result is not None]
        values, _ = scores(trials)
        fault = faults.get(arm.fault) if arm.fault else None
        procedure = fault.inject(CANONICAL, lambda: None) if fault else CANONICAL
        mean, std = procedure.aggregate(values) if values else (None, None)
        stories = [r.fault for r in results if r.fault is not None]
        diverged = [s.diverged_at for s in stories]
        rows.append(
            {
                "variant": variant_of(arm.fault),
                "fault": arm.fault,
                "pair": arm.pair,
                "method": arm.method,
                "seeds": sorted(trials),
                "test_accuracy": [
                    r.metrics.test_accuracy if r is not None and r.metrics else None
                    for _, (_, r) in sorted(trials.items())
                ],
                "mean": mean,
                "std": std,
                "expected_findings": fault.ids(fault.caught_by) if fault else [],
                "failed_findings": sorted({i for r in results for i in r.roots}),
                "consequences": sorted({i for r in results for i in r.consequences}),
                "as_expected": len(results) == len(trials)
                and all(trial_as_declared(r, spec) for spec, r in trials.values() if r is not None),
                "reached": all(s.reached for s in stories) if stories else None,
                "diverged_at": _first(diverged),
                "dormant": sum(s.dormant is True for s in stories) if stories else None,
            }
        )
    return rows


def effect(row: dict[str, Any], verdict: stats.Verdict | None) -> Effect | None:
    """Say how far a bug got, of its arm's row and the verdict on its accuracy; None of an arm without a bug.

    `invalid`: its seam was never asked. `dormant`: it changed no weight and no score of any seed. `latent`: it changed
    the weights, and the accuracy is equivalent at the margin. `visible`: the accuracy differs by more than can be
    shown to be within the margin. `undecided`: these seeds cannot tell; so too where the corrected twin is missing.
    """
    if row["fault"] is None:
        return None
    if row["reached"] is False:
        return "invalid"
    if row["dormant"] == len(row["seeds"]):
        return "dormant"
    if verdict in ("equivalent", "both"):
        return "latent"
    return "visible" if verdict == "different" else "undecided"


def controls(study: Trials) -> dict[str, Any] | None:
    """Return what the controls showed, as in kdbench.run/1; None where none were run."""
    if study.again is None and not study.controls:
        return None
    again = _again(*study.again) if study.again else None
    positive = None
    bugged = next((arm for arm in study.controls if arm.fault), None)
    if bugged is not None:
        trials = Trials(study.folder, study.decision, study.controls)
        row = next(row for row in summary(trials) if row["fault"])
        (entry,) = compare_arms(trials, bug_pairs(study.controls), refuse=False)
        lower = entry["difference_pp"] is not None and entry["difference_pp"] < 0
        positive = {
            **row,
            "comparison": entry,
            "seen_by_audit": row["as_expected"],
            "seen_in_accuracy": entry["verdict"] in ("different", "both") and lower,
        }
    verdict = again["verdict"] if again else "missing"
    return {
        "again": again,
        "positive": positive,
        # Of the program; that few seeds do not show the positive control in accuracy is a result.
        "as_declared": verdict != "differs" and (positive is None or positive["seen_by_audit"]),
        "sound": verdict in ("identical", "undecidable")
        and positive is not None
        and positive["seen_by_audit"]
        and positive["seen_in_accuracy"],
    }


def _again(folder: Folder, repeat: Folder) -> dict[str, Any]:
    """Compare a trial with its repeat, bit by bit, by the digests of its weights."""
    spec, first, second = folder.spec(), folder.result(), repeat.result()
    mine, theirs = ([epoch["digest"] for epoch in trial.curve()] for trial in (folder, repeat))
    verdict = "identical"
    if first is None or second is None or first.status not in FINAL or second.status not in FINAL:
        verdict = "missing"
    elif mine != theirs or first.metrics != second.metrics:
        same = all(first.environment.get(name) == second.environment.get(name) for name in ("torch", "device_name"))
        verdict = "differs" if spec.device == "cpu" and same else "undecidable"
    return {
        "trial": folder.key,
        "method": spec.method,
        "fault": spec.fault,
        "seed": spec.seed,
        "epochs": len(mine),
        "verdict": verdict,
    }


def _first(epochs: list[int | str | None]) -> int | str | None:
    numbers = [e for e in epochs if isinstance(e, int)]
    return min(numbers) if numbers else next((e for e in epochs if isinstance(e, str)), None)


def only(study: Trials, arms: Mapping[Arm, Mapping[int, str]]) -> Trials:
    """Return the study with no more than these arms and seeds."""
    kept = {arm: {seed: study.arms[arm][seed] for seed in seeds} for arm, seeds in arms.items()}
    return replace(study, arms=kept)


def teacher_row(arch: str, folder: Folder) -> dict[str, Any]:
    """Return a teacher's trial as an entry of kdbench.run/1."""
    spec, result = folder.spec(), folder.result()
    fault = faults.get(spec.fault) if spec.fault else None
    return {
        "arch": arch,
        "fault": spec.fault,
        "seed": spec.seed,
        "key": folder.key,
        "test_accuracy": result.metrics.test_accuracy if result is not None and result.metrics else None,
        "expected_findings": fault.ids(fault.caught_by) if fault else [],
        "failed_findings": result.roots if result is not None else [],
        "consequences": result.consequences if result is not None else [],
        "as_expected": result is not None and trial_as_declared(result, spec),
    }


def as_object(decision: Decision, entries: list[dict[str, Any]], family: int) -> dict[str, Any]:
    """Return the kdbench.compare/1 object."""
    return {
        "schema": "kdbench.compare/1",
        "metric": decision.metric,
        "alpha": decision.alpha,
        "margin_pp": decision.margin_pp,
        "family": family,
        "comparisons": entries,
    }
