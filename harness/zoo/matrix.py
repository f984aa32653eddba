"""Faults against audits: how often each is caught, by what, and how often a correct training is accused.

Every cell is a training of a few steps in a process of the pool: our own, with one fault or with none, a language
model's, token by token, likewise, and the correct trainings of the clean zoo, seen as a stranger's script and under a
declared watch. Detection and false alarms carry
Clopper-Pearson bounds at 95%, one-sided where nothing was missed or nothing alarmed.
"""

import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy import stats

from kdbench.harness import faults, loading
from kdbench.harness.records.record import first_difference

PRECISIONS = ("fp32", "bf16")
"In which the clean trainings of our own are run."
CORRECTED = "corrected"
"The training of a language model without a fault."


@dataclass(frozen=True)
class Task:
    """One training to look at."""

    kind: Literal["fault", "clean", "tokens", "zoo"]
    name: str
    "Of the fault, or `corrected` (tokens); of the precision (clean); of the member of the clean zoo."
    method: str
    "Or, for the zoo, how it is seen: foreign or declared; of a language model `tokens`."
    seed: int


@dataclass(frozen=True)
class Cell:
    """What came of it."""

    task: Task
    failed: dict[str, str | None]
    "By id of the audits of severity error that failed: what they follow from."
    broken: list[str]
    waived: list[str]
    departures: list[str]
    "In what the audits did not say what is declared of it (harness.analysis.expectation); of the zoo: failures."
    reached: bool | None = None
    digests: list[str] = field(default_factory=list)
    "Of the weights, by epoch."
    suspicious: list[str] = field(default_factory=list)
    "What a user without audits would notice: the loss does not fall, a NaN. After 20 steps accuracy says nothing."
    seconds: float = 0.0
    error: str | None = None

    @property
    def as_declared(self) -> bool:
        """Whether the training ended, and the audits said exactly what is declared."""
        return not self.departures and self.error is None

    @property
    def told(self) -> str:
        """What is wrong with it, in words."""
        return self.error or "; ".join(self.departures)


_BATCH = 400
"Trainings of one set of workers."


def look(task: Task) -> Cell:
    """Run one task in this process; what it raises is part of what came of it."""
    start = time.perf_counter()
    try:
        cell = _LOOKS[task.kind](task)
    except Exception as error:  # a training that dies is caught by its user; the matrix counts it apart
        cell = Cell(task, {}, [], [], [], error=f"{type(error).__name__}: {error}")
    return Cell(**{**vars(cell), "seconds": round(time.perf_counter() - start, 2)})


def _look_at_own(task: Task) -> Cell:
    from kdbench.harness.zoo.selfcheck import audit_once

    fault = faults.get(task.name) if task.kind == "fault" else None
    precision: Any = task.name if task.kind == "clean" else None
    run = audit_once(task.method, fault, task.seed, lambda _: None, precision)
    first, last = run.epochs[0], run.epochs[-1]
    noticed = {
        "the loss is no number": not all(epoch.finite for epoch in run.epochs),
        "the loss does not fall": not last.loss["total"] < first.loss["total"],
    }
    return Cell(
        task,
        {f.id: f.consequence_of for f in run.report.failed("error")},
        [f.id for f in run.report.findings if f.status == "error"],
        [],
        run.departures,
        run.calls > 0 if fault is not None else None,
        [epoch.digest for epoch in run.epochs],
        [word for word, so in noticed.items() if so],
    )


def _look_at_zoo(task: Task) -> Cell:
    from kdbench.harness.zoo.clean.all import MEMBERS
    from kdbench.harness.zoo.clean.run import observe

    member, how = MEMBERS[task.name], task.method
    seen = observe(member.loop, task.seed, how)  # type: ignore[arg-type]
    assert seen.report is not None
    failed = {f.id: f.consequence_of for f in seen.report.failed("error")}
    broken = [f.id for f in seen.report.findings if f.status == "error"]
    unwaived = {id: root for id, root in failed.items() if id not in member.waived}
    departures = [*(f"{id} failed" for id in unwaived), *(f"{id} could not do its work" for id in broken)]
    return Cell(task, unwaived, broken, sorted(failed.keys() & member.waived.keys()), departures)


