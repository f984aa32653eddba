"""What the tests share: one thread, a cache of their own, and small data."""

import dataclasses
import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from kdbench.kd import data, train
from kdbench.kd.data import Dataset
from kdbench.kd.methods import METHODS, MethodSettings, read_settings
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Recipe
from kdbench.kd.teacher import save_checkpoint

pytest.register_assert_rewrite("specimens")

# oneDNN reads this when it first computes, here and in every process that a test starts. Two of its kernels stay out:
# with half-precision instructions it trains fp16 convolutions by its reference code, five times slower than without;
# and where AVX2 is all there is, it writes past its memory in the backward of 1x1 convolutions with stride over four
# channels (torch 2.14, channels last), so the process dies. The networks of these tests begin with four channels.
_FULL = "AVX512" in torch.backends.cpu.get_cpu_capability()
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16" if _FULL else "AVX")


SEED = int(os.environ.get("KDBENCH_TEST_SEED", "0"))
"What the seeds of trainings in this process begin at. `make test-variants` moves it: no verdict hangs on one seed."


def cli_runner() -> CliRunner:
    """Make a runner whose stderr is apart from stdout, which click before 8.2 has to be told."""
    mixes = "mix_stderr" in inspect.signature(CliRunner).parameters
    return CliRunner(**{"mix_stderr": False} if mixes else {})


THREADS = int(os.environ.get("KDBENCH_TEST_THREADS", "1"))

TINY = str(Path(__file__).with_name("tiny.toml"))
"A study in seconds, whose teachers are good enough for the audits."

FIRST = (
    "test_run.py", "test_matrix.py", "test_gpu_queue.py", "test_clean_zoo.py", "test_shards.py", "test_own_faults.py",
    "test_own_methods.py", "test_scripts.py", "test_checkpoint.py", "test_interrupted.py", "test_audit_command.py",
    "test_benchmarks.py",
)  # fmt: skip
"Files that take a minute or more, the longest first. They begin first: who begins last is waited for by idle cores."

STILL = (
    "test_because.py", "test_check_*.py", "test_cli.py", "test_compare.py", "test_cuda.py", "test_cuda_script.py",
    "test_data.py", "test_earlier_records.py", "test_faults.py", "test_help.py", "test_laws.py", "test_losses.py",
    "test_measure.py", "test_models.py", "test_mutation_benchmark.py", "test_one_way_rule.py", "test_plan.py",
    "test_policy.py", "test_procedure.py", "test_progress.py", "test_properties.py", "test_record.py",
    "test_rehearsal.py", "test_render.py", "test_report.py", "test_reported.py", "test_splits.py",
    "test_statistics_benchmark.py", "test_stats.py", "test_table.py", "test_tables.py", "test_teacher.py",
    "test_ui.py", "test_variants.py",
)  # fmt: skip
"""Files in which nothing is trained on a processor. All others are marked `trains`: so `make test-variants` runs a file
that is new until somebody says here that it trains nothing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what trains, and put the tests of long files first."""
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))
    for item in items:
        if not any(fnmatch(item.path.name, still) for still in STILL):
            item.add_marker("trains")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, which stays."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, in whatever company it runs."""
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _compiles_afresh() -> None:
    """Torch compiles one function eight times a process and then runs it as it is, and all networks share one."""
    torch.compiler.reset()


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data cache of the session's own, for this process and those it starts."""
    path = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("KDBENCH_CACHE", str(path))
    # One database for all runs of the session: to make a fresh one takes MLflow five seconds each.
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path / 'mlflow.db'}")
    patch.setenv("COLUMNS", "140")  # whoever runs the tests has a terminal of some width
    return path


@pytest.fixture(scope="session")
def digits(cache: Path) -> Dataset:
    return data.load_file(data.prepare("digits", None, cache))


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """A recipe for seconds: 64 digits, two epochs of four steps."""
    return Recipe(
        epochs=2,
        batch_size=16,
        base_width=4,
        schedule="step",
        crop_padding=2,
        flip=False,
        train_size=64,
        val_size=40,
        test_stride=8,
    )


_SAMPLE = ("baseline", "logit", "feature", "dkd", "crd")
"""Methods that stand for all where a test trains for long: those of the demo, the decoupled one, and the one with most
of a state of its own. `make test-long` trains the others."""


def every_method(*also: str) -> list[Any]:
    """Return all methods as parameters of a test that trains each; most of them for `make test-long`."""
    return [pytest.param(name, marks=[] if name in (*_SAMPLE, *also) else pytest.mark.long) for name in METHODS]


@contextmanager
def put_back(*registries: dict) -> Iterator[None]:
    """Undo in place what a block registers; others hold the registries, so none is replaced."""
    known = [dict(registry) for registry in registries]
    try:
        yield
    finally:
        for registry, entries in zip(registries, known, strict=True):
            registry.clear()
            registry.update(entries)


def halves(method: str) -> MethodSettings:
    """Return a method's settings with weights of a half; those of one without a teacher as they are."""
    names = ("ce", *METHODS[method].Settings.terms()) if METHODS[method].needs_teacher else ()
    return read_settings(method, {f"{name}_weight": 0.5 for name in names})


@pytest.fixture(scope="session")
def prepare(digits: Dataset, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., train.Training]:
    """Prepare a small training by method name; one with a teacher gets an r18 of random weights as checkpoint."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    base = train.prepare(
        digits, "r18", None, "baseline", halves("baseline"), recipe, CANONICAL, 99, torch.device("cpu")
    )
    save_checkpoint(base.student, path)

    def make(method: str = "baseline", procedure=CANONICAL, seed: int = SEED, **changes) -> train.Training:
        teacher = train.Teacher("r18", path) if METHODS[method].needs_teacher else None
        settings = halves(method)
        changed = dataclasses.replace(recipe, **changes)
        return train.prepare(digits, "r18", teacher, method, settings, changed, procedure, seed, torch.device("cpu"))

    return make


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 3, test: int = 2) -> Path:
    """Write a small folder of images, each of its own colours."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label in classes:
            place = root / part / label
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return root
