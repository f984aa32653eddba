"""Which trainings of a study replay their kernels from CUDA graphs; no bit of a result hangs on it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from kdbench.harness import faults
from kdbench.harness.records.spec import Spec
from kdbench.kd.models import MODELS


def with_graphs(spec: Spec) -> Spec:
    """Return a trial's spec with its graphs decided: as the study says, or on a GPU where nothing speaks against it."""
    asked = spec.recipe.graphs
    if asked is None:
        asked = spec.device == "cuda" and why_eager(spec) is None
    decided = asked or None
    if decided == spec.recipe.graphs:
        return spec  # as it is: its key was computed, and a study has many
    return replace(spec, recipe=replace(spec.recipe, graphs=decided))


def why_eager(spec: Spec) -> str | None:
    """Return why a training on a GPU launches its kernels one by one unless told otherwise; None if it need not.

    What tests on a GPU have shown to come out the same is captured (tests/test_cuda.py): our networks, methods and
    faults. Of code that we have not seen nobody knows whether it can be.
    """
    if spec.recipe.compile:
        return "torch.compile makes kernels of its own"
    archs = [spec.arch, *([spec.teacher.arch] if spec.teacher is not None else [])]
    strangers = [arch for arch in archs if MODELS[arch].digest is not None or MODELS[arch].foreign]
    if strangers:
        return f"{strangers[0]} is no network of kdbench's"
    if spec.method_digest is not None:
        return f"{spec.method} is a method of yours"
    if spec.settings.crops() > 1:
        return f"{spec.method} learns from several crops of an image"
    fault = faults.get(spec.fault) if spec.fault is not None else None
    if fault is not None and not fault.recipe(replace(spec.recipe, graphs=True)).graphs:
        return "they would hide the fault"
    return "the fault is yours" if fault is not None and not fault.is_ours else None


def eager(specs: Iterable[Spec]) -> dict[str, list[str]]:
    """Return by reason which arms of a study on a GPU have no graphs though nobody refused them."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for spec in specs:
        if not spec.recipe.graphs and (why := why_eager(spec)) is not None:
            found[why][spec.fault or spec.method] = None
    return {why: list(arms) for why, arms in found.items()}
