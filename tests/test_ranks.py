"""Trainings of several processes: they end together, one report speaks for all, and what sets ranks apart is named."""

import re
import runpy
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import several
import torch
from test_policy import INPUT, MODE, SCALE, SILENT

from kdbench.audits.finding import Finding
from kdbench.audits.ranks import blamed
from kdbench.audits.report.merge import merged
from kdbench.harness.cli import audit_launch
from kdbench.kd.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ranks")
    several.prepare(made)
    return made


def changed(folder, name, script, *pairs):
    """Write a script of the corpus with some lines changed."""
    text = (several.SCRIPTS / f"{script}.py").read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    path = folder / f"{name}.py"
    path.write_text(text)
    return path.name


# -- one report


def test_what_all_ranks_share_is_said_once_and_what_some_have_names_them():
    other = replace(SCALE, message=SCALE.message + " (9)", observed={**SCALE.observed, "kd_weight": 0.5})
    found = merged({0: [SCALE, SILENT, MODE], 1: [other, SILENT, MODE]}, 2).findings
    assert [f.message for f in found if f.id == "KD312"] == [SCALE.message]
    right = replace(SCALE, status="pass", message="right")
    (one,) = merged({0: [right], 1: [SCALE]}, 2).findings
    assert one.message == f"rank 1 alone: {SCALE.message}" and one.observed["ranks"] == [1]
    (two,) = merged({0: [right], 1: [SCALE], 2: [SCALE]}, 3).findings
    assert two.message.startswith("ranks 1 and 2 of 3: ") and two.status == "fail"


def test_two_failures_of_one_audit_on_two_ranks_both_stand():
    elsewhere = replace(INPUT, status="fail", where={"file": "other.py", "line": 1})
    here = replace(INPUT, status="fail")
    found = merged({0: [here], 1: [elsewhere]}, 2).findings
    assert [f.message.partition(":")[0] for f in found] == ["rank 0 alone", "rank 1 alone"]


def test_an_audit_that_some_rank_decided_passed_unless_one_failed():
    silent, passed = replace(SCALE, status="not_triggered"), replace(SCALE, status="pass")
    assert [f.status for f in merged({0: [silent], 1: [passed]}, 2).findings] == ["pass"]
    kept = Finding("KD335", "result-kept", "error", "pass", "end", "the student is in 1 of 1 files")
    lost = replace(kept, status="fail", message="the student is in no file")
    assert [f.status for f in merged({0: [kept], 1: [lost]}, 2).findings] == ["pass"]


def told(at=0.0, error=None, distilled=True, **rest):
    one = {"at": at, "error": error, "distilled": distilled, "exit_code": None, "unobserved": [], "cut": False}
    return {**one, "stopped": "the script crashed" if error else "", **rest}


def test_the_rank_that_crashed_first_is_the_cause_and_one_that_is_gone_is_named():
    def ended(*ranks, gone=()):
        seen = SimpleNamespace(processes=len(ranks) + len(gone), stopped="", error=None, trouble=None)
        blamed(seen, dict(enumerate(ranks)), list(gone))
        return seen

    late, first = told(2.0, "T\nRuntimeError: closed by peer"), told(1.0, "T\nValueError: no")
    assert ended(late, first).error == "rank 1 of 2 crashed first:\nT\nValueError: no"
    assert ended(first, first).error == "T\nValueError: no"
    assert ended(late, gone=[1]).error.splitlines() == [
        "rank 0 then ended with RuntimeError: closed by peer",
        "rank 1 of 2 ended without a report: the process died, or was killed",
    ]
    assert ended(told(), told(distilled=False)).trouble == "no distillation was seen on rank 1 alone"
    assert ended(told(), told()).error is None and ended(told(), told()).trouble is None


# -- how they are started


