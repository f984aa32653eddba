"""The main job end to end, as a user runs it: trained, audited, compared, mirrored, resumed."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import test_cli
from conftest import TINY, write_images

from kdbench.audits.checks.all import CATALOGUE
from kdbench.harness.analysis import arms
from kdbench.harness.analysis.rows import Again, ArmRow, ControlsRow
from kdbench.harness.cli.common import stdout
from kdbench.harness.cli.show import show_controls
from kdbench.harness.records.record import Folder, StudyFolder, sealed_text


def program(*args, cwd):
    """Run the command as a user does, in a process of its own."""
    command = [sys.executable, "-m", "kdbench", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def kdbench(*args, cwd):
    """Run the command in this process: what a program imports takes longer than most of these calls."""
    with contextlib.chdir(cwd):
        return subprocess.CompletedProcess(args, *test_cli.kdbench(*args))


@pytest.fixture(scope="session")
def study(tmp_path_factory, cache):
    """The three bugs and the corrected arms on digits, two seeds, run once for all tests here."""
    place = tmp_path_factory.mktemp("study")
    done = program("run", "--variant", "both", TINY, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout), done


def folder_of(place):
    (path,) = (p.parent for p in (place / "runs").glob("*/study.json"))
    return StudyFolder(path)


def test_run_prints_one_object_as_specified(study):
    _, found, done = study
    keys = {"schema", "runs", "preset", "dataset", "device", "trained", "reused", "failed", "arms", "comparisons"}
    assert keys <= found.keys() and next(iter(found)) == "schema" and found["schema"] == "kdbench.run/1"
    assert (found["trained"], found["reused"], found["failed"]) == (23, 0, 0)
    assert found["dataset"] == {**found["dataset"], "name": "digits", "train": 320, "val": 40, "test": 160}
    arm_keys = {
        "variant", "fault", "pair", "method", "seeds", "test_accuracy", "mean", "std", "expected_findings",
        "failed_findings", "consequences", "as_expected", "reached", "diverged_at", "dormant", "effect",
    }  # fmt: skip
    assert len(found["arms"]) == 9 and all(arm.keys() == arm_keys for arm in found["arms"])
    comparison_keys = {
        "a", "b", "pair", "method", "n", "values", "missing", "mean", "std", "difference_pp", "ci95_pp", "welch_p",
        "permutation_p", "least_permutation_p", "holm_p", "hedges_g", "hedges_g_ci95", "p_b_greater", "tost_p",
        "mde_pp", "seeds_for_power_80", "verdict", "paired", "seed_correlation",
        "warnings",
    }  # fmt: skip
    assert len(found["comparisons"]) == 6 and all(c.keys() == comparison_keys for c in found["comparisons"])
    assert "NaN" not in done.stdout
    assert "trials" in done.stderr and "\x1b" not in done.stderr, "no bar without a terminal"


def test_quiet_prints_the_results_and_nothing_else(copy):
    loud, quiet = kdbench("run", TINY, cwd=copy), kdbench("run", TINY, "-q", cwd=copy)
    assert "loading PyTorch" in loud.stderr and "nothing to run" in loud.stderr
    assert quiet.stderr == "" and quiet.stdout == loud.stdout and quiet.returncode == loud.returncode == 0


def test_each_bug_is_caught_by_exactly_its_audits_and_corrected_is_clean(study):
    _, found, _ = study
    caught = {None: [], "projector-unclipped": ["KD201"], "imagenet-stem": ["KD105"], "random-teacher": ["KD104"]}
    follows = {None: [], "projector-unclipped": ["KD204"], "imagenet-stem": [], "random-teacher": ["KD303"]}
    for arm in [*found["arms"], *found["teachers"]]:
        assert arm["as_expected"] is True
        assert arm["failed_findings"] == arm["expected_findings"] == caught[arm["fault"]]
        assert arm["consequences"] == follows[arm["fault"]]


def test_every_bug_was_reached_and_changed_the_weights(study):
    place, found, _ = study
    for arm in found["arms"]:
        assert (arm["reached"], arm["diverged_at"]) == ((True, 1) if arm["fault"] else (None, None))
    stories = [r.fault for r in (f.result() for f in folder_of(place).trials()) if r.fault]
    students = [s for s in stories if s.diverged_at is not None]
    assert students and all(s.dormant is False and s.calls > 0 for s in students)


def test_the_record_holds_what_was_promised(study):
    place, _, _ = study
    for folder in folder_of(place).trials():
        spec, result = folder.spec(), folder.result()
        assert result.status == "finished" and len(folder.curve()) == spec.recipe.epochs
        assert folder.student.is_file()
        assert (folder.path / "method.safetensors").is_file() == (spec.method == "feature")
        assert not (folder.path / "test_curve.jsonl").exists(), "test is scored once, for the report"
        laws = {"KD333", "KD334", "KD342", "KD343", "KD345", "KD346", "KD347"}
        assert {f["id"] for f in result.findings} == {a.id for a in CATALOGUE.values()} | laws
        assert result.environment["code_digest"] and result.peak_memory_mb > 0
        if spec.teacher is None:
            assert result.teacher is None
            continue
        random = spec.fault == "random-teacher"
        assert result.teacher.loaded_fraction == (0.0 if random else 1.0)
        assert (result.teacher.sha256 is None) == random
        assert 0 <= result.metrics.agreement <= 100 and result.metrics.kl_t1 > 0


def test_the_controls_are_run_and_are_no_arm(study):
    place, found, _ = study
    again, positive = found["controls"]["again"], found["controls"]["positive"]
    assert (again["verdict"], again["epochs"], again["fault"]) == ("identical", 3, None)
    assert (positive["fault"], positive["method"], positive["seeds"]) == ("teacher-rows-shuffled", "logit", [0, 1])
    assert positive["failed_findings"] == ["KD305"] and positive["seen_by_audit"]
    assert positive["diverged_at"] == 1 and len(positive["comparison"]["values"]) == 2
    assert all(arm["fault"] != "teacher-rows-shuffled" for arm in found["arms"])
    assert len(list((folder_of(place).path / "again").iterdir())) == 1


def edit(folder, change):
    """Change a result as if the trial had come out so, with its digests."""
    raw = json.loads((folder.path / "result.json").read_text())
    change(raw)
    (folder.path / "result.json").write_text(sealed_text(raw))


def repeat_of_another_course(copy):
    (path,) = (folder_of(copy).path / "again").iterdir()
    curve = path / "curve.jsonl"
    curve.write_text(curve.read_text().replace('"digest": "', '"digest": "x'))
    return Folder(path)


def test_a_repeat_that_differs_is_exit_1_and_said(copy):
    repeat = repeat_of_another_course(copy)
    done = kdbench("run", TINY, cwd=copy)
    assert done.returncode == 1 and "NOT the same bits" in done.stdout
    edit(repeat, lambda raw: raw["environment"].update(device_name="another machine"))
    done = kdbench("run", TINY, cwd=copy)
    assert done.returncode == 0 and "divergence is undecidable here" in done.stdout


def test_a_positive_control_that_its_audit_does_not_see_is_exit_1(copy):
    def escape(raw):
        for f in raw["findings"]:
            if f["id"] == "KD305":
                f["status"] = "pass"

    for folder in folder_of(copy).trials():
        if folder.spec().fault == "teacher-rows-shuffled":
            edit(folder, escape)
    done = kdbench("run", TINY, cwd=copy)
    assert done.returncode == 1 and "caught by nothing, NOT as declared" in done.stdout


def test_a_positive_control_must_be_seen_in_accuracy_too(copy):
    blind = "A study that does not see this bug in accuracy says nothing"
    place = folder_of(copy)

    def score(lost):
        for folder in [*place.trials(), *map(Folder, (place.path / "again").iterdir())]:
            spec = folder.spec()
            if spec.method == "logit" and spec.fault in (None, "teacher-rows-shuffled"):
                accuracy = 90.0 + spec.seed - lost * bool(spec.fault)
                edit(folder, lambda raw, value=accuracy: raw["metrics"].update(test_accuracy=value))

    score(lost=0)
    assert blind in kdbench("run", TINY, cwd=copy).stdout
    assert json.loads(kdbench("run", TINY, "--json", cwd=copy).stdout)["controls"]["sound"] is False
    score(lost=50)
    done = kdbench("run", TINY, cwd=copy)
    assert blind not in done.stdout and "accuracy -50.00 pp" in done.stdout and ": seen in accuracy" in done.stdout
    assert json.loads(kdbench("run", TINY, "--json", cwd=copy).stdout)["controls"]["sound"] is True


def test_without_controls_a_study_says_that_it_proves_nothing(copy):
    done = kdbench("run", TINY, "--no-controls", cwd=copy)
    assert done.returncode == 0 and "so it proves nothing" in done.stdout and "Controls" not in done.stdout


AGAIN = Again("a trial", "baseline", None, seed=0, epochs=0, verdict="missing")


def test_what_is_missing_of_the_controls_is_said(capsys):
    show_controls(stdout(), ControlsRow(AGAIN, None, as_declared=True, sound=False))
    said = capsys.readouterr().out
    assert "(Baseline, corrected, seed 0): did not finish" in said and "no positive control: its fault" in said


UNSAID = dict.fromkeys(field.name for field in dataclasses.fields(ArmRow))
ROW = {"fault": "imagenet-stem", "reached": True, "dormant": 0, "seeds": [0, 1]}


@pytest.mark.parametrize(
    ("row", "verdict", "effect"),
    [
        ({**ROW, "fault": None}, None, None),
        ({**ROW, "reached": False, "dormant": 2}, "equivalent", "invalid"),
        ({**ROW, "dormant": 2}, "equivalent", "dormant"),
        ({**ROW, "dormant": 1}, "equivalent", "latent"),
        (ROW, "both", "latent"),
        (ROW, "different", "visible"),
        (ROW, "undecided", "undecided"),
        (ROW, None, "undecided"),
    ],
)
def test_how_far_a_bug_got(row, verdict, effect):
    assert arms.effect(ArmRow(**{**UNSAID, **row}), verdict) == effect


def test_the_same_command_again_trains_nothing(study):
    place, found, _ = study
    before = {p: p.stat().st_mtime_ns for p in (place / "runs").rglob("*.safetensors")}
    done = program("run", "--variant", "both", TINY, "--json", cwd=place)
    again = json.loads(done.stdout)
    assert (again["trained"], again["reused"]) == (0, 23)
    assert {**again, "trained": 23, "reused": 0} == found
    assert before == {p: p.stat().st_mtime_ns for p in (place / "runs").rglob("*.safetensors")}


def test_the_same_seed_in_a_process_of_another_run_gives_the_same_bits(study, tmp_path):
    place, _, _ = study
    one = ["--variant", "corrected", "--method", "feature", "--seeds", "1-1", "--no-controls"]
    done = kdbench("run", TINY, *one, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mine, theirs = folder_of(tmp_path), folder_of(place)
    keys = [folder.key for folder in mine.trials()]
    assert len(keys) == 2
    for key in keys:
        for name in ("student.safetensors", "curve.jsonl"):
            assert (mine.trial(key).path / name).read_bytes() == (theirs.trial(key).path / name).read_bytes()


def test_a_trial_runs_alone_from_its_spec(study, tmp_path, cache):
    place, _, _ = study
    source = next(f for f in folder_of(place).trials() if f.spec().method == "logit" and not f.spec().fault)
    trials = tmp_path / "study" / "trials"
    for folder in (source, folder_of(place).trial(source.spec().teacher.key)):
        (trials / folder.key).mkdir(parents=True)
        for name in ("spec.json", "student.safetensors"):
            shutil.copy(folder.path / name, trials / folder.key / name)
    (data_file,) = (cache / "datasets").glob("digits-*.safetensors")
    code = "import sys, runpy; sys.modules['mlflow'] = None\n"
    code += "runpy.run_module('kdbench.harness.run.trial', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(trials / source.key), "--data", str(data_file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (trials / source.key / "curve.jsonl").read_bytes() == (source.path / "curve.jsonl").read_bytes()


def test_compare_on_the_command_line(study):
    place, found, _ = study
    done = kdbench("compare", "corrected", "bugged", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    assert compared["schema"] == "kdbench.compare/1" and compared["family"] == 6
    assert compared["comparisons"] == found["comparisons"]
    gains = json.loads(kdbench("compare", "baseline", "feature", "--json", cwd=place).stdout)
    assert [(c["a"], c["b"]) for c in gains["comparisons"]] == [("baseline", "feature")]
    # Asked for alone, a comparison is adjusted for the family all the same.
    assert gains["family"] == 2 and gains["comparisons"] == [c for c in found["gains"] if c["method"] == "feature"]
    back = json.loads(kdbench("compare", "bugged", "corrected", "--json", cwd=place).stdout)
    assert back["family"] == 6
    assert {round(c["difference_pp"], 9) for c in back["comparisons"]} == {
        round(-c["difference_pp"], 9) for c in found["comparisons"]
    }
    odd = json.loads(kdbench("compare", "logit", "feature", "--json", cwd=place).stdout)
    assert odd["family"] == 3, "what was not declared counts on top"
    table = kdbench("compare", "corrected", "imagenet-stem", cwd=place)
    assert table.returncode == 0 and "imagenet-stem against corrected" in table.stdout
    assert all(c["verdict"] in table.stdout for c in compared["comparisons"] if c["b"] == "imagenet-stem")


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ("corrected", "bugde", "unknown arm 'bugde'; did you mean 'bugged'"),
        ("corrected", "logit", "two arms differ in one of them, not in both"),
        ("corrected", "corrected", "not compared with itself"),
    ],
)
def test_compare_refuses_what_makes_no_sense(study, a, b, says):
    place, _, _ = study
    done = kdbench("compare", a, b, cwd=place)
    assert done.returncode == 2 and says in done.stderr and done.stdout == ""


def edit_result(place, fault, change):
    """Change one trial's result on a copy of the study."""
    for folder in folder_of(place).trials():
        spec = folder.spec()
        if spec.fault == fault and spec.seed == 1 and spec.method == "feature":
            edit(folder, change)


