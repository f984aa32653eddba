"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere, both with the time that is left."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from kdbench.harness.plan.outline import in_words

if TYPE_CHECKING:
    from kdbench.harness.records.record import Result
    from kdbench.harness.study import Ready

_FIRST, _BETWEEN = 10.0, 30.0
"Seconds before the first plain line, and between two, so that a log is neither silent nor flooded."
_ENOUGH = 0.02
"Share of the work by which its speed is known well enough to say what is left."


class Meter:
    """Shows how many of so many pieces of work are done, and from the speed so far how long the rest takes.

    `total` is the work in any unit, `guess` the seconds that it was estimated to take, said until its speed is known.
    """

    def __init__(
        self,
        console: Console,
        pieces: int,
        what: str,
        total: float,
        guess: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.clock = console, clock
        self.pieces, self.what, self.total, self.guess = pieces, what, total, guess
        self.done = 0
        self.work = 0.0
        self.start = clock()
        self.due = self.start + _FIRST
        self.bar: RichProgress | None = None
        if console.is_terminal and not console.quiet:
            words = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = RichProgress(*words, console=console, transient=True)
            self.task = self.bar.add_task(self._count(), total=total, left=self.left())

    def __enter__(self) -> "Meter":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def left(self) -> str:
        """Return how long the rest takes, in words; empty while nothing is known of it."""
        took = self.clock() - self.start
        if self.work >= _ENOUGH * self.total and took > 0:
            seconds: float | None = took / self.work * (self.total - self.work)
        else:
            seconds = max(0.0, self.guess - took) if self.guess is not None else None
        return "" if seconds is None else f"about {in_words(seconds)} left"

    def update(self, done: int, work: float) -> None:
        """Take in how many pieces are done, and how much of the work, begun pieces included."""
        self.done, self.work = done, work
        if self.bar is not None:
            self.bar.update(self.task, completed=work, description=self._count(), left=self.left())
        elif self.clock() >= self.due and done < self.pieces:
            self.due = self.clock() + _BETWEEN
            self.console.print(", ".join(filter(None, [f"{self._count()} done", self.left()])))

    def _count(self) -> str:
        return f"{self.done} of {self.pieces} {self.what}"


class Progress:
    """Shows how far the trials of a study are; with `verbose` a line for each that is done."""

    def __init__(
        self, ready: "Ready", console: Console, verbose: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan, self.todo, self.console, self.verbose = ready.plan, ready.todo, console, verbose
        self.done = self.failed = 0
        self.shares: dict[str, float] = {}
        "By trial: the share of its epochs that is done."
        self.weights = {key: ready.cost.trials.get(key, 1.0) for key in self.todo}
        total = sum(self.weights.values())
        self.meter = Meter(console, len(self.todo), "trials", total, ready.cost.seconds, clock)

    def __enter__(self) -> "Progress":
        self.meter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.meter.__exit__(kind, error, traceback)

    def on_trial(self, key: str, result: "Result | None", epochs: int) -> None:
        """Take in what :func:`harness.run.scheduler.execute` tells of a trial."""
        from kdbench.harness.records.record import FINAL

        if key not in self.weights:
            return
        self.shares[key] = 1.0 if result is not None else epochs / self.plan.trials[key].recipe.epochs
        if result is not None:
            failed = result.status not in FINAL
            self.done, self.failed = self.done + 1, self.failed + failed
            if self.verbose or failed:
                self.console.print(f"[{self.done}/{len(self.todo)}] {self._line(key, result)}", markup=False)
        self.meter.update(self.done, sum(self.weights[key] * share for key, share in self.shares.items()))

    def _line(self, key: str, result: "Result") -> str:
        spec = self.plan.trials[key]
        what = "teacher" if key in self.plan.teachers.values() else spec.method
        name = f"{what} {spec.arch}, {spec.fault or 'corrected'}, seed {spec.seed}"
        again = f" (attempt {len(result.attempts) + 1})" if result.attempts else ""
        if result.metrics is None:
            return f"{name}: {result.status}: {result.reason}{again}"
        fired = ", ".join([*result.roots, *result.consequences]) or "none"
        score, seconds = f"{result.metrics.test_accuracy:.2f}%", f"{result.times['seconds']:.0f} s"
        return f"{name}: {score}, audits that failed: {fired}, {seconds}{again}"
