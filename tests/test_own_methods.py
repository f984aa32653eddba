"""Methods and networks of the user's: the page that explains them holds as it stands, and what is wrong is said."""

import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import put_back
from test_cli import kdbench

from kdbench.harness import faults, loading
from kdbench.harness.analysis import expectation
from kdbench.harness.archive.bundle import pack
from kdbench.harness.plan.plan import Ground, make_plan
from kdbench.harness.plan.preset import load_preset
from kdbench.harness.records.digests import digest
from kdbench.harness.records.record import StudyFolder
from kdbench.harness.zoo import matrix
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS
from kdbench.kd.models import MODELS, Answer, build

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S))
COMMANDS = re.findall(r"^    \$ kdbench (.*)$", PAGE, re.M)
METHOD, NETWORK = ["--method-file", "logit_mse.py"], ["--model-file", "plain.py"]


EARLIER = Path(__file__).with_name("earlier") / "records.tar.xz"


@pytest.fixture
def own(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(loading, "LOADED", [])
    monkeypatch.setattr(loading, "_FOUND", {})
    with put_back(METHODS, MODELS, faults.FAULTS):
        yield


def test_the_method_is_short():
    assert set(FILES) == {"logit_mse.py", "last_hint.py", "plain.py", "study.toml"}
    assert len(FILES["logit_mse.py"].splitlines()) <= 40 and len(FILES["plain.py"].splitlines()) <= 40


def test_the_pages_commands_do_what_it_says(own):
    """In the order of the page: listed, audited, audited with a bug, a projector likewise, a joined one audited,
    planned, trained, compared, packed."""
    codes = [(words, *kdbench(*shlex.split(words))) for words in COMMANDS]
    assert [code for _, code, _, _ in codes] == [0, 0, 1, 0, 1, 0, 0, 0, 0, 0], codes
    said = [out for _, _, out, _ in codes]
    assert "Logit-MSE" in said[0] and "KD211" in said[2] and "Logit-MSE" in said[7] and "Logit-MSE" in said[8]
    assert "KD201" in said[4], "the projector of the page's second method"
    specs = [folder.spec() for path in (own / "runs").glob("study-*") for folder in StudyFolder(path).trials()]
    digests = {name: loading.meaning_of(own / name) for name in FILES if name.endswith(".py")}
    assert {(s.method, s.arch, s.method_digest, s.arch_digest) for s in specs} == {
        ("baseline", "r18", None, None),
        ("baseline", "plain", None, digests["plain.py"]),
        ("logit_mse", "plain", digests["logit_mse.py"], digests["plain.py"]),
    }
    again = json.loads(kdbench("run", "study.toml", *METHOD, *NETWORK, "--no-controls", "--json")[1])
    assert again["trained"] == 0 and all(arm["as_expected"] for arm in again["arms"])


def test_a_study_cannot_be_read_or_packed_without_its_files(own, tmp_path):
    words = ["--method", "logit_mse", "--seeds", "0", "--no-controls", "--epochs", "1", "--teacher-epochs", "1"]
    code, _, err = kdbench("run", "study.toml", *METHOD, *NETWORK, *words)
    assert code in (0, 1), err
    (study,) = (own / "runs").glob("study-*")
    loading.LOADED.remove(("models", own / "plain.py"))
    with pytest.raises(InputError, match=r"has the network plain, of a file of yours; name it as it was: --model-file"):
        pack(StudyFolder(study), tmp_path / "a.zip")
    METHODS.pop("logit_mse")
    code, _, err = kdbench("compare", "baseline", "logit_mse")
    assert code == 2 and "logit_mse" in err and "--method-file FILE" in " ".join(err.split())
    code, out, err = kdbench("verify")
    assert code == 2 and "--method-file FILE" in " ".join(err.split()) and not out, "nobody changed anything"
    with tarfile.open(EARLIER) as archive:
        archive.extractall(own / "runs", filter="data")
    code, out, err = kdbench("status")
    assert code == 2 and "earlier-digits" in out and f"{study.name} cannot be read" in err, "the other one is shown"


def test_the_archive_brings_them_and_they_run_only_if_they_are_trusted(own):
    words = ["--method", "logit_mse", "--seeds", "0", "--no-controls", "--epochs", "1", "--teacher-epochs", "1"]
    assert kdbench("run", "study.toml", *METHOD, *NETWORK, *words)[0] in (0, 1)
    assert kdbench("bundle", *METHOD, *NETWORK, "--output", "a.zip")[0] == 0
    for registry, name in ((METHODS, "logit_mse"), (MODELS, "plain")):
        registry.pop(name)
    loading.LOADED.clear()
    loading._FOUND.clear()
    code, _, err = kdbench("reproduce", "a.zip", "--runs", "again")
    assert code == 2 and "brings code of its author's (methods/logit_mse.py)" in " ".join(err.split())
    assert err.count("a.zip") == 2, "the line that says what is loaded, and the error"
    assert "logit_mse" not in METHODS, "nothing of it was run"
    code, _, err = kdbench("reproduce", "a.zip", *METHOD, "--runs", "again")
    assert code == 2 and "brings code of its author's (models/plain.py)" in " ".join(err.split())
    code, out, err = kdbench("reproduce", "a.zip", "--trust-faults", "--runs", "again", "--json")
    assert code == 0 and json.loads(out)["identical"], err


def test_the_matrix_knows_a_method_in_its_processes(own):
    loading.load("methods", own / "logit_mse.py")
    task = matrix.Task("fault", "random-teacher", "logit_mse", 0)
    (cell,) = matrix.run([task], 1, lambda _: None)
    assert cell.as_declared and "KD104" in cell.failed, cell


def test_another_file_is_another_experiment(own):
    ground = Ground("digits", "d" * 64, "cpu")

    def keys(method, network):
        for registry, name in ((METHODS, "logit_mse"), (MODELS, "plain")):
            registry.pop(name, None)
        loading.LOADED.clear()
        loading._FOUND.clear()
        (own / "logit_mse.py").write_text(method)
        (own / "plain.py").write_text(network)
        loading.load("methods", own / "logit_mse.py")
        loading.load("models", own / "plain.py")
        return {
            arm.method: trials[0] for arm, trials in make_plan(load_preset("study.toml"), [None], ground).arms.items()
        }

    method, network = FILES["logit_mse.py"], FILES["plain.py"]
    first, same = keys(method, network), keys(method, network)
    other_method, other_network = keys(method + "\nX = 1\n", network), keys(method, network + "\nX = 1\n")
    assert first == same
    assert first["baseline"] == other_method["baseline"] and first["logit_mse"] != other_method["logit_mse"]
    assert first["baseline"] != other_network["baseline"] and first["logit_mse"] != other_network["logit_mse"]


def test_a_network_without_a_stem_has_no_fault_in_it(own):
    loading.load("models", own / "plain.py")
    loading.load("methods", own / "logit_mse.py")
    plan = make_plan(load_preset("study.toml"), [None, "imagenet-stem"], Ground("digits", "d" * 64, "cpu"))
    assert {why for _, _, why in plan.skipped} == {"the stem of plain cannot be chosen"}


NET = """
from torch import nn
from kdbench.kd.models import model
@model("mine")
class Mine(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
    def forward(self, images):
        return {answer}
"""


def test_a_folder_is_no_file(own):
    with pytest.raises(InputError, match="is a folder; name a Python file in it"):
        loading.load("methods", own)


def test_a_term_that_is_cut_off_is_named_beside_one_that_trains(own):
    """What is seen of the loss does not tell: the other term reaches the student."""
    text = FILES["logit_mse.py"].replace(
        "kd_weight: float = 0.1", "kd_weight: float = 0.1\n        cut_weight: float = 1.0"
    )
    text = text.replace("return {", 'return {"cut": F.mse_loss(student.logits, teacher.logits).detach(), ')
    (own / "cut.py").write_text(text)
    code, out, _ = kdbench("audit", "--method-file", "cut.py", "--method", "logit_mse")
    assert (
        code == 1 and "KD311 term-provenance  " in out and "the terms cut of method logit_mse have no gradient" in out
    )
    assert "not as declared: logit_mse: KD311 failed" in out


def test_the_self_check_of_what_is_not_proven_clean_is_no_success(own, monkeypatch):
    """An audit that a bug would trip did not pass, and none failed: undecided, and the reason is printed."""
    monkeypatch.setattr(expectation, "needed_passes", lambda method, recipe: frozenset({"KD347", "KD999"}))
    code, out, _ = kdbench("audit", "--method-file", "logit_mse.py", "--method", "logit_mse")
    assert code == 4 and "not as declared: logit_mse: KD999 did not pass" in out


def test_the_self_check_asks_for_a_weight_before_it_trains_anything(own):
    (own / "mine.py").write_text(FILES["logit_mse.py"].replace("float = 0.1", "float"))
    code, _, err = kdbench("audit", "--method-file", "mine.py")
    assert code == 2 and "kd_weight is missing" in err and "give the weight a default" in err and "epochs of" not in err


def test_the_findings_of_a_trial_of_ones_own_are_shown(own):
    code, _, err = kdbench("audits", "show", "nowhere", *METHOD, *NETWORK)
    assert code == 2 and "No such option" not in err


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("methods", "x = 1\n", "it registers no method; decorate a class with @method"),
        ("models", "x = 1\n", "it registers no network; decorate a class with @model"),
        ("methods", "def f(:\n", "line 1: SyntaxError"),
        ("methods", FILES["logit_mse.py"].replace("logit_mse", "logit"), "method logit is registered already"),
        ("methods", FILES["logit_mse.py"].replace("0.1", "0.0"), "kd_weight has the default 0"),
        (
            "methods",
            FILES["logit_mse.py"].replace("0.1", "-0.5"),
            "has the default -0.5, and a weight must not be negative",
        ),
        ("methods", FILES["logit_mse.py"].replace("Soft.OTHER", "'other'"), "soft is one of Soft.NONE, "),
        ("methods", FILES["logit_mse.py"].replace('"logit_mse"', '"a+b"'), "a name is of small letters"),
        ("methods", FILES["logit_mse.py"].replace("(Method)", ""), "must be a class of Method"),
        ("models", FILES["plain.py"].replace('"plain"', '"a-b"'), "network 'a-b': a name is made of letters"),
        ("models", FILES["plain.py"].replace('"plain"', '"r18"'), "network r18 is registered already"),
        (
            "models",
            FILES["plain.py"].replace("base_width: int", "width: int"),
            "unknown argument 'width'; did you mean",
        ),
        ("models", NET.replace("num_classes", "base_width"), "it must take num_classes"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(own, kind, text, says):
    path = own / "mine.py"
    path.write_text(text)
    before = set(METHODS), set(MODELS)
    with pytest.raises(InputError) as error:
        loading.load(kind, path)
    assert says in str(error.value) and str(path) in str(error.value)
    assert (set(METHODS), set(MODELS)) == before and not loading.LOADED


def test_a_file_that_is_not_there_is_said_without_a_traceback(own):
    for option in ("--method-file", "--model-file"):
        code, out, err = kdbench("run", option, "no.py", "--dry-run")
        assert code == 2 and out == "" and "does not exist" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("answer", "method", "says"),
    [
        ("images.mean()", "baseline", "Mine answered with Tensor; return logits (B, C)"),
        ("{'logits': images}", "baseline", "Mine answered with dict; return logits (B, C)"),
        ("images.mean((2, 3))", "baseline", "network mine answers with 3 logits, and there are 10 classes"),
        ("self.nothing(images)", "baseline", "network mine cannot be built and asked: AttributeError"),
        ("self.fc(images.mean((2, 3)))", "feature", "; mine answers with 0 (none)"),
        ("self.fc(images.mean((2, 3))), [images]", "feature", "; mine answers with 1 (1 3x32x32)"),
    ],
)
def test_a_network_that_answers_otherwise_is_refused_before_anything_is_trained(own, answer, method, says):
    (own / "mine.py").write_text(NET.replace("{answer}", answer))
    words = ["--method", method, "--pair", "r18-mine", "--variant", "corrected", "--dry-run"]
    code, _, err = kdbench("run", "--model-file", "mine.py", *words)
    assert code == 2 and says in " ".join(err.split()) and "Traceback" not in err


def test_a_networks_answer_is_the_same_in_three_ways_of_giving_it(own):
    images = torch.randn(2, 3, 32, 32)
    logits = "self.fc(images.mean((2, 3)))"
    for i, answer in enumerate((logits, f"({logits}, [])", f"Answer({logits}, ())")):
        text = NET.replace("import model", "import Answer, model").replace('"mine"', f'"mine{i}"')
        (own / f"mine{i}.py").write_text(text.replace("{answer}", answer))
        loading.load("models", own / f"mine{i}.py")
        found = build(f"mine{i}", "cifar", 10, 4, torch.Generator().manual_seed(0))(images)
        assert isinstance(found, Answer) and found.logits.shape == (2, 10) and found.features == ()


def test_a_changed_formula_makes_another_experiment_and_a_changed_docstring_does_not(own):
    text = FILES["logit_mse.py"]
    versions = {
        "as_it_is": text,
        "retold": text.replace("Mean squared distance of the logits.", "Told in other words.") + "# and a comment\n",
        "changed": text.replace("F.mse_loss(", "2 * F.mse_loss("),
    }
    found = {}
    for name, version in versions.items():
        (own / f"{name}.py").write_text(version.replace('"logit_mse"', f'"{name}"'))
        loading.load("methods", own / f"{name}.py")
        found[name] = digest({"": version}), METHODS[name].digest
        assert METHODS[name].digest == loading.meaning_of(own / f"{name}.py")
    assert found["as_it_is"][0] == found["retold"][0] != found["changed"][0]


def test_one_file_may_hold_a_method_a_network_and_a_fault(own):
    fault = (
        "from kdbench.harness.faults import fault\n@fault('stem', caught_by=[], escapes='a story')\n"
        "def no_stem(input_size):\n    'Story.'\n    return 'cifar'\n"
    )
    path = own / "all.py"
    path.write_text(FILES["logit_mse.py"] + FILES["plain.py"] + fault)
    for kind in ("methods", "models", "faults", "methods"):
        loading.load(kind, path)
    assert [loaded.kind for loaded in loading.LOADED] == ["methods", "models", "faults"]
    assert METHODS["logit_mse"].digest == MODELS["plain"].digest == loading.meaning_of(path)
