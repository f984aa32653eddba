"""A study's settings as its TOML file holds them, read strictly: pairs, methods, seeds, recipes, weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kdbench.harness import faults
from kdbench.harness.plan.grid import Grid, Point, settings_of
from kdbench.harness.plan.outline import PRESETS, parse_seeds, preset_text
from kdbench.harness.records.reading import content, parse_toml
from kdbench.kd.errors import InputError, unknown
from kdbench.kd.methods import METHODS, MethodSettings, read_settings
from kdbench.kd.models import MODELS, parse_stages
from kdbench.kd.recipe import Recipe
from kdbench.kd.settings import check_types

_LARGEST = 10_000_000
"Of a whole number in a study's file: no tensor, and no estimate of a cost, is made of a larger one."


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
class StudyTable:
    """The table [study] of a study file."""

    dataset: str
    "digits, cifar10, cifar100, or folder."
    pairs: list[str]
    "Teacher and student, as r34-r18; or teacher, assistant and student, as r50-r34-r18."
    methods: list[str]
    seeds: str
    "As 0-4 for five seeds, or 0,3,7."
    arms: list[str] | None = None
    "corrected, and faults by name."
    data: str | None = None
    "Folder of images, beside the file."
    image_size: int | None = None
    "Height and width that the folder's images are resized to."


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
    image_size: int | None = None
    "Height and width that the folder's images are resized to, where the file says so."
    stages: Mapping[str, str] = field(default_factory=dict)
    "By pair, which stages of teacher and student go together, where the file says so."
    grid: Grid | None = None
    "Settings to be tried first, and chosen among on validation."
    text: str | None = None
    "A user's file as it was read, to be kept beside the records."
    cuda: Mapping[str, Any] = field(default_factory=dict)
    "What the recipe has otherwise on a GPU."

    def on(self, device: str) -> "Preset":
        """Return the study as it is trained on a device."""
        return replace(self, recipe=replace(self.recipe, **self.cuda)) if device == "cuda" else self

    def settings(self, pair: str, method: str, point: Point | None = None) -> MethodSettings:
        """Return a method's settings for a pair; `point` of the grid goes before what the file says.

        A weight that is named nowhere is an InputError that says which, and where it belongs.
        """
        file = {**self.named(self.method, method), **self.named(self.pair.get(pair, {}), method)}
        table = f'"{method}"' if "+" in method else method
        where = f"{_called(self.name)}, [method.{table}]"
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
    where = _called(name)
    raw = parse_toml(text.encode(), where)
    _keys(raw, ["study", "decision", "recipe", "teacher", "method", "pair", "grid", "cuda"], where)
    study = raw.get("study", {})
    _keys(study, [f.name for f in fields(StudyTable)], f"{where}, [study]")
    _keys(raw.get("decision", {}), [f.name for f in fields(Decision)], f"{where}, [decision]")
    for part in ("recipe", "teacher", "cuda"):
        _keys(raw.get(part, {}), Recipe.names(), f"{where}, [{part}]")
    by_pair, stages = _pairs(raw.get("pair", {}), where)
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
            _image_size(study["image_size"], f"{where}, [study]: image_size") if "image_size" in study else None,
            stages,
            _grid(raw["grid"], where) if "grid" in raw else None,
            cuda=raw.get("cuda", {}),
        )
        _ = preset.teacher_recipe, preset.on("cuda").teacher_recipe
        for method in preset.methods:
            check_method(method)
    except KeyError as error:
        raise InputError(f"{where}, [study]: {error.args[0]} is missing") from error
    except TypeError as error:
        raise InputError(f"{where}: a value is of the wrong type ({error})") from error
    except InputError as error:
        said = str(error)
        raise InputError(said if said.startswith(where) else f"{where}, {said}", error.about) from error
    preset.check_settings()
    return preset


def _called(name: str) -> str:
    """Return what messages call a study's settings: a preset by its name, a user's study by its file."""
    return f"preset {name}" if name in PRESETS else f"{name}.toml"


def _keys(found: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{where}: {found!r} stands where a table belongs")
    known = list(known)
    for key in found:
        if key not in known:
            raise unknown("key", key, known, where)
        if isinstance(found[key], int) and abs(found[key]) > _LARGEST:
            raise InputError(f"{where}: {key} is beyond {_LARGEST:,}, which no study means")


def _text(found: Any, where: str) -> str:
    if not isinstance(found, str) or not found:
        raise InputError(f"{where} is {found!r}; it must be a text in quotes")
    return found


def _pairs(tables: Any, where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the tables of pairs say of methods, and which stages go together, by pair."""
    _keys(tables, tables, f"{where}, [pair]")
    methods, stages = {}, {}
    for pair, table in tables.items():
        _keys(table, table, f"{where}, [pair.{pair}]")
        methods[pair] = {name: value for name, value in table.items() if name != "stages"}
        if "stages" in table:
            together = parse_stages(_text(table["stages"], f"{where}, [pair.{pair}]: stages"))
            stages[pair] = ", ".join(f"{teachers}-{students}" for teachers, students in together)
    return methods, stages


def _image_size(found: Any, where: str) -> int:
    if type(found) is not int or not 8 <= found <= 1024:
        raise InputError(f"{where} is {found!r}; it must be a number of pixels from 8 to 1024")
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
            # To compare, a method is an arm as well: it has another hint.
            raise InputError(str(unknown("arm", name, ["corrected", *faults.FAULTS], where)), "unknown arm of a study")
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
    if method in MODELS and method not in METHODS:
        raise InputError(f"{method} is a network, and no method: networks stand in pairs, as {method}-r18")
    for part in method.split("+") if method not in METHODS else ():
        if part not in METHODS:
            raise unknown("method", part, METHODS, "" if part == method else method)
    _ = METHODS[method]


def chain_of(pair: str) -> list[str]:
    """Return the networks of a pair in the order in which they teach: teacher, assistants if any, student."""
    parts = pair.split("-")
    strange = [part for part in parts if part not in MODELS]
    if len(parts) < 2 or len(strange) == len(parts):
        pairs = [f"{t}-{s}" for t in MODELS for s in MODELS]
        raise unknown("pair", pair, pairs, "a pair is teacher-student, or teacher-assistant-student")
    if strange:
        raise unknown("network", strange[0], MODELS, f"pair {pair}")
    for part in parts:
        _ = MODELS[part]  # of another library, it may be unknown there
    return parts


def split_pair(pair: str) -> tuple[str, str]:
    """Return who teaches the student of a pair, and the student: of r50-r18 both, of r50-r34-r18 the last two."""
    *_, teacher, student = chain_of(pair)
    return teacher, student
