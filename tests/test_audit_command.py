"""kdbench audit as a user runs it: on scripts that know nothing of it, and on our own training."""

import json
import os
import subprocess
import sys
import textwrap
from xml.etree import ElementTree

import pytest
from conftest import cli_runner

from kdbench.harness.cli import cli, run_cli
from kdbench.harness.contract import read_contract
from kdbench.kd.errors import InputError

HEAD = """
import sys
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))


def net(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))
"""
TEACHER = """
teacher = net(16)
fit = torch.optim.Adam(teacher.parameters(), lr=0.1)
for _ in range(15):
    fit.zero_grad()
    F.cross_entropy(teacher(x), y).backward()
    fit.step()
teacher.eval()
"""
LOOP = """
student = net(4)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
for step in range(12):
    with torch.no_grad():
        answer = teacher(x)
    logits = student(x)
    soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(answer / 4, 1), reduction="batchmean")
    loss = 0.3 * F.cross_entropy(logits, y) + 0.7 * 16 * soft
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 5.0)
    optimizer.step()
"""
RIGHT = HEAD + TEACHER + LOOP
WRONG = RIGHT.replace("0.7 * 16 * soft", "0.7 * soft")
LABELS_ONLY = (
    HEAD
    + """
student = net(4)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
for step in range(4):
    optimizer.zero_grad()
    F.cross_entropy(student(x), y).backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
"""
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG), ("labels.py", LABELS_ONLY)):
        (tmp_path / name).write_text(text)
    return tmp_path


def audit(*args, group="audit"):
    """Run the command in this process; return its exit code and what it printed on stdout and stderr."""
    runner = cli_runner()
    with runner.isolation() as streams:
        words = [group, *map(str, args)]
        code = run_cli(lambda: cli.main(words, prog_name="kdbench", standalone_mode=False))
        sys.stdout.flush()  # as the end of a process does
        out, err = streams[0].getvalue().decode(), streams[1].getvalue().decode()
    return code, out, err


def audit_json(*args):
    code, out, _ = audit("--format", "json", *args)
    return code, json.loads(out)


def process(*args):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "kdbench", "audit", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "100"})
    return done.returncode, done.stdout, done.stderr


def failed(found):
    return [f["id"] for f in found["findings"] if f["status"] == "fail" and f["severity"] == "error"]


# -- what it says of scripts


def test_a_right_script_is_clean_and_the_roles_are_named():
    code, found = audit_json("right.py")
    assert (code, found["verdict"], failed(found)) == (0, "clean", [])
    assert (found["student"], found["teacher"]) == ("Sequential (student)", "Sequential (teacher)")
    assert found["target"] == "right.py" and found["steps"] == 12
    assert found["script_error"] is None and found["script_exit"] is None


def test_a_wrong_script_fails_and_the_text_says_where_and_how_to_fix_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = audit("wrong.py")
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "wrong.py: student Sequential (student), teacher Sequential (teacher), temperature 4"
    assert lines[-1].startswith("Not clean: 1 of ") and "audits failed: KD312" in lines[-1]
    line = WRONG.splitlines().index(
        '    soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(answer / 4, 1), reduction="batchmean")'
    )
    assert f"KD312 kd-scale  wrong.py:{line + 1}" in lines and "is missing)" in out and "  fix: write reduction=" in out
    assert out.index("KD312 kd-scale") < out.index("undecided, and what decides it") < out.index("Not clean")


