"""Scripts of several processes under audit, each process forked here, so that torch is imported once.

`python tests/several.py` audits every script of tests/ranks and says whether each verdict is the right one.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

SCRIPTS = Path(__file__).parent / "ranks"
FIRST = {
    "buffers_apart_bug": "KD364",
    "clip_before_average_bug": "KD365",
    "clip_of_one_bug": "KD201",
    "epoch_not_set_bug": "KD361",
    "local_tokens_bug": "KD366",
    "no_temperature_squared_bug": "KD312",
    "no_wrapper_bug": "KD363",
    "not_broadcast_bug": "KD363",
    "rank_forgotten_bug": "KD361",
    "same_batches_bug": "KD361",
    "teacher_by_rank_bug": "KD362",
    "teacher_mode_on_one_bug": "KD301",
    "wrapper_passed_by_bug": "KD363",
}
"What is to be named first in each wrong script."


class Ended(NamedTuple):
    """How the processes ended: exit codes (None: killed here since it hung), and what rank 0 and all printed."""

    codes: list[int | None]
    out: str
    errors: list[str]

    @property
    def report(self) -> dict:
        """The report, where it was asked for as JSON."""
        return json.loads(self.out)

    @property
    def failed(self) -> list[dict]:
        """The findings that failed as errors or warnings, the worst first."""
        return [f for f in self.report["findings"] if f["status"] == "fail" and f["severity"] != "info"]


def prepare(folder: Path) -> None:
    """Write the samples and the trained teacher that the scripts load."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(512, 16, generator=drawn)
    y = (x[:, :4] + 0.1 * torch.randn(512, 4, generator=drawn)).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    torch.save((x, y), folder / "train.pt")
    torch.save(teacher.state_dict(), folder / "teacher.pt")


def in_ranks(call, folder: Path, world: int = 2, seconds: float = 60, agent: bool = True) -> Ended:
    """Run a function that returns an exit code in forked processes, with the environment that torchrun gives them.

    Without `agent`, rank 0 makes the store itself where the script makes a process group, as under Slurm.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    sys.stderr.flush()
    running: dict[int, int] = {}
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _be_a_rank(call, folder, rank, world, store.port if agent else port, agent)
        running[pid] = rank
    codes: list[int | None] = [None] * world
    ending = False
    until, left = time.monotonic() + seconds, dict(running)
    while left and time.monotonic() < until:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[rank := left.pop(pid)] = os.waitstatus_to_exitcode(status)
                if codes[rank] and not ending:  # as torchrun does
                    ending = True
                    for other in left:
                        os.kill(other, signal.SIGTERM)
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    del store
    texts = [[(folder / f"{what}{rank}").read_text() for rank in range(world)] for what in ("out", "err")]
    return Ended(codes, texts[0][0], texts[1])


def _be_a_rank(call, folder: Path, rank: int, world: int, port: int, agent: bool) -> None:
    code = 70
    try:
        os.chdir(folder)
        for name, fd in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", buffering=1) for fd in (1, 2))
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE=str(agent),
        )  # fmt: skip
        torch.set_num_threads(1)
        code = call()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def audited(script: str | Path, folder: Path, *options: str, world: int = 2, seconds: float = 60, agent: bool = True):
    """Audit a script in several processes; its report comes as JSON where no format is asked for."""
    import kdbench.harness.cli.audit_script  # noqa: F401  # once, before the processes are forked
    from kdbench.harness.cli import cli, run_cli

    words = ["audit", *([] if "--format" in options else ["--format", "json"]), *options, str(script)]
    return in_ranks(
        lambda: run_cli(lambda: cli.main(words, prog_name="kdbench", standalone_mode=False)),
        folder, world, seconds, agent,
    )  # fmt: skip


def main(names: list[str]) -> int:
    """Audit the corpus; return 1 where a verdict is wrong."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for script in sorted(SCRIPTS.glob("*.py")):
            if names and script.stem not in names:
                continue
            began, ended = time.monotonic(), audited(script, folder, "--run-on", "2")
            with contextlib.suppress(ValueError):
                first = ended.failed[0]["id"] if ended.failed else None
                right = first == FIRST.get(script.stem) and (script.stem in FIRST or ended.report["verdict"] == "clean")
                wrong += not right
                print(
                    f"{'right' if right else 'WRONG'}  {script.stem:28} exit {ended.codes}  "
                    f"{time.monotonic() - began:4.1f} s  {ended.report['summary']}"
                )
                continue
            wrong += 1
            print(f"WRONG  {script.stem}: no report, exit {ended.codes}\n{ended.errors}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
