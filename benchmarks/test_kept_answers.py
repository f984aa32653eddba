"""A grid whose trials read the teacher's answers from each other."""

import itertools
import shutil
from dataclasses import replace

from timing import Sides

from kdbench.harness.plan.grid import Grid
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.record import StudyFolder
from kdbench.harness.run.scheduler import execute
from kdbench.kd.data import load_file
from kdbench.kd.data import prepare as prepare_data


def test_kept_answers(cpu_only, bench, measure, folder, monkeypatch):
    """A grid of Logit-KD, R34 -> R18 on digits, one trial after another, against the same with every teacher asked."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # set by execute, and put back afterwards
    sizes, preset = bench.sizes, load_preset("quick")
    recipe = replace(preset.recipe, epochs=sizes.grid_epochs, batch_size=16, val_size=40, test_stride=8)
    if sizes.toy:
        recipe = replace(recipe, base_width=4, train_size=32)
    grid = Grid((100,), {"logit": {"temperature": tuple(range(1, sizes.grid_points + 1))}})
    preset = replace(preset, methods=("logit",), recipe=recipe, teacher={"epochs": 1}, grid=grid)
    data_file = prepare_data("digits", None, folder)
    data = load_file(data_file)
    plan = make_plan(preset, [None], Ground(data.name, data.digest, "cpu"))
    taught, turn = StudyFolder(folder / "grid-taught"), itertools.count()
    execute(plan, taught, data_file, 1, lambda *_: None, only=list(plan.teachers.values()))

    def run(kept):
        study = StudyFolder(folder / f"grid-{next(turn)}")
        shutil.copytree(taught.path, study.path)
        if kept:
            study.answers.mkdir()
        outcome = execute(plan, study, data_file, 1, lambda *_: None)
        results = [study.trial(key).result() for key in outcome.trained]
        reading = sum("kept_answers_epochs" in result.times for result in results)
        assert not outcome.failed and (len(results), reading) == (
            sizes.grid_points,
            sizes.grid_points - 1 if kept and not sizes.toy else 0,
        )
        shutil.rmtree(study.path)

    images = sizes.grid_points * recipe.epochs * recipe.train_size
    sides = Sides(lambda: run(True), lambda: run(False), images)
    measure.ratio_here(sides, goal=1.4, rounds=1, patience=2)
    measure.note(settings=sizes.grid_points, epochs=recipe.epochs)
