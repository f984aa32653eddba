"""From a preset and the options of the command line to the list of trials: teachers first, each training once."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kdbench.harness import faults
from kdbench.harness.faults import Fault
from kdbench.harness.plan.grid import Grid, Point, settings_of
from kdbench.harness.plan.outline import PRESETS, parse_seeds, preset_text
from kdbench.harness.records.reading import content, parse_toml
from kdbench.harness.records.record import repeat_of
from kdbench.harness.records.spec import Spec, TeacherRef
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.methods import METHODS, MethodSettings, read_settings
from kdbench.kd.models import MODELS
from kdbench.kd.recipe import SAME_BITS, Recipe
from kdbench.kd.settings import check_types

TEACHER_SEED = 0
"One teacher for all students of a pair, as in the paper: the spread over seeds holds no teacher variance."


@dataclass(frozen=True)
class Decision:
    """What was declared before the run about how to decide."""

    metric: str = "test_accuracy"
    margin_pp: float = 0.5
    "Differences smaller than this do not matter, in percentage points."
    alpha: float = 0.05

    def __post_init__(self) -> None:
        check_types(self, "decision")
        if self.metric != "test_accuracy":
            raise unknown("metric", self.metric, ["test_accuracy"], "decision")
        if not self.margin_pp > 0 or not 0 < self.alpha < 1:
            raise InputError("decision: margin_pp must be positive and alpha between 0 and 1")


@dataclass(frozen=True)
class Preset:
    """A study's settings, as read from its TOML file and changed by options."""

    name: str
    dataset: str
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    decision: Decision
    recipe: Recipe
    teacher: Mapping[str, Any]
    "What the teachers' recipe has otherwise."
    method: Mapping[str, Mapping[str, Any]]
    pair: Mapping[str, Mapping[str, Mapping[str, Any]]]
    arms: tuple[str | None, ...] | None = None
    "Faults, None for the corrected arm, where the file names them."
    data: Path | None = None
    "Folder of images, where the file names it."
    grid: Grid | None = None
    "Settings to be tried first, and chosen among on validation."
    text: str | None = None
    "A user's file as it was read, to be kept beside the records."

    def settings(self, pair: str, method: str, point: Point | None = None) -> MethodSettings:
        """Return a method's settings for a pair; `point` of the grid goes before what the file says.

        A weight that is named nowhere is an InputError that says which, and where it belongs.
        """
        file = {**self.named(self.method, method), **self.named(self.pair.get(pair, {}), method)}
        where = f"preset {self.name}, [method.{method}]"
        return read_settings(method, {**file, **settings_of(point or {})}, where)

    @staticmethod
    def named(tables: Mapping[str, Mapping[str, Any]], method: str) -> dict[str, Any]:
        """Return what tables say of a method; of a joined one what they say of its parts, and what of itself."""
        return {**METHODS[method].Settings.of_parts(tables), **tables.get(method, {})}

    def check_settings(self) -> None:
        """Raise InputError if a method of the study has no valid settings, of the file or at a point of the grid."""
        for pair in self.pairs:
            for method in self.methods:
                points = self.grid.points(method) if self.grid is not None else []
                for point in points or [{}]:
                    self.settings(pair, method, point)

    @property
    def teacher_recipe(self) -> Recipe:
        """The recipe that teachers are trained by; it has no teacher to fold."""
        return replace(self.recipe, **{"fold_teacher": False, **self.teacher})


