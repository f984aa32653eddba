"""Which networks a script asks after the student's last step: what it reports is theirs."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from kdbench.audits.observe import hooks
from kdbench.audits.observe.loads import sample
from kdbench.audits.observe.readable import numbers
from kdbench.audits.observe.saves import Networks, share
from kdbench.audits.trace import Kept

_PART = "part"
"What is called within a network that is known already."
_SAME, _HALF = 0.99, 0.5
"Parts of a network's numbers from which it is a copy of another, and from which it may be one."


class Scored:
    """Notes who was asked since the student's last step, by parameters and by values."""

    def __init__(self, networks: Networks, kept: Kept, others_stepped: Callable[[], None] = lambda: None) -> None:
        self._networks, self._kept, self._others_stepped = networks, kept, others_stepped
        self._start: set[Any] = set()
        "Samples of the students' numbers when the distillation began."
        self._kinds: WeakKeyDictionary[nn.Module, tuple[int, str]] = WeakKeyDictionary()
        "By module, the version of its numbers at which it was looked at, and what it is."
        self._moves: WeakKeyDictionary[torch.optim.Optimizer, bool] = WeakKeyDictionary()
        self._steps = 0

    def open(self, stack: ExitStack, guard: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Watch who is asked, and when the student moves."""
        stack.callback(register_module_forward_pre_hook(guard(self._asked)).remove)
        stack.callback(register_optimizer_step_post_hook(guard(self._stepped)).remove)

    def begin(self) -> None:
        """Take in that a distillation begins, with these networks."""
        self._kinds, self._moves = WeakKeyDictionary(), WeakKeyDictionary()
        self._kept.asked.clear()
        self._kept.tested = False
        params = (p for m in self._networks()[0] for p in m.parameters())
        self._start = {sample(p) for p in params if p.numel() > 1 and numbers(p) is not None}

    def _stepped(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        if not self._start:
            return
        if optimizer not in self._moves:
            mine = {id(p) for m in self._networks()[0] for p in m.parameters()}
            self._moves[optimizer] = any(id(p) in mine for group in optimizer.param_groups for p in group["params"])
        if self._moves[optimizer]:
            self._steps += 1
            self._kept.asked.clear()
        else:
            self._others_stepped()

    def _asked(self, module: nn.Module, args: Any) -> None:
        if not self._start:
            return
        known = self._kinds.get(module)
        if known is not None and known[1] == _PART:
            return
        params = list(module.parameters())
        version = sum(p._version for p in params if not p.is_inference()) + self._steps
        if known is None or known[0] != version:
            kind = self._kind(module, params)
            known = self._kinds[module] = (version, kind)
            for part in module.modules():
                self._kinds.setdefault(part, (0, _PART))
        kind = known[1]
        if kind == _PART:
            return
        if kind == "student":
            self._kept.tested |= not torch.is_grad_enabled()
        self._kept.asked.pop(kind, None)  # the latest stands last
        self._kept.asked[kind] = hooks.call_site() if kind in ("teacher", "start") else None

    def _kind(self, module: nn.Module, params: list[nn.Parameter]) -> str:
        """Return whether a network is the student, the teacher, the student as it began, another, or no network."""
        students, teachers = self._networks()
        ids = {id(p) for p in params}
        if not ids:
            return _PART
        for name, networks in (("student", students), ("teacher", teachers)):
            if any(id(p) in ids for m in networks for p in m.parameters()):
                return name
        shapes = [p.shape for p in params]
        if all(shapes != [p.shape for p in m.parameters()] for m in (*students, *teachers)):
            return "other"
        there = {sample(p) for p in params if p.numel() > 1 and numbers(p) is not None}
        if any(share(m, there) >= _HALF for m in students):
            return "student"
        if any(share(m, there) >= _SAME for m in teachers):
            return "teacher"
        return "start" if there and len(there & self._start) >= _SAME * len(there) else "other"
