"""The pytest plugin's door: options and a fixture. What they need is imported when they are used, and no earlier.

It stands outside the packages so that a project's own modules called audits or harness are found as if kdbench were
not there, and so that a run that uses none of it pays nothing: torch is not imported.
"""

from collections.abc import Generator, Iterator
from typing import Any

import pytest

_FACTORY = pytest.StashKey[Any]()
"Where a test keeps what its fixture `kd_audit` made."


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --kd-audit and what is waived under it."""
    group = parser.getgroup("kdbench")
    group.addoption("--kd-audit", action="store_true", help="audit every test that steps an optimizer")
    group.addoption(
        "--kd-audit-waive", action="append", default=[], metavar="ID=REASON", help="accept failures of this audit"
    )
    parser.addini("kd_audit_waive", "audits whose failures are accepted, a line each: ID=REASON", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the tests, if that was asked for."""
    config.addinivalue_line("markers", "kd_audit_waive(id, reason): accept failures of this audit in this test")
    if config.getoption("--kd-audit"):
        from kdbench.audits.pytest_plugin import Watcher

        config.pluginmanager.register(Watcher(config), "kdbench-watcher")
    elif config.getoption("--kd-audit-waive") or config.getini("kd_audit_waive"):
        from kdbench.audits.pytest_plugin import policy

        policy(config)  # a wrong waiver is told of before the first test


@pytest.fixture
def kd_audit(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Make watches, ``with kd_audit(student=..., optimizer=...) as w:``; the test fails if one finds something wrong.

    Takes what ``kdbench.watch`` takes.
    """
    from kdbench.audits.pytest_plugin import Factory

    factory = request.node.stash[_FACTORY] = Factory(request.node)
    yield factory
    factory.judge()  # of a watch that another fixture ended when the test was over


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Judge what the fixture watched while the test can still fail, and not only its teardown."""
    try:
        result = yield
    except BaseException:
        _factory(item, "forget")
        raise
    _factory(item, "judge")
    return result


def _factory(item: pytest.Item, does: str) -> None:
    """Have the test's factory do something, where it has one."""
    if (factory := item.stash.get(_FACTORY, None)) is not None:
        getattr(factory, does)()