def test_quiet_and_verbose_print_less_and_more(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plain, quiet, verbose = (audit(*options, "wrong.py")[1] for options in ([], ["-q"], ["-v"]))
    assert all(len(line) <= 80 for line in (plain + quiet + verbose).splitlines())
    assert plain.splitlines()[-1] == quiet.splitlines()[-1] == verbose.splitlines()[-1]
    assert "KD312 kd-scale" in quiet and "undecided" not in quiet and "student" not in quiet.splitlines()[0]
    assert "no GradScaler took part" in verbose and "no GradScaler" not in plain
    assert "\npassed\n  KD101 optimizer-coverage: " in verbose and "KD101" not in plain
    assert audit("-q", "right.py")[1].strip().startswith("Clean: ") and audit("-q", "right.py")[1].count("\n") <= 3


IMAGES = """
def stem(width):
    first = nn.Conv2d(3, width, 7, stride=2, padding=3)
    return nn.Sequential(first, nn.MaxPool2d(2), nn.Conv2d(width, 4, 3), nn.Flatten(), nn.Linear(36, 3))


def net(width):
    return nn.Sequential(nn.Unflatten(1, (3, 20, 20)), stem(width), nn.BatchNorm1d(3))


x = torch.randn(64, 1200)
"""


def test_a_finding_names_the_call_of_the_network_at_fault(folder):
    text = (HEAD + IMAGES + TEACHER + LOOP).replace("teacher.eval()", "teacher.train()")
    assert "teacher.train()" in text
    (folder / "calls.py").write_text(text)
    found = {f["id"]: f for f in audit_json("calls.py")[1]["findings"] if f["status"] == "fail"}
    lines = text.splitlines()
    assert "teacher(" in lines[found["KD301"]["where"]["line"] - 1]
    assert "student(" in lines[found["KD105"]["where"]["line"] - 1]
    assert all(f["where"] for f in found.values()), [f["id"] for f in found.values() if not f["where"]]


IGNORED = "    # kdbench: ignore[{}] {}\n    soft = "


@pytest.mark.parametrize(
    ("audits", "reason", "code", "says"),
    [
        ("KD312", "the weight is tuned", 0, "reason: the weight is tuned"),
        ("kd-scale, KD201", "the weight is tuned", 0, "ignore[KD201] waives nothing: KD201 passed"),
        ("KD312", "", 1, "ignore[KD312] gives no reason, so the finding stays"),
        ("KD3122", "why", 1, "unknown audit 'KD3122'; did you mean 'KD312'?"),
    ],
)
def test_a_comment_waives_a_finding_with_its_reason(folder, monkeypatch, audits, reason, code, says):
    monkeypatch.setenv("COLUMNS", "140")
    (folder / "wrong.py").write_text(WRONG.replace("    soft = ", IGNORED.format(audits, reason)))
    got, out, _ = audit("wrong.py")
    assert got == code and says in out and ("1 waived: KD312" in out.splitlines()[-1]) == (code == 0)


def test_where_a_comment_stands_says_what_it_speaks_of(folder):
    top = "# kdbench: ignore[KD312] the whole file\n"
    text = WRONG.replace("optimizer.step()", "optimizer.step()  # kdbench: ignore[KD312] another line")
    (folder / "wrong.py").write_text(top + WRONG)
    code, found = audit_json("wrong.py")
    assert code == 0 and found["waived_in_source"] == {"KD312": "wrong.py:1"}
    (folder / "wrong.py").write_text(text)
    code, out, _ = audit("wrong.py")
    assert code == 1 and "ignore[KD312] waives nothing: KD312 failed at wrong.py:" in out


CLIP = "    nn.utils.clip_grad_norm_(student.parameters(), 5.0)\n"
ASTRAY = CLIP.replace("student", "teacher")
OTHER = "other = torch.optim.SGD(teacher.parameters(), lr=0.1)\n"
EACH = """
    for p in student.parameters():
        norm = p.grad.norm()
        if norm > 0.28:
            p.grad.mul_(0.28 / (norm + 1e-6))
"""
SOME = EACH.replace("student.parameters()", "student[2].parameters()").replace("0.28", "0.178")
NORMED = EACH.replace("if norm > 0.28", "if norm > 0")


@pytest.mark.parametrize(
    ("before", "clip", "options", "wanted"),
    [
        ("", CLIP, [], {"KD201": "pass", "KD202": "pass", "KD204": "pass"}),
        ("", ASTRAY, [], {"KD202": "error", "KD201": "not_triggered"}),
        ("fit.zero_grad()\n", ASTRAY, [], {"KD202": "error", "KD201": "not_triggered"}),
        ("fit.zero_grad()\n", ASTRAY, ["--max-norm", "5"], {"KD202": "error"}),
        ("fit.zero_grad()\n", ASTRAY + CLIP, [], {"KD201": "pass", "KD202": "pass"}),
        ("fit.zero_grad()\n", ASTRAY + EACH, [], {"KD201": "pass", "KD202": "not_triggered", "KD204": "warn"}),
        ("fit.zero_grad()\n" + OTHER, ASTRAY, [], {"KD202": "not_triggered"}),
        ("", EACH, [], {"KD201": "pass", "KD204": "warn"}),
        ("", EACH, ["--max-norm", "0.28"], {"KD201": "pass", "KD204": "error"}),
        ("", SOME, [], {"KD201": "error"}),
        ("", NORMED, [], {"KD201": "not_triggered", "KD204": "not_triggered"}),
    ],
)
def test_clips_of_others_and_of_each(folder, before, clip, options, wanted):
    text = HEAD + TEACHER + before + LOOP.replace(CLIP, clip)
    (folder / "clips.py").write_text(text)
    found = {f["id"]: f for f in audit_json(*options, "clips.py")[1]["findings"]}
    seen = {id: f["severity"] if f["status"] == "fail" else f["status"] for id, f in found.items()}
    assert {id: seen[id] for id in wanted} == wanted, [found[id]["message"] for id in wanted]
    failing = {id for id, status in seen.items() if status in ("error", "warn")}
    assert all(id in wanted or found[id]["consequence_of"] for id in failing), failing


SAMPLED = """
import numpy as np
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler


class Rows(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        return x[i].numpy(), int(y[i])


def loader(low, high):
    ids = np.random.permutation(64) if SHUFFLED else np.arange(64)
    return DataLoader(data, 16, sampler=SubsetRandomSampler(ids[low:high].tolist()))


data = Rows()
train, test = loader(0, 48), loader(48, 64)
student = net(4)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
for epoch in range(3):
    for images, labels in train:
        with torch.no_grad():
            answer = teacher(images)
        logits = student(images)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(answer / 4, 1), reduction="batchmean")
        optimizer.zero_grad()
        (0.3 * F.cross_entropy(logits, labels) + 0.7 * 16 * soft).backward()
        optimizer.step()
    with torch.no_grad():
        sum(int((student(images).argmax(1) == labels).sum()) for images, labels in test)
"""


@pytest.mark.parametrize("shuffled", [True, False])
def test_samplers_that_each_shuffle_on_their_own_overlap(folder, shuffled):
    (folder / "sampled.py").write_text(HEAD + TEACHER + SAMPLED.replace("SHUFFLED", str(shuffled)))
    found = audit_json("sampled.py")[1]
    assert failed(found) == (["KD332"] if shuffled else [])
    assert next(f["status"] for f in found["findings"] if f["id"] == "KD332") == ("fail" if shuffled else "pass")


def test_json_stands_alone_though_script_children_and_exit_handlers_print(folder):
    (folder / "loud.py").write_text(
        "import atexit, os, subprocess, sys\n"
        "atexit.register(print, 'at the end')\n"
        "print('from the script', sys.argv[1:])\n"
        "sys.__stdout__.write('by the back door\\n')\n"
        "os.system('echo from a shell')\n"
        "subprocess.run([sys.executable, '-c', 'print(\"from a python\")'])\n" + RIGHT
    )
    code, out, err = process("--format", "json", "loud.py", "--format", "x", "--steps", "3")
    found = json.loads(out)
    assert (code, found["verdict"], found["steps"]) == (0, "clean", 12)
    assert "from the script ['--format', 'x', '--steps', '3']" in err
    assert all(said in err for said in ("by the back door", "from a shell", "from a python", "at the end"))
    assert len(found["unobserved"]) == 1 and "python" in found["unobserved"][0]


def test_modules_called_as_ours_are_the_users(folder):
    for name in ("kd", "audits", "harness"):
        (folder / f"{name}.py").write_text(f"SAYS = 'the {name} of the user'\n")
    (folder / "named.py").write_text(
        "import kd, audits, harness\nprint(kd.SAYS, audits.SAYS, harness.SAYS, sep='; ')\n" + WRONG
    )
    code, out, _ = audit("--steps", "5", "named.py")
    assert code == 1 and "KD312 kd-scale  " in out
    assert "the kd of the user; the audits of the user; the harness of the user" in out


def test_a_module_gets_all_that_stands_behind_its_name(folder):
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "train.py").write_text("import sys\nprint(sys.argv[1:], __package__)\n" + WRONG)
    code, out, _ = audit("-m", "package.train", "--seed", "3")
    assert code == 1 and "['--seed', '3'] package" in out and "package/train.py:" in out


