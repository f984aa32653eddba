"""A study whose networks are another library's, from the command line to its record."""

import json

import pytest
from conftest import TINY
from test_cli import kdbench

from kdbench.harness.records.record import StudyFolder

PAIR = "torchvision:resnet18-torchvision:mobilenet_v3_small"
WORDS = ["run", TINY, "--pair", PAIR, "--method", "baseline", "--method", "rkd", "--seeds", "0", "--no-controls"]


@pytest.mark.long
def test_a_study_of_torchvisions_networks_runs(tmp_path):
    code, out, err = kdbench(*WORDS, "--epochs", "1", "--teacher-epochs", "6", "--runs", str(tmp_path), "--json")
    found = json.loads(out)
    assert code in (0, 1) and found["failed"] == 0 and found["trained"] == 4, err
    (study,) = (path.parent for path in tmp_path.glob("*/study.json"))
    specs = [folder.spec() for folder in StudyFolder(study).trials()]
    assert {spec.arch for spec in specs} == {*PAIR.split("-")}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pair", "r18-torchvision:resnet81"], "unknown network of torchvision 'resnet81'"),
        (["--pair", "torchvision:maxvit_t-r18"], "cannot answer images of 32x32"),
        (["--pair", "r34-torchvision:mobilenet_v3_small", "--method", "at"], 'stages = "2-1, 3-2, 4-3"'),
        (["--image-size", "64"], "only a folder's are resized"),
        (["--pair", "r34-wrn_16_1", "--method", "at"], "method at needs as many stage features of both networks"),
        (["--pair", "r34-nothing:resnet18"], "unknown library of networks 'nothing'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(words, says, tmp_path):
    code, _, err = kdbench("run", TINY, *words, "--runs", str(tmp_path), "--dry-run")
    assert code == 2 and says in " ".join(err.split()) and "Traceback" not in err
