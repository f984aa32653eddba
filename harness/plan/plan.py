"""From a preset and the options of the command line to the list of trials: teachers first, each training once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdbench.harness import faults
from kdbench.harness.faults import Fault
from kdbench.harness.plan.graphs import with_graphs
from kdbench.harness.plan.grid import Point
from kdbench.harness.plan.outline import PRESETS
from kdbench.harness.plan.preset import Preset, chain_of, check_method, load_preset
from kdbench.harness.records.record import repeat_of
from kdbench.harness.records.spec import Spec, TeacherRef
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS
from kdbench.kd.models import MODELS
from kdbench.kd.recipe import Recipe

TEACHER_SEED = 0
"One teacher for all students of a pair, as in the paper: the spread over seeds holds no teacher variance."


@dataclass(frozen=True, order=True)
class Arm:
    """One cell of a study: a fault (or none), a pair and a method, over all seeds."""

    fault: str | None
    pair: str
    method: str

    @property
    def label(self) -> str:
        """The arm in a few words: the fault's name, or corrected."""
        return self.fault or "corrected"


POSITIVE_CONTROL = "teacher-rows-shuffled"
"A fault that any study of a distillation must see, by its audit and in accuracy."


@dataclass(frozen=True)
class Controls:
    """What a study must see before it may say anything: by a name each, the keys of trials by seed."""

    again: tuple[str, str]
    "A trial and its repeat: the same seed twice must give the same bits."
    positive: Arm | None
    "The arm of the positive control; None where no method asked for has a teacher."
    positive_trials: Mapping[int, str] = field(default_factory=dict)
    corrected_trials: Mapping[int, str] = field(default_factory=dict)
    "Its corrected twins."


@dataclass
class Plan:
    """The trials of a study."""

    study: str
    "Name of the study's folder; two settings that could not be compared have two names."
    preset: Preset
    trials: dict[str, Spec] = field(default_factory=dict)
    "By key, each training once however many arms share it."
    arms: dict[Arm, dict[int, str]] = field(default_factory=dict)
    "Keys by seed."
    teachers: dict[tuple[str, str | None], str] = field(default_factory=dict)
    "Keys by architecture and fault; an assistant's architecture is called after who taught it, and how."
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    "Fault, method and reason, where a fault of a whole variant does not apply."
    controls: Controls | None = None
    grid: dict[Arm, list[tuple[Point, dict[int, str]]]] = field(default_factory=dict)
    "By arm that chooses for itself: each point tried, with the keys by seed."
    is_first_stage: bool = False
    "Whether this is the grid alone, from which the settings of the arms are to be chosen."

    def needs(self, key: str) -> str | None:
        """Return the key of the trial that must be done first."""
        teacher = self.trials[key].teacher
        return teacher.key if teacher is not None and teacher.key in self.trials else None

    def needs_all(self, key: str) -> list[str]:
        """Return the keys of the trials that must be done first, the nearest first."""
        found: list[str] = []
        while (need := self.needs(found[-1] if found else key)) is not None:
            found.append(need)
        return found

    def shard(self, number: int, of: int) -> list[str]:
        """Return the keys of the number-th of so many slices, counted from 1, with the teachers that they need.

        Equal plans are cut alike wherever that is done; a teacher is in every slice that needs it.
        """
        teachers = set(self.teachers.values())
        own = [key for key in self.trials if key not in teachers][number - 1 :: of]
        needed = {need for key in own for need in self.needs_all(key)}
        return [key for key in self.trials if key in needed] + own

    def shard_of_teachers(self, number: int, of: int) -> list[str]:
        """Return the keys of the number-th of so many slices of the teachers, with the teachers that those need."""
        own = [*dict.fromkeys(self.teachers.values())][number - 1 :: of]
        needed = {need for key in own for need in self.needs_all(key)}
        return [key for key in self.trials if key in needed or key in own]

    def add(self, spec: Spec) -> str:
        """Enter a trial, once however many arms share it."""
        self.trials.setdefault(spec.key, with_graphs(spec))
        return spec.key


def unused(preset: Preset) -> list[str]:
    """Return the tables of a user's file that nothing which is asked for reads, with the reason."""
    if preset.text is None:
        return []
    grid = preset.grid.methods if preset.grid is not None else {}
    return [
        *(f"[grid.{name}]: {name} is no method of this study" for name in grid if name not in preset.methods),
        *(f"[pair.{pair}]: {pair} is no pair of this study" for pair in preset.pair if pair not in preset.pairs),
    ]


