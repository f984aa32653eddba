"""Progress on stderr: a bar on a terminal, a line a trial elsewhere."""

from collections.abc import Collection
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from kdbench.harness.plan.plan import Plan
from kdbench.harness.records.record import FINAL, Result


class Progress:
    """Shows how far the trials of a plan are."""

    def __init__(self, plan: Plan, todo: Collection[str], console: Console) -> None:
        self.plan = plan
        self.todo = todo
        self.console = console
        self.done = self.failed = 0
        self.epochs: dict[str, int] = {}
        self.bar: RichProgress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = RichProgress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("epochs", total=sum(plan.trials[key].recipe.epochs for key in todo))

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_trial(self, key: str, result: Result | None, epochs: int) -> None:
        """Take in what :func:`harness.run.scheduler.execute` tells of a trial."""
        if key not in self.todo:
            return
        self.epochs[key] = self.plan.trials[key].recipe.epochs if result is not None else epochs
        if self.bar is not None:
            self.bar.update(self.task, completed=sum(self.epochs.values()))
        if result is not None:
            self.done += 1
            self.failed += result.status not in FINAL
            self.console.print(f"[{self.done}/{len(self.todo)}] {self._line(key, result)}", markup=False)

    def _line(self, key: str, result: Result) -> str:
        spec = self.plan.trials[key]
        what = "teacher" if key in self.plan.teachers.values() else spec.method
        name = f"{what} {spec.arch}, {spec.fault or 'corrected'}, seed {spec.seed}"
        again = f" (attempt {len(result.attempts) + 1})" if result.attempts else ""
        if result.metrics is None:
            return f"{name}: {result.status}: {result.reason}{again}"
        fired = ", ".join([*result.roots, *result.consequences]) or "none"
        score, seconds = f"{result.metrics.test_accuracy:.2f}%", f"{result.times['seconds']:.0f} s"
        return f"{name}: {score}, audits fired: {fired}, {seconds}{again}"
