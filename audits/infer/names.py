"""What things are called: networks by the user's variable and their class, parameters by their path."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.audits.infer.living import living
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.roles import Group
from kdbench.audits.observe import torch_internals
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
        return self._names[id(module)]

    def head(self, group: Group) -> str:
        """Return the variable that holds a group's module, or else its class: the head of a parameter's path."""
        name = self.group(group)
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
            places.append(frame.f_locals)
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


def named_module(name: str, by_class: bool) -> nn.Module | None:
    """Return the module that a variable of this name holds, or the only living one of a class of this name."""
    frame = sys._getframe(1)
    tail = name.removeprefix("self.")
    while frame is not None:
        for place in (
            frame.f_locals,
            vars(frame.f_locals["self"]) if hasattr(frame.f_locals.get("self"), "__dict__") else {},
        ):
            parts = place.get(torch_internals.SUBMODULES)
            for value in (place.get(tail), parts.get(tail) if isinstance(parts, dict) else None):
                if isinstance(value, nn.Module):
                    return value
        frame = frame.f_back  # type: ignore[assignment]
    main = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    if isinstance(main.get(tail), nn.Module):
        found: nn.Module = main[tail]
        return found
    if not by_class:
        return None
    of_class = [m for m in living(nn.Module) if type(m).__name__ == name]
    return of_class[0] if len(of_class) == 1 else None


def held_networks() -> set[str]:
    """Return the names under which the user's code holds modules: variables of the frames on the stack, attributes."""
    found: set[str] = set()
    frame = sys._getframe(1)
    places: list[Mapping[str, Any]] = [vars(sys.modules["__main__"])] if "__main__" in sys.modules else []
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("torch", "kdbench", "runpy"):
            places.append(frame.f_locals)
            own = getattr(frame.f_locals.get("self"), "__dict__", {})
            if isinstance(own, dict):
                parts = own.get(torch_internals.SUBMODULES)
                places += [own, parts if isinstance(parts, dict) else {}]
        frame = frame.f_back  # type: ignore[assignment]
    for place in places:
        found |= {n for n, value in list(place.items()) if isinstance(value, nn.Module) and not n.startswith("_")}
    return found - {"self"}


def _owner_of(param: Tensor) -> str | None:
    for module in living(nn.Module):
        for name, own in torch_internals.parameters_of(module).items():
            if own is param:
                return f"{type(module).__name__}.{name}"
    return None