def load_preset(name: str) -> Preset:
    """Read one of the presets, or a study's file of the user's; every key is checked."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{path} does not exist; kdbench init writes a study to start from")
        try:
            text = content(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} cannot be read as a study's file, which is UTF-8: {error}") from error
        preset = replace(parse_preset(path.stem, text), text=text)
        if path.stem in PRESETS:
            raise InputError(f"{path}: {path.stem} is the name of a preset; call the file otherwise")
        return replace(preset, data=path.parent / preset.data) if preset.data is not None else preset
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return parse_preset(name, preset_text(name))


def parse_preset(name: str, text: str) -> Preset:
    """Read a preset's TOML text strictly: an unknown key, pair, method or type is an InputError that names it."""
    raw = parse_toml(text.encode(), f"preset {name}")
    where = f"preset {name}"
    _keys(raw, ["study", "decision", "recipe", "teacher", "method", "pair", "grid"], where)
    study = raw.get("study", {})
    _keys(study, ["dataset", "data", "pairs", "methods", "arms", "seeds"], f"{where}, [study]")
    _keys(raw.get("decision", {}), [f.name for f in fields(Decision)], f"{where}, [decision]")
    for part in ("recipe", "teacher"):
        _keys(raw.get(part, {}), Recipe.names(), f"{where}, [{part}]")
    by_pair = raw.get("pair", {})
    _keys(by_pair, by_pair, f"{where}, [pair]")
    for pair, table in [("", raw.get("method", {})), *by_pair.items()]:
        _keys(table, table, f"{where}, [method] and [pair]")
        if pair:
            split_pair(pair)
        for method, settings in table.items():
            check_method(method)
            _keys(
                settings,
                METHODS[method].Settings.names(),
                f"{where}, [{f'pair.{pair}' if pair else 'method'}.{method}]",
            )
    try:
        preset = Preset(
            name,
            _text(study["dataset"], f"{where}, [study]: dataset"),
            _names(study["pairs"], f"{where}, [study]: pairs"),
            _names(study["methods"], f"{where}, [study]: methods"),
            _seeds(study["seeds"], f"{where}, [study]: seeds"),
            Decision(**raw.get("decision", {})),
            Recipe(**raw.get("recipe", {})),
            raw.get("teacher", {}),
            raw.get("method", {}),
            by_pair,
            _arms(study["arms"], f"{where}, [study]: arms") if "arms" in study else None,
            Path(_text(study["data"], f"{where}, [study]: data")) if "data" in study else None,
            _grid(raw["grid"], where) if "grid" in raw else None,
        )
        _ = preset.teacher_recipe
        for method in preset.methods:
            check_method(method)
    except KeyError as error:
        raise InputError(f"{where}, [study]: {error.args[0]} is missing") from error
    except TypeError as error:
        raise InputError(f"{where}: a value is of the wrong type ({error})") from error
    except InputError as error:
        raise InputError(f"{where}, {error}", error.about) from error
    preset.check_settings()
    return preset