@pytest.fixture
def copy(study, tmp_path):
    shutil.copytree(study[0] / "runs", tmp_path / "runs")
    return tmp_path


def test_an_escaped_fault_is_exit_1(copy):
    def escape(raw):
        for f in raw["findings"]:
            if f["id"] == "KD201":
                f["status"] = "pass"

    edit_result(copy, "projector-unclipped", escape)
    done = kdbench("run", TINY, "--json", cwd=copy)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [a["fault"] for a in found["arms"] if not a["as_expected"]] == ["projector-unclipped"]
    (reason,) = found["because"]
    assert (reason["fault"], reason["audit"], reason["kind"]) == ("projector-unclipped", "KD201", "escaped")
    shown = kdbench(*shlex.split(reason["show"])[1:], "--format", "json", cwd=copy)
    assert any(f["id"] == "KD201" and f["status"] == "pass" for f in json.loads(shown.stdout)["findings"])


def test_a_false_alarm_in_a_clean_arm_is_exit_1_and_shown(copy):
    def alarm(raw):
        next(f for f in raw["findings"] if f["id"] == "KD105").update(status="fail")

    edit_result(copy, None, alarm)
    done = kdbench("run", TINY, cwd=copy)
    assert done.returncode == 1 and "Not as declared: 1 of 11 rows is marked NO" in done.stdout
    said = " ".join(done.stdout.split())
    assert "Why NO KD105 stem-resolution failed: " in said and "fix: " in said
    assert "in Feature-KD corrected (r34-r18, seed 1)" in said


