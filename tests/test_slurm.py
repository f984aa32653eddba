"""kdbench slurm: what it writes, and a study carried out by it, preempted and handed in again, is the unbroken one."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from test_cli import kdbench

from kdbench.harness.run import slurm
from kdbench.kd.errors import InputError

WORDS = ["--array", "3", "--time", "00:30:00"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    shutil.copy(TINY, tmp_path / "study.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_three_scripts_wait_for_each_other_and_nothing_is_submitted(here):
    more = ["--gpus-per-task", "2", "--cpus-per-task", "4", "--sbatch=--partition=gpu", "--", "--device", "cuda"]
    code, out, err = kdbench("slurm", "study.toml", *WORDS, *more)
    assert code == 0 and "nothing is submitted; slurm/submit.sh hands the jobs in" in out, err
    students = (here / "slurm" / "students.sh").read_text()
    options = [line.removeprefix("#SBATCH ") for line in students.splitlines() if line.startswith("#SBATCH")]
    assert {"--array=1-3", "--time=00:30:00", "--gpus-per-task=2", "--cpus-per-task=4", "--partition=gpu"} <= {*options}
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= {*options}
    assert 'run study.toml --device cuda --grace 100 --shard "$SLURM_ARRAY_TASK_ID/3"' in students
    assert "--teachers" in (here / "slurm" / "teachers.sh").read_text() and "--teachers" not in students
    tables = (here / "slurm" / "tables.sh").read_text()
    assert "--array" not in tables and "--shard" not in tables
    submit = (here / "slurm" / "submit.sh").read_text()
    assert submit.index("teachers.sh") < submit.index("students.sh") < submit.index("tables.sh")
    assert submit.count("--dependency=") == 2
    for script in (here / "slurm").glob("*.sh"):
        assert subprocess.run(["bash", "-n", script]).returncode == 0 and os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("10:30", 630), ("02:00:00", 7200), ("1-0", 86400), ("1-12", 129600), ("1-02:30", 95400),
     ("0-00:03:20", 200)],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(text, seconds):
    assert slurm.seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--array", "3", "--time", "2h"], "2h is no time of Slurm's"),
        (["--array", "3", "--time", "00:01:00"], "is too short: 120 s before its end"),
        ([*WORDS, "--sbatch", "partition=gpu"], "is no option of sbatch's"),
        ([*WORDS, "--", "--shard", "1/2"], "--shard is for the scripts to say"),
        ([*WORDS, "--", "--teachers"], "--teachers is for the scripts to say"),
        ([*WORDS, "--", "--epoch", "3"], "--epoch"),
        ([*WORDS, "--submit"], "this machine has no sbatch"),
    ],
)
def test_what_could_not_run_is_refused(here, monkeypatch, words, says):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    code, _, err = kdbench("slurm", "study.toml", *words)
    assert code == 2 and says in " ".join(err.split()) and "Traceback" not in err


@pytest.mark.parametrize(("name", "says"), [("none.toml", "does not exist"), ("quick", "a study file ends in .toml")])
def test_a_study_that_cannot_be_read_is_refused(here, name, says):
    code, _, err = kdbench("slurm", name, *WORDS)
    assert code == 2 and says in err and not (here / "slurm").exists()


def test_a_refusal_of_slurms_is_told(tmp_path):
    script = tmp_path / "submit.sh"
    script.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm.shutil, "which", lambda name: "/bin/sbatch")
        with pytest.raises(InputError, match="Slurm refused: sbatch: error: invalid partition"):
            slurm.submit(script)


# -- carried out

STAND_IN = """#!{python}
\"\"\"sbatch, srun and scontrol as far as the scripts use them: jobs are noted in a file, one a line.\"\"\"
import json, os, sys
name, words, here = os.path.basename(sys.argv[0]), sys.argv[1:], os.path.dirname(sys.argv[0])
if name == "srun":
    words = [word for word in words if not word.startswith("--ntasks")]
    os.execvp(words[0], words)
jobs = os.path.join(here, "jobs")
with open(jobs, "a+") as file:
    file.seek(0)
    number = len(file.readlines()) + 1
    print(json.dumps([name, number, words]), file=file)
if name == "sbatch":
    print(number)
"""


class StandIn:
    """A machine on which jobs run one after another, as they depend on each other."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        for name in ("sbatch", "srun", "scontrol"):
            (folder / name).write_text(STAND_IN.format(python=sys.executable))
            (folder / name).chmod(0o755)
        self.folder, self.requeued = folder, 0
        self.environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def noted(self, name: str) -> list[tuple[int, list[str]]]:
        path = self.folder / "jobs"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [(number, words) for kind, number, words in map(json.loads, lines) if kind == name]

    def run(self, script: str, number: int, task: int | None, after: float | None) -> int:
        """Run a job; `after` so many seconds it and its steps are told to end, as on preemption."""
        own = {"SLURM_JOB_ID": str(number)}
        if task is not None:
            own |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        job = subprocess.Popen([script], env={**self.environment, **own}, start_new_session=True, stdout=-3, stderr=-3)
        if after is not None:
            time.sleep(after)
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGTERM)
        return job.wait(timeout=120)


@pytest.mark.long
def test_a_study_preempted_at_random_moments_is_the_unbroken_one(here):
    """By a stand-in for Slurm that keeps sbatch's contract: dependencies, array tasks, signals, requeue."""
    rng, there = random.Random(0), StandIn(here / "bin")
    run = ["--no-controls", "--method", "logit", "--epochs", "12", "--workers", "1", "--variant", "corrected"]
    assert kdbench("run", "study.toml", *run, "--runs", "whole")[0] == 0
    assert kdbench("slurm", "study.toml", "--array", "2", "--time", "00:30:00", "--", *run)[0] == 0
    subprocess.run([here / "slurm" / "submit.sh"], env=there.environment, check=True)
    submitted = there.noted("sbatch")
    assert [shlex.split(words[-1])[-1].rsplit("/", 1)[-1] for _, words in submitted] == [
        "teachers.sh", "students.sh", "tables.sh",
    ]  # fmt: skip
    assert [word for _, words in submitted for word in words if "dependency" in word] == [
        "--dependency=afterok:1", "--dependency=afterok:2",
    ]  # fmt: skip
    told = 0
    for number, words in submitted:
        for task in (1, 2) if number < 3 else (None,):
            for _ in range(12):
                before = len(there.noted("scontrol"))
                code = there.run(words[-1], number, task, rng.uniform(2, 9) if told < 6 and task else None)
                told += code == 143
                again = there.noted("scontrol")[before:]
                expected = f"{number}_{task}" if task else str(number)
                assert [words for _, words in again] == ([["requeue", expected]] if code == 143 else [])
                if code == 0:
                    break
            assert code == 0
    assert told >= 2
    (whole,), (cut,) = (sorted((here / place).glob("study-*")) for place in ("whole", "runs"))
    assert (whole / "results.csv").read_bytes() == (cut / "results.csv").read_bytes()
    for path in whole.glob("trials/*/*"):
        if path.name in ("curve.jsonl", "norms.csv", "student.safetensors"):
            assert (cut / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
