"""A study as jobs of Slurm: scripts for its teachers, its shards and its tables, each waiting for the one before.

The scripts are plain sbatch scripts over `kdbench run --shard`: whoever wants something else in them edits them.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.harness.records.record import write_atomic
from kdbench.kd.errors import InputError

NOTICE = 120
"Seconds before the end of its time at which Slurm tells a job; it counts in steps of a minute."
GRACE = 100
"Of them what running trials have to write their state after the epoch at hand."
STAGES = ("teachers", "students", "tables")
"In the order in which they wait for each other."


@dataclass(frozen=True)
class Jobs:
    """What is asked of Slurm."""

    name: str
    run: Sequence[str]
    "Words of `kdbench run`, without the shard."
    here: Path
    "Folder in which they are run."
    folder: Path
    "Folder of the scripts and their logs."
    array: int
    time: str
    gpus: int | None = None
    cpus: int | None = None
    lines: Sequence[str] = ()
    "Further options of sbatch, as --partition=gpu."


def seconds_of(time: str) -> int:
    """Return the seconds of a time as Slurm writes it: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise InputError(
            f"--time {time} is no time of Slurm's; write hours:minutes:seconds, as 02:00:00, or days-hours"
        )
    days, *parts = found.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is not None:
        return ((24 * int(days) + first) * 60 + second) * 60 + third
    if parts[2] is not None:
        return (60 * first + second) * 60 + third
    return 60 * first + second


def write(jobs: Jobs) -> dict[str, Path]:
    """Write the scripts and return them by stage; `submit` is the one that hands in the others."""
    if seconds_of(jobs.time) <= NOTICE:
        raise InputError(f"--time {jobs.time} is too short: {NOTICE} s before its end a job is told to write its state")
    for line in jobs.lines:
        if not re.fullmatch(r"--?[a-z][a-z-]*(=\S.*)?", line) or "\n" in line:
            raise InputError(f"--sbatch {line!r} is no option of sbatch's; write it as --sbatch=--partition=gpu")
    found = {stage: jobs.folder / f"{stage}.sh" for stage in (*STAGES, "submit")}
    jobs.folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        write_atomic(found[stage], _script(jobs, stage))
    write_atomic(found["submit"], _submit(found))
    for path in found.values():
        path.chmod(0o755)
    return found


def _script(jobs: Jobs, stage: str) -> str:
    """Return the script of a stage. A job that was told to end hands itself in again, and goes on where it stopped."""
    many = stage != "tables"
    options = [
        f"--job-name={jobs.name}-{stage}",
        *([f"--array=1-{jobs.array}"] if many else []),
        f"--time={jobs.time}",
        "--ntasks=1",
        *([f"--gpus-per-task={jobs.gpus}"] if jobs.gpus else []),
        *([f"--cpus-per-task={jobs.cpus}"] if jobs.cpus else []),
        "--requeue",
        f"--signal=TERM@{NOTICE}",
        "--open-mode=append",
        f"--output={jobs.folder}/%x-{'%A_%a' if many else '%j'}.log",
        *jobs.lines,
    ]
    part = ["--teachers"] if stage == "teachers" else []
    command = shlex.join([sys.executable, "-m", "kdbench", "run", *jobs.run, *part, "--grace", str(GRACE)])
    # Of an array, $SLURM_JOB_ID may be the whole array's number.
    this = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if many else "$SLURM_JOB_ID"
    shard = f' --shard "$SLURM_ARRAY_TASK_ID/{jobs.array}"' if many else ""
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            "",
            f"cd {shlex.quote(str(jobs.here))} || exit 1",
            "trap : TERM USR1  # bash waits for srun before it heeds them",
            f"srun --ntasks=1 {command}{shard}",
            "code=$?",
            f'case $code in 130|138|143) scontrol requeue "{this}";; esac',
            "exit $code",
            "",
        ]
    )


def _submit(scripts: dict[str, Path]) -> str:
    lines, before = ["#!/bin/bash", "set -e"], ""
    for stage in STAGES:
        lines.append(f"{stage}=$(sbatch --parsable{before} {shlex.quote(str(scripts[stage]))})")
        before = f' --dependency="afterok:${{{stage}%%;*}}"'  # a cluster's name may follow the number
    return "\n".join([*lines, f'echo "submitted: {", ".join(f"{stage} ${stage}" for stage in STAGES)}"', ""])


def submit(script: Path) -> str:
    """Hand in the jobs; return what sbatch said. InputError if there is no Slurm here, or it refuses."""
    if shutil.which("sbatch") is None:
        raise InputError(f"--submit: this machine has no sbatch; run {script} where Slurm is")
    done = subprocess.run([str(script)], capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(f"--submit: Slurm refused: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
