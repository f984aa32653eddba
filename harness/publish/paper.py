"""What the paper printed beside what a study found, if it follows the paper's protocol; and gradient norms, for all."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, TeacherRow
from kdbench.harness.analysis.study_table import Trials, order
from kdbench.harness.plan.plan import Arm
from kdbench.harness.plan.preset import load_preset
from kdbench.kd.methods import METHODS
from kdbench.kd.recipe import SAME_BITS, Recipe


@dataclass(frozen=True)
class Figure:
    """An accuracy that was printed, with what was printed beside it."""

    mean: float
    where: str
    "In its version."
    sd: float | None = None
    seeds: int | None = None
    gain: float | None = None
    "Over the student's own baseline, in percentage points."
    agreement: float | None = None


@dataclass(frozen=True)
class Version:
    """One version of the paper."""

    title: str
    source: str
    protocol: str
    figures: Mapping[tuple[str, str | None, str | None], Figure]
    "By pair, student or teacher; by method, None of a teacher; and by fault."
    kl_t1: Mapping[str, tuple[float, float]]
    "By method, the smallest and largest over its pairs."

    def of(self, arm: Arm) -> Figure | None:
        """Return the figure of an arm, if this version has one; a baseline is its student's, whatever the pair."""
        place = arm.pair.split("-")[1] if arm.method == "baseline" else arm.pair
        return self.figures.get((place, arm.method, arm.fault))

    def of_teacher(self, arch: str, fault: str | None) -> Figure | None:
        """Return the figure of a teacher, if this version has one."""
        return self.figures.get((arch, None, fault))


@cache
def load() -> tuple[dict[str, Version], dict[str, Any]]:
    """Return the versions of the paper, and what it claims of gradient norms."""
    raw = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
    norm = raw.pop("norm")
    versions = {}
    for name, table in raw.items():
        figures = {}
        for entry in table.pop("figures"):
            place = entry.pop("pair", None) or entry.pop("student", None) or entry.pop("teacher")
            key = (place, entry.pop("method", None), entry.pop("fault", None))
            assert key not in figures, key
            figures[key] = Figure(where=entry.pop("from"), **entry)
        ranges = {method: (low, high) for method, (low, high) in table.pop("kl_t1", {}).items()}
        versions[name] = Version(figures=figures, kl_t1=ranges, **table)
    return versions, norm


def beside(
    study: Trials, arms: Iterable[ArmRow], teachers: Iterable[TeacherRow], gains: Iterable[ComparisonRow]
) -> dict[str, Any] | None:
    """Return the study's figures with the published ones of the same pair, method and arm.

    None if there are none, or if the study does not follow the paper's protocol: then its accuracies are of another
    task, and beside the paper's they would mislead.
    """
    if not follows_protocol(study):
        return None
    versions, _ = load()
    rows, fidelity = [], []

    def add(what: str, pair: str, arm: str, found: dict[str, Figure | None], ours: dict[str, Any]) -> None:
        if any(found.values()):
            rows.append({"what": what, "pair": pair, "arm": arm, "ours": ours, "theirs": found})

    for teacher in teachers:
        figures = {name: version.of_teacher(teacher.arch, teacher.fault) for name, version in versions.items()}
        ours = {"mean": teacher.test_accuracy, "sd": None, "seeds": 1, "gain": None}
        add("Teacher", teacher.arch, teacher.fault or "corrected", figures, ours)
    by_arm = {(g.pair, g.method): g.difference_pp for g in gains}
    for row in arms:
        arm = Arm(row.fault, row.pair, row.method)
        close = [r.metrics for _, r in study.arms[arm].values() if r is not None and r.metrics is not None]
        seen = [m for m in close if m.agreement is not None and m.kl_t1 is not None]
        ours = {
            "mean": row.mean,
            "sd": row.std,
            "seeds": len(close),
            "gain": by_arm.get((arm.pair, arm.method)) if arm.fault is None else None,
        }
        figures = {name: version.of(arm) for name, version in versions.items()}
        add(METHODS[arm.method].title, arm.pair, arm.label, figures, ours)
        second, span = figures["second"], versions["second"].kl_t1.get(arm.method)
        if second is not None and arm.fault is None and seen and span is not None:
            fidelity.append(
                {
                    "pair": arm.pair,
                    "what": METHODS[arm.method].title,
                    "agreement": fmean(m.agreement for m in seen),  # type: ignore[misc]
                    "their_agreement": second.agreement,
                    "kl_t1": fmean(m.kl_t1 for m in seen),  # type: ignore[misc]
                    "their_kl_t1": span,
                }
            )
    if not rows:
        return None
    return {"versions": versions, "rows": rows, "fidelity": fidelity, "departures": departures(study)}


