"""What a script writes to files, and loads back: is it the student that was trained?"""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from kdbench.audits.observe import hooks
from kdbench.audits.observe.loads import sample
from kdbench.audits.observe.readable import address, numbers
from kdbench.audits.observe.taint import tensors_in
from kdbench.audits.trace import Kept, Saved

_MOST = 50
"Saves and loads that are kept in mind: a script that writes every epoch writes the same thing."
_MOST_TENSORS = 20_000
"Tensors of one file that are looked at; larger networks have some thousands."

Networks = Callable[[], tuple[list[nn.Module], list[nn.Module]]]
"The students and the teachers, as far as they are known; none before the distillation begins."


class Saves:
    """Holds what is saved and loaded since the distillation began against the networks, by values."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self.kept = Kept()

    def open(self, stack: ExitStack, guard: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Watch the ways in which weights go into files and come back into modules."""
        import torch

        saved, loaded = guard(self._saved), guard(self._loaded)
        stack.enter_context(hooks.around(torch, "save", lambda *args, **kwargs: None, saved))
        stack.enter_context(hooks.around(nn.Module, "load_state_dict", lambda *args, **kwargs: None, loaded))
        try:
            import safetensors.torch as st
        except ImportError:
            return
        for name in ("save_file", "save"):
            stack.enter_context(hooks.around(st, name, lambda *args, **kwargs: None, saved))

    def begin(self) -> None:
        """Take in that a distillation begins: what was kept of another training is none of it."""
        self.kept.saves, self.kept.own, self.kept.nothing = [], [], []

    def _saved(self, obj: Any, *args: Any, **kwargs: Any) -> None:
        students, teachers = self._networks()
        if not students or len(self.kept.saves) >= _MOST:
            return
        values = list(obj.state_dict().values()) if isinstance(obj, nn.Module) else _weights_in(obj)
        there = {sample(t) for t in values[:_MOST_TENSORS] if _is_weight(t)}
        if there:
            shares = [max((share(m, there) for m in modules), default=0.0) for modules in (students, teachers)]
            mine = {sample(p) for m in (*students, *teachers) for p in m.state_dict().values() if _is_weight(p)}
            alike = {tuple(p.shape) for m in students for p in m.parameters()}
            others = sum(at not in mine and at[0] in alike for at in there) / len(there)
            self.kept.saves.append(Saved(shares[0], shares[1], hooks.call_site(), others))

    def _loaded(self, module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> None:
        students, _ = self._networks()
        if (
            not isinstance(state_dict, Mapping)
            or not state_dict
            or len(self.kept.own) + len(self.kept.nothing) >= _MOST
        ):
            return
        own = dict([*module.named_parameters(), *module.named_buffers()])
        if not own:
            return
        both = [name for name in own if isinstance(state_dict.get(name), Tensor)]
        strict = args[0] if args else kwargs.get("strict", True)
        if not both and not strict:
            self.kept.nothing.append((type(module).__name__, next(iter(state_dict)), hooks.call_site()))
        weights = [name for name in both if isinstance(own[name], nn.Parameter) and address(own[name])]
        if module in students and weights and all(address(state_dict[n]) == address(own[n]) for n in weights):
            self.kept.own.append(hooks.call_site())


def _is_weight(t: Tensor) -> bool:
    return t.is_floating_point() and not t.is_sparse and t.numel() > 1 and numbers(t) is not None


def _weights_in(obj: Any) -> list[Tensor]:
    """Return the tensors of what is saved, but for the state of an optimizer, which has their shapes."""
    if isinstance(obj, Mapping):
        parts = [v for v in obj.values() if not (isinstance(v, Mapping) and {"state", "param_groups"} <= v.keys())]
        return [t for part in parts for t in _weights_in(part)]
    return list(obj.state_dict().values()) if isinstance(obj, nn.Module) else list(tensors_in(obj, 4))


def share(module: nn.Module, there: Collection[Any]) -> float:
    """Return the part of a network's numbers that are among these samples, as of a file."""
    params = [p for p in module.parameters() if _is_weight(p)]
    whole = sum(p.numel() for p in params)
    return sum(p.numel() for p in params if sample(p) in there) / whole if whole else 0.0
