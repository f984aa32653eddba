"""What the harness itself takes: planning, resuming and comparing 10,000 trials, one record, the mirror."""

import itertools
import random
import tracemalloc
from dataclasses import replace

import large_study
import pytest
from large_study import GROUND

from kdbench.harness.analysis import compare, external_runs, stats, status, study_table
from kdbench.harness.plan.plan import make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.publish import report
from kdbench.harness.records import record
from kdbench.harness.records.record import StudyFolder
from kdbench.harness.run.scheduler import is_done

pytestmark = pytest.mark.usefixtures("cpu_only")


def traced(call):
    """Return the peak of the memory that a call takes while it runs, in MB, as Python counts it."""
    tracemalloc.start()
    try:
        call()
        return round(tracemalloc.get_traced_memory()[1] / 1e6, 1)
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def wide(sizes):
    """A preset and variants whose plan has about the wanted number of trials: every fault, every pair, some seeds."""
    return large_study.plan_of(sizes.trials, "arms", ["r34-r18"] if sizes.toy else None)


@pytest.fixture(scope="module")
def study(wide, folder):
    """A study of about the wanted number of finished, sealed trials on disk, with its plan."""
    plan = make_plan(*wide, GROUND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record.os, "fsync", lambda file: None)  # the disk is not what is measured
        return plan, large_study.write(folder, plan)


@pytest.fixture(scope="module")
def deep(folder, sizes):
    """The same with few arms and thousands of seeds each."""
    plan = make_plan(*large_study.plan_of(sizes.trials, "seeds"), GROUND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record.os, "fsync", lambda file: None)
        return large_study.write(folder / "deep", plan)


@pytest.mark.parametrize("shape", ["many-seeds", "many-arms"])
def test_plan(measure, sizes, wide, shape):
    """Laying out 10,000 trials, each with its digest."""
    few = replace(load_preset("quick"), seeds=tuple(range(sizes.trials // 3)))
    preset, variants = (few, [None]) if shape == "many-seeds" else wide

    def call():
        return make_plan(preset, variants, GROUND)

    measure.seconds(call, goal=0.5, rounds=3, trials=len(call().trials), peak_mb=traced(call))


def test_resume(measure, study):
    """Finding out which of 10,000 finished trials are still to be run."""
    plan, folder = study

    def call():
        return [key for key in plan.trials if not is_done(plan, folder, key)]

    assert call() == []
    measure.seconds(call, goal=None, rounds=3, trials=len(plan.trials), peak_mb=traced(call))


def test_read(measure, study):
    """Reading a study of 10,000 trials for its tables: every spec checked against its name, every result."""
    plan, folder = study

    def call():
        return study_table.read_study(folder)

    measure.seconds(call, goal=None, rounds=2, trials=len(plan.trials), peak_mb=traced(call))


def test_compare_study(measure, study, sizes):
    """Comparing 1,000 bugged arms of that study with their corrected ones, as one family."""
    trials = study_table.read_study(study[1])
    pairs = compare.bug_pairs(trials.arms)[: sizes.comparisons]

    def call():
        return compare.compare_arms(trials, pairs, refuse=False)

    some = pairs[:50]
    peak = traced(lambda: compare.compare_arms(trials, some, refuse=False))
    seeds = len(trials.arms[pairs[0][0]])
    measure.seconds(call, goal=None, rounds=1, comparisons=len(pairs), seeds=seeds, peak_mb_of_fifty=peak)


def test_comparisons(measure, sizes):
    """1,000 comparisons of five seeds with five: every test, interval and power."""
    rng = random.Random(0)
    groups = [[[95 + rng.gauss(0, 0.3) for _ in range(5)] for _ in "ab"] for _ in range(sizes.comparisons)]

    def call():
        for a, b in groups:
            stats.compare(a, b, 0.5)

    few = groups[:20]
    peak = traced(lambda: [stats.compare(a, b, 0.5) for a, b in few])
    measure.seconds(call, goal=2.0, rounds=1, comparisons=len(groups), peak_mb_of_twenty=peak)


def test_record(measure, folder):
    """Committing one trial's result: written, synced to the disk, renamed."""
    plan = make_plan(replace(load_preset("quick"), seeds=(0,)), [None], GROUND)
    key, spec = next(iter(plan.trials.items()))
    trial = StudyFolder(folder / "record").trial(key)
    trial.path.mkdir(parents=True)
    result = large_study.result_of(key, spec, [95.0] * large_study.EPOCHS, random.Random(0))
    measure.seconds(lambda: trial.write_result(result), goal=0.01, rounds=30)


@pytest.mark.parametrize("shape", ["many-seeds", "many-arms"])
@pytest.mark.parametrize("command", ["status", "compare", "report"])
def test_commands(measure, request, shape, command):
    """What status, compare and report do with a study of 10,000 sealed trials, once PyTorch is imported."""
    folder = request.getfixturevalue("deep") if shape == "many-seeds" else request.getfixturevalue("study")[1]
    trials = sum(1 for _ in folder.trials())

    def call():
        if command == "status":
            return status.progress(folder)
        if command == "report":
            return report.write(folder, folder.path)
        read = study_table.read_study(folder)
        return compare.compare_within_family(read, compare.pairs_of_arms(read, "corrected", "bugged"))

    measure.seconds(call, goal=15.0, rounds=1, trials=trials, bytes_per_trial=round(1e6 * traced(call) / trials))


@pytest.mark.parametrize("rows", ["ten-thousand", "a-million"])
def test_compare_table(measure, folder, sizes, rows):
    """Reading a table of runs of two groups, and comparing them."""
    count = 200 if sizes.toy else 10_000 if rows == "ten-thousand" else 1_000_000
    path, rng = folder / f"{rows}.csv", random.Random(0)
    with path.open("w") as file:
        file.write("method,seed,accuracy\n")
        for method in ("plain", "kd"):
            file.writelines(f"{method},{seed},{95 + rng.gauss(0, 0.3):.4f}\n" for seed in range(count // 2))

    def call():
        columns = external_runs.Columns("method", "seed", "accuracy")
        return external_runs.compare(external_runs.read_csv(path), columns, "plain", margin=0.5, alpha=0.05)

    goal = 2.0 if rows == "ten-thousand" else 20.0
    measure.seconds(call, goal=goal, rounds=1, rows=count, bytes_per_row=round(1e6 * traced(call) / count))


def test_mirror(measure, folder, sizes, monkeypatch):
    """Mirroring 100 trials of 15 epochs into MLflow's SQLite, which is there already."""
    pytest.importorskip("mlflow", reason="MLflow is not installed: nothing to mirror into")
    from kdbench.harness.publish.mirror import Mirror, mirror_study

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # whoever runs this may have a server of their own
    runs, rng, turn = folder / "mirrored", random.Random(0), itertools.count()
    preset = replace(load_preset("quick"), methods=("baseline",), seeds=tuple(range(sizes.mirrored)))
    plan = make_plan(preset, [None], GROUND)
    runs.mkdir()
    Mirror(runs, "empty")  # the database is made once

    def fresh():
        study = StudyFolder(runs / f"study-{next(turn)}")
        study.path.mkdir()
        for key, spec in plan.trials.items():
            large_study.write_trial(study.trial(key), spec, rng)
        study_table.write_study(study, preset.decision, plan.arms)
        return (study_table.read_study(study),), {}

    def call(study):
        assert mirror_study(runs, study).written == len(plan.trials)

    measure.seconds(call, goal=5.0, rounds=2, setup=fresh, trials=len(plan.trials))