def test_a_launcher_in_front_of_the_script_is_understood(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    launch_of = audit_launch.launch_of
    assert launch_of("train.py", ["--epochs", "3"], False, None) is None
    two = launch_of("train.py", ["--epochs", "3"], False, 2)
    assert two.words[-2:] == ["--nproc-per-node", "2"] and two[1:] == ("train.py", ["--epochs", "3"], False)
    words = ["--standalone", "--nproc-per-node=2", "train.py", "--nproc-per-node", "9"]
    run = launch_of("torchrun", words, False, None)
    assert run == (["-m", "torch.distributed.run", *words[:2]], "train.py", words[3:], False)
    module = launch_of("torch.distributed.run", ["-m", "mine.train", "-v"], True, None)
    assert module == (["-m", "torch.distributed.run", "-m"], "mine.train", ["-v"], True)
    with pytest.raises(InputError, match="do not go together"):
        launch_of("torchrun", words, False, 2)
    with pytest.raises(InputError, match="not observed; name a Python script"):
        launch_of("torchrun", ["--no-python", "train.sh"], False, None)
    monkeypatch.setattr(audit_launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="accelerate is not installed"):
        launch_of("accelerate", ["launch", "train.py"], False, None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch_of("train.py", [], False, None) is None
    with pytest.raises(InputError, match="one process of a launcher already"):
        launch_of("train.py", [], False, 2)


# -- the page


_SHOWN = re.compile(r"<!-- run in ranks -->\n```console\n\$ kdbench audit --launch 2 (\S+)\n(.*?)```", re.S)


@pytest.mark.long
def test_the_page_shows_what_the_command_prints(tmp_path, monkeypatch):
    root = several.SCRIPTS.parent.parent
    ((script, shown),) = _SHOWN.findall((root / "docs/audit.md").read_text(encoding="utf-8"))
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "docs").symlink_to(root / "docs")
    ended = several.audited(script, tmp_path, "--format", "text")
    said = [line.rstrip() for line in ended.out.splitlines()]
    assert ended.codes[0] == 1
    assert not [line for line in shown.splitlines() if line.strip() not in {"", "..."} and line.rstrip() not in said]


# -- the processes themselves


EACH = ('    if dist.get_rank() == 0:\n        torch.save(student.module.state_dict(), "student.pt")\n',)


def test_the_weights_of_every_rank_are_those_of_the_unobserved_run(folder):
    saves = EACH[0].replace("if dist.get_rank() == 0:", "if True:").replace('"student.pt"', 'f"{dist.get_rank()}.pt"')
    script = changed(folder, "each", "ddp_clean", (EACH[0], saves), ("range(8)", "range(3)"))

    def weights():
        return [torch.load(folder / f"{number}.pt") for number in (0, 1)]

    def unobserved():
        runpy.run_path(script, run_name="__main__")
        return 0

    assert several.in_ranks(unobserved, folder).codes == [0, 0]
    before = weights()
    for number in (0, 1):
        (folder / f"{number}.pt").unlink()
    ended = several.audited(script, folder, "--steps", "12")
    assert ended.codes == [0, 0] and ended.report["verdict"] == "clean" and ended.report["processes"] == 2
    assert ended.report["steps"] == 12
    for one, other in zip(before, weights(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_slip_on_one_rank_is_said_of_that_rank(folder):
    script = several.SCRIPTS / "teacher_mode_on_one_bug.py"
    ended = several.audited(script, folder, "--steps", "6", "--run-on", "0")
    assert ended.codes == [1, 0] and ended.report["steps"] == 6
    first = ended.failed[0]
    assert first["id"] == "KD301" and first["message"].startswith("rank 1 alone: 1 layers of the teacher")
    assert first["observed"]["ranks"] == [1]


def test_where_a_rank_is_killed_the_others_report_it(folder, monkeypatch):
    monkeypatch.setattr("kdbench.audits.observe.ranks._GRACE", 0.5)
    kill = (
        "            optimizer.step()\n            if dist.get_rank() == 1:\n                os.kill(os.getpid(), 9)\n"
    )
    script = changed(
        folder,
        "killed",
        "ddp_clean",
        ("            optimizer.step()\n", kill),
        ("import torch\n", "import os, torch\n"),
    )
    ended = several.audited(script, folder)
    assert ended.codes == [3, -9] and ended.report["verdict"] == "could-not-run"
    assert "rank 1 of 2 ended without a report" in ended.report["script_error"]


@pytest.mark.long
def test_ranks_meet_at_the_store_of_their_process_group_where_no_agent_has_one(folder):
    script = several.SCRIPTS / "teacher_mode_on_one_bug.py"
    ended = several.audited(script, folder, "--steps", "6", world=4, agent=False)
    assert ended.codes == [1, 0, 0, 0] and ended.report["steps"] == 6
    assert ended.failed[0]["message"].startswith("ranks 1, 2 and 3 of 4: 1 layers")


@pytest.mark.long
def test_processes_that_never_meet_are_not_taken_for_one_training(folder):
    group = '    dist.init_process_group("gloo")\n'
    alone = (group, ""), ("dist.get_rank()", "0"), ("    dist.destroy_process_group()\n", ""), ("DDP(net(8))", "net(8)")
    alone += (("    sampler = DistributedSampler(data)\n", "    sampler = DistributedSampler(data, 2, 0)\n"),)
    script = changed(folder, "alone", "ddp_clean", *alone, ("student.module.state", "student.state"))
    ended = several.audited(script, folder, "--steps", "6", "--run-on", "0", agent=False)
    assert ended.codes == [4, 0] and "made no process group" in ended.report["summary"]


@pytest.mark.long
def test_accelerates_own_command_line_is_understood(monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.delenv("RANK", raising=False)
    words = ["launch", "--num_processes", "2", "train.py", "--num_processes", "9"]
    found = audit_launch.launch_of("accelerate", words, False, None)
    assert found == (["-m", "accelerate.commands.launch", *words[1:3]], "train.py", words[4:], False)
    with pytest.raises(InputError, match="in front of `accelerate launch` only"):
        audit_launch.launch_of("accelerate", ["config"], False, None)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in several.SCRIPTS.glob("*.py")))
def test_each_script_of_the_corpus_is_judged_rightly(folder, name):
    ended = several.audited(several.SCRIPTS / f"{name}.py", folder, "--run-on", "2")
    wanted = several.FIRST.get(name)
    assert [f["id"] for f in ended.failed[:1]] == ([wanted] if wanted else [])
    alone = [f["id"] for f in ended.failed if "alone" in f["message"]]
    assert alone == (["KD301", "KD302"] if name == "teacher_mode_on_one_bug" else [])
    is_error = wanted is not None and any(f["severity"] == "error" for f in ended.failed)
    assert ended.codes == [int(is_error), 0]


SLIPS = tomllib.loads((several.SCRIPTS.parent.parent / "docs/specimens/slips.toml").read_text(encoding="utf-8"))


@pytest.mark.long
@pytest.mark.parametrize("id", [id for id, slip in SLIPS.items() if "script" in slip])
def test_each_slip_on_an_audits_page_is_named_first(folder, id):
    slip = SLIPS[id]
    script = changed(folder, id, Path(slip["script"]).stem, *slip["changes"])
    first = several.audited(script, folder, "--run-on", "2").failed[0]
    assert (first["id"], first["severity"]) == (id, "warn" if id in ("KD364", "KD366") else "error")


@pytest.mark.long
def test_a_training_without_end_is_ended_on_all_ranks_after_the_same_step(folder):
    script = changed(folder, "endless", "ddp_clean", ("range(8)", "range(10**9)"))
    ended = several.audited(script, folder, "--steps", "10", "--run-on", "1")
    assert ended.codes == [0, 0] and ended.report["verdict"] == "clean"
    assert not any("Traceback" in text for text in ended.errors)


@pytest.mark.long
def test_a_rank_that_waits_in_a_collective_reports_and_ends(folder):
    ask = "    while rank == 0 and epoch == 2:\n        accuracy(student.module, held_out)\n    dist.barrier()\n"
    script = changed(folder, "waits", "evaluates_clean", ("    dist.barrier()\n", ask))
    ended = several.audited(script, folder, "--steps", "10", "--run-on", "1")
    assert ended.codes == [0, 0] and ended.report["verdict"] == "clean" and ended.report["steps"] == 10


@pytest.mark.long
def test_a_guarded_job_is_stopped_as_a_whole_by_a_failure_and_let_run_without_one(folder):
    wrong = changed(folder, "job", "no_temperature_squared_bug", ("range(8)", "range(10**9)"))
    stopped = several.audited(wrong, folder, "--steps", "10", "--guard", "stop", "--format", "text")
    assert stopped.codes[0] == 1 and stopped.codes[1] in (1, -15)  # or the launcher was quicker
    assert stopped.errors[0].count("KD312 kd-scale") == 1 and not stopped.errors[1].strip()
    right = several.audited(several.SCRIPTS / "ddp_clean.py", folder, "--steps", "10", "--guard", "stop")
    assert right.codes == [0, 0]


@pytest.mark.long
def test_torchrun_is_started_with_the_audit_inside_and_the_exit_code_is_that_of_one_process(folder):
    def launched(*words):
        command = [sys.executable, "-m", "kdbench", "audit", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)

    wrong = str(several.SCRIPTS / "no_temperature_squared_bug.py")
    clean = launched("--launch", "2", "--steps", "10", str(several.SCRIPTS / "ddp_clean.py"))
    assert clean.returncode == 0 and "10 steps of distillation were seen in each of 2 processes" in clean.stdout
    failed = launched("--format", "junit", "--steps", "10", "torchrun", "--standalone", "--nproc-per-node", "2", wrong)
    assert failed.returncode == 1 and ElementTree.fromstring(failed.stdout).get("failures") == "1"
