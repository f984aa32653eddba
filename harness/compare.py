"""Compare the arms of a study: refuse what cannot be compared, decide what can."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness import faults, stats
from harness.plan import Arm, Decision
from harness.record import Folder, Result, StudyFolder, write_atomic
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
# What must not differ though it is no part of a trial's spec; another version of the code is only warned of.
_ENVIRONMENT = ("torch", "device_name", "code_digest")


@dataclass
class Trials:
    """A study's trials by arm and seed."""

    folder: StudyFolder
    decision: Decision
    arms: dict[Arm, dict[int, tuple[Spec, Result | None]]]


def write_study(folder: StudyFolder, decision: Decision, arms: dict[Arm, dict[int, str]]) -> None:
    """Note in study.json how to decide and which trial belongs to which arm, beside what is noted already."""
    path = folder.path / "study.json"
    raw: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"schema": "kdbench.study/1", "arms": []}
    known = {_arm(entry): {int(s): key for s, key in entry["trials"].items()} for entry in raw["arms"]}
    for arm, by_seed in arms.items():
        known.setdefault(arm, {}).update(by_seed)
    entries = [
        {**asdict(arm), "trials": {str(seed): known[arm][seed] for seed in sorted(known[arm])}}
        for arm in sorted(known, key=_order)
    ]
    raw.update(decision=asdict(decision), arms=entries)
    write_atomic(path, json.dumps(raw, indent=2) + "\n")


def _arm(entry: dict[str, Any]) -> Arm:
    return Arm(entry["fault"], entry["pair"], entry["method"])


def _order(arm: Arm) -> tuple[Any, ...]:
    """Order arms as they are read: pair, method, then corrected before bugged."""
    return (arm.pair, list(METHODS).index(arm.method), arm.fault is not None, arm.fault or "")


def read_study(folder: StudyFolder) -> Trials:
    """Read a study from disk."""
    path = folder.path / "study.json"
    if not path.is_file():
        raise InputError(f"{folder.path} is no study: it has no study.json; start one with kdbench run")
    raw = json.loads(path.read_text())
    arms: dict[Arm, dict[int, tuple[Spec, Result | None]]] = {}
    for entry in raw["arms"]:
        trials = {int(seed): folder.trial(key) for seed, key in entry["trials"].items()}
        arms[_arm(entry)] = {seed: (trial.spec(), trial.result()) for seed, trial in trials.items()}
    return Trials(folder, Decision(**raw["decision"]), arms)


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
    if word in faults.FAULTS:
        return "fault", [word]
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
    for arm in sorted(study.arms, key=_order):
        for name_a in names_a:
            for name_b in names_b:
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
    return found


def _refuse_other_differences(a: Arm, b: Arm, study: Trials, allowed: Sequence[str]) -> list[str]:
    """Raise InputError if anything differs but the arm and the seed; return warnings about what was let through."""
    factor = _FACTOR["fault" if a.method == b.method else "method"]
    names = f"{a.label} {a.method} and {b.label} {b.method}"
    reference = next(iter(study.arms[a].values()))[0]
    found: dict[str, set[str]] = {}
    for arm, may in ((a, ("seed",)), (b, ("seed", *factor))):
        for spec, result in study.arms[arm].values():
            for name, values in reference.differences(spec).items():
                if not any(name == f or name.startswith(f"{f}.") for f in may):
                    found.setdefault(name, set()).update(map(str, values))
            environment = result.environment if result is not None else {}
            for name in _ENVIRONMENT if environment else ():
                found.setdefault(name, set()).add(str(environment.get(name)))
    found = {name: values for name, values in found.items() if len(values) > 1}
    refused = {name: values for name, values in found.items() if name not in (*allowed, "code_digest")}
    if refused:
        listed = "; ".join(f"{name}: {' against '.join(sorted(values))}" for name, values in refused.items())
        raise InputError(
            f"{names} differ in more than the arm: {listed}. Run both alike, or say --allow-difference {min(refused)}"
        )
    return [f"{name} differs: {' and '.join(sorted(values))}" for name, values in sorted(found.items())]


