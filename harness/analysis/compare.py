"""Compare the arms of a study: refuse what cannot be compared, decide what can."""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from kdbench.harness import faults
from kdbench.harness.analysis import stats
from kdbench.harness.analysis.family import Judged, as_family
from kdbench.harness.analysis.rows import ComparisonRow, Missing
from kdbench.harness.analysis.study_table import BySeed, Trials, order, scores
from kdbench.harness.plan.plan import Arm
from kdbench.harness.plan.variants import VARIANTS
from kdbench.harness.records.spec import Spec
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.methods import METHODS

# What two arms may differ in beside the seed, by what is compared: the fault, and with it the teacher where the fault
# is in the teacher's training too; or the method, and with it its settings and whether there is a teacher.
_FACTOR = {
    "fault": ("fault", "fault_digest", "teacher.key"),
    "method": ("method", "settings", "method_digest", "teacher", "teacher_digest", "stages"),
}
# What must not differ though it is no part of a trial's spec.
_ENVIRONMENT = ("torch", "device_name", "code_digest")


def _select(word: str, study: Trials) -> tuple[str, list[str | None]]:
    """Return what a word on the command line names: faults (of a variant, or one), or a method."""
    if word in VARIANTS and word != "both":
        return "fault", list(VARIANTS[word])
    if word in METHODS:
        return "method", [word]
    if _is_loaded(word):
        return "fault", [faults.get(word).name]
    have = _words(study)
    near = difflib.get_close_matches(word, have, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(word, [*faults.FAULTS, *METHODS], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown arm {word!r}; {hint}This study has: {', '.join(have)}", "unknown arm")


def _words(study: Trials) -> list[str]:
    """Return the words by which the arms of a study can be asked for."""
    bugged = ["bugged"] if any(arm.fault for arm in study.arms) else []
    return [*dict.fromkeys([*bugged, *sorted({arm.label for arm in study.arms} | {arm.method for arm in study.arms})])]


def pairs_of_arms(study: Trials, a: str, b: str) -> list[tuple[Arm, Arm]]:
    """Return the pairs of arms that two words on the command line name."""
    kind_a, names_a = _select(a, study)
    kind_b, names_b = _select(b, study)
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
        raise InputError(
            f"{study.folder.path.name} holds no arms to compare as {a} and {b}; it has {', '.join(_words(study))}"
        )
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
) -> tuple[list[ComparisonRow], int]:
    """Compare the wanted pairs, adjusted for the whole declared family that they belong to; return its size as well.

    To ask for one comparison alone must not make it look surer: the family was declared before the run. What is wanted
    and not declared is counted on top. `refuse` is as in :func:`compare_arms`.
    """
    if refuse:
        check_allowed((spec for trials in study.arms.values() for spec, _ in trials.values()), allowed)
    if not wanted:
        return [], 0
    by_method = wanted[0][0].method != wanted[0][1].method
    declared = gain_pairs(study.arms) if by_method else bug_pairs(study.arms)
    others = [(a, b) for a, b in declared if (a, b) not in wanted and (b, a) not in wanted]
    for a, b in wanted if refuse else ():  # what was asked for is refused where it must be; the others only count
        why = _why_not(a, b, _refused(_other_differences(a, b, study), allowed))
        if why is not None:
            raise InputError(why)
    entries = compare_arms(study, [*wanted, *others], allowed, refuse=False)
    return entries[: len(wanted)], len(entries)


def check_allowed(specs: Iterable[Spec], allowed: Sequence[str]) -> None:
    """Raise InputError for a name that nothing in these trials has: it would allow nothing, in silence."""
    known = {*_ENVIRONMENT, "method_digest"}.union(*(spec.names() for spec in specs))
    for name in allowed:
        if name not in known:
            raise unknown("difference", name, known, "--allow-difference")


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
) -> list[ComparisonRow]:
    """Compare pairs of arms as one family.

    Arms that differ in anything but what is compared, and the names in `allowed`, are an InputError, and so are those
    of a fault that is not loaded; without `refuse` their entry is undefined and says why.
    """
    return as_family([_judged(study, a, b, allowed, refuse) for a, b in pairs], study.decision.alpha)


