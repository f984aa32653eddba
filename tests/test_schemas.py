"""The schemas fit what kdbench really prints and reads: no key is missing, and none is in the document alone."""

import json
import shutil
import tarfile
import tomllib
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from test_cli import kdbench
from test_render import ALL, CRASH, SILENCE

from kdbench.audits.report.render import to_json
from kdbench.harness.archive import unpacking
from kdbench.harness.injection.scene import Scene
from kdbench.harness.mutation import pages
from kdbench.harness.mutation.runs import Measured, Row
from kdbench.harness.plan.outline import PRESETS, preset_text
from kdbench.harness.schemas import DOCUMENTS, schema
from kdbench.kd.errors import InputError

EARLIER = Path(__file__).with_name("earlier")
STUDY = "earlier-digits-83ffb4"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder with a finished study."""
    place = tmp_path_factory.mktemp("runs")
    with tarfile.open(EARLIER / "records.tar.xz") as archive:
        unpacking.extract(archive, EARLIER / "records.tar.xz", place)
    shutil.copy(EARLIER / "results.csv", place / STUDY / "results.csv")
    return place


def holds(name, document):
    """Hold a document against its schema, with no key beyond it."""
    closed = schema(name, strict=True)
    jsonschema.Draft202012Validator.check_schema(closed)
    jsonschema.validate(document, closed, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_schema_is_one_and_refuses_what_is_none(name):
    made = schema(name)
    jsonschema.Draft202012Validator.check_schema(made)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": 7, "study": [], "temperature": "hot", "select": "KD303"}, made)
    written = made.get("additionalProperties") is not False
    assert written == (not DOCUMENTS[name].is_read), "what is written may have more keys later, what is read may not"


@pytest.mark.parametrize("audited", [ALL, CRASH, SILENCE], ids=["all", "crash", "silence"])
def test_an_audits_object(audited):
    holds("audit", json.loads(to_json(audited)))


def test_a_mutations_object():
    rows = [
        Row("kl-mean-reduction", "injected", "", ("KD312",), ("KD312",), "first", None, None, ("train.py:9",), 2.0),
        Row("imagenet-stem", "not-applicable", "no convolution"),
        Row("no-zero-grad", "injected", by_tests=("test_it",)),
    ]
    scene = Scene(names={"student": "Net"})
    holds("mutate", pages.to_json(Measured("train.py", scene, rows, remarks=["a remark"])))


def test_objects_of_a_study(runs):
    for name, words in {
        "verify": ["verify", "--runs", runs],
        "compare": ["compare", "corrected", "bugged", "--runs", runs],
    }.items():
        holds(name, json.loads(kdbench(*map(str, words), "--json")[1]))
    for name, file in {"records": "study.json", "trial": "result.json"}.items():
        for path in (runs / STUDY).rglob(file):
            holds(name, json.loads(path.read_text()))
    for path in (runs / STUDY).rglob("curve.jsonl"):
        for line in path.read_text().splitlines():
            holds("epoch", json.loads(line))


def test_the_object_of_a_run(runs, tmp_path):
    """Of the finished study, of which nothing is trained again."""
    shutil.copytree(runs / STUDY, tmp_path / "runs" / STUDY)
    code, out, err = kdbench("run", str(EARLIER / "earlier.toml"), "--runs", str(tmp_path / "runs"), "--json")
    found = json.loads(out)
    assert code in (0, 1) and found["trained"] == 0, err
    holds("run", found)
    assert found["controls"]["positive"]["comparison"] and found["dataset"]["name"] == "digits"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_study(name):
    holds("study", tomllib.loads(preset_text(name)))


def test_the_template_and_a_grid_are_studies():
    text = (resources.files("kdbench.harness.presets") / "template.toml").read_text(encoding="utf-8")
    holds("study", tomllib.loads(text))
    study = tomllib.loads(preset_text("quick"))
    holds("study", {**study, "grid": {"seeds": "10-11", "logit": {"temperature": [2, 4]}}})
    for wrong in ({"grid": {"seeds": "10", "logit": {"temperature": 2}}}, {"recipe": {"epochs": "7"}}, {"recipes": {}}):
        with pytest.raises(jsonschema.ValidationError):
            holds("study", {**study, **wrong})


def test_a_contract_and_the_projects_table():
    holds("contract", {"student": "net", "temperature": 4, "form": "own"})
    holds("config", {"waive": {"KD312": "on purpose"}, "steps": 7, "select": ["KD303"], "alpha": 0.9})
    for name in ("contract", "config"):
        with pytest.raises(jsonschema.ValidationError):
            holds(name, {"temprature": 4})


def test_the_command_prints_one_or_lists_all():
    assert json.loads(kdbench("schema", "audit")[1]) == schema("audit")
    listed = kdbench("schema")[1]
    assert all(name in listed for name in DOCUMENTS) and "[tool.kdbench]" in listed
    code, _, err = kdbench("schema", "contrct")
    assert code == 2 and "did you mean 'contract'" in err and "kdbench schema lists them" in err
    with pytest.raises(InputError, match="unknown document"):
        schema("nothing")