def _look_at_tokens(task: Task) -> Cell:
    from kdbench.harness.zoo.language import TOKEN_FAULTS, audit_tokens

    run = audit_tokens(None if task.name == CORRECTED else TOKEN_FAULTS[task.name], task.seed)
    failed = {f.id: f.consequence_of for f in run.report.failed("warn")}
    broken = [f.id for f in run.report.findings if f.status == "error"]
    return Cell(task, failed, broken, [], run.departures)


_LOOKS = {"fault": _look_at_own, "clean": _look_at_own, "tokens": _look_at_tokens, "zoo": _look_at_zoo}


def tasks_for(
    chosen: Sequence[str], methods: Sequence[str], seeds: Sequence[int], zoo_seeds: Sequence[int]
) -> list[Task]:
    """Lay out the tasks; the slow ones (half precision on a processor) first, so that no worker waits for them.

    The trainings of a language model have the clean zoo's seeds.
    """
    from kdbench.harness.zoo.clean.all import MEMBERS
    from kdbench.harness.zoo.language import TOKEN_FAULTS

    found = [
        Task("fault", name, method, seed)
        for name in chosen
        for method in methods
        if not faults.get(name).why_not(method)
        for seed in seeds
    ]
    found.sort(key=lambda task: not faults.get(task.name).needs_scaler)
    found += [Task("clean", p, method, seed) for p in PRECISIONS for method in methods for seed in seeds]
    if any(faults.get(name).needs_scaler for name in chosen):  # the twins of those faults
        found = [Task("clean", "fp16", method, seed) for method in methods for seed in seeds] + found
    found += [Task("tokens", name, "tokens", seed) for name in (CORRECTED, *TOKEN_FAULTS) for seed in zoo_seeds]
    found += [Task("zoo", name, how, seed) for name in MEMBERS for how in ("foreign", "declared") for seed in zoo_seeds]
    return found


def run(tasks: Sequence[Task], workers: int, told: Callable[[str], None]) -> Iterator[Cell]:
    """Look at every task in a pool of processes, and yield each cell as it comes."""
    from kdbench.harness.zoo.selfcheck import prepare_teachers

    prepare_teachers([faults.get(name) for name in {t.name for t in tasks if t.kind == "fault"}], told)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(
            [
                "torch._dynamo",
                *(f"kdbench.harness.zoo.{name}" for name in ("selfcheck", "language", "clean.all", "clean.run")),
            ]
        )
    # New workers now and then: a zoo of trainings leaves compiled code and memory behind, and a limit of tasks a worker
    # (max_tasks_per_child) was seen to hang the pool in Python 3.11.
    for at in range(0, len(tasks), _BATCH):
        with ProcessPoolExecutor(workers, context, _begin, ([*loading.LOADED],)) as pool:
            waiting = [pool.submit(look, task) for task in tasks[at : at + _BATCH]]
            try:
                for done in as_completed(waiting):
                    yield done.result()
            except BaseException:  # else the pool would finish all that waits before it ends
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise


_NOISE = ("Using `torch.compile", "reduction: 'mean' divides", "`parameters` is an empty generator")
"Warnings of PyTorch's that members of the zoo, or faults, are meant to provoke."


def _begin(files: Sequence[loading.Loaded]) -> None:
    for message in _NOISE:
        warnings.filterwarnings("ignore", re.escape(message))
    loading.load_all(files)


def bound(k: int, n: int, side: Literal["lower", "upper"]) -> float | None:
    """Return the one-sided 95% Clopper-Pearson bound on a share of k in n; None for no runs."""
    if n == 0:
        return None
    interval = stats.binomtest(k, n, alternative="greater" if side == "lower" else "less").proportion_ci(0.95, "exact")
    return float(interval.low if side == "lower" else interval.high)


