"""kdbench mutate: each fault acts in a script that knows nothing of it, and the audits see a script that has it."""

import contextlib
import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import put_back
from corpus import SCRIPTS, twins

from kdbench.audits.checks.all import CATALOGUE
from kdbench.harness import faults, loading
from kdbench.harness.cli import cli, mutate_command
from kdbench.harness.faults import FAULTS
from kdbench.harness.injection.calls import Call, words
from kdbench.harness.injection.mechanism import MECHANISMS, Injector
from kdbench.harness.injection.scene import NotApplicableError, Scene, Site
from kdbench.harness.injection.survey import first_difference
from kdbench.harness.mutation import pages, processes, runs, writes
from kdbench.harness.mutation.child import Order, Outcome, carry_out
from kdbench.harness.mutation.naming import answer
from kdbench.harness.mutation.workspace import copy_of

SCRIPT = str(Path(__file__).with_name("mutation") / "train.py")
DECLARED = {"temperature": 4.0, "alpha": 0.7, "max_norm": 0.1}


def run(script=SCRIPT, args=("3",), **order):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return carry_out(Order(target=str(script), args=list(args), **{"declared": DECLARED, **order}))


@pytest.fixture(scope="module")
def base():
    return run(what="survey")


QUICK = {"projector-unclipped", "projector-not-in-optimizer", "random-teacher", "missing-t-squared", "no-zero-grad"}
ELSEWHERE = {
    "clip-before-unscale": ("not-applicable", None),  # no GradScaler
    "projector-lr-lost": ("not-applicable", None),  # no scheduler
    "imagenet-stem": ("injected", None),  # the student's own checkpoint does not fit the other stem, and torch says so
}
"Faults that end otherwise in this script: how, and what is left for the audits to say."


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[] if f in QUICK else pytest.mark.long) for f in sorted(MECHANISMS)]
)
def test_each_fault_acts_and_its_cause_is_named_first(base, fault):
    row = runs.judge(fault, base, run(what="fault", fault=fault, scene=base.scene), 0.0)
    assert (row.status, row.kdbench) == ELSEWHERE.get(fault, ("injected", "first")), row
    assert (row.by_script is not None) == (fault in ("imagenet-stem", *NOT_FINITE)), row


NOT_FINITE = ("log-target-forgotten", "logits-as-target")
"The loss is no number, and whoever looks at it sees that."


OF_THE_TEACHER = ("random-teacher", "teacher-overwritten", "teacher-head-fresh", "teacher-without-statistics")


@pytest.mark.parametrize("fault", OF_THE_TEACHER)
def test_a_teacher_that_the_script_trains_can_be_lost_as_well(fault, monkeypatch):
    monkeypatch.chdir(SCRIPTS)
    trained = run("amp_gradscaler.py", what="survey", **PLAIN)
    assert not Scene.from_json(trained.scene).loads
    seen = run("amp_gradscaler.py", what="fault", fault=fault, scene=trained.scene, **PLAIN)
    row = runs.judge(fault, trained, seen, 0.0)
    assert (row.status, row.kdbench) == ("injected", "first"), row


CLOSURES = """
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(160, 8), torch.randint(0, 3, (160,))
teacher, student = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), nn.Linear(8, 3)

def steps(net, optimizer, loss, times):
    for rows in torch.arange(160).split(16) * times:
        def closure():
            optimizer.zero_grad()
            value = loss(rows)
            value.backward()
            return value
        optimizer.step(closure)

def distilled(rows):
    with torch.no_grad():
        t = teacher(x[rows])
    s = student(x[rows])
    kd = F.kl_div(F.log_softmax(s / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4
    return 0.5 * F.cross_entropy(s, y[rows]) + 0.5 * kd

adam = torch.optim.Adam(teacher.parameters(), 0.02)
steps(teacher, adam, lambda rows: F.cross_entropy(teacher(x[rows]), y[rows]), 10)
steps(student, torch.optim.SGD(student.parameters(), 0.1), distilled, 2)
"""