def test_an_option_behind_the_script_is_the_scripts_and_that_is_said(folder):
    (folder / "says.py").write_text("import sys\nprint(sys.argv[1:])\n")
    _, out, _ = audit("says.py", "--format", "json", "--alpha=1")
    assert "['--format', 'json', '--alpha=1']" in out
    assert "--format stands behind says.py" in out and "--alpha stands" not in out


@pytest.mark.parametrize(("ending", "exit_code"), [("sys.exit(7)", 7), ("sys.exit(0)", 0), ("sys.exit('no')", 1)])
def test_the_scripts_exit_code_is_told(folder, ending, exit_code):
    (folder / "right.py").write_text(f"{RIGHT}\n{ending}\n")
    code, found = audit_json("right.py")
    assert found["script_exit"] == exit_code
    assert (code, found["verdict"]) == ((0, "clean") if exit_code == 0 else (3, "could-not-run"))


def test_a_crash_leaves_its_traceback_and_the_report_of_what_was_seen(folder):
    (folder / "crash.py").write_text(RIGHT + "\nraise RuntimeError('late')\n")
    code, out, err = audit("--format", "json", "crash.py")
    found = json.loads(out)
    assert (code, found["verdict"], found["steps"]) == (3, "could-not-run", 12)
    assert found["script_error"].splitlines()[-1] == "RuntimeError: late" and found["counts"]["pass"] > 10
    assert "kdbench" not in found["script_error"] and "harness" not in found["script_error"]
    assert "RuntimeError: late" in err


