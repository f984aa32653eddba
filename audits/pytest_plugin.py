"""What the pytest plugin does once it is used: the watches of the fixture `kd_audit`, and ``pytest --kd-audit``.

The options stand in the module kdbench_pytest, which imports nothing of this before.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from kdbench.audits.asserts import heard
from kdbench.audits.finding import WAIVE, AuditFailure, Finding, Report
from kdbench.audits.report.policy import Policy, PolicyError
from kdbench.audits.script import Options, ScriptWatch
from kdbench.audits.watch import Watch, watch

PROPERTY = "kd_audit"
STAND_INS = dict.fromkeys(("KD104", "KD105", "KD303"), "in a test, weights and images may stand in for the real ones")
"Not held against a test of which nothing was declared."


def policy(config: pytest.Config, marks: Iterable[pytest.Mark] = ()) -> Policy:
    """Return what is waived by option, by ini file and by marks; UsageError for an unknown audit or no reason."""
    marked = []
    for mark in marks:
        id, reason = mark.args[0] if mark.args else "ID", mark.kwargs.get("reason", "")
        if not str(reason).strip():
            raise pytest.UsageError(f'kd_audit_waive: write the mark as kd_audit_waive("{id}", reason="...")')
        marked.append(f"{id}={reason}")
    try:
        return Policy.parse([*config.getini("kd_audit_waive"), *config.getoption("--kd-audit-waive"), *marked])
    except PolicyError as error:
        raise pytest.UsageError(f"kd_audit_waive: {error}") from None


def spelled(report: Report) -> Report:
    """Return a report whose fixes name pytest's own options, where they say that the failure may be waived."""

    def mend(f: Finding) -> str:
        return f"{f.mend}: --kd-audit-waive {f.id}=REASON" if f.mend.endswith(WAIVE) else f.mend

    return Report(tuple(replace(f, mend=mend(f)) for f in report.findings))


class Factory:
    """Makes the watches of one test, and judges them when its function has returned."""

    def __init__(self, item: pytest.Item) -> None:
        self._policy = policy(item.config, item.iter_markers("kd_audit_waive"))
        self._watches: list[Watch] = []
        self._unentered = 0
        "Watches that were asked for, and not entered with `with`."

    def __call__(self, **declared: Any) -> AbstractContextManager[Watch]:
        """Watch the block; takes what :func:`kdbench.watch` takes. A block that raised is not judged."""
        self._unentered += 1
        return self._watching(declared)

    @contextmanager
    def _watching(self, declared: dict[str, Any]) -> Iterator[Watch]:
        self._unentered -= 1
        with watch(**declared) as made:
            yield made
        self._watches.append(made)

    def forget(self) -> None:
        """Judge none of the watches so far: the test failed by itself."""
        self._watches.clear()
        self._unentered = 0

    def judge(self) -> None:
        """Fail the test, once, if an audit of severity error failed in one of its watches, or a watch saw nothing."""
        told = [text for made in self._watches if (text := self._failure(made)) is not None]
        if self._unentered:
            told.append("kd_audit(...) watches a block of its own, and had none: write `with kd_audit(...):`")
        self.forget()
        if told:
            pytest.fail("\n".join(told), pytrace=False)

    def _failure(self, made: Watch) -> str | None:
        try:
            report = spelled(self._policy.apply(heard(made)))
        except AuditFailure as failure:
            return str(failure)
        return report.failure() if report.failed() else None


_WATCH = pytest.StashKey[ScriptWatch]()


class Watcher:
    """Watches every test; fails a distillation in which an audit of severity error failed.

    Of a test that steps an optimizer and distils nothing, what was found is printed with the warnings: steps without a
    backward are what tests of optimizers are made of.
    """

    def __init__(self, config: pytest.Config) -> None:
        policy(config)  # a wrong waiver is told of before the first test
        self._told: Counter[str] = Counter()
        self._warnings: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Watch from the first fixture on: teachers are made, loaded and trained there."""
        watch = item.stash[_WATCH] = ScriptWatch(Options(steps=0), lambda w: None)
        with watch:
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Judge when the function has returned: the test itself fails, unless it failed already."""
        try:
            result = yield
        finally:
            failure = self._judge(item)
        if failure is not None:
            pytest.fail(failure.failure(), pytrace=False)
        return result

    def _judge(self, item: pytest.Item) -> Report | None:
        """Leave the verdict and the warnings with the test, and return the report if it has to fail."""
        watch = item.stash[_WATCH]
        watch.close()
        if not watch.trace.updates.steps and watch.trace.broken is None:
            return None
        waived = policy(item.config, item.iter_markers("kd_audit_waive")).waive
        report = spelled(Policy({**STAND_INS, **waived}).apply(watch.report))
        distils = bool(watch.trace.losses.sights)
        fails = distils and bool(report.failed("error"))
        found = Report(tuple(f for f in report.findings if f.status == "error" or f in report.failed("warn")))
        verdict = "failed" if fails else "warned" if found.findings else "clean"
        text = "" if fails else str(found).partition("\n")[2]
        word = "" if verdict == "clean" and not distils else verdict  # of what is no distillation nothing was decided
        item.user_properties.append((PROPERTY, f"{word} {'distils' if distils else 'steps'}\n{text}"))
        return report if fails else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count, in the process that reports, what may have been seen in others."""
        if report.when != "teardown":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                words, _, text = str(value).partition("\n")
                self._told.update(words.split())
                if words.startswith("warned"):
                    self._warnings.append(f"{report.nodeid}\n{text}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the warnings, and how many tests anything was heard of."""
        told = self._told
        terminalreporter.section("kd-audit")
        for text in self._warnings:
            terminalreporter.write_line(text)
        terminalreporter.write_line(
            f"{told['steps'] + told['distils']} tests step an optimizer, {told['distils']} of them in a distillation: "
            f"{told['failed']} failed, {told['warned']} with warnings, {told['clean']} clean"
        )
