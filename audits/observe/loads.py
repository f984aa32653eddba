"""How a teacher came to its weights: what was read from files, what was loaded into modules, and what came after.

Of each tensor only a sample is kept: its shape, and up to 256 of its numbers at even distances. Two tensors are taken
for equal when their samples are.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from kdbench.audits.observe import hooks, pretrained, torch_internals
from kdbench.audits.observe.readable import address, is_readable, numbers
from kdbench.audits.observe.taint import tensors_in
from kdbench.audits.trace import Loaded

_SAMPLE = 256
_MOST_TENSORS = 20_000
_SAMPLED = 50
"Steps of a teacher's own training of which one is sampled: within as many, weights do not turn round."
_ALIKE = 0.5
"Cosine from which values are taken for a continuation of others: those drawn anew are near 0 over many numbers."
_ROUNDED = 2e-2
"Share by which values may differ after a visit to half precision; the coarser bfloat16 leaves less than 1e-2."

_FIXED = 0.1
"""Part of a trained network's numbers that may be fixed, as frequencies and places are: a whole layer that nobody
trained or loaded is more."""


class Network(NamedTuple):
    """A network as far as it is known: the module, if one was seen to hold it, and its parameters in a loss."""

    module: nn.Module | None
    params: list[nn.Parameter]


def sample(value: Tensor) -> tuple[tuple[int, ...], bytes]:
    """Return a tensor's shape and some of its numbers, which must lie here (:mod:`audits.observe.readable`)."""
    here = numbers(value)
    flat = (value.detach() if here is None else here).reshape(-1)
    if flat.numel() > _SAMPLE:
        step = flat.numel() // _SAMPLE
        flat = flat[:: step + (step % 2 == 0)][:_SAMPLE]
    # A copy: a storage that numpy knows of can no longer be freed by those who share a network out over processes.
    return tuple(value.shape), flat.to("cpu", torch.float32, copy=True).numpy().tobytes()


