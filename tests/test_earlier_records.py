"""Records that an earlier version wrote: their names hold, and they are read, compared, reported and resumed.

`tests/earlier` holds a small study that version 0.1.0 trained, with the table and the report that it made of it. A
spec's key is the name of its folder: a key that moves orphans every record that somebody has.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from kdbench.harness.analysis import compare, study_table
from kdbench.harness.archive import unpacking
from kdbench.harness.faults import FAULTS
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.publish import report
from kdbench.harness.records.record import StudyFolder
from kdbench.harness.study import Request, carry_out, prepare

EARLIER = Path(__file__).with_name("earlier")
STUDY = "earlier-digits-83ffb4"
GROUND = Ground("digits", "d" * 64, "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder that holds the earlier study."""
    place = tmp_path_factory.mktemp("runs")
    with tarfile.open(EARLIER / "records.tar.xz") as archive:
        unpacking.extract(archive, EARLIER / "records.tar.xz", place)
    return place


@pytest.mark.parametrize(
    ("preset", "method", "key"),
    [
        ("quick", "baseline", "16b4c4b75a4b816b"),
        ("quick", "logit", "ddc5f541c3fdcfeb"),
        ("quick", "feature", "b14f4df0f90e2592"),
        ("cifar10", "baseline", "cd6272ccac47fc67"),
        ("cifar10", "logit", "2a248a20b733e279"),
        ("cifar10", "feature", "46875b6d5adc96b4"),
        ("paper", "baseline", "e84f5b2220a2108e"),
        ("paper", "logit", "8fcde710b46bcc2a"),
        ("paper", "feature", "72114cb06c023671"),
    ],
)
def test_the_key_of_a_training_is_what_it_was(preset, method, key):
    plan = make_plan(load_preset(preset), [None], GROUND)
    assert next(keys for arm, keys in plan.arms.items() if arm.method == method)[0] == key


def test_the_key_of_every_fault_is_what_it_was():
    """Each in the training of every method that it applies to; a fault that is new is not in the file."""
    known = json.loads((EARLIER / "keys.json").read_text())
    plan = make_plan(load_preset("quick"), [*sorted(FAULTS)], GROUND)
    found = {f"{arm.fault} {arm.method}": keys[0] for arm, keys in plan.arms.items()}
    assert len(known) == 117
    assert {name: found.get(name) for name in known} == known


def test_every_spec_of_an_earlier_study_is_read_and_written_as_it_was(runs):
    """The folder checks its spec's key; what is written of it has the same key again."""
    trials = [*StudyFolder(runs / STUDY).trials()]
    assert len(trials) == 15
    for trial in trials:
        spec = trial.spec()
        assert type(spec).from_json(spec.to_json()).key == trial.key


def test_an_earlier_study_resumes_with_nothing_trained_and_gives_the_same_table(runs, tmp_path):
    shutil.copytree(runs / STUDY, tmp_path / STUDY)
    request = Request(
        load_preset(str(EARLIER / "earlier.toml")),
        load_preset(str(EARLIER / "earlier.toml")).arms,
        named_fault=False,
        dataset="digits",
        data_root=None,
        device="cpu",
        workers=1,
        runs=tmp_path,
        teacher_weights=None,
        teacher_sha256=None,
    )
    ready = prepare(request)
    assert ready.folder.path.name == STUDY and ready.todo == []
    outcome = carry_out(ready, lambda *_: None)
    assert (len(outcome.trained), len(outcome.reused), len(outcome.failed)) == (0, 16, 0)
    assert (tmp_path / STUDY / "results.csv").read_bytes() == (EARLIER / "results.csv").read_bytes()


def test_an_earlier_study_is_compared_and_reported_as_it_was(runs, tmp_path):
    study = StudyFolder(Path(shutil.copytree(runs / STUDY, tmp_path / STUDY)))
    trials = study_table.read_study(study)
    found, _ = compare.compare_within_family(trials, compare.bug_pairs(trials.arms), ())
    assert sorted((c.b, c.method, round(c.difference_pp, 2)) for c in found) == [
        ("projector-unclipped", "feature", -5.0),
        ("random-teacher", "feature", -1.25),
        ("random-teacher", "logit", -2.5),
    ]
    report.write(study, tmp_path)
    assert (tmp_path / "report.md").read_text() == (EARLIER / "report.md").read_text()