def test_an_audit_that_broke_is_named_as_an_error_of_kdbench(copy):
    def broken(raw):
        found = next(f for f in raw["findings"] if f["id"] == "KD343")
        found.update(status="error", message="ended in ValueError: steps is 1")

    edit_result(copy, None, broken)
    done = kdbench("run", TINY, cwd=copy)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1 and "which is an error of kdbench and not of your study: ended in ValueError" in said
    assert "KD343 broke down, which is an error of kdbench." in said
    (reason,) = json.loads(kdbench("run", TINY, "--json", cwd=copy).stdout)["because"]
    assert (reason["kind"], reason["audit"]) == ("broken", "KD343")


def test_compare_refuses_arms_from_different_machines_unless_told(copy):
    edit_result(copy, "imagenet-stem", lambda raw: raw["environment"].update(torch="0.1"))
    done = kdbench("compare", "corrected", "imagenet-stem", cwd=copy)
    assert done.returncode == 2 and "torch: 0.1 against" in done.stderr and "--allow-difference torch" in done.stderr
    done = kdbench("compare", "corrected", "imagenet-stem", "--allow-difference", "torch", "--json", cwd=copy)
    assert done.returncode == 0
    assert any(
        "allowed to differ: torch: 0.1 against" in w
        for c in json.loads(done.stdout)["comparisons"]
        for w in c["warnings"]
    )


