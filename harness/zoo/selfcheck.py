"""The self-check: kdbench's own training under the audits, for a few steps, canonical or with a fault."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

import torch

from kdbench.audits.finding import Report
from kdbench.harness import faults
from kdbench.harness.analysis.expectation import Said, departures
from kdbench.harness.faults import Fault
from kdbench.harness.plan.preset import Preset, load_preset, split_pair
from kdbench.harness.run.properties import with_properties
from kdbench.harness.run.trial import prepare_device, watched
from kdbench.kd import NUMERICS, train
from kdbench.kd.data import Dataset, cache_folder, load_file, prepare
from kdbench.kd.methods import METHODS, read_settings
from kdbench.kd.models import MODELS
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Precision, Recipe
from kdbench.kd.teacher import file_sha256, save_checkpoint

EPOCHS = 2
"Of ten steps each: the burn-in of a watch."
TEACHER_EPOCHS = 6
"Enough for a teacher that surely knows more than the commonest label."


@dataclass(frozen=True)
class Run:
    """One training with one fault, or none, and what the audits say about it."""

    method: str
    fault: Fault | None
    seed: int
    report: Report
    steps: int
    calls: int
    "How often the fault's seam was asked."
    epochs: tuple[train.Epoch, ...]

    recipe: Recipe
    "What it was trained with: changed as the fault needs, and in the precision asked for."

    @cached_property
    def departures(self) -> list[str]:
        """In what the audits did not say what the fault, or its absence, declares."""
        said = Said.of(self.report.to_dicts())
        return departures(self.fault, said, reached=self.calls > 0, method=self.method, recipe=self.recipe)

    @property
    def as_declared(self) -> bool:
        """Whether the audits said exactly what is declared."""
        return not self.departures


def audit_ourselves(
    methods: Sequence[str],
    names: Sequence[str | None],
    seed: int,
    told: Callable[[str], None],
    pair: str | None = None,
) -> list[Run]:
    """Train each method with each fault (None: canonical) for a few steps under all audits.

    A fault that does not apply to a method is left out. `told` is called with what is being done, in words.
    """
    found = [faults.get(name) if name is not None else None for name in names]
    return [
        audit_once(method, fault, seed, told, pair=pair)
        for fault in found
        for method in methods
        if fault is None or not fault.why_not(method)
    ]


def audit_once(
    method: str,
    fault: Fault | None,
    seed: int,
    told: Callable[[str], None],
    precision: Precision | None = None,
    device: str = "cpu",
    pair: str | None = None,
) -> Run:
    """Train one method, with a fault or without, for a few steps under all audits; in the precision the fault needs.

    The teacher is trained on the processor, whatever the device. The pair is the demo's unless another is named.
    """
    preset, dataset = _study()
    teacher_arch, student_arch = split_pair(pair or preset.pairs[0])
    canonical = replace(preset.recipe, epochs=EPOCHS)
    recipe = fault.recipe(canonical) if fault else canonical
    recipe = replace(recipe, precision=precision) if precision is not None else recipe
    place = prepare_device(device, threads=1)  # as a trial's: sums in another order have other last bits
    if recipe.precision == "fp16" and place.type == "cpu" and _may_begin_with_four_channels():
        told("a processor only emulates fp16, which is slow: the networks are half as wide")
        canonical, recipe = (replace(r, base_width=r.base_width // 2) for r in (canonical, recipe))
    calls = 0

    def reached() -> None:
        nonlocal calls
        calls += 1

    procedure = fault.inject(CANONICAL, reached) if fault else CANONICAL
    settings = preset.settings(preset.pairs[0], method)
    teacher = None
    if METHODS[method].needs_teacher:
        shared = fault.in_teacher if fault is not None else None
        teacher = _teacher(dataset, teacher_arch, replace(canonical, epochs=TEACHER_EPOCHS), shared, told)
    doing = f"{method}{f' with {fault.name}' if fault else ''}: training {student_arch}"
    told(f"{doing} on digits for {recipe.epochs} epochs")
    training = train.prepare(dataset, student_arch, teacher, method, settings, recipe, procedure, seed, place)
    training.scores_test = fault is not None and fault.needs_test_scores
    with watched(training, method, teacher) as watch:
        epochs = tuple(train.epochs(training, watch.labels))
    report = with_properties(watch.report, training)
    return Run(method, fault, seed, report, recipe.epochs * training.steps_per_epoch, calls, epochs, recipe)


def _may_begin_with_four_channels() -> bool:
    """Say whether the processor trains convolutions over four channels: with AVX2 alone, oneDNN writes past its memory
    in the backward of one with a stride, and the process dies (torch 2.14)."""
    narrower = os.environ.get("ONEDNN_MAX_CPU_ISA", "") in ("SSE41", "AVX")
    return narrower or "AVX512" in torch.backends.cpu.get_cpu_capability()


@cache
def _study() -> tuple[Preset, Dataset]:
    return load_preset("quick"), load_file(prepare("digits", None, cache_folder()))


def prepare_teachers(chosen: Sequence[Fault], told: Callable[[str], None]) -> None:
    """Train what teachers the faults need, once and before processes that would each train them."""
    preset, dataset = _study()
    arch = split_pair(preset.pairs[0])[0]
    for fault in dict.fromkeys([None, *(f.in_teacher for f in chosen)]):
        _teacher(dataset, arch, replace(preset.recipe, epochs=TEACHER_EPOCHS), fault, told)


def _teacher(
    dataset: Dataset, arch: str, recipe: Recipe, fault: Fault | None, told: Callable[[str], None]
) -> train.Teacher:
    """Return a trained teacher, out of the cache where it has been trained before."""
    decided_by: tuple[object, ...] = (
        NUMERICS, dataset.digest, arch, asdict(recipe), fault.digest if fault else None,
    )  # fmt: skip
    if MODELS[arch].digest is not None:
        decided_by += (MODELS[arch].digest,)
    path: Path = cache_folder() / "audit" / f"teacher-{sha256(repr(decided_by).encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        told(
            f"teacher{f' with {fault.name}' if fault else ''}: training {arch} on digits for {recipe.epochs} epochs; "
            f"it is kept in {path.parent} for the next time"
        )
        procedure = fault.inject(CANONICAL, lambda: None) if fault else CANONICAL
        torch.set_num_threads(1)  # whoever asks for it, it must be the same teacher
        settings = read_settings("baseline", {})
        training = train.prepare(dataset, arch, None, "baseline", settings, recipe, procedure, 0, torch.device("cpu"))
        for _ in train.epochs(training):
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_checkpoint(training.student, temporary)
        temporary.replace(path)
    return train.Teacher(arch, path, file_sha256(path))
