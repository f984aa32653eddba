"""What things are called: networks by the user's variable and their class, parameters by their path."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.roles import Group
from kdbench.audits.observe import torch_internals
from kdbench.audits.observe.frames import locals_of
from kdbench.audits.observe.living import living
from kdbench.audits.observe.taint import Taint
from kdbench.audits.trace import Trace

_TOO_COMMON = ("module", "model", "m", "net")
"Names of variables that say nothing of which network it is: another that holds it too is preferred."


class Names(Observer):
    """Names networks and parameters as the user's code does; at the end, every parameter of a script's networks."""

    def __init__(self, trace: Trace, taint: Taint, known: Known) -> None:
        self._trace, self._taint, self._known = trace, taint, known
        self._names: dict[int, str] = {}
        self._kept: list[nn.Module] = []
        "What was named: an id alone is given to another object after collection."

    def group(self, group: Group) -> str:
        """Return how a report calls a group: its class and the name of the variable that holds it."""
        module = group.module
        if module is None:
            return f"{group.mask.bit_count()} parameters"
        if id(module) not in self._names:
            variable = _variable_of(module)
            kind = type(getattr(module, torch_internals.COMPILED, module)).__name__
            self._names[id(module)] = f"{kind} ({variable})" if variable else kind
            self._kept.append(module)
        without = ", with parts of its own" if group.is_branch else ", without what is trained"
        return self._names[id(module)] + (without if group.is_base else "")

    def head(self, group: Group) -> str:
        """Return the variable that holds a group's module, or else its class: the head of a parameter's path."""
        self.group(group)
        name = self._names[id(group.module)] if group.module is not None else self.group(group)
        return name.rpartition(" (")[2].removesuffix(")")

    def groups(self, groups: list[Group]) -> str:
        """Return how a report calls several groups together."""
        return ", ".join(self.group(g) for g in groups)

    def params(self, mask: int) -> list[str]:
        """Return the names of parameters, by the modules that were seen to hold them."""
        return [self.param(p) for p in self._taint.parameters(mask)]

    def param(self, param: Tensor) -> str:
        """Return a parameter's dotted name under the module that plays a role, or its shape."""
        if id(param) in self._trace.names:
            return self._trace.names[id(param)]
        known = self._known
        for group in (*known.students, *known.teachers, *known.projectors):
            for name, own in group.module.named_parameters() if group.module is not None else ():
                if own is param:
                    return f"{self.head(group)}.{name}"
        return _owner_of(param) or f"unnamed parameter of shape {tuple(param.shape)}"

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Name the parameters of every network of a script; what was declared has its names already."""
        known = self._known
        if not self._trace.script or not known.started:
            return
        names: dict[int, str] = {}
        for group in (*known.projectors, *known.teachers, *known.students):
            if group.module is not None:
                names.update((id(p), f"{self.head(group)}.{n}") for n, p in group.module.named_parameters())
        self._trace.names = {**self._trace.names, **names}


def _variable_of(module: nn.Module) -> str | None:
    """Return the name under which the user's code holds a module: in the frames on the stack, or in the script."""
    frame = sys._getframe(1)
    places: list[dict[str, Any]] = []
    while frame is not None:
        if not frame.f_code.co_filename.startswith(sys.prefix) and not frame.f_globals.get("__name__", "").startswith(
            "kdbench.audits"
        ):
            places.append(locals_of(frame))
        frame = frame.f_back  # type: ignore[assignment]
    main = sys.modules.get("__main__")
    if main is not None:
        places.append(vars(main))
    best: str | None = None
    for place in places:
        for name, value in list(place.items()):
            if value is module and not name.startswith("_") and name not in _TOO_COMMON:
                return name
            if value is module:
                best = best or name
            inside = getattr(value, "__dict__", None)
            if name == "self" and isinstance(inside, dict):
                for key, part in [*inside.items(), *inside.get(torch_internals.SUBMODULES, {}).items()]:
                    if part is module:
                        return f"self.{key}"
    return best


def named_module(name: str, thorough: bool) -> nn.Module | None:
    """Return the module of this name: a variable's, an attribute's of an object that a variable holds (`trainer.net`).

    If `thorough`, also the only living one that some module holds under this path, or that has a class of this name.
    """
    path = name.removeprefix("self.").split(".")
    for place in _places():
        found = _along(place, path)
        if found is not None:
            return found
    if not thorough:
        return None
    modules = list(living(nn.Module))
    held = {id(m): m for one in modules if (m := _along(_inside(one), path)) is not None}
    of_class = {id(m): m for m in modules if type(m).__name__ == name}
    for several in (held, of_class):
        if len(several) == 1:
            return next(iter(several.values()))
    return None


def names_of_modules() -> set[str]:
    """Return the names by which the user's code holds modules: variables, and attributes of `self`."""
    found: set[str] = set()
    for place in _places():
        for key, value in list(place.items()):
            if isinstance(value, nn.Module) and not key.startswith("_"):
                found.add(key)
                parts = [n for n, m in value.named_children() if any(True for _ in m.parameters())]
                found.update(f"{key}.{part}" for part in parts if not part.isdigit())
    return found


def _places() -> list[Mapping[str, Any]]:
    """Return where names are looked for: the frames of the user's on the stack, what their `self` holds, the script."""
    frame = sys._getframe(1)
    found: list[Mapping[str, Any]] = []
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("kdbench.audits", "torch.")):
            found += [held := locals_of(frame), _inside(held.get("self"))]
        frame = frame.f_back  # type: ignore[assignment]
    main = sys.modules.get("__main__")
    return [*found, vars(main)] if main is not None else found


def _inside(holder: Any) -> Mapping[str, Any]:
    """Return an object's attributes, a module's parts among them; no code of the user's is run for it."""
    inside = getattr(holder, "__dict__", None)
    if not isinstance(inside, dict):
        return {}
    return {**inside, **inside.get(torch_internals.SUBMODULES, {})} if isinstance(holder, nn.Module) else inside


def _along(place: Mapping[str, Any], path: list[str]) -> nn.Module | None:
    """Return the module at the end of a path of attributes; wrappers such as DataParallel are looked into."""
    value: Any = place.get(path[0])
    for part in path[1:]:
        inside = _inside(value)
        while part not in inside and (inner := inside.get("module", inside.get(torch_internals.COMPILED))) is not None:
            inside = _inside(inner)
        value = inside.get(part)
    return value if isinstance(value, nn.Module) else None


def _owner_of(param: Tensor) -> str | None:
    for module in living(nn.Module):
        for name, own in torch_internals.parameters_of(module).items():
            if own is param:
                return f"{type(module).__name__}.{name}"
    return None
