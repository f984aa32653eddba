"""The plugin of a pytest session in which a fault is active: in every test that distils and steps an optimizer.

The order stands in the file that KDBENCH_MUTATE_ORDER names, the result goes to the one of KDBENCH_MUTATE_RESULT.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kdbench.audits.checks.all import run as judge
from kdbench.audits.report.policy import Policy
from kdbench.audits.script import Options, ScriptWatch
from kdbench.harness import loading
from kdbench.harness.injection.mechanism import Injector
from kdbench.harness.injection.scene import NotApplicableError, Scene
from kdbench.harness.injection.survey import Survey
from kdbench.harness.injection.taps import Taps
from kdbench.harness.mutation.child import Outcome, What, agent_for, kinds_for
from kdbench.harness.mutation.workspace import ORDER, RESULT


@dataclass(frozen=True)
class TestOrder:
    """What a session is to do."""

    __test__ = False

    what: What
    fault: str | None = None
    scenes: dict[str, Any] = field(default_factory=dict)
    "By test that distils: what the survey learned of it."
    fault_files: list[str] = field(default_factory=list)


class Mutating:
    """Runs each test under observation, with the fault in it where it has a place."""

    def __init__(self, order: TestOrder) -> None:
        self.order = order
        self.outcomes: dict[str, Outcome] = {}
        self.failed: set[str] = set()
        self.seen: set[str] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run one test, fixtures and all."""
        order = self.order
        values = order.scenes.get(item.nodeid)
        if order.what != "survey" and values is None:
            return (yield)  # it distils nothing
        scene = Scene.from_json(values) if values is not None else Scene()
        try:
            agent = agent_for(order.what, order.fault, scene)
        except NotApplicableError:
            return (yield)
        watch = ScriptWatch(Options(steps=0), lambda watch: None)
        with watch:
            if isinstance(agent, Survey):
                agent.follow(watch.observe(agent))
            with Taps(agent, kinds_for(agent, order.what)):
                result = yield
        watch.conclude(True)
        if watch.trace.losses.sights or order.what != "survey":
            self._note(item.nodeid, agent, watch, scene)
        return result

    def _note(self, name: str, agent: Survey | Injector, watch: ScriptWatch, scene: Scene) -> None:
        report = judge(watch.trace)
        if isinstance(agent, Survey):
            scene = agent.finish_scene({})
        self.outcomes[name] = Outcome(
            Policy().verdict(report, ran=True, distilled=bool(watch.trace.losses.sights)),
            report.to_dicts(),
            agent.world.digests(scene),
            agent.world.steps,
            not_finite=agent.world.not_finite,
            acted=agent.live.acted if isinstance(agent, Injector) else 0,
            where=sorted(agent.where) if isinstance(agent, Injector) else [],
            distilled=bool(watch.trace.losses.sights),
            scene=scene.to_json() if isinstance(agent, Survey) else None,
            answers=agent.answers if isinstance(agent, Survey) else [],
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note whether a test failed, in whichever phase."""
        self.seen.add(report.nodeid)
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write what came of the session."""
        result = {
            "outcomes": {name: asdict(outcome) for name, outcome in self.outcomes.items()},
            "failed": sorted(self.failed),
            "seen": sorted(self.seen),
        }
        Path(os.environ[RESULT]).write_text(json.dumps(result), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Read the order; without one the plugin does nothing."""
    path = os.environ.get(ORDER)
    if path:
        order = TestOrder(**json.loads(Path(path).read_text(encoding="utf-8")))
        loading.load_all([("faults", file) for file in order.fault_files])
        config.pluginmanager.register(Mutating(order), "kdbench-mutating")