@dataclass(frozen=True)
class Ground:
    """What all trials of a study stand on."""

    dataset: str
    data_digest: str
    device: str
    "Kind of device: cpu or cuda."
    threads: int = 1
    teacher_sha256: str | None = None
    "Of the checkpoint that was brought along, if any: then no teacher is trained."


def make_plan(
    preset: Preset,
    variants: Sequence[str | None],
    ground: Ground,
    *,
    named_fault: bool = False,
    controls: bool = False,
    chosen: Mapping[Arm, Point] | None = None,
) -> Plan:
    """Lay out the trials of a study, or, where it has a grid and nothing was `chosen` yet, those of the grid.

    `variants` are the faults of the arms, None for the corrected one. Where a fault does not apply to a method, that
    arm is skipped and listed; if it was named (`named_fault`), or no arm is left, that is an InputError. `controls`
    adds those of the first pair.
    """
    plan = Plan(_study_name(preset, ground), preset, is_first_stage=preset.grid is not None and chosen is None)
    if preset.grid is not None and (both := {*preset.grid.seeds} & {*preset.seeds}):
        raise InputError(
            f"[grid]: seed {min(both)} is one of the study's too; what is chosen for doing well with a seed "
            "says nothing there any more"
        )
    for name in variants:
        fault = faults.get(name) if name is not None else None
        for pair in preset.pairs:
            for method in preset.methods:
                check_method(method)
                if fault is not None and (why := _why_not(fault, pair, method, ground, preset.recipe)):
                    if (fault.name, method, why) not in plan.skipped:
                        plan.skipped.append((fault.name, method, why))
                    continue
                arm = Arm(name, pair, method)
                chooser = replace(arm, fault=_chooses_by(fault))
                if preset.grid is not None and chooser not in plan.grid and (points := preset.grid.points(method)):
                    own = fault if chooser.fault is not None else None
                    plan.grid[chooser] = [
                        (point, _trials(plan, chooser, own, ground, point, preset.grid.seeds)) for point in points
                    ]
                point = (chosen or {}).get(chooser)
                plan.arms[arm] = {} if plan.is_first_stage else _trials(plan, arm, fault, ground, point)
    missing = {name for name in variants if name is not None} - {arm.fault for arm in plan.arms}
    if missing and (named_fault or not plan.arms):
        reasons = "; ".join(f"{fault}: {why}" for fault, _, why in plan.skipped if fault in missing)
        raise InputError(f"the fault named applies to none of the methods asked for ({reasons})")
    if plan.is_first_stage:
        plan.arms.clear()
    elif controls and plan.arms:
        plan.controls = _controls(plan, ground, chosen or {})
    return plan


def _chooses_by(fault: Fault | None) -> str | None:
    """Return the fault of the grid that an arm's settings come from: its own where the fault is in what chooses.

    Any other arm has the settings of the corrected one, so that the two differ in the fault alone.
    """
    return fault.name if fault is not None and "split" in fault.seam.split("+") else None


def _controls(plan: Plan, ground: Ground, chosen: Mapping[Arm, Point]) -> Controls:
    """Add the repeat of one trial, and the positive control of the first method that has a teacher."""
    fault, pair = faults.get(POSITIVE_CONTROL), plan.preset.pairs[0]
    able = [method for method in plan.preset.methods if not _why_not(fault, pair, method, ground, plan.preset.recipe)]
    arm = next(iter(sorted(plan.arms, key=lambda a: (a.fault is not None, a.pair != pair, a.method not in able))))
    first = next(iter(plan.arms[arm].values()))
    plan.trials[repeat_of(first)] = plan.trials[first]
    again = (first, repeat_of(first))
    if not able:
        return Controls(again, None)
    positive, corrected = Arm(fault.name, pair, able[0]), Arm(None, pair, able[0])
    point = chosen.get(corrected)
    trials = [_trials(plan, a, f, ground, point) for a, f in ((positive, fault), (corrected, None))]
    return Controls(again, positive, *trials)