class Loads:
    """What was read and loaded since the script began."""

    def __init__(self) -> None:
        self._from_file: set[tuple[tuple[int, ...], bytes]] = set()
        self._read: set[tuple[tuple[int, ...], bytes]] = set()
        self._saved_fresh: set[tuple[tuple[int, ...], bytes]] = set()
        "Saved by this very process from modules that nothing had trained: to read them back proves nothing."
        self._loaded: Any = WeakTensorKeyDictionary()
        self._aliased: Any = WeakTensorKeyDictionary()
        self._copies: Any = WeakTensorKeyDictionary()
        "Copies of what was trained (True) or loaded by then, whatever became of the original since."
        self._trained_values: set[tuple[tuple[int, ...], bytes]] = set()
        self.trained: Any = WeakTensorKeyDictionary()
        "Parameters that an optimizer stepped before the distillation began."
        self._constants: Any = WeakTensorKeyDictionary()
        "Parameters that required no gradient in a network that learned, and what was in them."
        self._after: Any = WeakTensorKeyDictionary()
        "Of these: how often, the version after the last step, and what was in them after a step not long before."
        self.calls = 0
        self.files = 0
        self.where: Any = None
        self._exit = ExitStack()

    def open(self) -> None:
        """Watch the ways in which weights come from files."""
        enter = self._exit.enter_context
        enter(hooks.patched(torch, "load", self._wrap_read))
        enter(hooks.patched(torch, "save", self._wrap_save))
        enter(hooks.patched(torch.jit, "load", self._wrap_read))
        enter(hooks.patched(nn.Module, "load_state_dict", self._wrap_load))
        enter(hooks.patched(nn.Parameter, "__deepcopy__", self._wrap_copy))
        enter(pretrained.watching(self._take_in_pretrained, self._take_in_resized, self._note_saved))
        try:
            import safetensors.torch as st
        except ImportError:
            return
        enter(hooks.patched(st, "load_file", self._wrap_read))
        enter(hooks.patched(st, "load", self._wrap_read))
        enter(hooks.patched(st, "save_file", self._wrap_save))
        enter(hooks.patched(st, "save", self._wrap_save))

    def close(self) -> None:
        """Let go."""
        self._exit.close()

    def _wrap_read(self, original: Any) -> Any:
        def read(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.files += 1
            self._take_in(result)
            return result

        return read

    def _wrap_save(self, original: Any) -> Any:
        def save(obj: Any, *args: Any, **kwargs: Any) -> Any:
            self._note_saved(obj)
            return original(obj, *args, **kwargs)

        return save

    def _note_saved(self, obj: Any) -> None:
        """Take in what is saved: where nothing of it was trained or read, to read it back proves nothing."""
        self.remember_trained()
        values = list(obj.state_dict().values()) if isinstance(obj, nn.Module) else list(tensors_in(obj, 4))
        samples = {sample(t) for t in values[:_MOST_TENSORS] if _has_weights(t)}
        if not samples & (self._trained_values | self._from_file):
            self._saved_fresh |= samples

    def _take_in(self, value: Any) -> None:
        modules = [value] if isinstance(value, nn.Module) else []
        if isinstance(value, Mapping):
            modules += [v for v in value.values() if isinstance(v, nn.Module)]
        found = [*tensors_in(value, 4), *(t for m in modules for t in m.state_dict().values())]
        for module in modules:  # a whole network: whatever moves of it later, as statistics do, was read
            state = ((t, sample(t)) for t in _readable_state(module).values() if _has_weights(t))
            self._loaded.update((t, at) for t, at in state if at not in self._saved_fresh)
        for tensor in found[:_MOST_TENSORS]:
            if _has_weights(tensor):
                self._read.add(at := sample(tensor))
                if at not in self._saved_fresh:
                    self._from_file.add(at)

    def _take_in_pretrained(self, module: nn.Module, lacking: set[str]) -> None:
        """Take in a network that Transformers loaded, but for these names, which its checkpoint lacked."""
        self.files += 1
        self.where = hooks.call_site()
        self.remember_trained()
        for name, t in _readable_state(module).items():
            if name in lacking or not t.is_floating_point():
                continue
            self._read.add(at := sample(t))
            if at not in self._saved_fresh:
                self._from_file.add(at)
                self._loaded[t] = at

    def _take_in_resized(self, before: list[nn.Parameter], after: list[nn.Parameter]) -> None:
        """Take in that a vocabulary was lengthened or cut: what was loaded of its embeddings still is."""
        if all(p in self._loaded for p in before):
            self._loaded.update((p, sample(p)) for p in after if numbers(p) is not None)

    def _wrap_load(self, original: Any) -> Any:
        def load(module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            own = _readable_state(module)
            aliased, given = [], {}
            self.remember_trained()
            known = self._from_file | self._trained_values
            if isinstance(state_dict, Mapping):
                for name, t in own.items():
                    value = state_dict.get(name)
                    if isinstance(value, Tensor) and numbers(value) is not None:
                        given[name] = sample(value)
                        same = given[name] == sample(t) and given[name] not in known and isinstance(t, nn.Parameter)
                        same = same and not self._is_trivial(t)
                        if (address(value) == address(t) or same) and value.numel():
                            aliased.append(name)
            result = original(module, state_dict, *args, **kwargs)
            self.where = hooks.call_site()
            for name, t in _readable_state(module).items():
                if name in aliased:
                    self._aliased[t] = name
                    self._loaded.pop(t, None)
                elif name in given and sample(t) == given[name] and given[name] not in self._saved_fresh:
                    # Values that came from no file: a copy of another module, which may be trained or not.
                    self._loaded[t] = given[name]
                    self._aliased.pop(t, None)
            return result

        return load

    def _wrap_copy(self, original: Any) -> Any:
        def copy(param: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = original(param, *args, **kwargs)
            known = param in self.trained or param in self._loaded
            if result is not param and known and numbers(result) is not None:
                self._loaded[result] = sample(result)
                self._copies[result] = param in self.trained or param in self._copies
            return result

        return copy

    def went_on(self, optimizer: torch.optim.Optimizer) -> None:
        """Note a later step, of which only those that are observed closely say what they moved."""
        self.stepped(p for group in optimizer.param_groups for p in group["params"] if p in self._after)

    def stepped(self, params: Any) -> None:
        """Note parameters that an optimizer moved, and that are not taught yet."""
        for p in params:
            if p not in self.trained:
                self.trained[p] = -1
            steps, _, values = self._after.get(p, (0, None, None))
            steps += 1
            if (steps & (steps - 1) == 0 or steps % _SAMPLED == 0) and numbers(p) is not None:
                values = sample(p)
            self._after[p] = steps, torch_internals.version_of(p), values

    def learns(self, module: nn.Module) -> None:
        """Note what a network that is called with a gradient holds beside what it learns, as fixed frequencies."""
        params = list(module.parameters())
        frozen = [p for p in params if not p.requires_grad and p not in self._constants and numbers(p) is not None]
        if len(frozen) < len(params):
            self._constants.update((p, sample(p)) for p in frozen)

    def remember_trained(self) -> None:
        """Take the values of what was trained: a copy of it is trained too."""
        for p in list(self.trained.keys()):
            version = torch_internals.version_of(p)
            if self.trained[p] != version and numbers(p) is not None:
                self.trained[p] = version
                if not self._is_redrawn(p, now := sample(p)):
                    self._trained_values.add(now)

    def learned(self) -> list[nn.Parameter]:
        """Return the parameters that were trained, or loaded with what was read or trained."""
        return [p for p in (*self.trained.keys(), *self._loaded.keys()) if isinstance(p, nn.Parameter)]

    def _is_redrawn(self, p: Tensor, now: tuple[tuple[int, ...], bytes]) -> bool:
        """Say whether trained weights were filled with others since their last step: not averaged, not cut.

        A bias of a few numbers can turn round by itself.
        """
        _, version, values = self._after.get(p, (0, None, None))
        later = values is not None and p.ndim > 1 and torch_internals.version_of(p) != version
        return later and not _is_alike(values, now)

    def judge(
        self, teachers: list[Network], students: list[nn.Module], name_of: Callable[[Tensor], str]
    ) -> Loaded | None:
        """Say how much of the teachers was loaded or trained, at the first distillation step.

        `name_of` names the parameters of a teacher that no module was seen to hold.
        """
        self.remember_trained()
        tensors = _teacher_tensors(teachers, name_of)
        if not tensors:
            return None
        covered = total = constant = 0
        missing, aliases, changed, constants = [], [], [], []
        any_trained = any_loaded = False
        for name, t in tensors:
            size = t.numel()
            now = sample(t)
            total += size
            loaded = self._loaded.get(t)
            if not isinstance(t, nn.Parameter) and self._follows(tensors, name, t):
                covered += size
            elif t in self.trained and self._is_redrawn(t, now):
                changed.append(name)
            elif t in self.trained or now in self._trained_values:
                covered += size
                any_trained = True
            elif loaded is not None:
                any_loaded = True
                like = _is_alike if t in self._copies else _is_close  # what was copied may be averaged since
                if loaded == now or like(loaded, now) or not isinstance(t, nn.Parameter):
                    covered += size
                else:
                    changed.append(name)
            elif now in self._from_file:
                covered += size
                any_loaded = True
            elif t in self._aliased:
                aliases.append(name)
            elif self._constants.get(t) == now:
                constants.append(name)
                constant += size
            else:
                missing.append(name)
        if any_trained and constant <= _FIXED * total:
            covered += constant
        else:
            missing += constants
        same, is_start = self._same_as_student([t.module for t in teachers if t.module is not None], students)
        route = "trained in this process" if any_trained else "loaded" if any_loaded else "not seen"
        if route == "loaded" and all(self._copies.get(t) for _, t in tensors if isinstance(t, nn.Parameter)):
            route = "copied from what was trained in this process"
        unseen = [t.module for t in teachers if t.module is not None and not pretrained.follows(t.module)]
        names = [getattr(module, "name_or_path", "") for module in unseen]
        made_from = next((n for n in names if isinstance(n, str) and n), "")
        return Loaded(
            covered,
            total,
            missing,
            aliases,
            changed,
            any_trained,
            route,
            same,
            is_start,
            made_from=made_from,
            where=self.where,
        )

    def _is_trivial(self, t: Tensor) -> bool:
        here = numbers(t)
        return here is not None and bool((here == 0).all() or (here == 1).all())

    def _follows(self, tensors: list[tuple[str, Tensor]], name: str, t: Tensor) -> bool:
        """Say whether a buffer's own module has trained parameters: then its statistics are trained along.

        Where the parameters are copies of trained ones, the statistics have to be copies too: those that a norm is made
        with (0 and 1) were left behind.
        """
        stem = name.rpartition(".")[0]
        beside = [p for n, p in tensors if n.rpartition(".")[0] == stem and isinstance(p, nn.Parameter)]
        if any(p in self.trained for p in beside):
            return True
        return any(sample(p) in self._trained_values for p in beside) and not self._is_trivial(t)

    def _same_as_student(self, teachers: list[nn.Module], students: list[nn.Module]) -> tuple[bool, bool]:
        """Say whether the teacher, loaded from a file, holds the student's start, saved untrained; and whether it holds
        number by number what the student does, wherever from.

        To start from a trained teacher's file is a method.
        """
        known = self._from_file | self._trained_values
        for teacher in teachers:
            for student in students:
                a, b = list(teacher.parameters()), list(student.parameters())
                if teacher is student or not a or len(a) != len(b) or not all(is_readable(t) for t in (*a, *b)):
                    continue
                mine = Counter(map(sample, a))  # by what is in them: a wrapper calls them otherwise
                if mine != Counter(map(sample, b)):
                    continue
                read = all(one in self._read for one in mine)
                return read and not known & {sample(t) for t in a if not self._is_trivial(t)}, True
        return False, False


def _is_close(one: tuple[tuple[int, ...], bytes], other: tuple[tuple[int, ...], bytes]) -> bool:
    """Say whether values differ by rounding alone, as after a visit to half precision."""
    a = torch.frombuffer(bytearray(one[1]), dtype=torch.float32) if one[1] else torch.empty(0)
    b = torch.frombuffer(bytearray(other[1]), dtype=torch.float32) if other[1] else torch.empty(0)
    return len(a) == len(b) and bool((a - b).norm() <= _ROUNDED * a.norm())


def _is_alike(one: tuple[tuple[int, ...], bytes], other: tuple[tuple[int, ...], bytes]) -> bool:
    """Say whether values lead the same way, as an average does that started from others; fresh ones do not."""
    a = torch.frombuffer(bytearray(one[1]), dtype=torch.float32) if one[1] else torch.empty(0)
    b = torch.frombuffer(bytearray(other[1]), dtype=torch.float32) if other[1] else torch.empty(0)
    return len(a) == len(b) and bool(a @ b >= _ALIKE * a.norm() * b.norm())


def _teacher_tensors(teachers: list[Network], name_of: Callable[[Tensor], str]) -> list[tuple[str, Tensor]]:
    """Return the teachers' parameters that reached the loss, and the running statistics beside them."""
    found: list[tuple[str, Tensor]] = []
    for teacher in teachers:
        if teacher.module is None:
            found += [(name_of(p), p) for p in teacher.params]
            continue
        used = {id(p) for p in teacher.params}
        for prefix, module in teacher.module.named_modules():
            own = [(n, p) for n, p in torch_internals.parameters_of(module).items() if p is not None and id(p) in used]
            found += [(f"{prefix}.{n}".lstrip("."), p) for n, p in own]
            if isinstance(module, torch_internals.BatchNorm) and (own or not module.affine):
                found += [
                    (f"{prefix}.{n}".lstrip("."), b)
                    for n, b in torch_internals.buffers_of(module).items()
                    if b is not None and n.startswith("running")
                ]
    # A shell on the meta device holds no weights: what answers is handed to it call by call.
    return [(name, t) for name, t in found if numbers(t) is not None]


def _has_weights(value: Tensor) -> bool:
    return value.is_floating_point() and not value.is_sparse and numbers(value) is not None


def _readable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, those whose numbers lie here."""
    both = [*module.named_parameters(), *module.named_buffers()]
    return {name: value for name, value in both if numbers(value) is not None}
