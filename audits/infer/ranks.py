"""What one process of a training of several holds and is shown, to be compared with what the others hold and are shown.

Nothing is sent while the training runs: digests are kept here, and handed over when the process reports.
"""

import hashlib
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from kdbench.audits.infer.layers import plain_name, shown_to
from kdbench.audits.infer.observer import Known, Observer
from kdbench.audits.infer.roles import Cast, Group
from kdbench.audits.observe import hooks
from kdbench.audits.observe.living import living
from kdbench.audits.observe.readable import is_readable, numbers
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.taint import Taint, tensors_in
from kdbench.audits.observe.windows import RawWindow
from kdbench.audits.trace import Sight, Trace
from kdbench.audits.updates import Where

_WINDOWS, _ROWS = 20, 64
"Batches, and rows of each, of which digests are kept."
_SAMPLE = 4096
"Numbers of each tensor that are digested, at even distances."
_HALF = 0.5
"Part of a student's numbers that a collective between two steps must have held to be an exchange of its gradients."
_NO_BOUND = 1e6
"A bound that large is how a norm is measured, not clipped."
_SHARDED = ("ds_id", "tensor_model_parallel", "_is_flat_param")
"Attributes by which libraries mark a parameter of which each process holds a part of its own."


@dataclass
class RankSeen:
    """One process of a training; digests are equal where what they are of is."""

    rank: int = 0
    began: bool = False
    "Whether a distillation was seen."
    steps: int = 0
    "Optimizer steps when the conclusions were drawn."
    batches: dict[str, list[str]] = field(default_factory=dict)
    "By the number of the backward, the rows that the student was shown, sorted."
    batch_where: Where | None = None
    "Of the call of the student."
    peers: list[int] = field(default_factory=list)
    "The ranks with which this one's student averages its gradients; empty where that was not seen."
    wrapped: str = ""
    "The class that wraps the student."
    exchanged: bool = False
    "Whether collectives between two steps held as many numbers as the student has."
    splits: bool = False
    "Whether the student's data came through a DistributedSampler."
    epochs: list[int] = field(default_factory=list)
    "Of that sampler, if it shuffles: what epoch it was set to, each time that it was gone through."
    sampler_where: Where | None = None
    teacher: dict[str, str] = field(default_factory=dict)
    "By name, the teacher's parameters and buffers at the first distillation step."
    teacher_where: Where | None = None
    teacher_parts: int = 0
    "Of the teacher's tensors, those of which this process holds a part."
    student: dict[str, str] = field(default_factory=dict)
    "By name, the student's parameters at the first distillation step."
    student_last: dict[str, str] = field(default_factory=dict)
    "The same when the conclusions were drawn."
    follows: bool = False
    "Whether the teacher is an average of the student."
    teacher_buffers: dict[str, str] = field(default_factory=dict)
    "By name, the teacher's running statistics when the conclusions were drawn."

    tokens: dict[str, list[float]] = field(default_factory=dict)
    """By the number of the backward, of a language model: tokens distilled, the weight of each, and how far the weight
    may be off."""
    token_where: Where | None = None
    "Of the term."
    clipped: int = 0
    "Steps before which gradients were clipped and ranks exchanged gradients."
    clipped_early: int = 0
    "Of them, those in which the exchange came after the clip."
    clip_where: Where | None = None

    @classmethod
    def read(cls, raw: dict[str, Any]) -> "RankSeen":
        """Make one of what another process sent."""
        return cls(**raw)

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


