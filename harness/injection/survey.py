"""The survey of a script that runs as it is: who is who, and at which calls a fault could act."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe import hooks
from kdbench.audits.observe.taint import Made, Taint, tensors_in
from kdbench.audits.observe.windows import MOODY, RawWindow
from kdbench.audits.trace import Sight
from kdbench.harness.injection.calls import Call, words
from kdbench.harness.injection.scene import Load, Optimizer, Scene, Side, Site
from kdbench.harness.injection.world import World, digest_of

_WINDOWS = 2
"Windows of the distillation whose calls are taken down: what a training does, it does in each."
_MOST = 20_000
"Calls taken down between two backwards; a script that makes more has its distillation elsewhere."
_COMPARED, _READ = 20_000, 2**31
"""Digests that are kept, and bytes that they are of, so that two runs can be compared call by call: a difference often
comes only after the teacher's own training."""
_SIMPLE = ("clip", "unscale", "zero_grad", "step")
"Kinds of calls that are taken down whenever they are made."
_SAME_T = 1e-3
"Relative difference up to which a number is the temperature: a few roundings of single precision."


@dataclass
class _Event:
    """A call in the present window."""

    call: Call
    made: list[Made]
    "Of its tensor arguments."
    result: Any
    where: str
    data: dict[str, Any]