def follows_protocol(study: Trials) -> bool:
    """Say whether a study is on the paper's scale: its data set, networks, width and epochs are the `paper` preset's.

    The rest (the number of seeds, a learning rate, a method's settings) may differ, and :func:`departures` says so.
    """
    preset = load_preset("paper")

    def alike(recipe: Recipe, other: Recipe) -> bool:
        return (recipe.base_width, recipe.epochs) == (other.base_width, other.epochs)

    specs = [spec for trials in study.arms.values() for spec, _ in trials.values()]
    taught = {spec.teacher.key for spec in specs if spec.teacher is not None}
    folders = [study.folder.trial(key) for key in sorted(taught)]
    teachers = [folder.spec() for folder in folders if (folder.path / "spec.json").is_file()]
    return (
        bool(specs)
        and all(arm.pair in preset.pairs for arm in study.arms)
        and all(spec.dataset == preset.dataset and alike(spec.recipe, preset.recipe) for spec in specs)
        and all(alike(spec.recipe, preset.teacher_recipe) for spec in teachers)
    )


_WORDS = {
    "base_width": "base width",
    "compile": "torch.compile",
    "batch_size": "batch size",
    "crop_padding": "crop padding",
    "flip": "mirrored images",
    "fold_teacher": "folded teacher",
    "lr": "learning rate",
    "lr_min": "final learning rate",
    "max_norm": "bound on the gradient norm",
    "normalisation": "pixel statistics",
    "schedule": "schedule advances by",
    "split_seed": "seed of the split",
    "test_stride": "test images scored: one in",
    "train_size": "training images",
    "val_size": "validation images",
    "warmup": "warm-up share",
    "ce_weight": "weight of the label term",
    "kd_weight": "weight of the distillation term",
}


def departures(study: Trials) -> list[str]:
    """Return in words each point in which a study's recipe is not the `paper` preset's; empty if it is the same."""
    paper = load_preset("paper")
    found: dict[str, None] = {}  # a set that keeps its order

    def note(what: str, here: Any, there: Any) -> None:
        if here != there:
            found[f"{what}: {_said(here)} instead of {_said(there)}"] = None

    specs = {arm: [spec for spec, _ in trials.values()] for arm, trials in study.arms.items()}
    every = [spec for arm in sorted(specs, key=order) for spec in specs[arm]]
    for dataset in dict.fromkeys(spec.dataset for spec in every):
        note("data set", dataset, paper.dataset)
    recipes = dict.fromkeys((spec.recipe, spec.device) for spec in every)
    students = [_differing(recipe, paper.on(device).recipe) for recipe, device in recipes]
    for differing in students:
        for name, (here, there) in differing.items():
            note(_WORDS.get(name, name), here, there)
    for key in dict.fromkeys(spec.teacher.key for spec in every if spec.teacher is not None):
        if key.startswith("sha256:"):
            found["the teacher was brought along as a file"] = None
        elif ((folder := study.folder.trial(key)).path / "spec.json").is_file():
            taught = folder.spec()
            for name, (here, there) in _differing(taught.recipe, paper.on(taught.device).teacher_recipe).items():
                if all(differing.get(name) != (here, there) for differing in students):
                    note(f"the teacher's {_WORDS.get(name, name)}", here, there)
    for arm in sorted(specs, key=order):
        for settings in dict.fromkeys(spec.settings for spec in specs[arm]) if arm.method in paper.methods else ():
            for name in settings.names():
                what = f"{_WORDS.get(name, name)} of {METHODS[arm.method].title} ({arm.pair})"
                note(what, getattr(settings, name), getattr(paper.settings(arm.pair, arm.method), name))
    for count in sorted({len(of_arm) for of_arm in specs.values()}):
        note("seeds", count, len(paper.seeds))
    return list(found)