def summary(cells: Sequence[Cell], methods: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the kdbench.matrix/1 object."""
    twins = {(c.task.name, c.task.method, c.task.seed): c.digests for c in cells if c.task.kind == "clean"}
    by_fault: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (c.task.name, c.task.method, c.task.seed)):
        if _has_fault(cell):
            by_fault.setdefault((cell.task.kind, cell.task.name), []).append(cell)
    rows = [_row(faults.get(name), found, twins) for (kind, name), found in by_fault.items() if kind == "fault"]
    tokens = [_token_row(name, found) for (kind, name), found in by_fault.items() if kind == "tokens"]
    clean = [c for c in cells if not _has_fault(c)]
    alarms = [c for c in clean if not c.as_declared]
    members = sorted({(c.task.kind, c.task.name if c.task.kind == "zoo" else c.task.method) for c in clean})
    own = [c for c in cells if c.task.kind == "clean"]
    guilty = [c for c in cells if c.task.kind == "fault"]
    return {
        "schema": "kdbench.matrix/1",
        "seeds": list(seeds),
        "zoo_seeds": sorted({c.task.seed for c in cells if c.task.kind == "zoo"}),
        "methods": list(methods),
        "faults": rows,
        "tokens": tokens,
        "clean": {
            "runs": len(clean),
            "alarms": len(alarms),
            "upper_bound_95": bound(len(alarms), len(clean), "upper"),
            "one_sided": True,
            "alarmed": sorted(
                f"{c.task.kind} {c.task.name} {c.task.method} seed {c.task.seed}: {c.told}" for c in alarms
            ),
            "by_audit": dict(sorted(Counter(id for c in alarms for id in c.failed).items())),
            "members": [f"{kind}:{name}" for kind, name in members],
        },
        "baseline": {
            "clean": [sum(bool(c.suspicious) for c in own), len(own)],
            "faults": [sum(bool(c.suspicious or c.error) for c in guilty), len(guilty)],
        },
        "mean_seconds": round(sum(c.seconds for c in cells) / max(1, len(cells)), 2),
        "exact": bool(rows) and all(row["exact"] for row in (*rows, *tokens)) and not alarms,
    }


def _has_fault(cell: Cell) -> bool:
    return cell.task.kind == "fault" or (cell.task.kind == "tokens" and cell.task.name != CORRECTED)


def _token_row(name: str, cells: list[Cell]) -> dict[str, Any]:
    """Return the row of a language model's fault, of whose training neither weights nor losses are kept."""
    from kdbench.harness.zoo.language import TOKEN_FAULTS

    row = _row(TOKEN_FAULTS[name], cells, {})
    return {**row, "seam": f"tokens: {row['seam']}", "reached": None, "dormant": None, "noticed_without": None}


def _row(fault: faults.Fault, cells: list[Cell], twins: dict[tuple[str, str, int], list[str]]) -> dict[str, Any]:
    n = len(cells)
    counts = Counter(id for c in cells for id in c.failed)
    detected = sum(set(fault.ids(fault.caught_by)) <= set(c.failed) for c in cells) if fault.caught_by else 0
    precision = "fp16" if fault.needs_scaler else "fp32"
    diverged = []
    for c in cells:
        twin = twins.get((precision, c.task.method, c.task.seed), [])
        diverged.append(first_difference(c.digests, twin) if twin and c.digests else -1)
    return {
        "name": fault.name,
        "seam": fault.seam,
        "applies_to": sorted({c.task.method for c in cells}),
        "caught_by": fault.ids(fault.caught_by),
        "follows": fault.ids(fault.follows),
        "escapes": fault.escapes,
        "detected": {id: [k, n] for id, k in sorted(counts.items())},
        "caught": [detected, n],
        "lower_bound_95": bound(detected, n, "lower") if fault.caught_by else None,
        "runs": n,
        "reached": sum(bool(c.reached) for c in cells),
        "exact": all(c.as_declared for c in cells),
        "first_divergence": min((d for d in diverged if d is not None and d > 0), default=None),
        "dormant": sum(d is None for d in diverged),
        "noticed_without": sum(bool(c.suspicious or c.error) for c in cells),
        "errors": sorted({c.error for c in cells if c.error}),
        "inexact": sorted(f"{c.task.method} seed {c.task.seed}: {c.told}" for c in cells if not c.as_declared),
    }
