"""Who is who while a script runs: modules, optimizers, loads and convolutions by their number in the run.

A script that repeats makes them in the same order in every process. So a number that the survey took down names the
same object where a fault is to act.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.scene import Role, Scene


class World:
    """Counts what a script makes and calls; every agent tells it of each call."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._numbers: dict[int, int] = {}
        self.optimizers: list[torch.optim.Optimizer] = []
        self.loads = self.pretrained = -1
        self.convs: list[nn.Module] = []
        self.steps = 0
        self.called: Counter[int] = Counter()
        "By number of a module: its calls so far."
        self.not_finite = False
        "Whether a loss was no number when its backward was called."

    def note(self, call: Call) -> None:
        """Count what this call makes or calls, before it is made."""
        if call.kind == "forward":
            self.called[self.number(call.args[0])] += 1
        elif call.kind == "optimizer":
            self.optimizers.append(call.args[0])
        elif call.kind == "load":
            self.loads += 1
        elif call.kind == "pretrained":
            self.pretrained += 1
        elif call.kind == "conv":
            self.convs.append(call.args[0])
        elif call.kind == "step":
            self.steps += 1
        elif call.kind == "backward":
            loss = call.args[0]
            if isinstance(loss, Tensor) and not bool(loss.detach().isfinite().all()):
                self.not_finite = True

    def number(self, module: nn.Module) -> int:
        """Return the number of a module, which it gets at its first call."""
        found = self._numbers.get(id(module))
        if found is None:
            found = self._numbers[id(module)] = len(self._modules)
            self._modules.append(module)  # kept alive: an id may not be given to another
        return found

    def number_of(self, optimizer: Any) -> int | None:
        """Return the number of an optimizer, in the order in which they were built; None if it was built unseen."""
        return next((n for n, known in enumerate(self.optimizers) if known is optimizer), None)

    def numbers(self) -> dict[int, int]:
        """Return the numbers of all modules that were called, by id."""
        return self._numbers

    def module(self, number: int) -> nn.Module | None:
        """Return the module of this number, if it was called already."""
        return self._modules[number] if number < len(self._modules) else None

    def playing(self, scene: Scene, role: Role) -> list[nn.Module]:
        """Return the modules that play a role and were called already."""
        found = (self.module(number) for number in scene.modules.get(role, []))
        return [module for module in found if module is not None]

    def parameters(self, scene: Scene) -> Any:
        """Return by parameter its role and its name in the module that plays it."""
        found: Any = WeakTensorKeyDictionary()
        for role in ("teacher", "student", "projector"):  # an inner network's own role stands above the outer one's
            for module in self.playing(scene, role):
                for name, p in module.named_parameters():
                    found[p] = (role, name)
        return found

    def digests(self, scene: Scene) -> dict[str, str]:
        """Return by role a digest of the weights and buffers of what is trained."""
        return {
            role: digest_of(t for module in self.playing(scene, role) for t in _tensors(module))
            for role in ("student", "projector")
        }


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the bits of tensors."""
    digest = hashlib.blake2b(digest_size=12)
    for t in tensors:
        if t.is_meta or t.layout != torch.strided or t.untyped_storage().size() == 0:
            continue
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