def test_run_itself_never_fails_over_a_comparison_that_it_must_refuse(copy):
    edit_result(copy, "imagenet-stem", lambda raw: raw["environment"].update(torch="0.1"))
    done = kdbench("run", TINY, "--json", cwd=copy)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    refused = [c for c in found["comparisons"] if c["verdict"] == "undefined"]
    assert [(c["b"], c["method"], c["welch_p"]) for c in refused] == [("imagenet-stem", "feature", None)]
    assert "torch: 0.1 against" in refused[0]["warnings"][0]
    (arm,) = (a for a in found["arms"] if a["fault"] == "imagenet-stem" and a["method"] == "feature")
    assert arm["diverged_at"] == 1, "the other seed's twin is of the same torch"


def test_a_clean_arm_whose_audit_said_nothing_is_not_clean(copy):
    def silence(raw):
        next(f for f in raw["findings"] if f["id"] == "KD201").update(status="not_triggered")

    edit_result(copy, None, silence)
    assert kdbench("run", TINY, "--json", cwd=copy).returncode == 1


def test_results_are_a_table_too(study):
    import pandas as pd

    place, found, _ = study
    table = pd.read_csv(folder_of(place).path / "results.csv", keep_default_na=False)
    assert len(table) == 18 and set(table.status) == {"finished"}
    for arm in found["arms"]:
        rows = table[(table.method == arm["method"]) & (table.fault == (arm["fault"] or ""))]
        assert rows.test_accuracy.tolist() == pytest.approx(arm["test_accuracy"])
    assert set(table[table.fault == "projector-unclipped"].failed_audits) == {"KD201 KD204"}


