"""One run of the script in a process of its own: as it is, or with one fault in it.

The order and the result are JSON files, which KDBENCH_MUTATE_ORDER and KDBENCH_MUTATE_RESULT name. The script's own
output goes where the process's does.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# The script's own modules may be called as ours are: what is needed while it runs is imported before.
from kdbench.audits import script as engine
from kdbench.audits.checks.all import run as judge
from kdbench.audits.report.policy import Policy
from kdbench.audits.script import Options, ScriptWatch
from kdbench.audits.trace import KD, Clip
from kdbench.harness import faults as _faults  # noqa: F401  (registers the mechanisms)
from kdbench.harness import loading
from kdbench.harness.declarations import spelled
from kdbench.harness.injection.calls import Kind
from kdbench.harness.injection.mechanism import MECHANISMS, Counted, Injector
from kdbench.harness.injection.scene import NotApplicableError, Scene
from kdbench.harness.injection.survey import Survey
from kdbench.harness.injection.taps import KINDS, Taps
from kdbench.harness.mutation import writes
from kdbench.harness.mutation.workspace import ORDER, RESULT

What = Literal["survey", "idle", "fault"]


@dataclass(frozen=True)
class Order:
    """What a run is to do."""

    what: What
    target: str
    args: list[str]
    module: bool = False
    steps: int = 30
    max_seconds: float = 120.0
    declared: dict[str, Any] = field(default_factory=dict)
    "Clip, temperature, weights, form, student and teacher, as audit's options name them."
    waive: dict[str, str] = field(default_factory=dict)
    fault: str | None = None
    scene: dict[str, Any] | None = None
    fault_files: list[str] = field(default_factory=list)

    @property
    def options(self) -> Options:
        """What the engine is told."""
        d = self.declared
        norm = d.get("max_norm")
        scope: Any = d.get("clip_scope") or "global"
        return Options(
            steps=self.steps if self.what == "survey" else 0,
            max_seconds=self.max_seconds,
            clip=Clip(norm, scope) if norm is not None else None,
            kd=KD(d.get("temperature"), d.get("alpha"), d.get("kd_weight"), d.get("form")),
            student=d.get("student"),
            teacher=d.get("teacher"),
        )


@dataclass
class Outcome:
    """What came of a run."""

    verdict: str
    findings: list[dict[str, Any]]
    digests: dict[str, str]
    steps: int
    "Calls of an optimizer's step."
    error: str | None = None
    exit_code: int | None = None
    not_finite: bool = False
    acted: int = 0
    where: list[str] = field(default_factory=list)
    "Places at which the fault acted."
    distilled: bool = False
    stopped: str = ""
    scene: dict[str, Any] | None = None
    answers: list[tuple[str, str]] = field(default_factory=list)
    not_applicable: str | None = None
    writes: list[str] = field(default_factory=list)
    "Files outside its folder that it opened to write them."
    cpu: float = 0.0
    "Seconds of a processor's that the run took, in all its threads."
    printed: str = ""
    "The end of what it printed."


def agent_for(what: What, fault: str | None, scene: Scene) -> Survey | Injector:
    """Return what is told of the calls; NotApplicableError where the fault has no place in the scene."""
    if what == "survey":
        return Survey()
    return Injector({} if fault is None else MECHANISMS[fault].acts(scene), scene, idle=what == "idle")


def kinds_for(agent: Survey | Injector, what: What) -> set[Kind]:
    """Return what is tapped: all of it but for one fault, which needs its own places alone."""
    return agent.kinds if isinstance(agent, Injector) and what == "fault" else set(KINDS)


def carry_out(order: Order) -> Outcome:
    """Run the script as the order says, and return what came of it."""
    loading.load_all([("faults", path) for path in order.fault_files])
    scene = Scene.from_json(order.scene) if order.scene is not None else Scene()
    try:
        agent = agent_for(order.what, order.fault, scene)
    except NotApplicableError as error:
        return Outcome("not-applicable", [], {}, 0, not_applicable=str(error))
    kinds = kinds_for(agent, order.what)

    @contextlib.contextmanager
    def within(watch: ScriptWatch) -> Iterator[None]:
        if isinstance(agent, Survey):
            agent.follow(watch.observe(agent))
        with Taps(Counted(agent, scene.steps or None, watch.end), kinds):
            yield

    with contextlib.ExitStack() as stack:
        surveys = order.what == "survey"
        written: set[str] = stack.enter_context(writes.outside(Path.cwd())) if surveys else set()
        seen = engine.run(
            order.target,
            order.args,
            module=order.module,
            options=order.options,
            make_report=lambda trace: spelled(judge(trace)),
            within=within,
        )
    policy = Policy(waive=order.waive)
    report = policy.apply(seen.report)
    ran, distilled = seen.error is None and not seen.exit_code, bool(seen.trace.losses.sights)
    if isinstance(agent, Survey):
        scene = agent.finish_scene({k: v for k, v in order.declared.items() if v is not None})
    return Outcome(
        policy.verdict(report, ran=ran, distilled=distilled),
        report.to_dicts(),
        agent.world.digests(scene),
        agent.world.steps,
        seen.error,
        seen.exit_code,
        agent.world.not_finite,
        agent.live.acted if isinstance(agent, Injector) else 0,
        sorted(agent.where) if isinstance(agent, Injector) else [],
        distilled,
        seen.stopped,
        scene.to_json() if isinstance(agent, Survey) else None,
        agent.answers if isinstance(agent, Survey) else [],
        writes=sorted(written),
    )


def main() -> None:
    """Read the order, run, write the result."""
    order = Order(**json.loads(Path(os.environ[ORDER]).read_text(encoding="utf-8")))
    result = Path(os.environ[RESULT])
    try:
        outcome: dict[str, Any] = asdict(carry_out(order))
        outcome["cpu"] = time.process_time()
    except Exception:  # ours: the parent says so and shows it
        outcome = {"broken": traceback.format_exc()}
    result.write_text(json.dumps(outcome), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
