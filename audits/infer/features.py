"""Do the hooks that features are taken by ever see one?"""

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from kdbench.audits.infer.names import Names
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.roles import Cast, Group
from kdbench.audits.observe.hookups import Hookups
from kdbench.audits.observe.living import living
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import MissedHook, Sight, Trace

_WINDOWS = 5
"Windows in which a module must have been silent: some loops alternate."
_ALWAYS = 12
"Windows in which a projector must never have been called: a loop may draw the layers that it distils."


class Features(Observer):
    """Says where a search for modules to hook found none, and which hooked modules of a network never answer."""

    def __init__(self, trace: Trace, taint: Taint, known: Known, names: Names) -> None:
        self._trace, self._taint, self._known, self._names = trace, taint, known, names
        self.hookups = Hookups()
        self.restart()

    def restart(self) -> None:
        """Forget which modules answered."""
        self._answered: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._windows = 0

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Note which modules answer."""
        self._windows += 1
        for call in raw.calls:
            self._answered[call.module] = True

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Tell of the searches of networks in the distillation, or beside it, that found nothing."""
        known = self._known
        mask = known.student_mask | known.teacher_mask | known.idle
        missed = [
            MissedHook(self._names.group(Group(mask, root)), where)
            for root, where in self.hookups.in_vain()
            if self._taint.mask(root.parameters()) & mask
        ]
        self._trace.losses.missed_hooks = missed[:3]
        if self._windows < _WINDOWS:
            return
        if self._windows >= _ALWAYS and known.projectors:
            held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
            self._trace.updates.idle_projectors = self._idle_projectors(held)
        for group in (*known.students, *known.teachers):
            if group.module is None or group.module not in self._answered:
                continue
            paths = {id(part): name for name, part in group.module.named_modules()}
            self._trace.losses.missed_hooks += [
                MissedHook(self._names.group(group), where, paths[id(part)])
                for part, where in self.hookups.still_set()
                if id(part) in paths and part not in self._answered and self._is_left_out(group.module, paths[id(part)])
            ][:3]

    def _idle_projectors(self, held: set[int]) -> list[str]:
        """Name the modules that are optimised and never called, of a list or dictionary whose others project."""
        own = self._known.projectors
        projecting = {id(m) for g in own if g.module is not None for m in g.module.modules() if m in self._answered}
        found: list[str] = []
        for kind in (nn.ModuleDict, nn.ModuleList):
            for several in living(kind):
                parts = {n: m for n, m in several.named_children() if any(id(p) in held for p in m.parameters())}
                used = [part for part in parts.values() if id(part) in projecting]
                for name, part in parts.items() if used else ():
                    if type(part) is type(used[0]) and not any(m in self._answered for m in part.modules()):
                        found.append(f"{self._names.head(Group(0, several))}.{name}")
        return found

    def _is_left_out(self, network: nn.Module, path: str) -> bool:
        """Say whether the module around one answers by other parts: what is compiled or fused shows none of them."""
        around = network.get_submodule(path.rpartition(".")[0])
        inside = [part for part in around.children() if not isinstance(part, nn.ModuleList | nn.ModuleDict)]
        return around in self._answered and any(part in self._answered for part in inside)