class Page(HTMLParser):
    """Text of a page, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.text, self.loads = "", []
        self.feed(text)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        named = [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.loads += [value for value in named if not value.startswith("#")]


def test_a_study_is_written_as_a_page_that_stands_alone(study, tmp_path):
    place, found, _ = study
    done = kdbench("report", "--output", tmp_path, cwd=place)
    assert done.returncode == 0, done.stderr
    page = Page((tmp_path / "report.html").read_text())
    first = page.text[: page.text.index("Arms and their audits")]
    seen = "shows" if found["controls"]["sound"] else "does NOT show"  # of two seeds a matter of luck
    for line in (
        "3 of 3 corrected arms are proven clean",
        "6 of 6 bugged arms were caught by exactly the audits that their bug names",
        "the same seed trained twice gave the same weights, bit for bit",
        f"the severe control bug (teacher-rows-shuffled) was caught by exactly its audit and {seen} in accuracy",
        "Logit-KD against the baseline: ",
        "projector-unclipped in Feature-KD: ",
    ):
        assert line in first, line
    assert page.loads and all(value.startswith("data:image/svg+xml;base64,") for value in page.loads)
    assert len(page.loads) == 2 * 4, "gains, accuracy, curves, norms; each for a wide page and for a telephone"
    assert page.text.index("Code clean.") < page.text.index("Was the code right?"), "the headline comes first"
    assert "--variant both" in page.text and "torch: " in page.text
    text = (tmp_path / "report.md").read_text()
    for arm in found["arms"]:
        assert " ".join(f"{value:.2f}" for value in arm["test_accuracy"]) in text
        assert " ".join(f"{value:.2f}" for value in arm["test_accuracy"]) in page.text
    assert text.count("| yes |") == len(found["arms"]) + len(found["teachers"])


def test_a_page_says_what_is_wrong_and_what_is_missing(copy):
    def escape(raw):
        for f in raw["findings"]:
            if f["id"] == "KD201":
                f["status"] = "pass"

    edit_result(copy, "projector-unclipped", escape)
    edit_result(copy, "imagenet-stem", lambda raw: raw.update(status="failed", reason="killed", metrics=None))
    assert kdbench("report", cwd=copy).returncode == 0
    text = (folder_of(copy).path / "report.md").read_text()
    assert "**1 without a score**" in text and "NO: 4 of 6 bugged arms" in text
    assert "KD201 clip-coverage did not fail" in text and "the trial failed: killed" in text
    assert "\n**Not as declared: " in text and "kdbench audits show" in text
    shutil.rmtree(folder_of(copy).path / "trials")
    done = kdbench("report", cwd=copy)
    assert done.returncode == 2 and "spec.json" in done.stderr


def test_a_seed_without_a_score_is_counted_as_missing(copy):
    edit_result(copy, "imagenet-stem", lambda raw: raw.update(status="diverged", metrics=None))
    done = kdbench("compare", "corrected", "imagenet-stem", "--json", cwd=copy)
    (feature,) = (c for c in json.loads(done.stdout)["comparisons"] if c["method"] == "feature")
    assert feature["n"] == [2, 1] and feature["missing"] == [{"arm": "b", "seed": 1, "status": "diverged"}]
    assert feature["verdict"] == "undefined"


LONG = ["run", "--variant", "corrected", "--method", "baseline", "--width", "4", "--epochs", "6", "--seeds", "0"]
LONG += ["--no-controls"]


def start(place, *more):
    command = [sys.executable, "-m", "kdbench", *LONG, *more, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell's background job ignores SIGINT, and so would what it starts: pytest itself may be one.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, cwd=place, start_new_session=True, preexec_fn=heed, **pipes)


def wait_for_trial(place, epochs=1):
    """Return the process id of the trial that has written its first epochs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for curve in (place / "runs").glob("*/trials/*/curve.jsonl"):
            if curve.read_text().count("\n") >= epochs:
                for entry in Path("/proc").glob("[0-9]*"):
                    try:
                        if any(fd.readlink() == curve for fd in (entry / "fd").iterdir()):
                            return int(entry.name)
                    except OSError:
                        continue
        time.sleep(0.05)
    raise AssertionError("no trial started")