def test_a_step_that_takes_a_closure_has_faults_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(CLOSURES)
    closed = run("train.py", what="survey", **PLAIN)
    assert closed.verdict == "clean"
    for fault in ("double-step", "random-teacher", "zeroed-before-step"):
        seen = run("train.py", what="fault", fault=fault, scene=closed.scene, **PLAIN)
        row = runs.judge(fault, closed, seen, 0.0)
        assert (row.status, row.by_script, row.kdbench) == ("injected", None, "first"), row


def test_a_softmax_that_words_are_drawn_by_is_no_place_of_the_term(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = "    s = student(x[rows])\n    torch.multinomial(F.softmax(s.detach(), 1), 1)\n"
    (tmp_path / "train.py").write_text(CLOSURES.replace("    s = student(x[rows])\n", drawn))
    found = Scene.from_json(run("train.py", what="survey", **PLAIN).scene).sites
    lines = (tmp_path / "train.py").read_text().splitlines()
    told = [lines[int(s.where.rpartition(":")[2]) - 1] for s in found if s.kind == "softmax" and s.side == "student"]
    assert len(told) == 1 and "log_softmax" in told[0]


def test_rates_that_the_script_sets_by_hand_can_miss_the_projectors_and_torchs_own_cannot(monkeypatch):
    monkeypatch.chdir(SCRIPTS)
    by_hand = run("loss_with_parameters.py", what="survey", **PLAIN)
    seen = run("loss_with_parameters.py", what="fault", fault="projector-lr-lost", scene=by_hand.scene, **PLAIN)
    row = runs.judge("projector-lr-lost", by_hand, seen, 0.0)
    assert (row.status, row.kdbench) == ("injected", "first"), row
    with pytest.raises(NotApplicableError, match="refuses a group that it was not built with"):
        MECHANISMS["projector-lr-lost"].acts(Scene.from_json(scene_of("feature_hooks.py")))


def sites(number, temperature, labelled=True):
    data = {"reduction": "batchmean"}
    found = [Site("scale", "mul", "a", "a.py:1", "distillation", number),
             Site("kl_div", "kl_div", "b", "a.py:2", "distillation", None, data)]  # fmt: skip
    return Scene(sites=found, temperature=temperature, labelled=labelled)


def test_a_scale_is_lost_only_where_it_can_be_told_from_a_choice():
    assert MECHANISMS["missing-t-squared"].acts(sites(14.4, 4.0))  # a weight and T * T in one number
    with pytest.raises(NotApplicableError, match="no number was seen"):
        MECHANISMS["missing-t-squared"].acts(sites(1 / 64, 0.1))  # a mean over 64, beside a temperature below 1
    assert MECHANISMS["kl-sum-reduction"].acts(sites(16.0, 4.0))
    with pytest.raises(NotApplicableError, match="no label loss stands beside the term"):
        MECHANISMS["kl-sum-reduction"].acts(sites(16.0, 4.0, labelled=False))


def test_a_fault_acts_where_its_call_is_and_not_where_the_network_around_it_is_called():
    injector = Injector({"forward": within}, Scene())
    outer, inner = Call("forward", "call", lambda net: injector.on(inner), [torch.nn.ReLU()], {}), None
    inner = Call("forward", "call", lambda net: None, [torch.nn.Tanh()], {})
    injector.on(outer)
    assert len(injector.where) == injector.live.acted == 1


def within(call, live):
    live.acted += isinstance(call.args[0], torch.nn.Tanh)
    return call.proceed()


def test_a_teacher_that_transformers_loads_can_be_one_that_nothing_was_loaded_into(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(OF_TRANSFORMERS)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, num_labels=4, **sizes)
    torch.manual_seed(7)  # not the script's own seed, from which the other teacher is made
    transformers.BertForSequenceClassification(config).save_pretrained("teacher")
    loaded = run("train.py", what="survey", **PLAIN)
    assert Scene.from_json(loaded.scene).pretrained == [0]
    seen = run("train.py", what="fault", fault="random-teacher", scene=loaded.scene, **PLAIN)
    row = runs.judge("random-teacher", loaded, seen, 0.0)
    assert (row.status, row.kdbench, row.where) == ("injected", "first", ("train.py:8",)), row


OF_TRANSFORMERS = """
import torch
import torch.nn.functional as F
import transformers
from torch import nn

torch.manual_seed(0)
teacher = transformers.BertForSequenceClassification.from_pretrained("teacher")
student = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(student.parameters(), 0.1)
for _ in range(12):
    ids = torch.randint(0, 20, (8, 4))
    with torch.no_grad():
        t = teacher(input_ids=ids).logits
    s = student(ids)
    kd = F.kl_div(F.log_softmax(s / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4
    optimizer.zero_grad()
    (0.5 * F.cross_entropy(s, ids[:, 0] % 4) + 0.5 * kd).backward()
    optimizer.step()
"""


def test_the_taps_alone_change_no_bit_and_raise_no_alarm(base):
    idle = run(what="idle", scene=base.scene)
    assert idle.digests == base.digests != run(what="survey", args=["2"]).digests
    assert [f["id"] for f in idle.findings if f["status"] == "fail"] == ["KD205"]  # a note: 3 times the bound


SAME = {"step-twice": "double-step", "zero-grad-missing": "no-zero-grad", "kd-detached": "kd-term-detached",
        "student-eval-after-validation": "student-eval-mode", "target-logits": "logits-as-target",
        "one-side-softened": "temperature-one-side", "probabilities-for-log-probabilities": "kl-of-probabilities",
        "own-answer": "student-teaches-itself", "projector-misses-schedule": "projector-lr-lost"}  # fmt: skip
"What the twins of the corpus call faults that have another name in the zoo."
EXACT = ["plain_loop:missing-t-squared", "feature_hooks:projector-unclipped", "plain_loop:kl-reversed"]


def hand_written():
    found = []
    for twin in twins():
        fault = SAME.get(twin.fault, twin.fault)
        if fault in MECHANISMS and Path(twin.script).parent == Path():
            found.append(pytest.param(twin, fault, marks=[] if twin.name in EXACT else pytest.mark.long, id=twin.name))
    return found


PLAIN = {"declared": {}, "args": []}


@cache
def scene_of(script):
    return run(script, what="survey", **PLAIN).scene


@pytest.mark.parametrize(("twin", "fault"), hand_written())
def test_the_audits_see_what_they_see_of_the_fault_written_by_hand(twin, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS)
    acting = run(twin.script, what="fault", fault=fault, scene=scene_of(twin.script), **PLAIN)
    if not acting.acted:
        pytest.skip("the script has no place for it")
    by_hand = run(twin.write(tmp_path), what="survey", **PLAIN)

    def failed(outcome):
        return {f["id"] for f in outcome.findings if f["status"] == "fail" and f["severity"] != "info"}

    assert failed(acting) == failed(by_hand)


def test_an_unknown_fault_is_named_with_the_nearest():
    done = CliRunner().invoke(cli, ["mutate", "--fault", "projector-uncliped", SCRIPT])
    assert "did you mean 'projector-unclipped'" in str(done.exception)
    done = CliRunner().invoke(cli, ["mutate", "--fault", "split-leak", SCRIPT])
    assert "cannot be put into a script" in str(done.exception)


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        ({"error": "RuntimeError: Found no NVIDIA driver on your system"}, "needs a GPU"),
        ({"error": "EOFError: EOF when reading a line"}, "asks for input"),
        ({"exit_code": 3, "printed": "usage: it"}, "ends with exit code 3; the last that it printed:\nusage: it"),
        ({"stopped": "9 seconds were over"}, r"took longer than 9 seconds for 30 steps of distillation: give it more"),
        ({"distilled": False, "stopped": "9 seconds were over"}, "no distillation was seen in the script within 9 sec"),
        ({"findings": [{"id": "KD201", "name": "clip", "status": "fail", "severity": "error", "message": "m"}]},
         "KD201 clip: m"),
        ({"findings": [{"id": "KD201", "name": "clip", "status": "fail", "severity": "error", "message": "m",
                        "where": {"file": "a.py", "line": 3}, "mend": "clip it"}]},
         "KD201 clip at a.py:3: m; fix: clip it"),
        ({"scene": Scene().to_json()}, "the student is no module"),
    ],
)  # fmt: skip
def test_what_cannot_serve_says_why(base, outcome, says):
    with pytest.raises(runs.CannotServeError, match=says):
        runs.refuse(replace(base, **outcome), Order("survey", SCRIPT, [], max_seconds=9))
    runs.refuse(base, Order("survey", SCRIPT, []))