def _differing(here: Recipe, there: Recipe) -> dict[str, tuple[Any, Any]]:
    names = [name for name in Recipe.names() if name not in SAME_BITS]
    pairs = {name: (getattr(here, name), getattr(there, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return str(value)


# -- the claim of gradient norms

UNCLIPPED, RANDOM = "projector-unclipped", "random-teacher"
_NEAR = 0.8
"Share of the claimed norm from which on a norm came near it."


def norms(study: Trials) -> dict[str, Any] | None:
    """Return the largest gradient norms before clipping, a row an arm, and what they say of the paper's claim.

    Every arm whose trials recorded norms has its row. `early` is of norms.csv (at most 200 steps), the projectors' is
    empty where a method has none. The claim is judged only for the paper's protocol, from the arm with the projectors
    unclipped and the one with a random teacher; `text` is empty elsewhere. None if no arm has norms.
    """
    _, claim = load()
    rows = [row for arm in sorted(study.arms, key=order) if (row := _norms_of(study, arm)) is not None]
    if not rows:
        return None
    telling = [row for row in rows if row["early"] and row["arm"] in ("corrected", UNCLIPPED, RANDOM)]
    judged = follows_protocol(study) and any(row["arm"] != "corrected" for row in telling)
    return {"claim": claim, "rows": rows, "text": _verdict_on_norms(telling, claim["value"]) if judged else ""}


def _norms_of(study: Trials, arm: Arm) -> dict[str, Any] | None:
    """Return an arm's row: its largest norms over the seeds; None where nothing was recorded."""
    folders = [study.folder.trial(spec.key) for spec, _ in study.arms[arm].values()]
    seen = [norms for folder in folders if (norms := _early(folder.norms()))]
    ever: dict[str, list[float]] = {"projectors": [], "student": []}
    for folder in folders:
        curve = folder.curve()
        for group, tops in ever.items():
            tops += _tops(curve, group)
    if not seen and not ever["student"]:
        return None
    return {
        "pair": arm.pair,
        "arm": arm.label,
        "method": METHODS[arm.method].title,
        "steps": max((int(norms["step"]) for norms in seen), default=None),
        "early": sorted(norms["projectors"] for norms in seen if "projectors" in norms),
        "student": max((norms["student"] for norms in seen), default=None),
        "ever": max(ever["projectors"], default=None),
        "student_ever": max(ever["student"], default=None),
    }


def _early(norms: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return each group's largest norm, of the steps in which all were finite; nothing where there is no such step."""
    table = np.array([*norms.values()])
    table = table[:, np.isfinite(table).all(axis=0)] if len(norms) else table
    return {name: float(top) for name, top in zip(norms, table.max(axis=1), strict=True)} if table.size else {}


def _tops(curve: list[dict[str, Any]], group: str) -> list[float]:
    tops = [epoch["grad_norms"].get(group, {}).get("max") for epoch in curve]
    return [top for top in tops if top is not None]


def _verdict_on_norms(rows: list[dict[str, Any]], value: float) -> str:
    """Say what the early norms of the arms are consistent with; no more than that."""

    def tops(arm: str) -> list[float]:
        return [top for row in rows if row["arm"] == arm for top in row["early"]]

    def near(arm: str) -> bool | None:
        return max(tops(arm)) >= _NEAR * value if tops(arm) else None

    def said(arm: str, what: str) -> str:
        low, high = min(tops(arm)), max(tops(arm))
        span = f"{high:.2f}" if len(tops(arm)) == 1 else f"{low:.2f} to {high:.2f}"
        where = "above" if high >= value else "near" if near(arm) else "below"
        return f"{span} {what} ({where} {value:g})"

    words = {
        UNCLIPPED: "with unclipped projectors",
        RANDOM: "with a random teacher",
        "corrected": "in the corrected arm",
    }
    parts = [said(arm, what) for arm, what in words.items() if tops(arm)]
    unclipped, random = near(UNCLIPPED), near(RANDOM)
    if near("corrected"):
        verdict = "The corrected arm reaches it as well, so here such a norm is a sign of neither bug."
    elif unclipped and random:
        verdict = "The paper's norm is consistent with either bug: this study does not tell them apart."
    elif unclipped:
        verdict = "This is consistent with the paper's reading, that the missing clip gives such norms. It is no proof."
    elif random:
        rest = "" if unclipped is None else " The missing clip alone did not come near it."
        verdict = f"This is consistent with a teacher that was not loaded. It is no proof.{rest}"
    else:
        verdict = "No arm came near the paper's norm."
    steps = max(row["steps"] for row in rows)
    text = f"In the first {steps} steps the projectors' largest norm per seed was {', '.join(parts)}. {verdict}"
    student = max((row["student"] for row in rows if row["arm"] == "corrected"), default=0.0)
    if student >= _NEAR * value:
        text += (
            f" The student's own gradient reached {student:.2f} in the corrected arm: if the paper's figure covers "
            "student and projectors together, it needs no bug."
        )
    return text