def test_a_killed_trial_is_tried_again_at_once(tmp_path, cache):
    running = start(tmp_path, "-v")
    os.kill(wait_for_trial(tmp_path), signal.SIGKILL)
    out, err = running.communicate(timeout=120)
    found = json.loads(out)
    assert running.returncode == 0 and (found["trained"], found["failed"], found["retried"]) == (1, 0, 1), err
    (trial,) = folder_of(tmp_path).trials()
    assert len(trial.result().attempts) == 1 and "ended by SIGKILL" in trial.result().attempts[0]
    assert "(attempt 2)" in err


def test_a_killed_trial_is_recorded_and_tried_again_the_next_time(tmp_path, cache):
    running = start(tmp_path, "--retries", "0")
    os.kill(wait_for_trial(tmp_path), signal.SIGKILL)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 3, err
    found = json.loads(out)
    assert (found["trained"], found["failed"]) == (0, 1) and found["arms"][0]["test_accuracy"] == [None]
    assert "ended by SIGKILL" in err
    (trial,) = folder_of(tmp_path).trials()
    assert (trial.result().status, "SIGKILL" in trial.result().reason) == ("failed", True)
    again = kdbench(*LONG, "--json", cwd=tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout)["trained"] == 1, again.stderr
    assert trial.result().status == "finished"


def test_a_trial_is_mirrored_while_others_still_run(tmp_path, cache):
    """The UI shows a long study as it grows: its teacher is there before its student is done."""
    options = ["--method", "logit", "--width", "4", "--epochs", "20", "--teacher-epochs", "2", "--seeds", "7-7"]
    options += ["--no-controls"]
    command = [sys.executable, "-m", "kdbench", "run", "--variant", "corrected", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = subprocess.Popen(command, cwd=tmp_path, **pipes)
    mirrored, deadline = [], time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline and not mirrored:
        time.sleep(0.2)
        done = [path.parent.name for path in (tmp_path / "runs").glob("*/trials/*/result.json")]
        tags = {}
        with (
            contextlib.suppress(sqlite3.OperationalError),  # it is being made
            sqlite3.connect(f"file:{cache / 'mlflow.db'}?mode=ro", uri=True) as database,
        ):
            tags = dict(database.execute("select run_uuid, value from tags where key = 'trial_key'").fetchall())
        mirrored = [key for key in done if key in tags.values()]
    still_running = running.poll() is None
    running.kill()
    out, _ = running.communicate(timeout=120)
    assert mirrored and still_running, out
    assert len(list(folder_of(tmp_path).trials())) == 2


def test_ctrl_c_leaves_a_study_that_the_same_command_finishes(tmp_path, cache):
    """As on a terminal: the whole process group is told."""
    running = start(tmp_path)
    pid = wait_for_trial(tmp_path)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and out == "" and "keeps what is done" in err
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists(), "the trial outlived its coordinator"
    (trial,) = folder_of(tmp_path).trials()
    assert trial.result() is None or trial.result().status == "interrupted"
    again = kdbench(*LONG, "--json", cwd=tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout)["trained"] == 1, again.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="trials are forked from a server on Linux only")
