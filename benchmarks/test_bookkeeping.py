"""What the harness itself takes: planning, resuming and comparing 10,000 trials, one record, the mirror."""

import itertools
import json
import random
import tracemalloc
from dataclasses import asdict, replace

import pytest

from kdbench.harness import faults
from kdbench.harness.analysis import compare, stats, study_table
from kdbench.harness.plan.plan import Ground, load_preset, make_plan
from kdbench.harness.records.record import Metrics, Result, StudyFolder
from kdbench.harness.run.scheduler import is_done
from kdbench.kd.models.resnet import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("cpu_only")

GROUND = Ground("digits", "d" * 64, "cpu")
EPOCHS = 15
FINDINGS = 25
"Of a trial: about as many laws have something to say of a corrected one."


def traced(call):
    """Return the peak of the memory that a call takes while it runs, in MB, as Python counts it."""
    tracemalloc.start()
    try:
        call()
        return round(tracemalloc.get_traced_memory()[1] / 1e6, 1)
    finally:
        tracemalloc.stop()


def result_of(key, rng):
    finding = {
        "id": "KD312",
        "name": "kd-scale",
        "status": "pass",
        "severity": "error",
        "message": "the term acts with weight 0.7 beside the labels' 0.3",
        "consequence_of": None,
    }
    metrics = Metrics(95 + rng.gauss(0, 0.3), 95.0, [95.0] * 10, 0.9, 0.1, 0.1)
    return Result(
        key,
        "finished",
        selected_epoch=EPOCHS,
        metrics=metrics,
        findings=[finding] * FINDINGS,
        environment={"torch": "2", "device_name": "cpu", "code_digest": "0" * 16},
        times={"started": "2026-01-01T00:00:00+00:00", "seconds": 12.0},
    )


def write_quickly(folder, spec, result):
    """Write a trial as it stands after a run, without waiting for the disk."""
    folder.path.mkdir(parents=True)
    (folder.path / "spec.json").write_text(spec.to_json())
    result_text = json.dumps(asdict(result), indent=2, sort_keys=True)
    (folder.path / "result.json").write_text(result_text)
    folder.student.touch()


@pytest.fixture(scope="module")
def wide(sizes):
    """A preset and variants whose plan has about the wanted number of trials: every fault, every pair, some seeds."""
    preset, variants = load_preset("quick"), [None, *faults.FAULTS]
    if sizes.toy:
        variants = variants[:3]
    pairs = ("r34-r18",) if sizes.toy else tuple(f"{t}-{s}" for t in ARCHITECTURES for s in ARCHITECTURES)
    one = make_plan(replace(preset, pairs=pairs, seeds=(0,)), variants, GROUND)
    seeds = max(2, round(sizes.trials / len(one.trials)))
    return replace(preset, pairs=pairs, seeds=tuple(range(seeds))), variants


@pytest.fixture(scope="module")
def study(wide, folder, sizes):
    """A study of about the wanted number of finished trials on disk, with its plan."""
    plan, rng = make_plan(*wide, GROUND), random.Random(0)
    study = StudyFolder(folder / plan.study)
    for key, spec in plan.trials.items():
        write_quickly(study.trial(key), spec, result_of(key, rng))
    study_table.write_study(study, plan.preset.decision, plan.arms)
    return plan, study


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
    record = StudyFolder(folder / "record").trial("0" * 16)
    record.path.mkdir(parents=True)
    result = result_of(record.key, random.Random(0))
    measure.seconds(lambda: record.write_result(result), goal=0.01, rounds=30)


def test_mirror(measure, folder, sizes, monkeypatch):
    """Mirroring 100 trials of 15 epochs into MLflow's SQLite, which is there already."""
    pytest.importorskip("mlflow", reason="MLflow is not installed: nothing to mirror into")
    from kdbench.harness.publish.mirror import Mirror, mirror_study

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # whoever runs this may have a server of their own
    runs, rng, turn = folder / "mirrored", random.Random(0), itertools.count()
    preset = replace(load_preset("quick"), methods=("baseline",), seeds=tuple(range(sizes.mirrored)))
    plan = make_plan(preset, [None], GROUND)
    norms = {"student": {"mean": 1.0, "max": 2.0}, "all": {"mean": 1.0, "max": 2.0}}
    epoch = {"lr": 0.1, "loss": {"ce": 1.0, "total": 1.0}, "grad_norms": norms, "digest": "0" * 16}
    lines = [
        json.dumps({"epoch": n, **epoch, "train_accuracy": 90.0, "val_accuracy": 90.0}) for n in range(1, EPOCHS + 1)
    ]
    runs.mkdir()
    Mirror(runs, "empty")  # the database is made once

    def fresh():
        study = StudyFolder(runs / f"study-{next(turn)}")
        for key, spec in plan.trials.items():
            write_quickly(study.trial(key), spec, result_of(key, rng))
            (study.trial(key).path / "curve.jsonl").write_text("\n".join(lines) + "\n")
        study_table.write_study(study, preset.decision, plan.arms)
        return (study_table.read_study(study),), {}

    def call(study):
        assert mirror_study(runs, study).written == len(plan.trials)

    measure.seconds(call, goal=5.0, rounds=2, setup=fresh, trials=len(plan.trials))