class RankEvidence(Observer):
    """Fills in a RankSeen as the training goes by."""

    def __init__(self, rank: int, trace: Trace, taint: Taint, known: Known, steps: Callable[[], int]) -> None:
        self.seen = RankSeen(rank)
        self._trace, self._taint, self._known, self._steps = trace, taint, known, steps
        self._since = 0
        "Numbers that collectives held since the last step."
        self._clip_where: Where | None = None
        self._clipped = self._after_clip = 0
        "Clips since the last step, and numbers that ranks exchanged after the first of them."
        self._training: Any = None
        "The loader that was gone through last with gradients on."

    def open(self, stack: ExitStack, guard: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Note collectives, clips, and loaders that are gone through."""
        stack.enter_context(hooks.clip_log(guard(self._clips), lambda: None))
        for name in ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "all_gather", "reduce"):
            stack.enter_context(hooks.around(dist, name, guard(self._collective)))
        stack.enter_context(hooks.around(DataLoader, "__iter__", guard(lambda loader: None), guard(self._gone_through)))

    def _collective(self, *args: Any, **kwargs: Any) -> None:
        size = sum(t.numel() for t in tensors_in([*args, *kwargs.values()], 2))
        self._since += size
        self._after_clip += size if self._clipped else 0

    def _clips(self, kind: str, params: list[nn.Parameter], bound: float, total: Any) -> None:
        if bound < _NO_BOUND:
            self._clipped += 1
            self._clip_where = hooks.call_site()

    def _gone_through(self, loader: DataLoader[Any]) -> None:
        sampler = loader.sampler
        if not torch.is_grad_enabled():
            return
        if not isinstance(sampler, DistributedSampler):
            self._training = None
            return
        if self._training is not loader:
            self._training, self.seen.epochs = loader, []
        if sampler.shuffle:
            self.seen.epochs.append(int(sampler.epoch))
            self.seen.sampler_where = hooks.call_site()

    def restart(self) -> None:
        """Forget what was taken for the distillation."""
        self.seen = RankSeen(self.seen.rank, epochs=self.seen.epochs, sampler_where=self.seen.sampler_where)

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Keep digests of the batch; at the first window, of student and teacher."""
        seen, mask = self.seen, _mask(cast.students)
        if not seen.began:
            seen.began = True
            seen.student = self._digests(cast.students)
            seen.teacher, seen.teacher_parts = self._of_teachers(cast.teachers)
            seen.teacher_where, seen.batch_where = sight.teacher_where, sight.student_where
            seen.wrapped, seen.peers = self._wrapping(cast.students)
            seen.splits = self._training is not None
        if len(seen.batches) < _WINDOWS:
            first = next((t for t in shown_to(raw, self._taint, mask) if t.ndim > 1 and is_readable(t)), None)
            if first is not None:
                keys = [hashlib.blake2b(key, digest_size=8).hexdigest() for key in row_keys(first[:_ROWS])]
                seen.batches[str(sight.number)] = sorted(keys)
        read = [t for t in sight.tokens if t.is_read and t.weight is not None and t.tokens]
        if len(read) == 1:
            seen.tokens[str(sight.number)] = [read[0].tokens, read[0].weight, read[0].residual]
            seen.token_where = next((term.where for term in sight.terms if term.kind == "soft"), None)

    def step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        """Take in whether the processes exchanged something as large as the student since the last step."""
        seen, size = self.seen, sum(p.numel() for p in self._taint.parameters(self._known.student_mask))
        exchanged = bool(size) and self._since >= _HALF * size
        seen.exchanged |= exchanged
        if exchanged and self._clipped:
            seen.clipped += 1
            seen.clipped_early += self._after_clip >= _HALF * size
            seen.clip_where = self._clip_where
        self._since = self._clipped = self._after_clip = 0

    def finish(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Keep digests of what student and teacher are now."""
        seen, known = self.seen, self._known
        if not seen.began:
            return
        seen.steps = self._steps()
        seen.student_last = self._digests(known.students)
        change = self._trace.teacher.change
        seen.follows = change is not None and change.follows
        if seen.follows:
            seen.teacher_buffers = {
                name: said
                for group in known.teachers
                if group.module is not None
                for name, b in group.module.named_buffers()
                if b.is_floating_point() and (said := _digest(b)) is not None
            }

    def _of_teachers(self, groups: list[Group]) -> tuple[dict[str, str], int]:
        tensors = self._digests(groups)
        parts = sum(_is_a_part(p) for p in self._taint.parameters(_mask(groups))) + sum(map(_is_shared_out, groups))
        for group in groups:
            for name, b in group.module.named_buffers() if group.module is not None else ():
                if (said := _digest(b)) is not None:
                    tensors[plain_name(name)] = said
        return tensors, parts

    def _digests(self, groups: list[Group]) -> dict[str, str]:
        """Return digests of the parameters, by name; of those without one, by their place."""
        found: dict[str, str] = {}
        if any(map(_is_shared_out, groups)):
            return found
        mask = _mask(groups)
        named = {
            id(p): plain_name(name)
            for group in groups
            if group.module is not None
            for name, p in group.module.named_parameters()
        }
        for place, p in enumerate(self._taint.parameters(mask)):
            if not _is_a_part(p) and (said := _digest(p)) is not None:
                found[named.get(id(p), f"parameter {place}")] = said
        return found

    def _wrapping(self, groups: list[Group]) -> tuple[str, list[int]]:
        """Return what averages the student's gradients, and over which ranks."""
        mine = {id(p) for p in self._taint.parameters(_mask(groups))}
        for module in living(nn.parallel.DistributedDataParallel):
            if any(id(p) in mine for p in module.parameters()):
                return type(module).__name__, sorted(dist.get_process_group_ranks(module.process_group))
        for p in self._taint.parameters(_mask(groups)):
            mesh = getattr(p, "device_mesh", None)
            if mesh is not None:
                return "FSDP", sorted(mesh.mesh.flatten().tolist()) if mesh.ndim == 1 else []
        return "", []


def _mask(groups: list[Group]) -> int:
    mask = 0
    for group in groups:
        mask |= group.mask
    return mask


def _is_shared_out(group: Group) -> bool:
    """Say whether each rank holds a part of a network: while it computes, whole parameters may stand in their place."""
    sharding = sys.modules.get("torch.distributed.fsdp")  # not imported for this: it takes a second
    if sharding is None or group.module is None:
        return False
    kinds = (sharding.FSDPModule, sharding.FullyShardedDataParallel)
    return any(isinstance(part, kinds) for part in group.module.modules())


def _is_a_part(value: Tensor) -> bool:
    return not is_readable(value) or any(getattr(value, name, None) not in (None, False) for name in _SHARDED)


def _digest(value: Tensor) -> str | None:
    """Return a digest of shape, dtype and some numbers; None where they are not here, or are a part of something."""
    here = numbers(value) if is_readable(value) else None
    if here is None or here.layout is not torch.strided:
        return None
    flat = here.reshape(-1)
    # Cloned: a storage of which numpy knows cannot be freed by whoever shares a network out.
    some = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].to("cpu", copy=True).contiguous()
    some = some.float() if some.dtype == torch.bfloat16 else some
    data = f"{tuple(value.shape)} {value.dtype} ".encode() + some.numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()
