"""The study of max_norm: what it counts, where the fault lies dormant, and what it draws."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from conftest import write_images
from torch import nn

from kdbench.harness.plan.preset import load_preset
from kdbench.harness.study import Request
from kdbench.kd import train
from studies import max_norm as clip_study


class Quiet:
    is_terminal = False

    def print(self, *args, **kwargs):
        pass


@pytest.fixture(scope="module")
def rows(tmp_path_factory, cache):
    place = tmp_path_factory.mktemp("sweep")
    preset = load_preset("quick")
    # Nothing takes off at a rate this small: clipped or not, every norm lies between 1 and 100.
    recipe = replace(preset.recipe, epochs=2, base_width=4, val_size=40, test_stride=8, lr=1e-4)
    preset = replace(preset, methods=("feature",), recipe=recipe, teacher={"epochs": 3})
    request = Request(preset, [], False, "digits", None, "cpu", None, place, None, None, controls=False)
    return clip_study.sweep(request, [0.05, 1e3], ["trained", "random-eval"], [0], Quiet())


@pytest.mark.long
def test_the_fault_is_dormant_above_every_norm_and_acts_below(rows):
    assert len(rows) == 8 and all(row["status"] == "finished" for row in rows)
    for row in rows:
        bugged = row["unclipped"]
        assert ("KD201" in row["audits_failed"]) == bugged
        assert row["clipped_share"] == (1.0 if row["bound"] == 0.05 else 0.0)
        assert row["diverged_at"] == (1 if bugged and row["bound"] == 0.05 else None)
    loose = [row for row in rows if row["bound"] == 1e3]
    for teacher in ("trained", "random-eval"):
        assert len({row["test_accuracy"] for row in loose if row["teacher"] == teacher}) == 1


def normalising(training):
    """Let the teacher's batch norms normalise what the teacher is shown, as those of a trained one do."""
    norms = [module for module in training.teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = None  # the plain mean over all batches
    with torch.no_grad():
        for ids in training.split.train.split(16):
            still = train.draw_crops(len(ids), 0, False, torch.Generator())
            training.teacher(training.pool.crop(ids, still))
    training.teacher.eval()


def test_a_random_teacher_in_evaluation_mode_makes_the_projectors_norm_large(prepare):
    """Its batch norms normalise nothing. Nothing moves here, so the norms are those at the start: a ratio near 3."""
    means = []
    for prepared in (lambda training: None, normalising):
        training = prepare("feature", epochs=1, lr=1e-9, lr_min=0.0, max_norm=1e6)
        prepared(training)
        (epoch,) = train.epochs(training)
        means.append(epoch.grad_norms["projectors"]["mean"])
    assert means[0] > 1.5 * means[1]


@pytest.mark.long
def test_the_table_says_never_where_nothing_differs(rows):
    lines = clip_study.table(rows, 0.5).splitlines()
    assert len(lines) == 2 + 4
    assert "| never |" in next(line for line in lines if line.startswith("| 1000 | trained"))
    assert "| 1 |" in next(line for line in lines if line.startswith("| 0.05 | trained"))


def test_the_arms_are_faults_in_seams_of_their_own():
    assert clip_study.arms_of("trained") == (None, "projector-unclipped")
    assert clip_study.arms_of("random-train") == (
        "random-teacher+teacher-train-mode",
        "projector-unclipped+random-teacher+teacher-train-mode",
    )


@pytest.mark.long
def test_norms_tables_and_figure_from_the_command_line(tmp_path, rows, cache):
    images = write_images(tmp_path / "images", train=110, test=2)
    small = ["--pair", "r18-r18", "--width", "4", "--steps", "1", "--seeds", "0", "--output", str(tmp_path)]
    ran = CliRunner().invoke(clip_study.main, ["norms", "--data", str(images), *small], catch_exceptions=False)
    assert ran.exit_code == 0 and "| random-train | unclipped |" in ran.stdout
    found = json.loads((tmp_path / "norms.json").read_text())
    assert len(found) == 4 and all(len(row["norms"]) == 1 and len(row["norms"][0]) == 3 for row in found)
    clip_study._added(tmp_path / "sweep.json", rows)
    assert clip_study._added(tmp_path / "sweep.json", rows[:1]) == json.loads((tmp_path / "sweep.json").read_text())
    ran = CliRunner().invoke(clip_study.main, ["draw", str(tmp_path)], catch_exceptions=False)
    assert ran.exit_code == 0 and "| 0.05 | trained | 1 |" in ran.stdout
    assert (tmp_path / "max-norm.png").read_bytes().startswith(b"\x89PNG")