def test_ctrl_c_while_everything_is_imported_leaves_no_traceback(tmp_path, cache):
    """A terminal tells the server that trials are forked from as well, which imports PyTorch at that time."""
    running = start(tmp_path)
    servers, deadline = [], time.monotonic() + 60
    while not servers and time.monotonic() < deadline:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(entry.name)) == running.pid and "forkserver" in (entry / "cmdline").read_text():
                    servers.append(int(entry.name))
    time.sleep(1)  # past the start of the interpreter
    for server in servers:  # alone: what the coordinator does with it is the test's above
        os.kill(server, signal.SIGINT)
    out, err = running.communicate(timeout=60)  # the server has the same streams
    assert servers and running.returncode == 0 and json.loads(out)["trained"] == 1
    assert "Traceback" not in err and "KeyboardInterrupt" not in err


def test_a_coordinator_that_is_killed_takes_its_trials_along(tmp_path, cache):
    running = start(tmp_path, "--epochs", "900")  # it would go on for minutes
    pid = wait_for_trial(tmp_path)
    running.kill()
    running.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_a_finished_teacher_whose_weights_are_lost_is_trained_again(copy):
    folder = folder_of(copy)
    teacher = next(f for f in folder.trials() if f.spec().arch == "r34" and f.spec().fault == "imagenet-stem")
    before = teacher.student.read_bytes()
    teacher.student.unlink()
    done = kdbench("run", TINY, "--json", cwd=copy)
    assert done.returncode == 0 and json.loads(done.stdout)["trained"] == 1
    assert teacher.student.read_bytes() == before


def test_a_teacher_brought_along_is_used_and_hashed(study, tmp_path):
    place, _, _ = study
    teacher = next(f for f in folder_of(place).trials() if f.spec().arch == "r34" and not f.spec().fault)
    options = ["--teacher-weights", teacher.student, "--method", "logit", "--seeds", "0", "--no-controls"]
    done = kdbench("run", "--variant", "corrected", TINY, *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"] == 1
    (trial,) = folder_of(tmp_path).trials()
    assert trial.result().teacher.sha256 == trial.spec().teacher.key.removeprefix("sha256:")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_end_to_end(tmp_path, precision, cache):
    options = ["--precision", precision, "--method", "baseline", "--seeds", "0", "--no-controls"]
    done = kdbench("run", "--variant", "corrected", TINY, *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arms"][0]["as_expected"] is True


def test_a_folder_of_images_end_to_end(tmp_path, cache):
    """120 images of two colours and some noise: enough to learn, small enough for a test."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, n in (("train", 300), ("test", 40)):
        for label, base in (("dark", 60), ("light", 180)):
            place = tmp_path / "shades" / part / label
            place.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(base + rng.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    options = ["--dataset", "folder", "--data", "shades", "--seeds", "0", "--teacher-epochs", "3", "--no-controls"]
    options += ["--method", "logit"]
    done = kdbench("run", "--variant", "both", TINY, *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["dataset"]["name"] == "folder-shades" and all(arm["as_expected"] for arm in found["arms"])


def test_bad_images_stop_a_run_before_anything_is_written(tmp_path, cache):
    root = write_images(tmp_path / "pets")
    (root / "test" / "cat" / "0.png").write_bytes(b"no image")
    done = kdbench("run", "--dataset", "folder", "--data", root, cwd=tmp_path)
    assert done.returncode == 2 and "test/cat/0.png cannot be read" in done.stderr
    assert not (tmp_path / "runs").exists()