def test_the_first_call_that_differs_between_two_runs_is_named():
    one = [("the weights of Net before its call at a.py:3", "1"), ("what Net is given at a.py:3", "2")]
    assert first_difference(one, list(one)) is None
    assert first_difference(one, [one[0], (one[1][0], "3")]) == "what Net is given at a.py:3"


BAD = {
    "a GPU": ("import torch; torch.randn(3).cuda()", "It needs a GPU"),
    "input": ("input('rate: ')", "asks for input"),
    "no distillation": ("import torch; torch.randn(3).sum()", "no distillation was seen in the script"),
    "time": ("import time; time.sleep(60)", "nothing came back within 1 seconds (--max-seconds)"),
    "an exit code": ("raise SystemExit(4)", "ends with exit code 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_script_that_cannot_serve_is_told_why_in_words(name, tmp_path, monkeypatch):
    text, says = BAD[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_GRACE", 0.5)
    (tmp_path / "train.py").write_text(text)
    done = mutate("--max-seconds", "1" if name == "time" else "60", "train.py")
    assert done.return_value == 3 and says in done.stderr, done.stderr


def test_tests_that_cannot_be_imported_show_what_pytest_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_mine.py").write_text("import no_such_module\n")
    done = mutate("--tests", "test_mine.py", "--", "-k", "it")  # behind --, pytest's own
    assert done.return_value == 3 and "pytest ran no test there" in done.stderr, done.stderr
    assert "No module named 'no_such_module'" in done.stderr
    done = mutate("--tests", "test_mine.py", "train.py")
    assert "--tests tests/ -- -k NAME" in str(done.exception)


def test_options_behind_the_script_are_its_own_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit(5)")
    done = CliRunner().invoke(cli, ["mutate", "train.py", "--fault", "kl-reversed", "--rate=1"], standalone_mode=False)
    assert "--fault: handed to the script, behind which it stands" in " ".join(done.stderr.split())


def test_where_nothing_that_was_asked_for_has_a_place_nothing_was_tested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    row = runs.Row("projector-unclipped", "not-applicable", "there is no projector")
    monkeypatch.setattr(mutate_command, "_in_script", lambda *args: runs.Measured("train.py", Scene(), [row]))
    done = mutate("--fault", "projector-unclipped", "train.py")
    assert done.return_value == 3 and "nothing was tested" in done.stderr


def test_a_script_is_found_from_the_folder_that_is_copied(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert mutate_command._from_here("../inner/train.py") == "train.py"
    assert mutate_command._from_here("../train.py") == str(tmp_path.resolve() / "train.py")


def test_the_projects_table_declares_for_mutate_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.kdbench]\nalpha = 0.6\nsteps = 7\nformat = "sarif"\n')
    given = mutate_command.command.make_context("mutate", ["train.py"]).params
    assert (given["alpha"], given["steps"], given["format_"]) == (0.6, 30, "text")


def mutate(*words):
    return CliRunner().invoke(cli, ["mutate", "-q", "--workers", "1", *words], standalone_mode=False)


@pytest.mark.parametrize(
    ("passage", "says"),
    [("s = student(x[rows])", "what Linear is given at train.py:24"), ("t = teacher(x[rows])", "the loss at the back")],
)
def test_the_call_at_which_a_script_that_does_not_repeat_differs_is_named(passage, says, tmp_path, monkeypatch):
    """The teacher's own training comes before it, and repeats."""
    monkeypatch.chdir(tmp_path)
    drawn = "import os\nchance = lambda: int.from_bytes(os.urandom(2), 'big') / 1e6\n"
    there = passage.replace("[rows])", "[rows] + chance())") if "student" in passage else f"{passage} * chance()"
    assert CLOSURES.count(passage) == 1
    (tmp_path / "train.py").write_text(drawn + CLOSURES.replace(passage, there))
    one, other = (run("train.py", what="survey", **PLAIN) for _ in range(2))
    assert one.digests != other.digests
    assert says in first_difference(one.answers, other.answers)


@pytest.mark.parametrize(
    ("failed", "undecided", "how"),
    [
        (("KD201", "KD204"), False, "first"),
        (("KD101", "KD201"), False, "named"),
        (("KD101",), True, "other"),
        ((), True, "undecided"),
        ((), False, "silent"),
    ],
)
def test_a_bug_is_named_first_or_named_or_missed(failed, undecided, how):
    assert answer(["KD201"], failed, undecided) == how


def judged(**seen):
    blank = Outcome("clean", [], {"student": "1"}, 30)
    return runs.judge(
        "projector-unclipped", blank, replace(blank, **{"acted": 3, "digests": {"student": "2"}, **seen}), 1.0
    )


def finding(id, severity="error", status="fail"):
    return {"id": id, "severity": severity, "status": status}


def test_a_row_says_who_noticed():
    assert (judged().status, judged().kdbench, judged().by_script) == ("injected", "silent", None)
    assert judged(findings=[finding("KD201"), finding("KD204", "warn")]).kdbench == "first"
    assert judged(findings=[finding("KD101"), finding("KD201")]).kdbench == "named"
    assert judged(findings=[finding("KD101")]).kdbench == "other"
    assert judged(findings=[finding("KD201", "info")]).kdbench == "silent"
    assert judged(verdict="undecided").kdbench == "undecided"
    assert judged(acted=0).status == "dormant"
    assert judged(digests={"student": "1"}).status == "dormant"
    assert judged(not_finite=True).by_script == "the loss is not finite"
    assert judged(error="a\nValueError: no").by_script == "ValueError: no"
    assert judged(error="a\nValueError: no").kdbench is None  # nothing was left to be seen


def test_a_librarys_file_is_named_from_its_package_on():
    assert words({"file": torch.nn.utils.__file__, "line": 3}) == "torch/nn/utils/__init__.py:3"
    assert words({"file": "train.py", "line": 3}) == "train.py:3" and words(None) == "a library"
    assert pages.noticed(judged(error="lightning.exceptions.WrongError: no")) == "WrongError"


def test_the_first_line_counts_what_acted():
    rows = [
        judged(findings=[finding("KD201")], where=["a.py:3"]),
        judged(error="ValueError: no", where=["a.py:4"]),
        judged(acted=0),
        runs.Row("clip-before-unscale", "not-applicable", "no GradScaler"),
    ]
    found = runs.Measured("a.py", Scene(), rows, 30)
    says = "2 faults injected at 2 places: your script noticed 1, kdbench 1; 1 dormant here; 1 not applicable."
    assert pages.first_line(found) == says
    assert json.loads(json.dumps(pages.to_json(found)))["faults"][0]["kdbench"] == "first"
    assert "| projector-unclipped | a.py:3 | no | named first: KD201 |" in pages.to_markdown(found)
    page = pages.to_html(replace_target(found, "<script>"))
    assert "&lt;script&gt;" in page and "<script>" not in page


def replace_target(found, target):
    return replace(found, target=target)


def test_each_run_has_a_copy_of_the_folder_and_large_files_are_links(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small.txt").write_text("as it was")
    (tmp_path / ".git").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pyvenv.cfg").write_text("")
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(9 * 2**20)
    with copy_of(tmp_path) as there:
        assert (there / "large.bin").is_symlink() and not (there / ".git").exists()
        assert not (there / "mine").exists() and (there / "data").exists()
        (there / "data" / "small.txt").write_text("changed")
    assert not there.exists() and (tmp_path / "data" / "small.txt").read_text() == "as it was"


def test_a_process_that_hangs_is_ended_and_one_that_fails_shows_what_it_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(processes.TookTooLongError):
        processes.launch(processes.anew(["-c", "import time; time.sleep(60)"], 1), {}, 0.5, False)
    assert processes.launch(processes.anew(["-c", "1 / 0"], 1), {}, 60, False)[0] is None
    assert "ZeroDivisionError" in processes.launch(processes.anew(["-c", "1 / 0"], 1), {}, 60, False)[1]


def test_files_written_outside_the_folder_are_told(tmp_path):
    (tmp_path / "work").mkdir()
    with writes.outside(tmp_path / "work") as found:
        (tmp_path / "work" / "mine.txt").write_text("")
        (tmp_path / "work" / "mine.txt").read_text()
        (tmp_path / "log.txt").write_text("")
        torch.save({}, tmp_path / "student.pt")
    (tmp_path / "later.txt").write_text("")
    assert found == {str(tmp_path / name) for name in ("log.txt", "student.pt")}


def test_files_that_every_run_writes_are_put_back_as_the_script_left_them(tmp_path):
    mine, gone = tmp_path / "student.pt", tmp_path / "gone.pt"
    mine.write_text("as the script left it")
    with writes.put_back([str(mine), str(gone)]) as kept:
        assert kept
        mine.write_text("of a run with a bug")
    assert mine.read_text() == "as the script left it" and not gone.exists()


def test_a_file_outside_the_folder_is_told_and_put_back(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "train.py").write_text(CLOSURES + f"torch.save(student.state_dict(), '{tmp_path}/student.pt')\n")
    done = mutate("--fault", "no-zero-grad", "train.py")
    assert done.return_value == 0 and "student.pt" in done.stdout and "puts back what the script" in done.stdout, (
        done.output
    )
    left = torch.load(tmp_path / "student.pt")
    scope: dict[str, object] = {}
    exec(CLOSURES, scope)
    assert [path.name for path in work.iterdir()] == ["train.py"] and left.keys() == scope[
        "student"
    ].state_dict().keys()


def test_each_mechanism_belongs_to_a_fault_that_an_audit_of_a_script_catches():
    assert {*MECHANISMS} <= {*FAULTS} and len(MECHANISMS) >= 30
    for name in MECHANISMS:
        assert runs.expected_of(name), name


def test_what_is_tapped_for_one_fault_are_its_own_places(base):
    scene = Scene.from_json(base.scene)
    assert Injector(MECHANISMS["no-zero-grad"].acts(scene), scene).kinds == {
        "forward", "load", "conv", "step", "backward", "zero_grad",
    }  # fmt: skip


def test_a_list_says_where_each_fault_would_act(base):
    scene = Scene.from_json(base.scene)
    text = Path(SCRIPT).read_text().splitlines()
    for fault in runs.plan(scene, sorted(MECHANISMS))[0]:
        where = runs.planned(fault, scene).where
        assert where or fault in NOWHERE, fault
        assert all(part in text[int(place.rpartition(":")[2]) - 1] for place in where for part in PARTS.get(fault, ()))


NOWHERE = {"imagenet-stem"}
PARTS = {"no-zero-grad": ["zero_grad"], "double-step": ["step"], "projector-unclipped": ["clip_grad_norm_"],
         "random-teacher": ["load_state_dict"], "head-not-in-optimizer": ["optim"],
         "student-eval-mode": ["student("]}  # fmt: skip


def test_a_fault_of_ones_own_acts_in_a_script_as_its_page_shows(base, monkeypatch, tmp_path):
    page = Path(faults.__file__).with_name("README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- (?:file|added to): own_faults.py -->\n```python\n(.*?)```", page, re.S)
    assert len(blocks) == 2
    (tmp_path / "own_faults.py").write_text("\n\n".join(blocks))
    monkeypatch.setattr(loading, "LOADED", [])
    with put_back(FAULTS, CATALOGUE), put_back(MECHANISMS):
        seen = run(
            what="fault", fault="first-epoch-lost", scene=base.scene, fault_files=[str(tmp_path / "own_faults.py")]
        )
        row = runs.judge("first-epoch-lost", base, seen, 0.0)
    assert (row.status, row.kdbench) == ("injected", "first") and seen.acted == 5, row


@pytest.mark.long
def test_the_command_line_from_a_script_to_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(Path(SCRIPT).read_text())
    chosen = ["--fault", "projector-unclipped", "--fault", "clip-before-unscale", "--steps", "12", "--format", "json"]
    done = CliRunner().invoke(cli, ["mutate", "-q", *chosen, "train.py", "2"], standalone_mode=False)
    found = json.loads(done.stdout)
    assert done.return_value == 0, done.stderr
    assert [f["status"] for f in found["faults"]] == ["injected", "not-applicable"]
    assert found["faults"][0]["where"] == ["train.py:71"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


TESTS = """
import torch
import torch.nn.functional as F
from torch import nn

def distil(check):
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    teacher = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    warm = torch.optim.Adam(teacher.parameters(), 0.05)
    for _ in range(40):
        warm.zero_grad(); F.cross_entropy(teacher(x), y).backward(); warm.step()
    student = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    losses = []
    for rows in torch.arange(64).split(16) * 3:
        with torch.no_grad():
            t = teacher(x[rows])
        s = student(x[rows])
        kd = F.kl_div(F.log_softmax(s / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4
        loss = 0.5 * F.cross_entropy(s, y[rows]) + 0.5 * kd
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(float(loss))
    check(losses)

def test_the_loss_falls():
    distil(lambda losses: None if losses[-1] < losses[0] else 1 / 0)

def test_the_loss_is_what_it_was():
    def check(losses):
        assert abs(losses[-1] - EXPECTED) < 1e-3
    distil(check)

def test_nothing_is_trained():
    assert True
"""


@pytest.mark.long
def test_the_tests_that_notice_a_fault_are_named(tmp_path, monkeypatch):
    """One test knows the loss to three digits and notices; one only sees it fall, and does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_mine.py").write_text(f"EXPECTED = 0.0\n{TESTS}")
    done = CliRunner().invoke(cli, ["mutate", "-q", "--tests", "test_mine.py"], standalone_mode=False)
    assert done.return_value == 3 and "test_the_loss_is_what_it_was" in done.stderr  # it fails as it is
    last: dict[str, float] = {}
    scope: dict[str, object] = {}
    exec(TESTS, scope)
    scope["distil"](lambda losses: last.update(it=losses[-1]))
    (tmp_path / "test_mine.py").write_text(f"EXPECTED = {last['it']}\n{TESTS}")
    chosen = ["--fault", "missing-t-squared", "--format", "json"]
    done = CliRunner().invoke(cli, ["mutate", "-q", "--tests", "test_mine.py", *chosen], standalone_mode=False)
    found = json.loads(done.stdout)
    assert found["tests"] == 2, done.stderr
    (row,) = found["faults"]
    assert row["by_tests"] == ["test_mine.py::test_the_loss_is_what_it_was"]
    assert row["kdbench"] == "first" and row["expected"] == ["KD312"]


def test_the_readme_counts_the_faults():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"puts {len(MECHANISMS)} known bugs into your script" in readme
