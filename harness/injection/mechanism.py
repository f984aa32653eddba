"""How a fault acts on the calls of a script: the registry of mechanisms, and what each of them may use.

A mechanism stands beside the fault's function on a seam. It is a function of the scene that returns, by kind of call,
what to do there; it raises NotApplicableError with the reason where the script has no place for the fault.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.audits.observe import hooks
from kdbench.harness.injection.calls import Call, Kind, words
from kdbench.harness.injection.scene import Role, Scene, Site
from kdbench.harness.injection.world import World

Act = Callable[[Call, "Live"], Any]
"Makes a call, changed, and returns its answer."
Acts = Mapping[Kind, Act]
Plan = Callable[[Scene], Acts]


class Live:
    """What a mechanism sees while the script runs."""

    def __init__(self, scene: Scene, world: World) -> None:
        self.scene, self.world = scene, world
        self.kept: dict[str, Any] = {}
        "What a mechanism remembers from call to call."
        self.acted = 0
        "How often the fault did something."

    def role(self, param: Any) -> Role:
        """Return whose parameter this is."""
        found: Role = self.world.parameters(self.scene).get(param, ("other", ""))[0]
        return found

    def named(self, params: list[Any]) -> list[tuple[Role, str]]:
        """Return by parameter whose it is and its name."""
        known = self.world.parameters(self.scene)
        return [known.get(p, ("other", "")) for p in params]


@dataclass(frozen=True)
class Mechanism:
    """A fault's way into a script."""

    fault: str
    plan: Plan
    caught_by: tuple[str, ...]
    "Ids of the audits of a script that must tell; none for those of the fault itself."

    def acts(self, scene: Scene) -> Acts:
        """Return what is done at which kind of call; NotApplicableError where the script has no place for it."""
        return self.plan(scene)


_PLACES = 20
"Places that are kept: a fault acts at a few lines."
MECHANISMS: dict[str, Mechanism] = {}
"By name of the fault."


def injected(fault: str, caught_by: tuple[str, ...] = ()) -> Callable[[Plan], Plan]:
    """Register a function of the scene as the way in which a fault acts on a script."""

    def register(plan: Plan) -> Plan:
        MECHANISMS[fault] = Mechanism(fault, plan, caught_by)
        return plan

    return register


class Injector:
    """Lets one mechanism act; with `idle`, its taps are in place and change nothing."""

    def __init__(self, acts: Acts, scene: Scene, idle: bool = False) -> None:
        self.world = World()
        self.live = Live(scene, self.world)
        self.where: set[str] = set()
        "Places at which the fault acted."
        self._acts, self._idle = acts, idle
        self._told = 0
        "How many of the fault's acts have their place: a network is called within another."

    @property
    def kinds(self) -> set[Kind]:
        """What has to be tapped: what is acted on, and what tells modules and optimizers apart."""
        return {"forward", "load", "conv", "step", "backward", *self._acts}

    def on(self, call: Call) -> Any:
        """Make a call, changed where the fault has its place."""
        self.world.note(call)
        act = None if self._idle else self._acts.get(call.kind)
        if act is None:
            return call.proceed()
        result = act(call, self.live)
        if self.live.acted > self._told and len(self.where) < _PLACES:
            self.where.add(words(hooks.call_site()))
        self._told = self.live.acted
        return result


class Counted:
    """An agent that ends the script after some steps, whatever the audits see of them."""

    def __init__(self, agent: Any, most: int | None, end: Callable[[str], None]) -> None:
        self._agent, self._most, self._end = agent, most, end

    def on(self, call: Call) -> Any:
        """Make the call, and end the script where it was the last step to be seen."""
        result = self._agent.on(call)
        if call.kind == "step" and self._most is not None and self._agent.world.steps >= self._most:
            self._end(f"{self._most} steps were made")
        return result


# --- what several mechanisms do


def at(sites: list[Site], change: Callable[[Call, Live], Any]) -> Act:
    """Return an act that changes the calls at these sites and no others."""
    places = {site.place for site in sites}

    def act(call: Call, live: Live) -> Any:
        if call.place not in places:
            return call.proceed()
        live.acted += 1
        return change(call, live)

    return marked(act, places=frozenset(places))


def marked(act: Act, **what: Any) -> Act:
    """Note of an act at which places it acts, or on whose networks: a list of faults names the lines."""
    vars(act).update(what)
    return act


def answers_of(role: Role, change: Callable[[Call, Live], Any]) -> Act:
    """Return an act that changes the calls of the networks that play a role, where the script itself makes them."""

    def act(call: Call, live: Live) -> Any:
        number = live.world.number(call.args[0])
        early = live.world.called[number] <= live.scene.begins.get(str(number), 0)  # its own training stays right
        if early or number not in live.scene.modules.get(role, []) or live.kept.get("within"):
            return call.proceed()
        # One network with and without its adapters is both: it teaches where nothing is recorded.
        both = all(number in live.scene.modules.get(r, []) for r in ("student", "teacher"))
        if both and torch.is_grad_enabled() == (role == "teacher"):
            return call.proceed()
        live.kept["within"] = True
        try:
            live.acted += 1
            return change(call, live)
        finally:
            live.kept["within"] = False

    return marked(act, role=role)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an answer with its tensors changed, in lists, tuples and mappings; what is else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        for key in list(value):  # in place: outputs of transformers are dictionaries with attributes
            if isinstance(value[key], Tensor | tuple | list):
                value[key] = mapped(value[key], change)
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, change) for part in value)
    return value