def _keys(found: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{where}: {found!r} stands where a table belongs")
    known = list(known)
    for key in found:
        if key not in known:
            raise unknown("key", key, known, where)


def _text(found: Any, where: str) -> str:
    if not isinstance(found, str) or not found:
        raise InputError(f"{where} is {found!r}; it must be a text in quotes")
    return found


def _seeds(found: Any, where: str) -> tuple[int, ...]:
    if not isinstance(found, str):  # 5 might mean five seeds, or the seed 5
        raise InputError(f'{where} is {found!r}; write it as a text: "0-4" are five seeds, "5" is the seed 5')
    return parse_seeds(found)


def _names(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise InputError(f"{where} is {found!r}; it must be a list of names")
    return tuple(found)


def _arms(found: Any, where: str) -> tuple[str | None, ...]:
    names = _names(found, where)
    for name in names:
        if name != "corrected" and any(part not in faults.FAULTS for part in name.split("+")):
            raise unknown("arm", name, ["corrected", *faults.FAULTS], where)
    return tuple(dict.fromkeys(None if name == "corrected" else faults.get(name).name for name in names))


def _grid(found: dict[str, Any], where: str) -> Grid:
    axes = {name: table for name, table in found.items() if name != "seeds"}
    _keys(found, ["seeds", *METHODS, *(name for name in axes if name in METHODS)], f"{where}, [grid]")
    for name, table in axes.items():
        _keys(table, table, f"{where}, [grid.{name}]")
        if not table:
            raise InputError(f"[grid.{name}] names no setting to be tried; as temperature = [2, 4], or leave it out")
        for setting, values in table.items():
            if not isinstance(values, list):
                raise InputError(f"[grid.{name}]: {setting} is {values!r}; it must be a list of numbers")
    if not axes or "seeds" not in found:
        raise InputError("[grid] needs seeds, other than the study's, and a method's settings, as [grid.logit]")
    tables = {name: {key: tuple(values) for key, values in table.items()} for name, table in axes.items()}
    return Grid(_seeds(found["seeds"], "[grid]: seeds"), tables)


def check_method(method: str) -> None:
    """Raise InputError for an unknown method, or one that is joined of what does not go together."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    _ = METHODS[method]


def split_pair(pair: str) -> tuple[str, str]:
    """Return teacher and student of a pair written teacher-student, e.g. r50-r18."""
    parts = pair.split("-")
    if len(parts) != 2 or not all(part in MODELS for part in parts):
        pairs = [f"{t}-{s}" for t in MODELS for s in MODELS]
        raise unknown("pair", pair, pairs, "a pair is teacher-student")
    for part in parts:
        _ = MODELS[part]  # of another library, it may be unknown there
    return parts[0], parts[1]


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
    "Keys by architecture and fault."
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

    def shard(self, number: int, of: int) -> list[str]:
        """Return the keys of the number-th of so many slices, counted from 1, with the teachers that they need.

        Equal plans are cut alike wherever that is done; a teacher is in every slice that needs it.
        """
        teachers = set(self.teachers.values())
        own = [key for key in self.trials if key not in teachers][number - 1 :: of]
        needed = {need for key in own if (need := self.needs(key)) is not None}
        return [key for key in self.trials if key in needed] + own

    def add(self, spec: Spec) -> str:
        """Enter a trial, once however many arms share it."""
        self.trials.setdefault(spec.key, spec)
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
    teacher_arch, student_arch = split_pair(arm.pair)
    settings = preset.settings(arm.pair, arm.method, point)

    def add(arch: str, method: str, seed: int, recipe: Recipe, teacher: TeacherRef | None, fault: Fault | None) -> str:
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
                fault=fault.name if fault else None,
                fault_digest=fault.digest if fault else None,
                seed=seed,
                threads=ground.threads,
                device=ground.device,
            )
        )

    teacher = None
    if METHODS[arm.method].needs_teacher and ground.teacher_sha256 is not None:
        teacher = TeacherRef(teacher_arch, f"sha256:{ground.teacher_sha256}")
    elif METHODS[arm.method].needs_teacher:
        shared = fault.in_teacher if fault is not None else None
        key = add(teacher_arch, "baseline", TEACHER_SEED, preset.teacher_recipe, None, shared)
        plan.teachers[teacher_arch, shared.name if shared else None] = key
        teacher = TeacherRef(teacher_arch, key)
    recipe = preset.recipe
    return {seed: add(student_arch, arm.method, seed, recipe, teacher, fault) for seed in seeds or preset.seeds}


def _why_not(fault: Fault, pair: str, method: str, ground: Ground, recipe: Recipe) -> str | None:
    fixed = [arch for arch in split_pair(pair) if not MODELS[arch].has_stem]
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
    recipe = {name: value for name, value in asdict(preset.recipe).items() if name not in SAME_BITS}
    if preset.name in PRESETS:
        original = asdict(load_preset(preset.name).recipe)
        changed: dict[str, Any] = {name: value for name, value in recipe.items() if value != original[name]}
        if preset.teacher != load_preset(preset.name).teacher:
            changed["teacher_recipe"] = dict(preset.teacher)
    else:  # a file of the user's may be changed in anything
        changed = {"recipe": recipe, **{name: asdict(preset)[name] for name in ("teacher", "method", "pair")}}
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