def _trials(
    plan: Plan,
    arm: Arm,
    fault: Fault | None,
    ground: Ground,
    point: Point | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[int, str]:
    """Enter the trials of an arm, and its teacher; return their keys by seed."""
    preset = plan.preset
    first, *assistants, student_arch = chain_of(arm.pair)
    settings = preset.settings(arm.pair, arm.method, point)

    def add(arch: str, method: str, seed: int, recipe: Recipe, teacher: TeacherRef | None, fault: Fault | None) -> str:
        paired = arch == student_arch and METHODS[method].stages != "none"
        return plan.add(
            Spec(
                dataset=ground.dataset,
                data_digest=ground.data_digest,
                arch=arch,
                method=method,
                settings=settings if method == arm.method else preset.settings(arm.pair, method),
                method_digest=METHODS[method].digest,
                recipe=recipe,
                teacher=teacher,
                arch_digest=MODELS[arch].digest,
                teacher_digest=MODELS[teacher.arch].digest if teacher is not None else None,
                stages=preset.stages.get(arm.pair) if paired else None,
                fault=fault.name if fault else None,
                fault_digest=fault.digest if fault else None,
                seed=seed,
                threads=ground.threads,
                device=ground.device,
            )
        )

    teacher = None
    if METHODS[arm.method].needs_teacher and ground.teacher_sha256 is not None:
        teacher = TeacherRef(first, f"sha256:{ground.teacher_sha256}")
    elif METHODS[arm.method].needs_teacher:
        shared = fault.in_teacher if fault is not None else None
        key = add(first, "baseline", TEACHER_SEED, preset.teacher_recipe, None, shared)
        plan.teachers[first, shared.name if shared else None] = key
        teacher = TeacherRef(first, key)
    for assistant in assistants if teacher is not None else ():
        key = add(assistant, arm.method, TEACHER_SEED, preset.teacher_recipe, teacher, None)
        plan.teachers[plan.trials[key].network, None] = key
        teacher = TeacherRef(assistant, key)
    recipe = preset.recipe
    return {seed: add(student_arch, arm.method, seed, recipe, teacher, fault) for seed in seeds or preset.seeds}


def _why_not(fault: Fault, pair: str, method: str, ground: Ground, recipe: Recipe) -> str | None:
    fixed = [arch for arch in chain_of(pair) if not MODELS[arch].has_stem]
    if "stem" in fault.seam.split("+") and fixed:
        return f"the stem of {fixed[0]} cannot be chosen"
    if fault.recipe(recipe) != recipe:
        if recipe.fold_teacher and not fault.recipe(recipe).fold_teacher:
            return "a folded copy of the teacher would hide it; leave --fold-teacher out"
        if recipe.graphs and not fault.recipe(recipe).graphs:
            return "captured kernels would hide it; leave --graphs out"
        return f"the fault acts under a gradient scaler, and the recipe's precision is {recipe.precision}"
    if ground.teacher_sha256 is not None and fault.scope == "both" and METHODS[method].needs_teacher:
        return "the fault is in the teacher's training too, and the teacher was brought along trained"
    return fault.why_not(method)


def _study_name(preset: Preset, ground: Ground) -> str:
    """Return preset and data set, and a digest of whatever options changed in how a trial is trained."""
    recipe = preset.recipe.decisive()
    if preset.name in PRESETS:
        original = vars(load_preset(preset.name).recipe)
        changed: dict[str, Any] = {name: value for name, value in recipe.items() if value != original[name]}
        if preset.teacher != load_preset(preset.name).teacher:
            changed["teacher_recipe"] = dict(preset.teacher)
    else:  # a file of the user's may be changed in anything
        changed = {"recipe": recipe, **{name: asdict(preset)[name] for name in ("teacher", "method", "pair")}}
        if preset.stages:
            changed["stages"] = dict(preset.stages)
        if preset.grid is not None:
            changed["grid"] = asdict(preset.grid)
    if ground.teacher_sha256 is not None:
        changed["teacher"] = ground.teacher_sha256
    if ground.dataset.startswith("folder-"):  # another folder may have the same name, and this one may change
        changed["data"] = ground.data_digest
    if ground.device != "cpu":
        changed["device"] = ground.device
    if ground.threads != 1:
        changed["threads"] = ground.threads
    name = f"{preset.name}-{ground.dataset}"
    if changed:
        name += "-" + hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    return name
