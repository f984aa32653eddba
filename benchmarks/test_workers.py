"""Trials by the hour."""

import itertools
from dataclasses import replace

import pytest
from timing import Sides

from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.environment import usable_cores
from kdbench.harness.records.record import StudyFolder
from kdbench.harness.run.scheduler import execute
from kdbench.kd.data import load_file
from kdbench.kd.data import prepare as prepare_data


def test_workers(cpu_only, bench, measure, folder, monkeypatch):
    """A trial a core on one thread each, against one trial after another on all cores: small trainings on digits."""
    cores = 2 if bench.sizes.toy else usable_cores()
    if cores == 1:
        pytest.skip("one core: there is nothing to share out")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # set by execute, and put back afterwards
    preset = load_preset("quick")
    recipe = replace(preset.recipe, epochs=bench.sizes.trial_epochs, test_stride=8)
    if bench.sizes.toy:
        recipe = replace(recipe, base_width=4, train_size=32)
    preset = replace(preset, methods=("baseline",), seeds=tuple(range(cores)), recipe=recipe)
    data_file = prepare_data("digits", None, folder)
    data = load_file(data_file)
    turn = itertools.count()

    def run(workers, threads):
        plan = make_plan(preset, [None], Ground(data.name, data.digest, "cpu", threads))
        study = StudyFolder(folder / f"workers-{next(turn)}")
        outcome = execute(plan, study, data_file, workers, lambda *_: None)
        assert len(outcome.trained) == cores and not outcome.failed

    images = cores * recipe.epochs * recipe.train_size
    sides = Sides(lambda: run(cores, 1), lambda: run(1, 1 if bench.sizes.toy else cores), images)
    ratio = measure.ratio_here(sides, goal=1.0, rounds=bench.sizes.worker_rounds)
    measure.note(workers=cores, trials_per_hour=round(cores * 3600 / ratio.seconds))