def compare_arms(study: Trials, pairs: Iterable[tuple[Arm, Arm]], allowed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Compare pairs of arms as one family; return the entries of kdbench.compare/1.

    Arms that differ in anything but what is compared are an InputError, but for the names in `allowed`.
    """
    alpha, margin = study.decision.alpha, study.decision.margin_pp
    rows: list[tuple[Arm, Arm, list[list[float]], list[dict[str, Any]], stats.Comparison]] = []
    for a, b in pairs:
        warnings = _refuse_other_differences(a, b, study, allowed)
        (values_a, missing_a), (values_b, missing_b) = scores(study.arms[a]), scores(study.arms[b])
        missing = [{"arm": "a", **m} for m in missing_a] + [{"arm": "b", **m} for m in missing_b]
        comparison = stats.compare(values_a, values_b, margin, alpha)
        comparison.warnings.extend(warnings)
        rows.append((a, b, [values_a, values_b], missing, comparison))
    ps = [row[4].welch_p for row in rows]
    adjusted = iter(stats.holm([p for p in ps if p is not None]))
    entries = []
    for (a, b, values, missing, c), p in zip(rows, ps, strict=True):
        holm_p = next(adjusted) if p is not None else None
        by_method = a.method != b.method
        if missing:
            c.warnings.append(f"{len(missing)} trials have no score and are missing from n")
        entries.append(
            {
                "a": a.method if by_method else a.label,
                "b": b.method if by_method else b.label,
                "pair": a.pair,
                "method": b.method,
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
                "warnings": c.warnings,
            }
        )
    return entries


def in_words(entry: dict[str, Any], margin: float) -> str:
    """Return a comparison's verdict as a sentence that claims no more than it shows."""
    d, ci = entry["difference_pp"], entry["ci95_pp"]
    if entry["verdict"] == "undefined" or ci is None:
        return f"undefined: {entry['warnings'][0] if entry['warnings'] else 'too few seeds'}"
    size = f"{d:+.2f} pp, 95% interval [{ci[0]:+.2f}, {ci[1]:+.2f}], adjusted p = {entry['holm_p']:.2g}"
    if entry["verdict"] == "different":
        return f"different: {entry['b']} is {'higher' if d > 0 else 'lower'} ({size})"
    if entry["verdict"] == "equivalent":
        return f"equivalent within {margin:g} pp ({size})"
    if entry["verdict"] == "both":
        return f"a real difference, and smaller than {margin:g} pp ({size})"
    seeds = entry["seeds_for_power_80"]
    more = f"; for {margin:g} pp it takes {seeds} seeds an arm" if seeds else ""
    return f"undecided ({size}): under {entry['mde_pp']:.1f} pp nothing could be seen with these seeds{more}"


def summary(study: Trials) -> list[dict[str, Any]]:
    """Return the arms of a study as the entries of kdbench.run/1."""
    rows = []
    for arm in sorted(study.arms, key=_order):
        trials = study.arms[arm]
        results = [result for _, (_, result) in sorted(trials.items()) if result is not None]
        values, _ = scores(trials)
        mean, std = CANONICAL.aggregate(values) if values else (None, None)
        fault = faults.get(arm.fault) if arm.fault else None
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
                "as_expected": bool(results) and len(results) == len(trials) and all(as_expected(r) for r in results),
                "reached": all(s.reached for s in stories) if stories else None,
                "diverged_at": _first(diverged),
            }
        )
    return rows


def _first(epochs: list[int | str | None]) -> int | str | None:
    numbers = [e for e in epochs if isinstance(e, int)]
    return min(numbers) if numbers else next((e for e in epochs if isinstance(e, str)), None)


def as_expected(result: Result) -> bool:
    """Say whether a trial's audits fired exactly as its fault declares; without a fault, not at all."""
    if result.broken or result.status not in ("finished", "diverged"):
        return False
    if result.fault is None:
        return not result.roots and not result.consequences
    fault = faults.get(result.fault.name)
    caught = result.roots == fault.ids(fault.caught_by)
    return caught and result.fault.reached and set(result.consequences) <= set(fault.ids(fault.follows))


def only(study: Trials, arms: Mapping[Arm, Mapping[int, str]]) -> Trials:
    """Return the study with no more than these arms and seeds."""
    kept = {arm: {seed: study.arms[arm][seed] for seed in seeds} for arm, seeds in arms.items()}
    return Trials(study.folder, study.decision, kept)


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
        "as_expected": result is not None and as_expected(result),
    }


def as_object(decision: Decision, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the kdbench.compare/1 object."""
    return {
        "schema": "kdbench.compare/1",
        "metric": decision.metric,
        "alpha": decision.alpha,
        "margin_pp": decision.margin_pp,
        "family": len(entries),
        "comparisons": entries,
    }
