"""Faults of the user's own: the page that explains them holds as it stands, and what is wrong is said."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, put_back
from test_cli import kdbench

from kdbench.audits.checks.all import CATALOGUE
from kdbench.harness import faults, loading
from kdbench.harness.faults import FAULTS
from kdbench.kd.errors import InputError

PAGE = Path(faults.__file__).with_name("README.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.S))


@pytest.fixture
def own(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(loading, "LOADED", [])
    with put_back(FAULTS, CATALOGUE):
        yield


@pytest.mark.long
def test_the_pages_own_test_passes(own):
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own_faults.py"],
        cwd=own,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and "4 passed" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.long
def test_the_pages_own_test_can_fail(own):
    text = FILES["own_faults.py"].replace("if step >= steps_per_epoch else 0.0", "")
    (own / "own_faults.py").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own_faults.py", "-k", "logit"],
        cwd=own,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1 and "1 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr


def test_it_is_listed_audited_and_trained(own, tmp_path):
    named = ["--faults", str(own / "own_faults.py")]
    code, out, _ = kdbench("faults", "list", *named)
    assert code == 0 and "first-epoch-lost" in out and "OWN01" in out
    code, out, _ = kdbench("audit", *named, "--explain", "OWN01")
    assert code == 0 and "seen as the fault first-epoch-lost" in out
    code, out, _ = kdbench("audit", *named, "--fault", "first-epoch-lost", "--method", "logit", "--format", "json")
    found = {f["id"]: f["status"] for f in json.loads(out)["findings"]}
    assert code == 1 and found["OWN01"] == found["KD343"] == "fail"
    few = ["--method", "logit", "--seeds", "0", "--no-controls", "--runs", str(tmp_path / "runs")]
    code, out, err = kdbench("run", TINY, *named, "--fault", "first-epoch-lost", *few, "--json")
    assert code == 0, err
    bugged = next(arm for arm in json.loads(out)["arms"] if arm["fault"])
    assert bugged["failed_findings"] == ["KD343", "OWN01"] and bugged["as_expected"]


def test_the_matrix_knows_it_in_its_processes(own):
    named = ["--faults", str(own / "own_faults.py"), "--fault", "first-epoch-lost", "--method", "logit"]
    from kdbench.harness.zoo import matrix

    faults.load(own / "own_faults.py")
    (cell,) = matrix.run([matrix.Task("fault", "first-epoch-lost", "logit", 0)], 1, lambda _: None)
    assert cell.as_declared and set(cell.failed) == {"KD343", "OWN01"}, cell
    code, _, err = kdbench("audit", *named, "--matrix", "--steps", "3")
    assert code == 2 and "--steps does nothing with --matrix" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "it registers no fault; decorate a function with @fault"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("\n\n1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        (
            "from kdbench.harness.faults import fault\n@fault('stemm', caught_by=[])\ndef f(x):\n    'Story.'\n",
            "line 2: fault f: unknown seam 'stemm'; did you mean 'stem'?",
        ),
        (
            "from kdbench.harness.faults import fault\n@fault('stem', caught_by=['stem-resolution'])\n"
            "def imagenet_stem(input_size):\n    'Story.'\n",
            "fault imagenet-stem is registered already",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    before = set(faults.FAULTS), set(CATALOGUE)
    with pytest.raises(InputError) as error:
        faults.load(path)
    assert says in str(error.value) and str(path) in str(error.value)
    assert (set(faults.FAULTS), set(CATALOGUE)) == before


def test_a_file_that_is_not_there_is_said_without_a_traceback(tmp_path):
    code, out, err = kdbench("run", "--faults", str(tmp_path / "no.py"), "--dry-run")
    assert code == 2 and out == "" and "does not exist" in err and "Traceback" not in err


def test_two_faults_at_once_are_one_arm():
    both = faults.get("random-teacher+projector-unclipped")
    assert both.name == "projector-unclipped+random-teacher" and both is not faults.get("random-teacher")
    assert both.ids(both.caught_by) == ["KD104", "KD201"] and both.why_not("logit") == "logit has no projectors"
    assert both.digest != faults.get("projector-unclipped").digest and both.in_teacher is None
    stem = faults.get("imagenet-stem+double-step")
    assert stem.in_teacher is not None and stem.in_teacher.name == "imagenet-stem"
    with pytest.raises(InputError, match="alpha-swapped and alpha-twice both replace combine"):
        faults.get("alpha-twice+alpha-swapped")
    with pytest.raises(InputError, match="did you mean 'double-step'"):
        faults.get("imagenet-stem+double-stepp")


def test_two_faults_at_once_are_caught_by_the_audits_of_both(tmp_path):
    name = "missing-t-squared+student-eval-mode"
    code, out, err = kdbench("audit", "--fault", name, "--method", "logit", "--format", "json")
    failed = {f["id"] for f in json.loads(out)["findings"] if f["status"] == "fail" and f["severity"] == "error"}
    assert code == 1 and failed == {"KD312", "KD321"}, err