class Survey(Observer):
    """Takes down the calls of an undisturbed run; the audits' observers tell it who plays which part."""

    def __init__(self) -> None:
        self.world, self.scene = World(), Scene()
        self._taint: Taint | None = None
        self._events: list[_Event] = []
        self._windows = 0
        self._sites: dict[tuple[str, str], Site] = {}
        self._groups: list[tuple[str, list[list[Any]], str]] = []
        self._called: dict[int, str] = {}
        self._loads: list[tuple[int, nn.Module, dict[str, Any], str]] = []
        self._pretrained: list[tuple[int, nn.Module]] = []
        self._labels: set[int] = set()
        self._clipped: list[Any] = []
        self._rates: dict[int, list[float]] = {}
        "By number of an optimizer, the rates of all groups but the first at its first step."
        self.answers: list[tuple[str, str]] = []
        "Place in words and digest of what was called, for :func:`first_difference`."
        self._left, self._within = _READ, False

    def follow(self, taint: Taint) -> None:
        """Read from now on what tensors are made of."""
        self._taint = taint

    # -- the agent

    def on(self, call: Call) -> Any:
        """Make the call, and take it down."""
        self.world.note(call)
        taken = getattr(self, f"_on_{call.kind}", None)
        return taken(call) if taken is not None else self._on_function(call)

    def _on_function(self, call: Call) -> Any:
        taint = self._taint
        if taint is None or self._windows >= _WINDOWS or len(self._events) >= _MOST:
            return call.proceed()
        given = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Tensor)]
        made = [taint.of(t) for t in given]
        data = _data_of(call)
        result = call.proceed()
        if any(m.params for m in made):
            call.args = given  # what is no tensor is in `data`
            _ = call.place
            self._events.append(_Event(call, made, result, words(hooks.call_site()), data))
        return result

    def _on_clip(self, call: Call) -> Any:
        params = call.arg(0, "parameters")
        if not isinstance(params, Tensor | list | tuple):
            params = list(params)
            call.put(0, "parameters", params)
        handed = [params] if isinstance(params, Tensor) else list(params)
        self._simple_site(call)
        self._clipped = [*self._clipped, *handed][-_MOST:]
        return call.proceed()

    def _on_optimizer(self, call: Call) -> Any:
        params = call.arg(1, "params")
        listed = list(params)
        groups = [list(g["params"]) if isinstance(g, dict) else [g] for g in listed]
        for given, kept in zip(listed, groups, strict=True):
            if isinstance(given, dict):
                given["params"] = kept
        call.put(1, "params", listed)
        result = call.proceed()
        groups = [list(g["params"]) for g in call.args[0].param_groups]
        self._groups.append((type(call.args[0]).__name__, groups, words(hooks.call_site())))
        return result

    def _on_unscale(self, call: Call) -> Any:
        if call.is_direct:
            self._simple_site(call)
        return call.proceed()

    def _on_zero_grad(self, call: Call) -> Any:
        self._simple_site(call)
        return call.proceed()

    def _simple_site(self, call: Call) -> None:
        key = (call.kind, call.place)
        if key not in self._sites:
            self._sites[key] = Site(call.kind, call.name, call.place, words(hooks.call_site()), "other")
        number = self.world.number_of(call.args[0]) if call.kind in ("zero_grad", "step") else None
        if number is not None:
            held = self._sites[key].data.setdefault("optimizers", [])
            held += [number] if number not in held else []

    def _on_load(self, call: Call) -> Any:
        state = call.arg(1, "state_dict")
        self._loads.append((self.world.loads, call.args[0], dict(state), words(hooks.call_site())))
        return call.proceed()

    def _on_schedule(self, call: Call) -> Any:
        number = self.world.number_of(getattr(call.args[0], "optimizer", None))
        if number is not None and number not in self.scene.scheduled:
            self.scene.scheduled.append(number)
        return call.proceed()

    def _on_step(self, call: Call) -> Any:
        number = self.world.number_of(call.args[0])
        if number is not None and number not in self.scene.moved:
            rates = [float(group["lr"]) for group in call.args[0].param_groups[1:] if "lr" in group]
            if self._rates.setdefault(number, rates) != rates:
                self.scene.moved.append(number)
        self._simple_site(call)
        result = call.proceed()
        if number is not None and self._windows and number not in self.scene.distilling:
            self.scene.distilling.append(number)  # a closure's backward is within the step
        return result

    def _on_pretrained(self, call: Call) -> Any:
        result = call.proceed()
        number = self.world.pretrained
        if isinstance(result, nn.Module):
            self._pretrained.append((number, result))
        return result

    def _on_backward(self, call: Call) -> Any:
        if isinstance(call.args[0], Tensor):
            self._compare(lambda where: f"the loss at the backward at {where}", [call.args[0]])
        try:
            return call.proceed()
        finally:
            self._events = []  # a window that was no distillation's

    def _on_forward(self, call: Call) -> Any:
        number = self.world.number(call.args[0])
        if number not in self._called:
            self._called[number] = words(hooks.call_site())
        if self._within:  # a layer of a network that is called
            return call.proceed()
        module, name = call.args[0], type(call.args[0]).__name__
        given = [*tensors_in(call.args[1:], 2), *tensors_in(call.kwargs, 2)]
        self._compare(lambda where: f"the weights of {name} before its call at {where}", list(module.parameters()))
        self._compare(lambda where: f"what {name} is given at {where}", given)
        self._within = True
        try:
            result = call.proceed()
        finally:
            self._within = False
        self._compare(lambda where: f"the answer of {name} at {where}", list(tensors_in(result, 2)))
        return result

    def _compare(self, told: Callable[[str], str], tensors: list[Tensor]) -> None:
        """Keep a digest of tensors, with words for the place of this call, so that another run can be held to it."""
        if len(self.answers) < _COMPARED and self._left > 0:
            self._left -= sum(t.numel() * t.element_size() for t in tensors)
            self.answers.append((told(words(hooks.call_site())), digest_of(tensors)))

    # -- the observer

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Read off who plays which part, and which calls of this window are whose."""
        if self._windows >= _WINDOWS or self._taint is None:
            return
        self._windows += 1
        self._roles(raw, cast, sight)
        base = self._taint.base
        soft = _bits(f.index for f in cast.soft)
        soft |= _bits(f.index for f in raw.functions if f.name == "kl_div" and f.made.params & cast.student_mask)
        labels = _bits(label.call.index for label in cast.labels)
        soft &= ~labels
        told = [e.temperature for e in sight.explanations if e.temperature and e.form not in ("unknown", "nothing")]
        if told:
            self.scene.temperature = float(told[0][0])
        self._labels = {id(label.logits) for label in cast.labels}
        self.scene.labelled = self.scene.labelled or bool(cast.labels)
        for event in self._events:
            side = self._side(event, cast, soft, labels, base)
            if side is not None:
                site = Site(
                    event.call.kind,
                    event.call.name,
                    event.call.place,
                    event.where,
                    side,
                    event.call.number,
                    event.data,
                )
                self._sites.setdefault((site.kind, site.place), site)
        self._events = []

    def restart(self) -> None:
        """Begin anew: what was taken for a distillation was another training."""
        kept = {key: site for key, site in self._sites.items() if key[0] in _SIMPLE}
        self._sites, self._windows, self._events = kept, 0, []
        self.scene.modules, self.scene.begins, self.scene.distilling = {}, {}, []

    def _roles(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        numbers, scene = self.world.numbers(), self.scene
        groups = {"student": cast.students, "teacher": cast.teachers, "projector": cast.projectors}
        for role, found in groups.items():
            known = [numbers[id(g.module)] for g in found if g.module is not None and id(g.module) in numbers]
            scene.modules[role] = list(dict.fromkeys([*scene.modules.get(role, []), *known]))
        for number in {n for found in scene.modules.values() for n in found}:
            if str(number) not in scene.begins:  # the calls of this window belong to the distillation
                within = sum(numbers.get(id(c.module)) == number for c in raw.calls)
                scene.begins[str(number)] = max(0, self.world.called[number] - within)
        scene.names = {"student": sight.student, "teacher": sight.teacher}
        scene.moody = any(_is_moody(m) for m in self.world.playing(scene, "student"))
        scene.moody_teacher = any(_is_moody(m) for m in self.world.playing(scene, "teacher"))
        for student in self.world.playing(scene, "student")[:1]:
            inside = {id(m): n for n, m in student.named_modules()}
            own = [c for c in raw.calls if id(c.module) in inside and not c.has_children and c.grad]
            weighed = [c for c in own if any(True for _ in c.module.parameters(recurse=False))]
            if weighed:
                last = weighed[-1].module
                scene.head = [f"{inside[id(last)]}.{n}".lstrip(".") for n, _ in last.named_parameters()]
            scene.norms = [n for n, p in student.named_parameters() if p.ndim == 1]
            for call in own:
                if isinstance(call.module, nn.Conv2d):
                    self._note_conv(call.module, call.given)
                    break
        for teacher in cast.teachers:
            if teacher.call is not None:
                scene.teacher_input = _kind_of_input(teacher.call.given)

    def _note_conv(self, conv: nn.Conv2d, given: list[Tensor]) -> None:
        built = [i for i, m in enumerate(self.world.convs) if m is conv]
        if built and given:
            self.scene.conv = built[0]
            self.scene.conv_data = {"stride": conv.stride[0], "size": int(given[0].shape[-1])}

    def _side(self, event: _Event, cast: Cast, soft: int, labels: int, base: int) -> Side | None:
        params = calls = 0
        for m in event.made:
            params |= m.params
            calls |= m.calls >> (base - m.base)
        of_student, of_teacher = bool(params & cast.student_mask), bool(params & cast.teacher_mask)
        kind = event.call.kind
        if kind == "add":
            return self._sum(event, soft, labels, base)
        if kind == "scale" and calls & soft:
            return "both" if calls & labels else "distillation"
        if kind == "scale" and calls & labels:
            return "labels"
        if kind == "scale" and not self._softens(event):
            return None
        if kind == "softmax" and id(event.result) in self._labels:
            return None
        if kind == "softmax" and of_student and not event.result.requires_grad:
            return None  # it draws words, or is logged: nothing is learned through it
        if kind in ("kl_div", "distance"):
            return "distillation" if of_student and (of_teacher or cast.cached) else None
        if of_student and of_teacher:
            return None
        return "student" if of_student else "teacher" if of_teacher else None

    def _softens(self, event: _Event) -> bool:
        """Say whether logits are divided by the temperature here."""
        number, t = event.call.number, self.scene.temperature
        if not number or event.call.args[0].ndim < 2:
            return False
        if t is not None and t != 1:
            return abs(number * t - 1) < _SAME_T
        return any(e.call.kind == "softmax" and e.call.args and e.call.args[0] is event.result for e in self._events)

    def _sum(self, event: _Event, soft: int, labels: int, base: int) -> Side | None:
        """Say whether the label term and the distillation term are added here; which stands first is in the data."""
        if len(event.made) != 2 or event.call.args[0].ndim:
            return None
        first, second = (m.calls >> (base - m.base) for m in event.made)
        ours = [bool(c & soft) and not c & labels for c in (first, second)]
        theirs = [bool(c & labels) and not c & soft for c in (first, second)]
        if (ours[0] and theirs[1]) or (ours[1] and theirs[0]):
            event.data["distillation"] = 0 if ours[0] else 1
            return "both"
        return None

    # -- the end

    def finish_scene(self, declared: dict[str, Any]) -> Scene:
        """Return what was learned, when the run has ended."""
        scene, world = self.scene, self.world
        roles = world.parameters(scene)
        clipped = {"student": 0, "projector": 0, "teacher": 0, "other": 0}
        for p in self._clipped:
            clipped[roles.get(p, ("other", ""))[0]] += 1
        sites = list(self._sites.values())
        scene.sites = [replace(s, data={**s.data, **clipped}) if s.kind == "clip" else s for s in sites]
        scene.optimizers = [
            Optimizer(kind, [[roles.get(p, ("other", "")) for p in group] for group in groups], where)
            for kind, groups, where in self._groups
        ]
        scene.loads = [self._load(*item, roles) for item in self._loads]
        scene.pretrained = [n for n, module in self._pretrained if self._side_of(module, roles) == "teacher"]
        teachers = world.playing(scene, "teacher")
        scene.teacher_statistics = any("running_" in name for t in teachers for name, _ in t.named_buffers())
        scene.called = {role: [self._called[n] for n in found] for role, found in scene.modules.items()}
        scene.steps, scene.declared = world.steps, declared
        return scene

    def _load(self, number: int, module: nn.Module, state: dict[str, Any], where: str, roles: Any) -> Load:
        head: list[str] = []
        weighed = [n for n, m in module.named_modules() if any(True for _ in m.parameters(recurse=False))]
        if weighed:
            head = [key for key in state if key.startswith(f"{weighed[-1]}.")]
        statistics = sum("running_" in key for key in state)
        return Load(number, self._side_of(module, roles), where, statistics, head)

    def _side_of(self, module: nn.Module, roles: Any) -> Side:
        """Return whose parameters a module holds."""
        held = {roles.get(p, ("other", ""))[0] for p in module.parameters()}
        return "teacher" if "teacher" in held else "student" if "student" in held else "other"


def first_difference(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> str | None:
    """Return in words what differs first between two runs; None if nothing that was compared does."""
    for (place, digest), (there, again) in zip(one, other, strict=False):
        if place != there:
            return f"the order of calls ({place}; {there})"
        if digest != again:
            return place
    return None


def _bits(indices: Any) -> int:
    whole = 0
    for index in indices:
        whole |= 1 << index
    return whole


def _data_of(call: Call) -> dict[str, Any]:
    if call.kind == "softmax":
        return {"dim": call.arg(1, "dim"), "ndim": call.tensor.ndim}
    if call.kind == "kl_div":
        return {"reduction": call.arg(4, "reduction", "mean"), "log_target": bool(call.arg(5, "log_target", False))}
    return {}


def _is_moody(module: nn.Module) -> bool:
    return any(isinstance(m, MOODY) for m in module.modules())


def _kind_of_input(given: list[Tensor]) -> str:
    if not given:
        return ""
    if not given[0].is_floating_point():
        return "tokens"
    return "images" if given[0].ndim == 4 else "numbers"
