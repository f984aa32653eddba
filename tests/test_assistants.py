"""A chain of teachers: assistants are trained first, by the same method, and the record of a study holds them all."""

import json
import re

import pytest
from conftest import TINY
from test_cli import kdbench

from kdbench.harness.analysis.study_table import read_study, teacher_folders
from kdbench.harness.archive.bundle import counted
from kdbench.harness.plan.outline import preset_text
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import parse_preset, split_pair
from kdbench.harness.records.record import StudyFolder
from kdbench.kd.errors import InputError

GROUND = Ground("digits", "d", "cpu")
CHAIN = "r50-r34-r18"


def plan_of(*pairs, **words):
    pairs = ", ".join(f'"{pair}"' for pair in pairs)
    return make_plan(parse_preset("quick", preset_text("quick").replace('"r34-r18"', pairs)), [None], GROUND, **words)


def test_an_assistant_is_planned_between_teacher_and_student():
    plan = plan_of(CHAIN)
    student = next(key for arm, by_seed in plan.arms.items() if arm.method == "logit" for key in by_seed.values())
    assistant, teacher = plan.needs_all(student)
    assert [plan.trials[key].arch for key in (student, assistant, teacher)] == ["r18", "r34", "r50"]
    assert [plan.trials[key].method for key in (student, assistant, teacher)] == ["logit", "logit", "baseline"]
    recipe = plan.preset.teacher_recipe
    assert plan.trials[assistant].recipe == plan.trials[teacher].recipe == recipe
    assert {name for name, _ in plan.teachers} == {
        "r50", "r34 (taught by r50, logit)", "r34 (taught by r50, feature)",
    }  # fmt: skip


def test_a_chain_shares_what_it_can_with_the_pair_beside_it():
    both, chain, pair = plan_of(CHAIN, "r50-r18"), plan_of(CHAIN), plan_of("r50-r18")
    assert both.trials.keys() == chain.trials.keys() | pair.trials.keys()
    assert len(chain.trials.keys() & pair.trials.keys()) == 1 + len(both.preset.seeds)  # teacher and baselines


def test_a_shard_has_every_teacher_that_it_needs():
    plan = plan_of("r101-r50-r34-r18")
    for number in (1, 2, 3):
        keys = plan.shard(number, 3)
        assert all({*plan.needs_all(key)} <= {*keys} for key in keys)
    assert {key for number in (1, 2, 3) for key in plan.shard(number, 3)} == {*plan.trials}


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("r18", "a pair is teacher-student, or teacher-assistant-student"),
        ("r50--r18", "pair r50--r18: unknown network ''"),
        ("r50-r34-r81", "pair r50-r34-r81: unknown network 'r81'"),
    ],
)
def test_what_is_no_chain_is_refused(pair, says):
    assert split_pair(CHAIN) == ("r34", "r18")
    with pytest.raises(InputError, match=says):
        split_pair(pair)


def test_stages_are_asked_of_every_link(tmp_path):
    words = ["--pair", "r34-wrn_16_1-resnet8", "--method", "at", "--runs", str(tmp_path)]
    code, _, err = kdbench("run", TINY, *words, "--dry-run")
    assert code == 2 and '[pair."r34-wrn_16_1"] stages' in " ".join(err.split())


def test_a_chain_is_trained_read_packed_and_reproduced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--pair", CHAIN, "--method", "baseline", "--method", "logit", "--seeds", "0-1", "--variant", "corrected"]
    code, out, err = kdbench("run", TINY, *words, "--epochs", "1", "--teacher-epochs", "2", "--no-controls", "--json")
    found = json.loads(out)
    assert code in (0, 1) and (found["trained"], found["failed"]) == (6, 0), err
    assert [row["arch"] for row in found["teachers"]] == ["r34 (taught by r50, logit)", "r50"]
    (study,) = (StudyFolder(path.parent) for path in (tmp_path / "runs").glob("*/study.json"))
    trials = read_study(study)
    assert [arch for arch, _ in teacher_folders(trials)] == ["r34 (taught by r50, logit)", "r50"]
    assert len(counted(trials)) == 6
    code, _, err = kdbench("bundle", "--output", "chain.zip", "--weights")
    assert code == 0, err
    code, out, err = kdbench("reproduce", "chain.zip", "--trials", "1", "--runs", "again", "--json")
    again = json.loads(out)
    assert code == 0, err
    trained = {row["arch"] for row in again["trials"]}
    assert trained in ({"r18"}, {"r18", "r34", "r50"})  # a baseline needs no teacher, Logit-KD's student both
    code, out, _ = kdbench("report", "--output", "page")
    assert code == 0 and re.search(r"r34 \(taught by r50, logit\)", (tmp_path / "page" / "report.html").read_text())