def _judged(study: Trials, a: Arm, b: Arm, allowed: Sequence[str], refuse: bool) -> Judged:
    differing = _other_differences(a, b, study)
    values = [scores(study.arms[arm]) for arm in (a, b)]
    missing = [*_missing("a", study.arms[a]), *_missing("b", study.arms[b])]
    why = _why_not(a, b, _refused(differing, allowed))
    if why is not None and refuse:
        raise InputError(why)
    if why is not None:
        comparison = stats.undefined(values[0], values[1], why)
    else:
        decision = study.decision
        comparison = _compared(study.arms[a], study.arms[b], decision.margin_pp, decision.alpha, _after_training(a, b))
        comparison.warnings.extend(f"allowed to differ: {_listed({n: v})}" for n, v in differing.items())
    if missing:
        comparison.warnings.append(f"{len(missing)} trials have no score and are missing from n")
    if comparison.constant is not None:
        arm = a if comparison.constant == "a" else b
        comparison.warnings.append(f"{arm.label} with {arm.method} does not vary over its seeds")
    names = (a.method, b.method) if a.method != b.method else (a.label, b.label)
    return Judged(*names, a.pair, b.method, values, missing, comparison)


def _missing(name: Literal["a", "b"], trials: BySeed) -> list[Missing]:
    """Return what became of the trials that have no score."""
    return [
        Missing(name, seed, result.status if result is not None else "unfinished")
        for seed, (_, result) in sorted(trials.items())
        if result is None or result.metrics is None
    ]


def _refused(differing: Mapping[str, set[str]], allowed: Sequence[str]) -> dict[str, set[str]]:
    return {name: found for name, found in differing.items() if name not in allowed}


def _why_not(a: Arm, b: Arm, refused: Mapping[str, set[str]]) -> str | None:
    """Return why two arms cannot be compared; None if they can."""
    if not (_is_loaded(a.fault) and _is_loaded(b.fault)):  # whether it acts after training is not known
        return f"{a.label} and {b.label}: one is no fault that is loaded; name its file: --faults FILE"
    if refused:
        return (
            f"{a.label} {a.method} and {b.label} {b.method} differ in more than the arm: {_listed(refused)}. "
            f"Run both alike, or say --allow-difference {min(refused)}"
        )
    return None


_AFTER = ("select", "aggregate")
"Seams of what happens after training: both arms have the same weights up to then, so a seed couples them."


def _is_loaded(fault: str | None) -> bool:
    return fault is None or all(part in faults.FAULTS for part in fault.split("+"))


def _after_training(a: Arm, b: Arm) -> bool:
    seams = [faults.get(arm.fault).seam for arm in (a, b) if arm.fault is not None]
    return bool(seams) and all(seam in _AFTER for seam in seams)


def _compared(a: BySeed, b: BySeed, margin: float, alpha: float, paired: bool) -> stats.Comparison:
    """Compare two arms' trials; by pairs of seeds, which both arms have scores of, for a fault after training."""
    both = [seed for seed in sorted(a.keys() & b.keys()) if all(scores({seed: arm[seed]}) for arm in (a, b))]
    first, second = (scores({seed: arm[seed] for seed in both}) for arm in (a, b))
    if not paired:
        found = stats.compare(scores(a), scores(b), margin, alpha)
        return replace(found, correlation=stats.correlation(np.asarray(first), np.asarray(second)))
    found = stats.compare_paired(first, second, margin, alpha)
    lost = sorted({*a, *b} - set(both))
    if lost:
        found.warnings.append(f"compared by seeds; without a partner and left out: {', '.join(map(str, lost))}")
    return found