def test_a_crash_after_a_failure_is_a_failure(folder):
    (folder / "crash.py").write_text(WRONG + "\nraise RuntimeError('late')\n")
    assert audit("crash.py")[0] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_package\n", "-m pip install no_such_package"),
        ("print 'x'\n", "this is not valid Python 3"),
        ("\x00", "Could not run"),
    ],
)
def test_a_script_that_cannot_start_says_what_to_do(folder, text, says):
    (folder / "bad.py").write_text(text)
    code, out, err = audit("bad.py")
    assert code == 3 and says in out + err and "undecided" not in out


@pytest.mark.parametrize("text", ["print('nothing')\n", LABELS_ONLY], ids=["never steps", "no distillation"])
def test_silence_is_undecided(folder, text):
    (folder / "silent.py").write_text(text)
    code, out, _ = audit("silent.py")
    assert code == 4 and "Undecided: no distillation was seen" in out and "--teacher NAME" in out
    assert ElementTree.fromstring(audit("--format", "junit", "silent.py")[1]).get("errors") == "1"


# -- bad input

BAD = {
    "no such script": (["wrongg.py"], "wrongg.py does not exist; did you mean wrong.py?"),
    "no script near": (["deep/x.py"], "deep/x.py does not exist; name a script"),
    "folder": (["."], ". is a folder"),
    "no such module": (["-m", "nowhere.train"], "module 'nowhere' is not found"),
    "option": (["--stepz", "3", "right.py"], "No such option '--stepz'"),
    "steps": (["--steps", "-1", "right.py"], "-1 is not in the range"),
    "format": (["--format", "xml", "right.py"], "'xml' is not one of"),
    "waiver without reason": (["--waive", "KD312", "right.py"], "gives no reason; write it as KD312=REASON"),
    "waiver of nothing": (["--waive", "KD3122=x", "right.py"], "unknown audit 'KD3122'; did you mean 'KD312'"),
    "select": (["--select", "kd-scal", "right.py"], "unknown audit 'kd-scal'; did you mean 'kd-scale'"),
    "select of nothing near": (["--select", "zzz", "right.py"], "(kdbench audit --list)"),
    "explain": (["--explain", "clip-coverag"], "did you mean 'clip-coverage'"),
    "fault": (["--fault", "random-techer"], "did you mean 'random-teacher'"),
    "variant": (["--variant", "both"], "unknown variant 'both'"),
    "method": (["--method", "logits"], "did you mean 'logit'"),
    "fault that applies to nothing": (["--fault", "random-teacher", "--method", "baseline"], "has no teacher"),
    "script's option alone": (["--max-norm", "1"], "--max-norm is for a script"),
    "our option with a script": (["--seed", "1", "right.py"], "--seed is for our own training"),
    "two things at once": (["--list", "right.py"], "do not go together"),
    "idle option": (["--list", "--steps", "3"], "--steps does nothing with --list"),
    "scope alone": (["--clip-scope", "global", "right.py"], "give --max-norm too"),
    "scope": (["--max-norm", "1", "--clip-scope", "golbal", "right.py"], "did you mean 'global'"),
    "norm": (["--max-norm", "0", "right.py"], "max_norm is 0.0; it must be a positive number"),
    "two weights": (["--alpha", "0.5", "--kd-weight", "1", "right.py"], "give one of them"),
    "baseline": (["--baseline", "b.json", "right.py"], "b.json does not exist; write it with --update-baseline"),
    "baseline unnamed": (["--update-baseline", "right.py"], "name it with --baseline FILE"),
    "contract": (["--contract", "c.lock", "right.py"], "c.lock does not exist; write it with --write-contract"),
    "contract there": (["--write-contract", "right.py", "right.py"], "right.py exists"),
    "no trial": (["--run", "."], "no spec.json can be read"),
    "an audit for a trial": (["--run", "KD201"], "kdbench audits explain KD201"),
    "property check of a script": (["--select", "KD333", "right.py"], "a property check judges a function"),
    "quiet and verbose": (["-q", "-v", "right.py"], "do not go together"),
    "quiet JSON": (["-q", "--format", "json", "right.py"], "-q does nothing with --format json"),
}


