"""A study as a file: what init writes, what run takes from it, what status says of it."""

import dataclasses
import json
import os
import shutil

import pytest
from conftest import write_images
from test_cli import kdbench

from kdbench.harness.plan.outline import PRESETS
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.lease import take
from kdbench.harness.records.record import Result, StudyFolder
from kdbench.kd.errors import InputError

SMALL = """
[study]
dataset = "digits"
pairs = ["r34-r18"]
methods = ["baseline", "feature"]
arms = ["corrected", "projector-unclipped"]
seeds = "0-1"
[recipe]
epochs = 3
batch_size = 32
base_width = 4
train_size = 64
val_size = 40
test_stride = 16
[teacher]
epochs = 2
[method.feature]
ce_weight = 1
kd_weight = 1
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_study_that_runs_as_it_is(here):
    code, out, _ = kdbench("init")
    assert code == 0 and "kdbench" in out and "run study.toml --dry-run" in out
    preset = load_preset("study.toml")
    quick = load_preset("quick")
    assert (preset.recipe, preset.teacher_recipe) == (quick.recipe, quick.teacher_recipe), "the demo's, spelled out"
    code, out, err = kdbench("run", "study.toml", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["study"].startswith("study-digits-") and plan["trials"] == 53, err
    code, _, err = kdbench("init")
    assert code == 2 and "study.toml exists already" in err
    code, _, err = kdbench("init", "none/study.toml")
    assert code == 2 and "there is no folder none" in err
    code, _, err = kdbench("init", "study.yaml")
    assert code == 2 and "ends in .toml" in err


def test_a_file_names_arms_and_options_change_them(here):
    (here / "mine.toml").write_text(SMALL)
    plan = json.loads(kdbench("run", "mine.toml", "--dry-run", "--json", "--no-controls")[1])
    arms = {(row["method"], row["fault"]) for row in plan["plan"]}
    assert arms == {("teacher", None), ("baseline", None), ("feature", None), ("feature", "projector-unclipped")}
    plan = json.loads(kdbench("run", "mine.toml", "--variant", "corrected", "--dry-run", "--json", "--no-controls")[1])
    assert {row["fault"] for row in plan["plan"]} == {None}
    names = set()
    for change in ("epochs = 3", "epochs = 4"):
        (here / "mine.toml").write_text(SMALL.replace("epochs = 3", change))
        names.add(json.loads(kdbench("run", "mine.toml", "--dry-run", "--json")[1])["study"])
    (here / "mine.toml").write_text(SMALL.replace("kd_weight = 1", "kd_weight = 2"))
    names.add(json.loads(kdbench("run", "mine.toml", "--dry-run", "--json")[1])["study"])
    assert len(names) == 3, "what cannot be compared has a folder of its own"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seeds =", "sedes ="), "unknown key 'sedes'; did you mean 'seeds'"),
        (
            ('"projector-unclipped"', '"projector-uncliped"'),
            "unknown arm 'projector-uncliped'; did you mean 'projector-unclipped'",
        ),
        (("base_width = 4", "base_widht = 4"), "unknown key 'base_widht'; did you mean 'base_width'"),
        (("arms = [", "arms = [3, "), "it must be a list of names"),
        (('dataset = "digits"', 'dataset = "digits"\ndata = 3'), "[study]: data is 3; it must be a text"),
        (('dataset = "digits"', "dataset = 3"), "[study]: dataset is 3; it must be a text"),
        (('seeds = "0-1"', "seeds = 5"), '"0-4" are five seeds, "5" is the seed 5'),
        (("[recipe]", '[grid]\nseeds = "7"\n[grid.feature]\n[recipe]'), "[grid.feature] names no setting to be tried"),
        (("[recipe]", "[decision]\nmargin_pp = inf\n[recipe]"), "margin_pp is inf; it must be a finite number"),
        (('"baseline", "feature"', '"baseline"'), "applies to none of the methods asked for"),
    ],
)
def test_a_slip_in_a_file_is_named(here, change, says):
    (here / "mine.toml").write_text(SMALL.replace(*change))
    code, _, err = kdbench("run", "mine.toml", "--dry-run")
    assert code == 2 and says in err, err


def test_what_is_no_study_file_is_said(here):
    code, _, err = kdbench("run", "mine.toml")
    assert code == 2 and "mine.toml does not exist; kdbench init writes a study" in err
    code, _, err = kdbench("run", "quick")
    assert code == 2 and "name a preset with --preset" in err
    (here / "quick.toml").write_text(SMALL)
    with pytest.raises(InputError, match="quick is the name of a preset"):
        load_preset("quick.toml")
    assert "template" not in PRESETS


def test_images_are_looked_for_beside_the_file(here):
    (here / "deep").mkdir()
    write_images(here / "deep" / "pets", train=60, test=4)
    text = SMALL.replace('dataset = "digits"', 'dataset = "folder"\ndata = "pets"').replace(
        "val_size = 40", "val_size = 30"
    )
    (here / "deep" / "mine.toml").write_text(text)
    code, out, err = kdbench("run", "deep/mine.toml", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["study"].startswith("mine-folder-pets-"), err


def test_status_says_how_far_a_study_is(here, cache):
    (here / "mine.toml").write_text(SMALL)
    code, _, err = kdbench("run", "mine.toml", "--no-controls")
    assert code in (0, 1), err
    code, out, _ = kdbench("status", "--json")
    (found,) = json.loads(out)["studies"]
    assert code == 0 and found["counts"] == {"finished": 7} and found["failures"] == []
    assert [(a["method"], a["arm"], a["finished"], a["trials"]) for a in found["arms"]] == [
        ("baseline", "corrected", 2, 2), ("feature", "corrected", 2, 2),
        ("feature", "projector-unclipped", 2, 2), ("teacher", "corrected", 1, 1),
    ]  # fmt: skip
    study = StudyFolder(here / "runs" / found["study"])
    earlier = next(dataclasses.replace(f.spec(), method_digest="0" * 16) for f in study.trials() if f.spec().teacher)
    study.trial(earlier.key).write_spec(earlier)
    (found,) = json.loads(kdbench("status", "--json")[1])["studies"]
    assert found["counts"] == {"finished": 7, "superseded": 1}, "a method's file was changed: no control"
    assert [a["trials"] for a in found["arms"] if a["method"] in ("superseded", "control")] == [1]
    out = kdbench("status")[1]
    assert "1 superseded" in out and "no arm uses them" in out
    shutil.rmtree(study.trial(earlier.key).path)
    folders = {(f.spec().method, f.spec().fault, f.spec().seed): f for f in study.trials() if f.spec().arch == "r18"}
    failed, running, cut = (
        folders["feature", "projector-unclipped", 0],
        folders["feature", None, 0],
        folders["feature", None, 1],
    )
    failed.write_result(Result(failed.key, "failed", "its process was ended by SIGKILL"))
    for folder in (running, cut):
        (folder.path / "result.json").unlink()
        (folder.path / "curve.jsonl").write_text('{"epoch": 1}\n')
        assert take(folder) is not None
    (lease,) = cut.path.glob("lease-*")  # as Ctrl-C or SIGKILL leave it a moment ago: nobody is there any more
    lease.write_text(lease.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    code, out, _ = kdbench("status")
    assert code == 0 and "4 finished" in out and "1 running" in out and "1 waiting" in out and "1 failed" in out
    assert "seed 0: 1 of 3" in out and "its process was ended by SIGKILL" in out


def test_how_to_decide_is_not_changed_once_there_are_results(here, cache):
    file = here / "mine.toml"
    file.write_text(SMALL)
    args = ["run", "mine.toml", "--no-controls", "--method", "baseline", "--variant", "corrected"]
    assert kdbench(*args)[0] == 0
    (study,) = (here / "runs").glob("mine-*")
    before = (study / "study.json").read_text()
    file.write_text(SMALL + "[decision]\nmargin_pp = 1.5\n")
    code, _, err = kdbench(*args)
    assert code == 2 and "has results, and declared before them: margin_pp 0.5, not 1.5" in err, err
    assert (study / "study.json").read_text() == before
    for result in study.glob("trials/*/result.json"):  # nobody has seen any
        result.unlink()
    assert kdbench(*args)[0] == 0 and '"margin_pp": 1.5' in (study / "study.json").read_text()


def test_one_comparison_alone_is_not_made_surer(here, cache):
    """Asked for one bug and one seed less, a study with two bugs still has a family of two and all its seeds."""
    (here / "mine.toml").write_text(
        SMALL.replace('"projector-unclipped"]', '"projector-unclipped", "lr-never-decays"]')
    )
    _, out, err = kdbench("run", "mine.toml", "--no-controls", "--json")
    whole = json.loads(out)
    assert whole["families"] == {"comparisons": 3, "gains": 1}, err
    again = ["run", "mine.toml", "--no-controls", "--method", "feature", "--fault", "projector-unclipped"]
    found = json.loads(kdbench(*again, "--json")[1])
    assert found["trained"] == 0 and found["families"]["comparisons"] == 3
    (entry,) = found["comparisons"]
    assert entry in whole["comparisons"]
    assert "a family of 3 comparisons" in kdbench(*again, "--seeds", "0")[1]
    found = json.loads(kdbench(*again, "--seeds", "0", "--json")[1])
    assert found["comparisons"] == [entry] and [arm["seeds"] for arm in found["arms"]] == [[0], [0]]


def test_what_a_file_says_and_nothing_reads_is_remarked_on(here):
    more = '[grid]\nseeds = "7"\n[grid.logit]\ntemperature = [2, 4]\n[pair.r50-r18.feature]\nbeta = 1\n'
    (here / "mine.toml").write_text(SMALL + more)
    code, _, err = kdbench("run", "mine.toml", "--dry-run")
    assert code == 0 and "not used: [grid.logit]: logit is no method of this study" in err, err
    assert "not used: [pair.r50-r18]: r50-r18 is no pair of this study" in err


def test_a_file_in_another_encoding(here):
    (here / "mine.toml").write_bytes(SMALL.encode("utf-8-sig"))
    assert kdbench("run", "mine.toml", "--dry-run")[0] == 0, "as some editors write it"
    (here / "mine.toml").write_bytes(SMALL.encode("utf-16"))
    code, _, err = kdbench("run", "mine.toml", "--dry-run")
    assert code == 2 and "mine.toml cannot be read as a study's file, which is UTF-8" in err


def test_status_without_a_study_is_said(here):
    code, _, err = kdbench("status")
    assert code == 2 and "runs holds no study" in err


def test_fail_fast_starts_nothing_after_a_failure(here, cache, monkeypatch):
    """Data that changed after the plan was made: every trial refuses it, and the first is enough."""
    from kdbench.harness import study as studies

    (here / "mine.toml").write_text(SMALL)
    prepare = studies.prepare

    def other_data(request):
        ready = prepare(request)
        return type(ready)(**{**ready.__dict__, "data_file": here / "none.safetensors", "workers": 1})

    monkeypatch.setattr(studies, "prepare", other_data)
    args = ["run", "mine.toml", "--no-controls", "--variant", "corrected", "--method", "baseline", "--json"]
    code, out, _ = kdbench(*args, "--fail-fast")
    assert code == 3 and json.loads(out)["failed"] == 1
    code, out, _ = kdbench(*args)
    assert code == 3 and json.loads(out)["failed"] == 2


def test_a_file_is_named_once_in_a_message(here):
    (here / "mine.toml").write_text(SMALL.replace('seeds = "0-1"', "seeds = [0, 1]"))
    code, _, err = kdbench("run", "mine.toml", "--dry-run")
    assert code == 2 and err.count("mine.toml") == 1, err


def test_a_method_among_the_arms_is_told_where_it_belongs(here):
    (here / "mine.toml").write_text(SMALL.replace("arms = [", 'arms = ["logit", '))
    code, _, err = kdbench("run", "mine.toml", "--dry-run")
    assert code == 2 and "methods stand in methods" in " ".join(err.split())
