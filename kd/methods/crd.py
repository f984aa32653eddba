"""CRD: a student's embedding is told from those of other images by the teacher's of the same image, and the reverse.

Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020 (1910.10699), 3.1 and its appendix: noise-
contrastive estimation against a memory of all training images' embeddings, from the pooled last stage. Both linear
layers are trained. Official code: HobbitLong/RepDistiller; its constant Z is that of the first batch for good, as here,
and its weight is 0.8 beside the labels' 1 (and beside Logit-KD's 1 in `logit+crd`). Negatives are images of other
classes, as in its mode `exact`; here an image may be drawn twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.kd.errors import InputError
from kdbench.kd.methods.registry import Batch, Images, Method, MethodSettings, Soft, Terms, method
from kdbench.kd.methods.shared import exactly, pooled
from kdbench.kd.models.registry import Answer

_EPS = 1e-7
"Beside what is divided by, as in the official code."


@method(
    "crd",
    title="CRD",
    paper="Tian et al. 2020, NCE",
    soft=Soft.NONE,
    projectors=True,
    needs=("labels", "ids"),
    seams=("features",),
    stages="last",
)
class CRD(Method):
    """Noise-contrastive estimation both ways: student against the teacher's memory, teacher against the student's."""

    settings: "Settings"
    memory_student: Tensor
    memory_teacher: Tensor
    sums: Tensor
    "Z of both; zero until the first batch."
    rows: Tensor
    "By an image's id, its row in the memories, which are in the order of classes."
    counts: Tensor
    "Images of each class."
    starts: Tensor
    "Row at which each class begins."

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The official code's: negatives an image, numbers of an embedding, and how much of a memory stays."""

        crd_weight: float = 0.8
        negatives: int = 16384
        dimensions: int = 128
        temperature: float = 0.07
        momentum: float = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("negatives", "dimensions"):
                if getattr(self, name) < 1:
                    raise InputError(f"method crd: {name} is {getattr(self, name)}; it must be at least 1")
            if not 0 <= self.momentum < 1:
                raise InputError(f"method crd: momentum is {self.momentum}; it lies from 0 to below 1")

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Make both embeddings, both memories, and the order by class from which negatives are drawn."""
        size = self.settings.dimensions
        self.embed_student, self.embed_teacher = (nn.Linear(channels[-1], size) for channels in (student, teacher))
        if self.images is None or len(self.images.labels.unique()) < 2:
            raise InputError("method crd: it needs training images of two classes, to tell one from the other")
        n, bound = len(self.images.ids), 1 / math.sqrt(size / 3)
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, torch.empty(n, size).uniform_(-bound, bound))
        self.register_buffer("sums", torch.zeros(2))
        self._index(self.images)
        # Of the processor: the same draws on every device. It is saved with the module, and so goes on where it was.
        self._draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))

    def _index(self, images: Images) -> None:
        """Note each image's row in the memories, and where each class begins."""
        labels, order = images.labels.sort(stable=True)
        rows = torch.zeros(int(images.ids.max()) + 1, dtype=torch.int64)
        rows[images.ids[order]] = torch.arange(len(order))
        counts = torch.bincount(labels)
        for name, value in (("rows", rows), ("counts", counts), ("starts", counts.cumsum(0) - counts)):
            self.register_buffer(name, value)

    def get_extra_state(self) -> Tensor:
        """Return where the draws of negatives are."""
        return self._draws.get_state()

    def set_extra_state(self, state: Any) -> None:
        """Go on with the draws from there."""
        self._draws.set_state(state.cpu())

    def forward(self, student: Answer, teacher: Answer, batch: Batch) -> Terms:
        """Return the term, computed in fp32 whatever the precision; the memories take the batch in."""
        e_s = self.embed_student(pooled(self.ask.features(student)))
        e_t = self.embed_teacher(pooled(teacher.features))
        rows = self.rows[batch.ids]
        drawn = torch.cat([rows[:, None], self._others(batch.labels)], dim=1)
        with exactly(student.logits):
            e_s, e_t = F.normalize(e_s.float()), F.normalize(e_t.float())
            found = self._likely(e_s, self.memory_teacher, drawn), self._likely(e_t, self.memory_student, drawn)
            n = len(self.memory_student)
            now = torch.stack([x.detach().mean() * n for x in found])
            self.sums.copy_(torch.where(self.sums > 0, self.sums, now))
            terms = [self._told_apart(x / z, n) for x, z in zip(found, self.sums.clone(), strict=True)]
        self.memory_student = self._remembered(self.memory_student, rows, e_s)
        self.memory_teacher = self._remembered(self.memory_teacher, rows, e_t)
        return {"crd": torch.stack(terms).sum()}

    def _others(self, labels: Tensor) -> Tensor:
        """Draw rows of images of other classes (B, K)."""
        share = torch.rand(len(labels), self.settings.negatives, generator=self._draws).to(labels.device)
        mine, start = self.counts[labels][:, None], self.starts[labels][:, None]
        others = len(self.memory_student) - mine
        place = torch.minimum((share * others).long(), others - 1)  # rounded, a share of nearly 1 may reach the end
        return place + mine * (place >= start)

    def _likely(self, e: Tensor, memory: Tensor, drawn: Tensor) -> Tensor:
        """Return exp(product / temperature) of embeddings with the memory's drawn rows (B, 1 + K)."""
        return ((e @ memory.T).gather(1, drawn) / self.settings.temperature).exp()

    def _told_apart(self, p: Tensor, n: int) -> Tensor:
        """Return the noise-contrastive loss: the first column is of the same image, the others are noise."""
        noise = self.settings.negatives / n
        right = (p[:, 0] / (p[:, 0] + noise + _EPS)).log()
        wrong = (noise / (p[:, 1:] + noise + _EPS)).log().sum(1)
        return -(right + wrong).mean()

    def _remembered(self, memory: Tensor, rows: Tensor, e: Tensor) -> Tensor:
        """Return a memory with the batch in it; a new tensor, since the backward still reads the old one."""
        keep = self.settings.momentum
        mixed = keep * memory[rows] + (1 - keep) * e.detach()
        return memory.index_copy(0, rows, F.normalize(mixed))