@pytest.mark.parametrize(("args", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence(args, says):
    code, out, err = audit(*args)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


# -- the project's table


def config(folder, text):
    (folder / "pyproject.toml").write_text("[tool.kdbench]\n" + textwrap.dedent(text))


def test_the_projects_table_is_read_from_above_and_the_command_line_wins(folder, monkeypatch):
    config(folder, 'ignore = ["KD304"]\nsteps = 7\nwaive = { KD312 = "as in the paper" }\n')
    inner = folder / "inner"
    inner.mkdir()
    (inner / "wrong.py").write_text(WRONG)
    (inner / "pyproject.toml").write_text("[tool.other]\n")
    monkeypatch.chdir(inner)
    code, out, _ = audit("--format", "json", "wrong.py")
    found = json.loads(out)
    scale = next(f for f in found["findings"] if f["id"] == "KD312")
    assert (code, found["steps"]) == (0, 7) and "KD304" not in {f["id"] for f in found["findings"]}
    assert (scale["status"], scale["reason"]) == ("waived", "as in the paper")
    code, out, _ = audit("--format", "json", "--steps", "5", "--waive", "KD313=x", "wrong.py")
    assert (code, json.loads(out)["steps"]) == (1, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ignored = ['KD303']", "unknown key 'ignored'; did you mean 'ignore'"),
        ("max-norm = 1.0", "did you mean 'max_norm'"),
        ("steps = '7'", "steps: input should be a valid integer"),
        ("steps = true", "steps: input should be a valid integer"),
        ("baseline = 2026-12-01", "baseline: input should be a valid string"),
        ("select = 'KD303'", "select: input should be a valid array"),
        ("waive = ['KD312']", "gives no reason"),
        ("steps = ", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused(folder, text, says):
    config(folder, text)
    code, _, err = audit("right.py")
    assert code == 2 and says in err and err.count("\n") == 1


# -- living with it


def test_baseline_round_trip(folder):
    path = folder / "old.json"
    code, out, _ = audit("--baseline", path, "--update-baseline", "wrong.py")
    assert code == 0 and "1 failures of wrong.py were written" in out and path.is_file()
    (folder / "wrong.py").write_text("\n\n" + WRONG)  # another line, the same finding
    assert audit("--baseline", path, "wrong.py")[0] == 0

    worse = WRONG.replace("    optimizer.step()\n", "    optimizer.step()\n    optimizer.step()\n")
    (folder / "wrong.py").write_text(worse)
    code, out, _ = audit("--format", "json", "--baseline", path, "wrong.py")
    assert code == 1 and failed(json.loads(out)) == ["KD212"]

    (folder / "wrong.py").write_text(RIGHT)
    code, out, _ = audit("--baseline", path, "wrong.py")
    assert code == 0 and "KD312 kd-scale stands in the baseline and is fixed" in out


def test_no_baseline_is_written_of_what_did_not_run(folder):
    (folder / "crash.py").write_text("raise RuntimeError\n")
    code, out, _ = audit("--baseline", "old.json", "--update-baseline", "crash.py")
    assert code == 3 and "the baseline was not written" in out and not (folder / "old.json").exists()


def test_contract_round_trip(folder):
    code, out, _ = audit("--write-contract", "kdbench.lock", "right.py")
    lock = folder / "kdbench.lock"
    text, contract = lock.read_text(), read_contract(lock)
    assert code == 0 and "the contract was written to kdbench.lock" in out
    assert (contract.student, contract.teacher) == ("student", "teacher")
    assert (contract.temperature, contract.alpha, contract.kd_weight) == (4.0, 0.7, None)
    assert (contract.max_norm, contract.clip_scope) == (5.0, "global")
    lines = RIGHT.splitlines()
    clip = next(i for i, line in enumerate(lines, 1) if "clip_grad_norm_" in line)
    assert f"max_norm = 5.0  # clip at right.py:{clip}" in text and "the labels' weight is 0.3" in text

    code, out, _ = audit("right.py")
    assert code == 0 and "held to the contract kdbench.lock" in out
    lock.write_text(text.replace("max_norm = 5.0", "max_norm = 0.01"))
    code, found = audit_json("right.py")
    assert code == 1 and failed(found) == ["KD204"]
    assert audit_json("--max-norm", "5", "right.py")[0] == 0, "the command line wins"
    lock.write_text(text.replace("alpha = 0.7", "alpha = 0.5"))
    assert failed(audit_json("right.py")[1]) == ["KD312"]
    assert audit_json("--kd-weight", "0.7", "right.py")[0] == 0


def test_a_contract_names_no_network_that_a_name_may_not_find_again(folder):
    loop = "\nclass Trainer:\n    def __init__(self, model):\n        self.model = model\n\n    def fit(self):\n"
    loop += textwrap.indent(LOOP.replace("student = net(4)", "").replace("student", "self.model"), " " * 8)
    (folder / "attribute.py").write_text(HEAD + TEACHER + loop + "\nTrainer(net(4)).fit()\n")
    assert audit("--write-contract", "kdbench.lock", "attribute.py")[0] == 0
    text = (folder / "kdbench.lock").read_text()
    assert "# student = ...  # Sequential (self.model)" in text and 'teacher = "teacher"' in text


def test_no_contract_is_written_where_no_distillation_was_seen(folder):
    code, out, _ = audit("--write-contract", "kdbench.lock", "labels.py")
    assert code == 4 and "no contract was written" in out and not (folder / "kdbench.lock").exists()


@pytest.mark.parametrize(("option", "near"), [("--student", "studnet"), ("--teacher", "teachr")])
def test_a_declared_name_that_nobody_has_is_refused(option, near):
    code, out, err = audit(option, near, "right.py")
    name = option.removeprefix("--")
    assert code == 2 and out == "" and f"{option} {near}: no variable or class of this name" in err
    assert f"did you mean {name!r}? There are: {name}, " in err
    assert audit(option, name, "right.py")[0] == 0


def test_a_name_is_not_doubted_in_a_script_that_crashed_before_it(folder):
    (folder / "crash.py").write_text(LABELS_ONLY + "\nraise RuntimeError('early')\n")
    assert audit("--student", "pupil", "crash.py")[0] == 3


def test_a_declared_clip_that_is_not_there_fails(folder):
    (folder / "none.py").write_text(RIGHT.replace(CLIP, ""))
    code, found = audit_json("--max-norm", "5", "none.py")
    assert code == 1 and failed(found) == ["KD201"]
    (idle,) = [f for f in found["findings"] if f["id"] == "KD201"]
    assert "a clip to norm 5 is declared, but no gradient is clipped in 12 steps" in idle["message"] and idle["where"]


@pytest.mark.parametrize(
    "hand",
    [
        "total = torch.stack([p.grad.norm() for p in student.parameters()]).norm()\n"
        "    if total > 5.0:\n        for p in student.parameters():\n            p.grad.data.mul_(5.0 / total)\n",
        "total = sum(float((p.grad.data ** 2).sum()) for p in student.parameters()) ** 0.5\n"
        "    for p in student.parameters():\n        p.grad.data.mul_(min(1.0, 5.0 / total))\n",
        "optimizer.register_step_pre_hook(lambda *a: nn.utils.clip_grad_norm_(student.parameters(), 5.0) and None)\n",
        "for p in student.parameters():\n        p.grad.data.copy_(p.grad.data.clamp(-5.0, 5.0))\n",
    ],
    ids=["only where it binds", "through data", "in a hook of the optimizer", "by value"],
)
def test_a_declared_clip_by_hand_is_not_taken_for_none(folder, hand):
    (folder / "hand.py").write_text(RIGHT.replace(CLIP, f"    {hand}"))
    code, found = audit_json("--max-norm", "5", "hand.py")
    assert code == 0 and failed(found) == [], [f["message"] for f in found["findings"] if f["status"] == "fail"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temprature = 4", "unknown key 'temprature'; did you mean 'temperature'"),
        ("temperature = '4'", "temperature is '4'; it must be a positive number"),
        ("alpha = 0.5\nkd_weight = 1", "give one of them"),
        ("clip_scope = 'all'", "unknown clip_scope"),
        ("alpha = ", "cannot be read"),
    ],
)
def test_a_wrong_contract_is_refused(folder, text, says):
    path = folder / "kdbench.lock"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_contract(path)
    assert audit("right.py")[0] == 2


# -- guard

JOB = "\nprint('the job went on')\nsys.exit(5)\n"


def test_guard_looks_lets_go_and_leaves_the_job_its_end(folder):
    (folder / "job.py").write_text(WRONG + JOB)
    code, out, err = process("--guard", "warn", "--steps", "6", "job.py")
    assert code == 5 and out == "the job went on\n" and "KD312 kd-scale  " in err and "6 steps" in err


def test_guard_leaves_no_hook_behind_and_those_of_the_job_in_place(folder):
    text = RIGHT.replace(
        "import torch\n",
        "import torch\nfrom torch.optim import optimizer as O\nfrom torch.nn.modules import module as M\nmine = []\n"
        "O.register_optimizer_step_post_hook(lambda *a: mine.append(1) and None)\n",
        1,
    )
    assert text != RIGHT
    text += "\nprint(len(mine), len(O._global_optimizer_post_hooks), len(M._global_forward_hooks))\n"
    (folder / "job.py").write_text(text)
    code, out, err = process("--guard", "warn", "--steps", "6", "job.py")
    assert (code, out.split()[-2:]) == (0, ["1", "0"]) and int(out.split()[-3]) >= 12 and "Clean: " in err


def test_guard_stops_a_wrong_job_at_once(folder):
    (folder / "job.py").write_text(WRONG + JOB)
    code, out, err = process("--guard", "stop", "--steps", "6", "job.py")
    assert code == 1 and out == "" and "KD312 kd-scale  " in err


def test_guard_lets_a_right_job_crash_as_it_would(folder):
    (folder / "job.py").write_text(RIGHT + "\nraise RuntimeError('its own')\n")
    code, out, err = process("--guard", "stop", "--steps", "6", "job.py")
    assert (code, out) == (1, "") and "RuntimeError: its own" in err and "Clean: " in err


def test_an_error_of_ours_does_not_stop_the_job(folder, monkeypatch):
    from kdbench.harness.publish import audit_text

    def broken(*args):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(audit_text, "show_script", broken)
    (folder / "job.py").write_text(RIGHT + "\nprint('the job went on')\n")
    code, out, err = audit("--guard", "stop", "--steps", "6", "job.py")
    print(out, err)
    assert code == 0 and "the job went on" in out and "could not be reported: ZeroDivisionError: ours" in err


# -- the catalogue and our own


def test_list_holds_audits_and_laws():
    from kdbench.audits.checks.all import CATALOGUE
    from kdbench.audits.laws import LAWS

    code, out, _ = audit("--list")
    rows = [line.split()[:4] for line in out.splitlines() if line.startswith("KD")]
    ids = {entry.id for entry in (*CATALOGUE.values(), *LAWS.values())}
    assert code == 0 and sorted(row[0] for row in rows) == sorted(ids), "each once"
    assert ["KD312", "kd-scale", "error", "trace"] in rows
    assert ["KD333", "selection-ignores-test", "error", "property"] in rows
    assert ["KD332", "split-hygiene", "error", "trace,"] in rows, "trace, property"
    code, out, _ = audit("list", "--format", "json", group="audits")
    listed = json.loads(out)
    assert code == 0 and listed["schema"] == "kdbench.audits/1" and [a["id"] for a in listed["audits"]] == sorted(ids)
    assert {"trace", "property"} == {kind for a in listed["audits"] for kind in a["kinds"]}


def test_explain_tells_story_sighting_and_mend():
    for word in ("KD201", "clip-coverage"):
        code, out, _ = audit("--explain", word)
        assert code == 0 and "Whatever the optimizer steps is clipped" in out and "fix: clip one list" in out
        assert "seen as the fault projector-unclipped" in out and "umutonuryasar/kd-capacity-gap" in out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--list"], ["list"]),
        (["--explain", "KD312"], ["explain", "KD312"]),
        (["--explain", "clip-coverag"], ["explain", "clip-coverag"]),
    ],
)
def test_both_spellings_of_the_catalogue_say_the_same(old, new):
    assert audit(*old) == audit(*new, group="audits") and audit(*old)[1:] != ("", "")


def test_both_spellings_of_the_matrix_run_it_alike(monkeypatch, tmp_path):
    from kdbench.harness.cli import audit_matrix

    asked = []
    monkeypatch.setattr(audit_matrix, "run_matrix", lambda **options: asked.append(options) or 1)
    words = ["--fault", "kl-reversed", "--method", "logit", "--seeds", "0-1", "--zoo-seeds", "0", "--workers", "1"]
    words += ["--output", str(tmp_path), "--format", "json"]
    assert audit("--matrix", *words)[0] == audit("matrix", *words, group="audits")[0] == 1
    assert audit("--matrix")[0] == audit("matrix", group="audits")[0] == 1
    assert asked[0] == asked[1] and asked[2] == asked[3] != asked[0] and asked[0]["faults"] == ("kl-reversed",)


def test_our_own_training_is_clean():
    code, out, _ = audit("--format", "json", "--method", "logit", "--method", "baseline")
    found = json.loads(out)
    assert (code, found["target"], found["verdict"], failed(found)) == (0, "canonical", "clean", [])
    decided = {f["id"] for f in found["findings"] if f["status"] == "pass" and f["observed"]["method"] == "logit"}
    assert {"KD104", "KD201", "KD204", "KD303", "KD312", "KD313"} <= decided


def test_our_own_fault_is_caught(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = audit("--fault", "projector-unclipped")
    row = next(line for line in out.splitlines() if line.startswith("feature"))
    assert code == 1 and "KD201" in row and row.rstrip().endswith("yes")


def test_a_recorded_trial_is_read_again(folder, monkeypatch):
    from dataclasses import asdict

    from test_policy import BOUND, MODE, SCALE

    from kdbench.harness.records.record import Folder, Result
    from kdbench.harness.records.spec import Spec
    from kdbench.kd.methods import read_settings
    from kdbench.kd.recipe import Recipe

    spec = Spec(
        "digits",
        "0" * 64,
        "r18",
        "baseline",
        read_settings("baseline", {}),
        Recipe(),
        None,
        "imagenet-stem",
        "0",
        0,
        1,
        "cpu",
    )
    trial = Folder(folder / spec.key)
    trial.write_spec(spec)
    code, _, err = audit("--run", trial.path)
    assert code == 2 and "unfinished trial" in err
    trial.write_result(Result(spec.key, "finished", findings=[asdict(f) for f in (SCALE, BOUND, MODE)]))
    code, out, _ = audit("--run", trial.path)
    assert (
        code == 1
        and "Not clean: 2 of 3 audits failed: KD312, KD204" in out
        and "imagenet-stem, r18, seed 0: finished" in out
    )
    code, out, _ = audit("--format", "json", "--ignore", "KD312,KD204", "--run", trial.path)
    assert code == 0 and json.loads(out)["student"] == "r18"
    words = ["--format", "json", "--ignore", "KD312,KD204"]
    assert audit("show", *words, trial.path, group="audits") == audit(*words, "--run", trial.path)
    code, _, err = audit("show", trial.path, "--waive", "KD312", group="audits")
    assert code == 2 and "gives no reason" in err


@pytest.mark.parametrize(
    "line",
    ["import torch.distributed as dist; dist.init_process_group('gloo')", "import os; os.environ['LOCAL_RANK']"],
)
def test_a_script_of_several_processes_is_told_how_it_is_audited(folder, monkeypatch, line):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (folder / "ranks.py").write_text(line + "\n")
    code, _, err = audit("ranks.py")
    assert code == 3 and "have one do so: --launch 2" in err, err


def test_a_report_is_written_to_files_as_well(folder):
    code, out, _ = audit("--also", "json=found.json", "--also", "sarif=kd.sarif", "wrong.py")
    found = json.loads((folder / "found.json").read_text())
    assert code == 1 and "KD312 kd-scale" in out and found["verdict"] == "failed"
    assert json.loads((folder / "kd.sarif").read_text())["runs"][0]["results"]


@pytest.mark.parametrize(
    ("also", "says"),
    [
        ("sarif", "write it as FORMAT=FILE"),
        ("sarf=x", "unknown format 'sarf'; did you mean 'sarif'"),
        ("json=no/found.json", "the folder no does not exist"),
        ("json=.", ". is a folder"),
        ("json=-", "--also json=-: it writes to files alone; --format json writes to stdout"),
        ("json=wrong.py", "wrong.py is a script, which the report would overwrite"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_runs(folder, also, says):
    code, _, err = audit("--also", also, "wrong.py")
    assert code == 2 and says in err
